"""The copied GAM against its equations, and against the class whose weights people have."""

import pytest
import torch
from by_hand import Weights, assert_equal_with_gradients, batch_norm, convolution, linear, modes, relu, sigmoid, sizes
from torch import Tensor, nn

from gamlib.attention import CopiedGAM


@sizes
@modes
@pytest.mark.parametrize("channel_sigmoid", [False, True])
def test_values_and_gradients_are_those_of_the_equations(
    channel_sigmoid: bool, training: bool, size: tuple[int, int]
) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        def part(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        factor = linear(relu(linear(x, *part("channel_attention.0"))), *part("channel_attention.2"))
        x = x * (sigmoid(factor) if channel_sigmoid else factor)
        hidden = convolution(x, *part("spatial_attention.0"))
        hidden = relu(batch_norm(hidden, weights, "spatial_attention.1", training))
        scores = convolution(hidden, *part("spatial_attention.3"))
        return sigmoid(batch_norm(scores, weights, "spatial_attention.4", training)) * x

    block = CopiedGAM(16, channel_sigmoid=channel_sigmoid)
    assert_equal_with_gradients(block, 16, size, equations, training)


class GAMAttention(nn.Module):
    """The structure and the arguments of the class that is copied."""

    def __init__(self, in_channels: int, out_channels: int, rate: int = 4, sigmoid: bool = False) -> None:
        super().__init__()
        hidden = int(in_channels / rate)
        self.channel_attention = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, in_channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(in_channels, hidden, kernel_size=7, padding=3),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, kernel_size=7, padding=3),
            nn.BatchNorm2d(out_channels),
        )
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = self.channel_attention(x.permute(0, 2, 3, 1).view(b, -1, c))
        factor = rows.view(b, h, w, c).permute(0, 3, 1, 2)
        x = x * (factor.sigmoid() if self.sigmoid else factor)
        return x * self.spatial_attention(x).sigmoid()


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("rate", [4, 8])
def test_weights_of_the_copied_class_load_and_compute_the_same(rate: int, sigmoid: bool) -> None:
    torch.manual_seed(0)
    theirs, ours = GAMAttention(32, 32, rate, sigmoid), CopiedGAM(32, rate, sigmoid)
    x = torch.randn(4, 32, 9, 6)
    theirs(x)  # the running statistics move
    ours.load_state_dict(theirs.state_dict())
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
