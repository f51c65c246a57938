"""TAM: Rotate to Attend: Convolutional Triplet Attention Module.

Misra, Nalamada, Arasanipalai, Hou 2020, https://arxiv.org/abs/2010.03045, section 3:

    y = (gate over (H, C) + gate over (C, W) + gate over (H, W)) / 3        each gate times x
    gate = sigmoid(BN(Conv7x7([MaxPool(x); AvgPool(x)])))                   pooled over the axis that is left

As in CBAM the authors' BatchNorm momentum of 0.01 is not kept: see there.
"""

import torch
from torch import Tensor, nn

from gamlib.attention.checks import odd, whole


class Gate(nn.Module):
    """The gate over the last two axes, from maxima and means over the second (Z-pool). [N, A, B, C] -> [N, 1, B, C]."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return self.norm(self.conv(pooled)).sigmoid()


class TripletAttention(nn.Module):
    """Three gates, each over two of the axes C, H and W, averaged. [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map, on which no weight depends.
        kernel_size: of the convolution of each gate; odd.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        whole("channels", channels)
        odd("kernel_size", kernel_size)
        self.over_hc, self.over_cw, self.over_hw = Gate(kernel_size), Gate(kernel_size), Gate(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        over_hc = self.over_hc(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        over_cw = self.over_cw(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        return x * ((over_hc + over_cw + self.over_hw(x)) / 3)
