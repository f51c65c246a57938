"""The GAM block that is widely copied, written anew: what `benchmarks/gam.py` compares the paper's block with.

It goes by the paper's name (arXiv 2112.05561) and computes something else: r = 4, convolutions with biases and a
BatchNorm behind each, and no sigmoid behind the MLP (some copies add one). Our `GAM` is the block that the paper's
Parameters and FLOPs columns count.
"""

from torch import Tensor, nn


class Copied(nn.Module):
    """x -> g = x * mlp(x), then g * sigmoid(norm(conv(relu(norm(conv(g)))))). [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map.
        rate: what the hidden layers have fewer channels by; divides `channels`.
    """

    def __init__(self, channels: int, rate: int = 4) -> None:
        super().__init__()
        hidden = channels // rate
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, hidden, 7, padding=3),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 7, padding=3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The MLP sees positions as rows of one matrix for each image, as the copies have it."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        x = x * self.mlp(rows).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x * self.convolutions(x).sigmoid()
