"""What every mechanism of the registry promises, and the values that are refused."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gamlib.attention import MECHANISMS, build_attention, options, slot_of
from gamlib.names import SLOTS

C, K = 64, 4  # channels, and the hidden ones that the usual reduction leaves
MLP = 2 * C * K + K + C

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"reduction": 5}, "reduction=5 does not divide the 64 channels; allowed: 1, 2, 4, 8, 16, 32, 64"),
    ({"reduction": 0}, "reduction=0 does not divide the 64 channels"),
    ({"reduction": -4}, "reduction=-4 does not divide the 64 channels"),
    ({"reduction": 128}, "reduction=128 does not divide the 64 channels"),
    ({"kernel_size": 4}, "kernel_size=4: allowed: odd numbers from 1"),
    ({"kernel_size": -3}, "kernel_size=-3: allowed: odd numbers from 1"),
    ({"dilation": 0}, "dilation=0: allowed: whole numbers from 1"),
    ({"groups": 3}, "groups=3 does not divide the 4 hidden channels (64 / reduction 16); allowed: 1, 2, 4"),
    ({"groups": 4, "reduction": 32}, "groups=4 does not divide the 2 hidden channels (64 / reduction 32)"),
    ({"groups": 0}, "groups=0 does not divide the 4 hidden channels"),
    ({"submodules": "chsp"}, "submodules='chsp': allowed: ch+sp, ch, sp"),
    ({"gate_max_pool": True, "submodules": "ch"}, "gate_max_pool=True: submodules='ch' has no spatial convolutions"),
]


@pytest.mark.parametrize(
    ("attention", "values", "message"),
    [
        pytest.param(attention, values, message, id=f"{attention}-{message.split()[0]}")
        for values, message in REFUSED
        for attention in MECHANISMS
        if values.keys() <= options(attention).keys()
    ],
)
def test_a_bad_value_is_refused_with_the_numbers(attention: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_attention(attention, 64, **values)


@pytest.mark.parametrize("ask", [options, lambda attention: build_attention(attention, 64)])
def test_an_unknown_mechanism_is_refused_with_the_known_ones(ask: Callable[[str], object]) -> None:
    with pytest.raises(
        ValueError, match=f"^attention='games': allowed: none, {', '.join(MECHANISMS)}, abn, or one's own: "
    ):
        ask("games")


@pytest.mark.parametrize(
    ("attention", "values", "message"),
    [
        ("se", {"groups": 4}, "groups=4: attention=se has none; its options are reduction"),
        ("tam", {"reduction": 8}, "reduction=8: attention=tam has none; its options are kernel_size"),
        (
            "bam",
            {"reduction": 8, "kernel_size": 3},
            "kernel_size=3: attention=bam .* its options are reduction, dilation",
        ),
        ("gam", {"kernel_size": 5}, "kernel_size=5: .* are reduction, submodules, groups, gate_max_pool"),
    ],
)
def test_an_option_that_a_mechanism_lacks_is_refused_with_those_it_has(
    attention: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_attention(attention, 64, **values)


def test_a_mechanism_is_built_with_the_options_that_are_chosen() -> None:
    for attention, mechanism in MECHANISMS.items():
        assert type(build_attention(attention, 32)) is mechanism
    block: Any = build_attention("cbam", 32, reduction=8, kernel_size=3)
    assert (block.mlp[0].out_features, block.conv.kernel_size) == (4, (3, 3))


@pytest.mark.parametrize(
    ("attention", "parameters"),
    [
        ("se", 2 * C * K),
        ("bam", (C * K + 3 * K + K * C + C) + (C * K + 3 * K + 2 * (9 * K * K + 3 * K) + K + 1)),
        ("cbam", MLP + 2 * 49 + 2),
        ("tam", 3 * (2 * 49 + 2)),
        ("gam", MLP + 2 * 49 * C * K),
        ("gam_no_gate", MLP + 2 * 49 * C * K),
        ("gam_separable", MLP + 49 * (C + K) + 2 * C * K),
        ("gam_low_rank", MLP + 2 * 7 * (C + K) * K),
        ("gam_copied", 2 * C * 16 + 16 + C + 2 * 49 * C * 16 + 3 * (16 + C)),
    ],
)
def test_the_parameters_are_those_of_the_hidden_channels(attention: str, parameters: int) -> None:
    assert sum(value.numel() for value in build_attention(attention, C).parameters()) == parameters


def test_channels_come_first_and_everything_else_has_a_default() -> None:
    for attention, mechanism in MECHANISMS.items():
        first, *others = inspect.signature(mechanism).parameters
        assert first == "channels", attention
        assert [*options(attention)] == others, attention
        assert inspect.Parameter.empty not in options(attention).values(), attention


def test_an_option_has_one_default_everywhere() -> None:
    defaults: dict[str, set[object]] = {}
    for attention in MECHANISMS:
        for option, default in options(attention).items():
            defaults.setdefault(option, set()).add(default)
    assert defaults["reduction"] == {16, options("gam_copied")["reduction"]} == {16, 4}
    # Whether a gate has max-pooling is what its own paper says.
    assert [option for option, values in defaults.items() if len(values) > 1] == ["reduction", "gate_max_pool"]


def test_bam_alone_stands_behind_a_stage() -> None:
    slots = {attention: slot_of(attention) for attention in MECHANISMS}
    assert slots == dict.fromkeys(MECHANISMS, "block") | {"bam": "stage"}
    assert slots == {attention: SLOTS.get(attention, "block") for attention in MECHANISMS}  # which needs no torch


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("attention", MECHANISMS)
def test_the_output_has_the_shape_and_dtype_of_the_input(attention: str, amp: bool) -> None:
    x = torch.randn(2, 32, 9, 6, dtype=torch.bfloat16 if amp else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = build_attention(attention, 32)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("attention", MECHANISMS)
def test_channels_last_stays_channels_last(attention: str) -> None:
    """Training runs in it; a block that leaves it would have every following layer copy its input."""
    block: Any = build_attention(attention, 32)
    block.to(memory_format=torch.channels_last)
    x = torch.randn(2, 32, 9, 6).to(memory_format=torch.channels_last)
    assert block(x).is_contiguous(memory_format=torch.channels_last)
