"""GAM against equations 1 and 2 of its paper, and what it shares with the variants that spend fewer parameters."""

from functools import partial
from typing import Any

import pytest
import torch
from by_hand import assert_equal_with_gradients, global_attention, grouped, pooled, sizes

from gamlib import GAM
from gamlib.attention import LowRankGAM, SeparableGAM, UngatedGAM

family = pytest.mark.parametrize("mechanism", [GAM, SeparableGAM, LowRankGAM, UngatedGAM])


@sizes
@grouped
@pooled
def test_values_and_gradients_are_those_of_the_equations(
    submodules: str, gate_max_pool: bool, groups: int, size: tuple[int, int]
) -> None:
    options: Any = {"submodules": submodules, "groups": groups, "gate_max_pool": gate_max_pool}
    assert_equal_with_gradients(GAM(32, reduction=4, **options), 32, size, partial(global_attention, **options))


@family
def test_the_spatial_gate_sees_exactly_13x13_positions(mechanism: type[GAM]) -> None:
    torch.manual_seed(0)
    block: Any = mechanism(32, reduction=4, submodules="sp").double()
    x = torch.randn(1, 32, 17, 17, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.spatial(x)[..., 8, 8].sum(), x)
    window = torch.zeros(17, 17, dtype=torch.bool)
    window[2:15, 2:15] = True
    assert torch.equal(gradient.abs().sum((0, 1)) > 0, window)


@family
def test_shuffle_mixes_the_groups(mechanism: type[GAM]) -> None:
    """Without it an input channel would reach only the outputs of its own group."""
    torch.manual_seed(0)
    block = mechanism(32, reduction=2, submodules="sp", groups=4).double()
    x = torch.randn(1, 32, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[:, 0].sum(), x)
    assert gradient.abs().sum((0, 2, 3)).count_nonzero() == 32


@pytest.mark.parametrize(("mechanism", "fewer"), [(SeparableGAM, 15), (LowRankGAM, 6)])
def test_a_variant_spends_far_fewer_parameters_on_spatial_attention(mechanism: type[GAM], fewer: int) -> None:
    ours, gams = (sum(value.numel() for value in kind(256, submodules="sp").parameters()) for kind in (mechanism, GAM))
    assert fewer * ours < gams
