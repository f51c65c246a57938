"""GAM as it is widely copied: the class `GAM_Attention`, which goes by the name of the paper.

Named after Liu, Shao, Hoffmann 2021, https://arxiv.org/abs/2112.05561, but not the block whose parameters the paper
prints, which is `GAM`:

    F2 = MLP(F1) * F1                                 over the channels of every position, without a sigmoid
    F3 = sigmoid(BN(Conv(relu(BN(Conv(F2)))))) * F2   7x7 convolutions with biases

The ratio r is 4 instead of 16, each convolution has a bias and a BatchNorm, and the channel factor may be any number,
so it is no gate. A ResNet-18 has 29.11M parameters with it, and the paper prints 16.04M. The names of the weights are
those of the copies, so that theirs load. A minority of the copies has a sigmoid behind the MLP, with the same weights:
`channel_sigmoid=True`. Copies with grouped convolutions, whose weights have other shapes, are not covered. Copies round
C/r down where r does not divide C; here that is refused.
"""

from torch import Tensor, nn

from gamlib.attention.checks import hidden_channels, yes_or_no


class CopiedGAM(nn.Module):
    """Channel factor, then spatial gate, as in `GAM_Attention(channels, channels, rate=4)`. [N, C, H, W] -> same.

    Args:
        channels: C of the map.
        reduction: `rate` of the copies; divides `channels`.
        channel_sigmoid: whether a sigmoid makes the channel factor a gate. It has no weights: look into the copy that
            the weights come from.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    def __init__(self, channels: int, reduction: int = 4, channel_sigmoid: bool = False) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        yes_or_no("channel_sigmoid", channel_sigmoid)
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.channel_gate = nn.Sigmoid() if channel_sigmoid else None
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, 7, padding=3),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 7, padding=3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        factor = self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x * (factor if self.channel_gate is None else self.channel_gate(factor))
        return x * self.spatial_attention(x).sigmoid()
