"""Attention in a network of the user's own."""

import fnmatch
import json
import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import mnasnet0_5, mobilenet_v2, resnet18, resnext50_32x4d, swin_t
from torchvision.ops import FrozenBatchNorm2d

from ablation.paths import ROOT
from gamlib import GAM, attach
from gamlib.attention import CBAM, TripletAttention


class Own(nn.Module):
    """A small residual network as a user writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(32, 32, 3, padding=1), "norm": nn.GroupNorm(4, 32)}) for _ in range(3)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["norm"](block["conv"](x)).relu()  # type: ignore[index]
        return self.head(x.mean((2, 3)))


def test_a_network_of_ones_own_gets_it_where_one_says() -> None:
    model = Own().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert attach(model, "gam", after="blocks.*.norm", reduction=8) is model
    assert [name for name, module in model.named_modules() if isinstance(module, GAM)] == [
        f"blocks.{index}.norm.attention" for index in range(3)
    ]
    assert model(x).shape == (2, 5) and model(x).dtype == torch.float64
    after = model.state_dict()
    assert [name for name in after if ".attention." not in name] == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value)


def test_a_pattern_may_match_a_module_and_what_lies_in_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x))

    model = nn.Sequential(Pair(), nn.Conv2d(16, 16, 3))
    attach(model, "gam", after="*")
    assert sum(isinstance(module, GAM) for module in model.modules()) == 4
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 16, 4, 4)


def test_a_module_under_two_names_gets_one_block() -> None:
    for after in ("*", "second", "first"):
        model = nn.Module()
        model.first = model.second = nn.Conv2d(16, 16, 3)
        attach(model, "gam", after=after)
        assert sum(isinstance(module, GAM) for module in model.modules()) == 1
        assert (model.first is model.second) == (after == "*")


def test_a_block_behind_a_module_without_weights_gets_the_dtype_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False, track_running_stats=False)).double()
    attach(model, "gam", after="1")
    assert model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_networks_inside_others_and_frozen_norms_have_slots_too() -> None:
    inside = nn.Sequential(mobilenet_v2(), nn.ReLU())
    attach(inside, "gam")
    attach(nn.Sequential(resnet18()), "bam")
    frozen = attach(resnet18(norm_layer=FrozenBatchNorm2d), "gam").eval()
    assert frozen(torch.randn(1, 3, 64, 64)).shape == inside.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"MobileNetV2 has no stages"):
        attach(mobilenet_v2(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 1, 2]]), "bam")


def test_a_child_of_ones_own_named_attention_is_no_hindrance() -> None:
    model = nn.Sequential(
        OrderedDict(stage=nn.Sequential(OrderedDict(attention=nn.Conv2d(3, 16, 1), norm=nn.BatchNorm2d(16))))
    )
    attach(model, "gam", after="stage.norm")
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 16, 8, 8)


def test_torchvisions_own_networks_need_no_names() -> None:
    for network, number in ((resnext50_32x4d(), 16), (mobilenet_v2(), 17)):
        attach(network, "cbam")
        assert sum(isinstance(module, CBAM) for module in network.modules()) == number
        assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_blocks_follow_the_device_the_dtype_and_the_mode() -> None:
    with torch.device("meta"):
        model = Own().to(torch.bfloat16).eval()
    attach(model, "gam", after=["stem", "blocks.1.*"])
    blocks = [module for module in model.modules() if isinstance(module, GAM)]
    assert len(blocks) == 3
    assert all(p.is_meta and p.dtype == torch.bfloat16 for block in blocks for p in block.parameters())
    assert not any(block.training for block in blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "gams"}, "attention='gams': allowed: none, se, bam, cbam, tam, gam"),
        ({"attention": "abn"}, "attention='abn' is no block: allowed: se, bam"),
        (
            {},
            r"Own has no residual blocks of torchvision's .* after= .* e.g. blocks\.\*\.conv, blocks\.\*\.norm, stem$",
        ),
        ({"attention": "bam"}, "Own has no stages of torchvision's"),
        ({"after": "norm9"}, r"after='norm9': no such module; Own has blocks\.\*\.conv, "),
        ({"after": "head"}, r"head \(Linear\) puts out \[1, 5\]: allowed: \[N, C, H, W\]"),
        (
            {"after": "*.norm", "reduction": 5},
            "reduction=5 does not divide the 32 channels; allowed: 1, 2, 4, 8, 16, 32; any with round_reduction",
        ),
        ({"after": "*.norm", "groups": 4, "reduction": 16}, "groups=4 does not divide the 2 hidden channels"),
        ({"after": "*.norm", "channels": 4}, "channels=4: blocks.0.norm puts out 32"),
        ({"after": "*.norm", "channels": 0}, "channels=0: allowed: whole numbers from 1"),
        ({"after": "*.norm", "channels": {"norm": 32}}, "channels='norm': no attention follows it; .* blocks.0.norm, "),
        ({"after": "blocks.0", "example": (1, 3)}, r"example=\(1, 3\): allowed: a tensor \[N, C, H, W\], or its shape"),
        (
            {"after": "blocks.0"},
            r"blocks.0 \(ModuleDict\) cannot be told: Own does not reach it .* channels=, .*example=",
        ),
        (
            {"after": "head", "example": (1, 4, 8, 8)},
            r"does not reach it with \[1, 4, 8, 8\]: Invalid channel dimensions; say",
        ),
        ({"after": "*.norm", "initial": "zero"}, "initial='zero': allowed: own, identity"),
        ({"after": "*.norm", "round_reduction": 1}, "round_reduction=1: allowed: True, False"),
        ({"after": "*.norm", "reduction": "16"}, "reduction='16': allowed: whole numbers from 1"),
        ({"after": "*.norm", "gropus": 4}, "gropus=4: attention=gam has none; its options are reduction, submodules"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = Own()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, **arguments)
    assert list(model.state_dict()) == before


def test_a_slot_is_filled_once() -> None:
    model = mobilenet_v2()
    attach(model, "se")
    with pytest.raises(ValueError, match=r"features.1.conv has an attention block already"):
        attach(model, "gam")


def test_what_is_suggested_can_be_asked_for() -> None:
    """Also where a pattern would match other modules too, as features.*.0 would blocks that put out [N, H, W, C]."""
    for network in (swin_t(), mnasnet0_5()):
        with pytest.raises(ValueError, match=r"after= .* e.g. ") as error:
            attach(network)
        attach(network, "tam", after=(patterns := str(error.value).rpartition("e.g. ")[2].split(", ")))
        found = [name for name, module in network.named_modules() if isinstance(module, TripletAttention)]
        assert all(fnmatch.filter(found, f"{pattern}.attention") for pattern in patterns)


def test_the_examples_of_the_readme_run_and_give_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert sum("attach(" in block for block in blocks) == 1
    said = 0
    for block in blocks:
        namespace: dict[str, Any] = {}
        exec(block, namespace)
        for call, shape in re.findall(r"^((?:network|read_gates)\(.*)  # (\[[\d, ]+\])", block, re.M):
            assert list(eval(call, namespace).shape) == json.loads(shape)
            said += 1
        for call, result in re.findall(r"^(complexity\(.*\))  # (.+)$", block, re.M):
            assert repr(eval(call, namespace)) == result
            said += 1
        for names, listed in re.findall(r"^(build_model\.\w+\(\))  # (.+)$", block, re.M):
            assert ", ".join(eval(names, namespace)) == listed
            said += 1
    assert said == 5
