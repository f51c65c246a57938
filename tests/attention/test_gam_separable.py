"""Separable GAM: GAM's equations, with windows that are a pointwise times a depthwise weight."""

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
