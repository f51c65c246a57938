"""Mechanisms of one's own: a class of a file, a module, timm or an entry point, and what is refused."""

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gamlib import attach, build_model, sources
from gamlib.attention import GAM, build_attention, options

ECA = """
from torch import nn


class ECA(nn.Module):
    def __init__(self, channels, kernel_size: int = 3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class Halving(nn.MaxPool2d):
    def __init__(self, channels):
        super().__init__(2)


class Counting(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("weight", __import__("torch").ones(()))

    def forward(self, x):
        return x * float(self.weight)


class Squared(nn.AdaptiveAvgPool2d):
    def __init__(self, channels):
        super().__init__(8)


class Doubling(nn.Identity):
    def forward(self, x):
        return x.double()


class Reading(nn.Identity):
    def __init__(self, channels: "their number"):
        super().__init__()
        self.share = float(__import__("torch").ones(()))


def nothing(channels):
    return None
"""


@pytest.fixture
def eca(tmp_path: Path) -> str:
    (tmp_path / "eca.py").write_text(ECA)
    return f"{tmp_path}/eca.py:ECA"


class Scale(nn.Module):
    def __init__(self, channels: int, initial: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_class_of_a_file_stands_in_every_slot(eca: str) -> None:
    network = build_model("resnet18", eca, width=0.25, options={"kernel_size": 5})
    sizes = [value.shape for name, value in network.named_parameters() if name.endswith("attention.conv.weight")]
    assert sizes == [(1, 1, 5)] * 8
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert build_model("mobilenet_v2", eca)(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


def test_a_class_works_where_a_name_does() -> None:
    network = attach(build_model("resnet18", "none", width=0.25), Scale, options={"initial": 2.0})
    scales = [module.scale for module in network.modules() if isinstance(module, Scale)]
    assert len(scales) == 8 and all(bool((scale == 2).all()) for scale in scales)
    assert sum(isinstance(module, Scale) for module in build_model("resnet18", Scale, width=0.25).modules()) == 8


def test_a_class_has_the_options_that_are_given_beside_it() -> None:
    own: dict[str, Any] = {"num_classes": 10, "width": 0.25}
    by_class = build_model("resnet18", GAM, submodules="ch", reduction=8, **own)
    by_name = build_model("resnet18", "gam", submodules="ch", reduction=8, **own)
    assert [*by_class.state_dict()] == [*by_name.state_dict()]
    assert sum(p.numel() for p in by_class.parameters()) == sum(p.numel() for p in by_name.parameters())
    with pytest.raises(ValueError, match="reduction=8: attention=Scale has none"):
        build_model("resnet18", Scale, reduction=8, **own)


def test_of_a_package_the_module_counts_that_has_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("from .blocks import ECA\n")
    (tmp_path / "packed" / "blocks.py").write_text(ECA)
    resolved = sources.resolve("packed:ECA")
    (tmp_path / "packed" / "blocks.py").write_text(ECA.replace("= 3", "= 5"))
    assert sources.resolve("packed:ECA") != resolved


def test_a_slot_that_there_is_not_is_refused() -> None:
    class Misspelt(Scale):
        slot = "blocks"

    with pytest.raises(ValueError, match="slot='blocks': allowed: block, stage"):
        build_model("resnet18", Misspelt)


def test_a_module_and_timm_and_an_entry_point_are_found(
    eca: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_somebody.py").write_text(ECA)
    declared = [EntryPoint("somebodys", "of_somebody:ECA", sources.GROUP)]
    monkeypatch.setattr(sources, "entry_points", lambda group, name: [e for e in declared if e.name == name])
    resolved = sources.resolve("of_somebody:ECA")
    assert sources.resolve("somebodys") == resolved and resolved.split("#")[1] == sources.resolve(eca).split("#")[1]
    for attention in ("of_somebody:ECA", "somebodys", resolved, "timm:eca", "timm:gc"):
        assert build_attention(attention, 16)(torch.randn(2, 16, 5, 5)).shape == (2, 16, 5, 5)
    assert options("timm:eca")["kernel_size"] == 3 and options("somebodys") == {"kernel_size": 3}


def test_other_content_is_another_mechanism_and_what_was_resolved_is_refused(eca: str) -> None:
    resolved = sources.resolve(eca)
    assert options(resolved) == {"kernel_size": 3}
    Path(eca.partition(":")[0]).write_text(ECA.replace("= 3", "= 5"))
    assert sources.resolve(eca) != resolved and options(eca) == {"kernel_size": 5}
    with pytest.raises(ValueError, match="the file has changed, its hash was"):
        sources.resolve(resolved)


def test_a_file_leaves_no_compiled_code_beside_it(eca: str) -> None:
    build_attention(eca, 8)
    assert [path.name for path in Path(eca.partition(":")[0]).parent.iterdir()] == ["eca.py"]


def test_what_a_block_computes_by_values_is_tried_with_values(eca: str) -> None:
    with torch.device("meta"):
        assert build_attention(eca.replace(":ECA", ":Counting"), 8).weight.device.type == "meta"
        build_attention(eca.replace(":ECA", ":Reading"), 8)


@pytest.mark.parametrize(
    ("attention", "chosen", "message"),
    [
        ("games", {}, "attention='games': allowed: none, se, "),
        ("none", {}, "attention='none' is no block: allowed: se, "),
        ("missing.py:ECA", {}, "attention='missing.py:ECA' cannot be read: No such file or directory"),
        ("eca.py:EAC", {}, "has no class EAC; it has ECA, Halving, Counting, Squared, Doubling, Reading, nothing"),
        ("no.such:Thing", {}, "attention='no.such:Thing': ModuleNotFoundError: No module named 'no'"),
        ("os:Thing", {}, "os.py has no class Thing; it has "),
        (":Thing", {}, "attention=':Thing': ValueError: Empty module name"),
        ("timm:none_such", {}, "attention='timm:none_such': timm: Invalid attn module"),
        ("eca.py:ECA", {"kernel": 3}, "kernel=3: attention=eca.py:ECA has none; its options are kernel_size"),
        ("eca.py:ECA", {"kernel_size": 4}, "channels=8, kernel_size=4: RuntimeError: The size of tensor"),
        ("eca.py:ECA", {"kernel_size": "x"}, "attention=eca.py:ECA, channels=8, kernel_size='x': TypeError"),
        ("eca.py:Halving", {}, "a map [2, 8, 8, 8] of torch.float32 becomes [2, 8, 4, 4] of torch.float32"),
        ("eca.py:Squared", {}, "a map [2, 8, 6, 10] of torch.float32 becomes [2, 8, 8, 8] of torch.float32"),
        ("eca.py:Doubling", {}, "a map [2, 8, 8, 8] of torch.float32 becomes [2, 8, 8, 8] of torch.float64"),
        ("ending.py:ECA", {}, "attention='ending.py:ECA': SystemExit: 0"),
        ("timm:", {}, "attention='timm:': timm: Invalid attn module"),
        ("eca.py:nothing", {}, "it makes a NoneType, allowed: torch.nn.Module"),
        (
            "broken.py:ECA",
            {},
            "attention='broken.py:ECA': ModuleNotFoundError: No module named 'beside'; a file stands",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    attention: str, chosen: dict[str, object], message: str, eca: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("import beside")
    Path("ending.py").write_text("raise SystemExit(0)")
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=re.escape(message)) as refusal, torch.device(device):
            build_attention(attention, 8, **chosen)
        assert "\n" not in str(refusal.value)
    assert not any(name.startswith("gamlib_broken") for name in sys.modules)


def test_a_check_of_shape_leaves_statistics_and_random_numbers_alone() -> None:
    state = torch.get_rng_state()

    class Normed(nn.BatchNorm2d):
        pass

    block = build_attention(Normed, 8)
    assert block.training and not bool(block.running_mean.any()) and int(block.num_batches_tracked) == 0  # type: ignore[operator, arg-type]
    assert torch.equal(torch.get_rng_state(), state)
