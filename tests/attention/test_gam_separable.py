"""Separable GAM: GAM's equations, with windows that are a pointwise times a depthwise weight."""

from typing import Any

import pytest
import torch
from by_hand import Weights, assert_equal_with_gradients, global_attention, sizes
from torch import Tensor

from gamlib.attention import SeparableGAM


@sizes
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("gate_max_pool", [False, True])
def test_values_and_gradients_are_gams_for_separable_windows(
    gate_max_pool: bool, groups: int, size: tuple[int, int]
) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        for name in ("spatial.squeeze", "spatial.expand"):
            depthwise = weights[f"{name}.0.weight"].squeeze(1).unflatten(0, (groups, -1))
            pointwise = weights[f"{name}.1.weight"].flatten(1).unflatten(0, (groups, -1))
            weights[f"{name}.weight"] = torch.einsum("goc,gcij->gocij", pointwise, depthwise).flatten(0, 1)
        return global_attention(x, weights, groups=groups, gate_max_pool=gate_max_pool)

    block = SeparableGAM(32, reduction=4, groups=groups, gate_max_pool=gate_max_pool)
    assert_equal_with_gradients(block, 32, size, equations)


@pytest.mark.parametrize("groups", [1, 32])  # 32: every hidden channel is a group of the last pointwise weights
def test_its_own_initial_weights_are_the_depthwise_ones_by_the_outputs_that_an_input_reaches(groups: int) -> None:
    torch.manual_seed(0)
    spatial: Any = SeparableGAM(512, groups=groups).spatial
    before = {name: value.clone() for name, value in spatial.state_dict().items()}
    spatial.init_weights()
    for name, value in spatial.state_dict().items():
        if value.shape[2:] == (7, 7):
            assert float(value.std()) == pytest.approx((2 / 49) ** 0.5, rel=0.1), name
        else:
            assert torch.equal(value, before[name]), name
