"""SE: Squeeze-and-Excitation Networks.

Hu, Shen, Albanie, Sun, Wu 2017, https://arxiv.org/abs/1709.01507, equations 2 to 4:

    z = AvgPool(x)    s = sigmoid(W2 relu(W1 z))    y = s * x        pooled over positions

Neither linear layer has a bias: with biases the paper's ResNet-50 would print 28.09M instead of 28.07M.
"""

from torch import Tensor, nn

from gamlib.attention.checks import hidden_channels


class SE(nn.Module):
    """Channel gate from the average of every channel. [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map.
        reduction: the ratio r of C to the hidden channels; divides `channels`.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.mean((2, 3))).sigmoid()[:, :, None, None] * x
