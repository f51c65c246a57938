"""CBAM: Convolutional Block Attention Module.

Woo, Park, Lee, Kweon 2018, https://arxiv.org/abs/1807.06521, equations 1 to 3:

    F'  = Mc(F) * F         Mc(F)  = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F)))       pooled over positions
    F'' = Ms(F') * F'       Ms(F') = sigmoid(BN(Conv7x7([MaxPool(F'); AvgPool(F')]))) pooled over channels

As in its authors' code, and unlike the equations, the convolution has a BatchNorm, whose weight starts at zero (a gate
of one half everywhere), and the maxima come before the averages; the MLP has biases. Their BatchNorm momentum of 0.01
is not kept: after the few hundred steps of a small study its running statistics would still be half initial values, and
CBAM would be judged by that.
"""

import torch
from torch import Tensor, nn

from gamlib.attention.checks import hidden_channels, odd, yes_or_no


class CBAM(nn.Module):
    """Channel gate, then spatial gate, both from pooled descriptors. [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map.
        reduction: the ratio r of C to the hidden channels of the MLP; divides `channels`.
        kernel_size: of the spatial convolution; odd.
        gate_max_pool: False takes the max-pooled descriptors out of both gates, and leaves the averages.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7, gate_max_pool: bool = True) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction)
        odd("kernel_size", kernel_size)
        yes_or_no("gate_max_pool", gate_max_pool)
        self.gate_max_pool = gate_max_pool
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(1 + gate_max_pool, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def init_weights(self) -> None:
        """The exception that CBAM's authors make for this block when they initialise a network."""
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.mlp(x.mean((2, 3)))
        if self.gate_max_pool:
            scores = scores + self.mlp(x.amax((2, 3)))
        x = scores.sigmoid()[:, :, None, None] * x
        descriptors = x.mean(1, keepdim=True)
        if self.gate_max_pool:
            descriptors = torch.cat([x.amax(1, keepdim=True), descriptors], dim=1)
        return self.norm(self.conv(descriptors)).sigmoid() * x
