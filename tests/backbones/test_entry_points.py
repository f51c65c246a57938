"""The networks by one name: in timm's registry and from torch.hub."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import gamlib.timm
from ablation.paths import ROOT
from gamlib import GAM, build_model
from gamlib.attention import CopiedGAM

NAMES = {f"{b}_{a}" for b in build_model.backbones() for a in build_model.attentions() if a != "none"}
SMALL: dict[str, Any] = {"num_classes": 10, "width": 0.25}


def from_hub(name: str, *arguments: Any, **named: Any) -> Any:
    return torch.hub.load(str(ROOT), name, *arguments, source="local", **named)


def from_timm(name: str, **named: Any) -> nn.Module:
    return timm.create_model(name, **named)


load = pytest.mark.parametrize("load", [from_timm, from_hub], ids=["timm", "hub"])


@pytest.fixture
def cloned(monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository's name as torch.hub asks for it, whose copy in its cache is this folder."""
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: str(ROOT))
    return "owner/name"


def test_timm_and_hub_list_every_network_with_a_mechanism(cloned: str) -> None:
    assert set(timm.list_models(module="timm")) == NAMES
    assert set(torch.hub.list(cloned, trust_repo=True)) == NAMES | {"build_model", "gam"}


def test_no_network_of_timms_is_replaced() -> None:
    """Its registry would warn, and give ours for one of its names."""
    assert "resnet18" in dir(timm.models) and not NAMES & {*dir(timm.models)}
    assert all(inspect.getmodule(timm.models.model_entrypoint(name)) is gamlib.timm for name in NAMES)


@load
@pytest.mark.parametrize(("name", "attention"), [("resnet18_gam", "gam"), ("resnet18_gam_copied", "gam_copied")])
def test_a_network_by_its_name_has_the_bits_of_build_models(load: Any, name: str, attention: str) -> None:
    torch.manual_seed(0)
    found = load(name, **SMALL).eval()
    torch.manual_seed(0)
    wanted = build_model("resnet18", attention, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    assert found(x).shape == (2, 10) and torch.equal(found(x), wanted(x))
    assert found.state_dict().keys() == wanted.state_dict().keys()


@load
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True}, "^pretrained=True: resnet18_gam has no trained weights; weights='DEFAULT' loads"),
        ({"drop_rate": 0.1}, "^argument='drop_rate': allowed: num_classes, stem, max_pool, width"),
        ({"backbone": "resnet34"}, "^argument='backbone': allowed: num_classes"),
        ({"reduction": 3}, "^reduction=3 does not divide the 64 channels"),
    ],
)
def test_what_a_network_by_its_name_cannot_have_is_refused(load: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("resnet18_gam", **arguments)


def test_a_tag_of_timms_names_weights_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"^pretrained_cfg='a1_in1k': resnet18_gam has no trained weights"):
        timm.create_model("resnet18_gam.a1_in1k")


def test_the_hub_has_the_block_and_the_builder_and_says_what_they_take(cloned: str) -> None:
    assert type(from_hub("gam", 32, reduction=8)) is GAM
    assert sum(isinstance(part, GAM) for part in from_hub("build_model", "resnet18", **SMALL).modules()) == 8
    for name, words in (
        ("resnet18_gam", "num_classes, stem, max_pool"),
        ("build_model", "factor on the channels of the backbone"),
        ("gam", "the paper's gc"),
    ):
        assert words in str(torch.hub.help(cloned, name, trust_repo=True))


def test_the_page_says_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/networks.md").read_text(), re.S)
    torch.save(CopiedGAM(64).state_dict(), tmp_path / "gam_attention.pt")
    monkeypatch.chdir(tmp_path)
    assert len(blocks) == 4
    for block in blocks:
        exec(block.replace('folder = "."', f"folder = {str(ROOT)!r}").replace("examples/", f"{ROOT}/examples/"), {})
