"""BAM against equations 1 to 5 of its paper, written out here."""

import pytest
from by_hand import Weights, assert_equal_with_gradients, batch_norm, convolution, linear, modes, relu, sigmoid, sizes
from torch import Tensor

from gamlib.attention import BAM


@sizes
@modes
@pytest.mark.parametrize("dilation", [4, 2])
def test_values_and_gradients_are_those_of_the_equations(dilation: int, training: bool, size: tuple[int, int]) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        def of(layer: str) -> tuple[Tensor, Tensor]:
            return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

        def active(hidden: Tensor, norm: str) -> Tensor:
            return relu(batch_norm(hidden, weights, norm, training))

        channel = linear(active(linear(x.mean((2, 3)), *of("mlp.0")), "mlp.1"), *of("mlp.3"))
        spatial = active(convolution(x, *of("convs.0")), "convs.1")
        spatial = active(convolution(spatial, *of("convs.3"), dilation=dilation), "convs.4")
        spatial = active(convolution(spatial, *of("convs.6"), dilation=dilation), "convs.7")
        return x + sigmoid(channel[:, :, None, None] + convolution(spatial, *of("convs.9"))) * x

    assert_equal_with_gradients(BAM(32, reduction=4, dilation=dilation), 32, size, equations, training)
