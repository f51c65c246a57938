"""Readings of the paper: what each would print, against what is printed.

The text leaves the networks open in several places. Each reading that comes to mind is built here, in a network
whose printed numbers tell it from the others, and counted. The first answer to a question is the package's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import nn

from gamlib import paper
from gamlib.attention import SE
from gamlib.attention.gam import ChannelAttention, SpatialAttention
from gamlib.audit import rounded
from gamlib.backbones import attach, build_model
from gamlib.complexity import Complexity, complexity


@dataclass(frozen=True)
class Reading:
    """An answer to a question that the text leaves open, tried on one printed row."""

    question: str
    answer: str
    source: tuple[int, int]  # table and row of the paper
    arguments: dict[str, Any] = field(default_factory=dict)  # of build_model, where they differ from that row's
    change: Callable[[nn.Module], object] = lambda model: None  # in place
    flops: Callable[[Complexity], int] = lambda count: count.flops


def _without_bias(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, ChannelAttention):
            _linear_layers(block.mlp, bias=False)


def _with_bias(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, SE):
            _linear_layers(block.mlp, bias=True)


def _linear_layers(mlp: nn.Sequential, bias: bool) -> None:
    for place, layer in enumerate(mlp):
        if isinstance(layer, nn.Linear):
            mlp[place] = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")


def _spatial(change: Callable[[nn.Conv2d], nn.Module], *names: str) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        for block in model.modules():
            if isinstance(block, SpatialAttention):
                for name in names:
                    setattr(block, name, change(getattr(block, name)))

    return apply


def _biased(conv: nn.Conv2d) -> nn.Module:
    return nn.Conv2d(conv.in_channels, conv.out_channels, 7, padding=3, groups=conv.groups, device="meta")


def _normed(conv: nn.Conv2d) -> nn.Module:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, device="meta"))


def _attach(attention: str, *after: str) -> Callable[[nn.Module], object]:
    return lambda model: attach(model, attention, after)


def _no_stem_pooling(model: nn.Module) -> None:
    model.maxpool = nn.Identity()


def _uncounted_pooling(model: nn.Module) -> None:
    """The same layers in a class that `complexity` does not know as SE."""
    for block in model.modules():
        if isinstance(block, SE):
            block.__class__ = type("NotSE", (nn.Module,), {"forward": SE.forward})


PLAIN = {"attention": "none"}
MLP = "Does GAM's channel MLP have biases?"
CONVOLUTIONS = "What do GAM's 7x7 convolutions have beside weights?"
PLACE = "Where does GAM go in a ResNet?"
RATIO = "What is the reduction ratio r?"
SQUEEZE = "Do SE's linear layers have biases?"
STEM = "Which stem does the ResNet for CIFAR-100 have?"
BOTTLENECK = "Where does BAM go in MobileNetV2?"
FLOP = "What is a FLOP?"
POOLING = "Which max-pooling do `with` and `without` mean in Table 4?"

READINGS = (
    Reading(PLACE, "in every residual block", (4, 2)),
    Reading(PLACE, "behind every stage", (4, 2), PLAIN, _attach("gam", "layer1", "layer2", "layer3", "layer4")),
    Reading(MLP, "yes", (2, 14)),
    Reading(MLP, "no", (2, 14), change=_without_bias),
    Reading(CONVOLUTIONS, "nothing", (3, 2)),
    Reading(CONVOLUTIONS, "biases", (3, 2), change=_spatial(_biased, "squeeze", "expand")),
    Reading(CONVOLUTIONS, "BatchNorm", (3, 2), change=_spatial(_normed, "squeeze", "expand")),
    Reading(CONVOLUTIONS, "a bias in the first", (3, 2), change=_spatial(_biased, "squeeze")),
    Reading(CONVOLUTIONS, "nothing", (1, 6)),
    Reading(CONVOLUTIONS, "a bias in the first", (1, 6), change=_spatial(_biased, "squeeze")),
    Reading(RATIO, "16", (4, 2)),
    Reading(RATIO, "8", (4, 2), {"reduction": 8}),
    Reading(RATIO, "32", (4, 2), {"reduction": 32}),
    Reading(SQUEEZE, "no", (2, 9)),
    Reading(SQUEEZE, "yes", (2, 9), change=_with_bias),
    Reading(STEM, "3x3 of stride 1, no max-pooling", (1, 2)),
    Reading(STEM, "7x7 of stride 2, max-pooling", (1, 2), {"stem": "imagenet"}),
    Reading(BOTTLENECK, "behind each of the seven stages", (2, 18)),
    Reading(
        BOTTLENECK,
        "before the strided stages",
        (2, 18),
        PLAIN,
        _attach("bam", "features.1", "features.3", "features.6", "features.13"),
    ),
    Reading(FLOP, "a multiply-accumulate, and two per element of a BatchNorm", (2, 8)),
    Reading(FLOP, "a multiply-accumulate, nothing else", (2, 8), flops=lambda count: count.macs),
    Reading(
        FLOP, "a multiply-accumulate, and four per element of a BatchNorm", (2, 8), flops=lambda n: 2 * n.flops - n.macs
    ),
    Reading(FLOP, "as above, and one per element into SE's average pooling", (2, 9)),
    Reading(FLOP, "as above, and nothing for the pooling", (2, 9), change=_uncounted_pooling),
    *(
        reading
        for row in (3, 4)
        for reading in (
            Reading(POOLING, "the stem's; without it stage 1 takes its stride", (4, row)),
            Reading(
                POOLING, "the stem's; without it all maps are larger", (4, row), {"max_pool": True}, _no_stem_pooling
            ),
            Reading(POOLING, "that inside the gates", (4, row), {"max_pool": True, "gate_max_pool": False}),
        )
    ),
)


def readings() -> pd.DataFrame:
    """Every reading with the numbers that it would print, rounded to the digits of those printed.

    Columns: question, answer, network, and as texts params, params_printed (millions), flops, flops_printed (10^9);
    agrees: whether both are as printed.
    """
    rows = []
    table = paper.table()
    for reading in READINGS:
        (at,) = table.index[(table["table"] == reading.source[0]) & (table["row"] == reading.source[1])]
        printed = table.loc[at]
        with torch.device("meta"):
            model = build_model(**(paper.arguments(printed) | reading.arguments))
            reading.change(model)
        size = paper.IMAGE_SIZE[printed["dataset"]]
        count = complexity(model, (1, 3, size, size))
        params = rounded("params", count.parameters, printed["params_printed"])
        flops = rounded("flops", reading.flops(count), printed["flops_printed"])
        row = {"question": reading.question, "answer": reading.answer, "network": paper.name(printed)}
        row |= {"params": params, "params_printed": printed["params_printed"]}
        row |= {"flops": flops, "flops_printed": printed["flops_printed"]}
        agrees = (params, flops) == (printed["params_printed"], printed["flops_printed"])
        rows.append(row | {"agrees": agrees})
    return pd.DataFrame(rows)
