"""SE against equations 2 to 4 of its paper, written out here."""

from by_hand import Weights, assert_equal_with_gradients, linear, relu, sigmoid, sizes
from torch import Tensor

from gamlib.attention import SE


@sizes
def test_values_and_gradients_are_those_of_the_equations(size: tuple[int, int]) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        squeezed = x.mean((2, 3))
        scale = sigmoid(linear(relu(linear(squeezed, weights["mlp.0.weight"])), weights["mlp.2.weight"]))
        return scale[:, :, None, None] * x

    assert_equal_with_gradients(SE(32, reduction=4), 32, size, equations)
