"""Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions.

Liu, Shao, Hoffmann 2021, https://arxiv.org/abs/2112.05561, equations 1 and 2:

    F2 = Mc(F1) * F1        channel attention: a two-layer MLP over the channels of every position
    F3 = Ms(F2) * F2        spatial attention: two 7x7 convolutions, no pooling

The text leaves biases, normalisation and the place of the sigmoid open. The paper's Parameters and FLOPs columns do
not: the MLP has biases, the convolutions have neither bias nor BatchNorm, and each submodule ends in a sigmoid. Code
that circulates under this paper's name (r = 4, biases, BatchNorm) prints other numbers than the paper does.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from gamlib.attention.checks import divides, hidden_channels, one_of, yes_or_no

SUBMODULES = ("ch+sp", "ch", "sp")


class ChannelAttention(nn.Module):
    """Mc of equation 1: sigmoid of an MLP C -> C/r -> C applied at every position. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def branch(self, x: Tensor) -> Tensor:
        """What the sigmoid makes a gate of."""
        return self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).sigmoid()


class SpatialAttention(nn.Module):
    """Ms of equation 2: sigmoid of 7x7 convolutions C -> C/r -> C. [N, C, H, W] -> [N, C, H, W].

    With `groups` > 1 (the paper's gc) both convolutions are grouped and the channels are shuffled between them.
    """

    def __init__(
        self, channels: int, hidden: int, groups: int, max_pool: bool, convolution: Callable[[int, int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=1, padding=1) if max_pool else nn.Identity()
        self.squeeze = convolution(channels, hidden, groups)
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.expand = convolution(hidden, channels, groups)

    def init_weights(self) -> None:
        """Grouped weights by the outputs that an input reaches; torch's fan-out counts those of all groups."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def branch(self, x: Tensor) -> Tensor:
        """What the sigmoid makes a gate of."""
        return self.expand(self.shuffle(self.relu(self.squeeze(self.pool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x).sigmoid()


class GAM(nn.Module):
    """Global attention: channel gate, then spatial gate. [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map.
        reduction: the paper's r, of the MLP and of the convolutions; divides `channels`.
        submodules: "ch+sp" for both, "ch" or "sp" for one alone (the paper's Table 3).
        groups: the paper's gc, groups of both 7x7 convolutions; divides `channels / reduction`.
        gate_max_pool: a 3x3 max-pooling of stride 1 in front of the 7x7 convolutions. Our interpretation of what the
            text says of max-pooling in the submodule; the printed numbers speak of the stem's.

    Raises:
        ValueError: a value outside of these; the message names it and what is allowed.
    """

    channel_attention, spatial_attention = ChannelAttention, SpatialAttention

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        submodules: str = "ch+sp",
        groups: int = 1,
        gate_max_pool: bool = False,
    ) -> None:
        super().__init__()
        one_of("submodules", submodules, SUBMODULES)
        yes_or_no("gate_max_pool", gate_max_pool)
        if gate_max_pool and submodules == "ch":
            raise ValueError("gate_max_pool=True: submodules='ch' has no spatial convolutions to pool for")
        hidden = hidden_channels(channels, reduction)
        divides("groups", groups, hidden, f"hidden channels ({channels} / reduction {reduction})")
        self.channel = self.spatial = None
        if "ch" in submodules:
            self.channel = self.channel_attention(channels, hidden)
        if "sp" in submodules:
            self.spatial = self.spatial_attention(channels, hidden, groups, gate_max_pool, self.convolution)

    @staticmethod
    def convolution(inputs: int, outputs: int, groups: int) -> nn.Module:
        """One of the two 7x7 convolutions, which variants replace by cheaper ones of the same window."""
        return nn.Conv2d(inputs, outputs, 7, padding=3, groups=groups, bias=False)

    @staticmethod
    def join(x: Tensor, attention: Tensor) -> Tensor:
        """A map and what a submodule makes of it, both [N, C, H, W], as one."""
        return x * attention

    def forward(self, x: Tensor) -> Tensor:
        if self.channel is not None:
            x = self.join(x, self.channel(x))
        if self.spatial is not None:
            x = self.join(x, self.spatial(x))
        return x
