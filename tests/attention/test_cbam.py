"""CBAM against equations 1 to 3 of its paper, written out here."""

import pytest
import torch
from by_hand import Weights, assert_equal_with_gradients, batch_norm, convolution, linear, modes, relu, sigmoid, sizes
from torch import Tensor

from gamlib.attention import CBAM


@sizes
@modes
@pytest.mark.parametrize("kernel_size", [7, 3])
@pytest.mark.parametrize("gate_max_pool", [True, False])
def test_values_and_gradients_are_those_of_the_equations(
    gate_max_pool: bool, kernel_size: int, training: bool, size: tuple[int, int]
) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        def mlp(pooled: Tensor) -> Tensor:
            hidden = relu(linear(pooled, weights["mlp.0.weight"], weights["mlp.0.bias"]))
            return linear(hidden, weights["mlp.2.weight"], weights["mlp.2.bias"])

        scores = mlp(x.mean((2, 3))) + (mlp(x.amax((2, 3))) if gate_max_pool else 0)
        x = sigmoid(scores)[:, :, None, None] * x
        pooled = [x.amax(1), x.mean(1)] if gate_max_pool else [x.mean(1)]
        scores = convolution(torch.stack(pooled, 1), weights["conv.weight"])
        return sigmoid(batch_norm(scores, weights, "norm", training)) * x

    block = CBAM(16, reduction=4, kernel_size=kernel_size, gate_max_pool=gate_max_pool)
    assert block.conv.weight.shape[2:] == (kernel_size, kernel_size)
    assert_equal_with_gradients(block, 16, size, equations, training)
