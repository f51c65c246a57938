"""GAM with depthwise-separable convolutions: the parameter-saving block that the paper leaves to future work.

Ours, not the paper's. Each 7x7 convolution of GAM's spatial attention becomes a depthwise 7x7 and a pointwise 1x1
(Chollet 2017, https://arxiv.org/abs/1610.02357), so its 49 C C/r weights become 49 C + C C/r (on the way back
49 C/r + C C/r) and its window stays 7x7, the block's 13x13. What is lost is a window of its own for every pair of
channels.
"""

from torch import nn

from gamlib.attention.gam import GAM, SpatialAttention


class SeparableSpatialAttention(SpatialAttention):
    """GAM's spatial attention from depthwise 7x7 and pointwise 1x1 convolutions. [N, C, H, W] -> [N, C, H, W]."""

    @staticmethod
    def convolution(inputs: int, outputs: int, groups: int) -> nn.Module:
        """A depthwise 7x7, then a pointwise 1x1 in `groups`."""
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 7, padding=3, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False),
        )


class SeparableGAM(GAM):
    """GAM whose spatial attention is depthwise-separable; arguments and errors are GAM's. [N, C, H, W] -> the same."""

    spatial_attention = SeparableSpatialAttention
