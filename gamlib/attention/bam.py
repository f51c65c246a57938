"""BAM: Bottleneck Attention Module.

Park, Woo, Lee, Kweon 2018, https://arxiv.org/abs/1807.06514, equations 1 to 4:

    F' = F + M(F) * F    M(F) = sigmoid(Mc(F) + Ms(F))
    Mc(F) = MLP(AvgPool(F))                              pooled over positions
    Ms(F) = Conv1x1(Conv3x3(Conv3x3(Conv1x1(F))))        the 3x3 dilated

Every layer has a bias, and every hidden one a BatchNorm and a ReLU, as in its authors' code and as the printed
parameters demand; the equations have one BatchNorm at the end of each branch instead. That code also multiplies Mc and
Ms; here they are added, as its paper says.
"""

from torch import Tensor, nn

from gamlib.attention.checks import hidden_channels, whole


class BAM(nn.Module):
    """One gate from a channel branch and a spatial branch in parallel. [N, C, H, W] -> [N, C, H, W].

    Its place is the bottleneck between two stages of a backbone, not every block.

    Args:
        channels: C of the map.
        reduction: the ratio r of C to the hidden channels of both branches; divides `channels`.
        dilation: of the two 3x3 convolutions, from 1.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    slot = "stage"

    def __init__(self, channels: int, reduction: int = 16, dilation: int = 4) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        whole("dilation", dilation)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

        def convolution(inputs: int, size: int, dilation: int = 1) -> list[nn.Module]:
            padding = dilation * (size // 2)
            return [nn.Conv2d(inputs, hidden, size, 1, padding, dilation), nn.BatchNorm2d(hidden), nn.ReLU()]

        self.convs = nn.Sequential(
            *convolution(channels, 1),
            *convolution(hidden, 3, dilation),
            *convolution(hidden, 3, dilation),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel = self.mlp(x.mean((2, 3)))[:, :, None, None]
        return x + (channel + self.convs(x)).sigmoid() * x
