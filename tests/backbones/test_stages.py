"""`stages`: where in a network attention stands."""

import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_weights import network_of, run_of
from torch import Tensor, nn

import gamlib.timm  # noqa: F401  # which registers the networks
from gamlib import build_model, load, names
from gamlib.backbones.networks import STAGES
from gamlib.paper.complexity import complexity

# Of every stage the channels that its blocks put out, and how many blocks it has.
BLOCKS = {
    "resnet18": [(64, 2), (128, 2), (256, 2), (512, 2)],
    "resnet34": [(64, 3), (128, 4), (256, 6), (512, 3)],
    "resnet50": [(256, 3), (512, 4), (1024, 6), (2048, 3)],
    "resnet101": [(256, 3), (512, 4), (1024, 23), (2048, 3)],
    "mobilenet_v2": [(16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)],
}
SMALL: dict[str, Any] = {"num_classes": 7, "stem": "cifar", "width": 0.25}


class Seen(nn.Module):
    """A block that tells its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x


class SeenBehind(Seen):
    slot = "stage"


def seen(backbone: str, block: type[Seen], stages: list[int] | None) -> list[int]:
    with torch.device("meta"):
        network = build_model(backbone, block, stages=stages)
    return [part.channels for part in network.modules() if isinstance(part, Seen)]


@pytest.mark.parametrize("backbone", names.BACKBONES)
def test_blocks_are_in_the_stages_that_are_asked_for(backbone: str) -> None:
    of_stages = [[channels] * blocks for channels, blocks in BLOCKS[backbone]]
    for number, channels in enumerate(of_stages, 1):
        assert seen(backbone, Seen, [number]) == channels
    assert seen(backbone, Seen, [3, 1]) == of_stages[0] + of_stages[2]
    assert seen(backbone, Seen, None) == [*chain.from_iterable(of_stages)]


@pytest.mark.parametrize("backbone", names.BACKBONES)
def test_what_goes_behind_stages_goes_behind_those(backbone: str) -> None:
    ends = [channels for channels, _ in BLOCKS[backbone]][: None if backbone == "mobilenet_v2" else 3]
    for number, channels in enumerate(ends, 1):
        assert seen(backbone, SeenBehind, [number]) == [channels]
    assert seen(backbone, SeenBehind, None) == seen(backbone, SeenBehind, [*range(1, len(ends) + 1)]) == ends


def test_the_table_of_stages_is_what_the_networks_have() -> None:
    assert {backbone: len(blocks) for backbone, blocks in BLOCKS.items()} == names.STAGES
    assert [(channels, blocks) for _, channels, blocks, _ in STAGES] == BLOCKS["mobilenet_v2"]


@pytest.mark.parametrize(
    ("backbone", "attention", "stages"),
    [("resnet18", "gam", [1, 2, 3, 4]), ("resnet18", "bam", (3, 2, 1)), ("mobilenet_v2", "cbam", [*range(1, 8)])],
)
def test_all_stages_are_the_network_without_a_choice(backbone: str, attention: str, stages: list[int]) -> None:
    states = []
    for chosen in (None, stages):
        torch.manual_seed(0)
        states.append(build_model(backbone, attention, stages=chosen, reduction=8, **SMALL).state_dict())
    assert [*states[0]] == [*states[1]]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_what_each_stages_attention_costs_adds_up_to_what_all_cost(backbone: str) -> None:
    def cost(attention: str, stages: list[int] | None = None) -> tuple[int, int]:
        with torch.device("meta"):
            found = complexity(build_model(backbone, attention, stages=stages, **SMALL), (1, 3, 32, 32))
        assert not found.uncounted
        return found.parameters, found.flops

    plain, every = cost("none"), cost("gam")
    alone = [cost("gam", [stage]) for stage in range(1, names.STAGES[backbone] + 1)]
    for kind in (0, 1):
        assert all(one[kind] > plain[kind] for one in alone)
        assert sum(one[kind] - plain[kind] for one in alone) == every[kind] - plain[kind]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": [0]}, "stages=[0]: allowed in resnet18: a list of some or all of 1, 2, 3, 4, each once"),
        ({"stages": [5]}, "stages=[5]: allowed in resnet18: a list of some or all of 1, 2, 3, 4"),
        ({"stages": []}, "stages=[]: allowed in resnet18"),
        ({"stages": [1, 1]}, "stages=[1, 1]: allowed in resnet18"),
        ({"stages": [True]}, "stages=[True]: allowed in resnet18"),
        ({"stages": ["1"]}, "stages=['1']: allowed in resnet18"),
        ({"stages": 1}, "stages=1: allowed in resnet18"),
        ({"stages": "13"}, "stages='13': allowed in resnet18"),
        (
            {"stages": [8], "backbone": "mobilenet_v2"},
            "stages=[8]: allowed in mobilenet_v2: a list of some or all of",
        ),
        ({"stages": [4], "attention": "bam"}, "stages=[4]: allowed in resnet18 with attention=bam: a list of some or"),
        ({"stages": [1], "attention": "none"}, "stages=[1]: attention=none has no blocks to place in stages"),
        ({"stages": [1, 2, 3, 4], "attention": "abn"}, "stages=[1, 2, 3, 4]: attention=abn has no blocks"),
    ],
)
def test_other_stages_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model(**{"backbone": "resnet18", **arguments})


@pytest.mark.parametrize(("backbone", "stages"), [("resnet18", [2, 3]), ("mobilenet_v2", [7])])
def test_the_network_of_a_run_is_loaded_with_its_stages(backbone: str, stages: list[int], tmp_path: Path) -> None:
    network = network_of(backbone, "gam", stages)
    folder = run_of(tmp_path / "run", network, backbone=backbone, attention="gam", stages=stages)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(folder)(x), network(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = build_model(backbone, "gam", stages=stages, weights=folder, **SMALL)
    assert torch.equal(same.eval()(x), network(x))


def test_weights_of_other_stages_load_where_both_have_a_block_and_the_rest_is_listed(tmp_path: Path) -> None:
    network = network_of("resnet18", "gam", [1, 2])
    folder = run_of(tmp_path / "run", network, backbone="resnet18", attention="gam", stages=[1, 2])
    with pytest.warns(UserWarning, match="attention blocks") as warned:
        found = build_model("resnet18", "gam", stages=[2, 4], weights=folder, **SMALL).state_dict()
    assert [str(one.message) for one in warned] == [
        "weights: the attention blocks behind layer4.0.bn2, layer4.1.bn2 keep their initial weights",
        "weights: the attention blocks behind layer1.0.bn2, layer1.1.bn2 have no place in this network",
    ]
    shared = {key for key in found if ".attention." in key} & network.state_dict().keys()
    assert shared and all(key.startswith("layer2.") for key in shared)
    assert all(torch.equal(found[key], network.state_dict()[key]) for key in shared)


def test_a_network_by_its_name_takes_stages() -> None:
    network = timm.create_model("resnet18_gam", stages=[4], **SMALL)
    placed = [name for name, _ in network.named_modules() if name.endswith(".attention")]
    assert placed == ["layer4.0.bn2.attention", "layer4.1.bn2.attention"]
