"""Triplet attention against equations 1 and 2 of its paper, written out here."""

import pytest
import torch
from by_hand import Weights, assert_equal_with_gradients, batch_norm, convolution, modes, sigmoid, sizes
from torch import Tensor

from gamlib.attention import TripletAttention


@sizes
@modes
@pytest.mark.parametrize("kernel_size", [7, 3])
def test_values_and_gradients_are_those_of_the_equations(
    kernel_size: int, training: bool, size: tuple[int, int]
) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        def gated(axes: str, left: str) -> Tensor:
            """The map times its gate over two axes, which is pooled over the axis that is left."""
            kept = "nchw".replace(left, "")
            pooled = torch.stack([x.amax("nchw".index(left)), x.mean("nchw".index(left))], 1)
            plane = torch.einsum(f"{kept[0]}z{kept[1:]}->nz{axes}", pooled)
            scores = convolution(plane, weights[f"over_{axes}.conv.weight"])
            gate = sigmoid(batch_norm(scores, weights, f"over_{axes}.norm", training))
            return torch.einsum(f"nz{axes},nchw->nchw", gate, x)

        return (gated("hc", left="w") + gated("cw", left="h") + gated("hw", left="c")) / 3

    block = TripletAttention(8, kernel_size)
    assert block.over_hw.conv.weight.shape == (1, 2, kernel_size, kernel_size)
    assert_equal_with_gradients(block, 8, size, equations, training)
