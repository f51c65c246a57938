"""GAM with low-rank convolutions: the parameter-saving block that the paper leaves to future work.

Ours, not the paper's. Each 7x7 convolution of GAM's spatial attention becomes a 7x1 and a 1x7 through C/r channels (the
low-rank filters of Jaderberg et al. 2014, https://arxiv.org/abs/1405.3866), so its 49 C C/r weights become
7 (C + C/r) C/r and its window stays 7x7, the block's 13x13. What is lost are windows that are no product of a column
and a row.
"""

from torch import nn

from gamlib.attention.gam import GAM, SpatialAttention


class LowRankSpatialAttention(SpatialAttention):
    """GAM's spatial attention from 7x1 and 1x7 convolutions. [N, C, H, W] -> [N, C, H, W]."""

    @staticmethod
    def convolution(inputs: int, outputs: int, groups: int) -> nn.Module:
        """A 7x1, then a 1x7, with as few channels between them as the thinner side has."""
        hidden = min(inputs, outputs)
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, (7, 1), padding=(3, 0), groups=groups, bias=False),
            nn.Conv2d(hidden, outputs, (1, 7), padding=(0, 3), groups=groups, bias=False),
        )


class LowRankGAM(GAM):
    """GAM whose spatial attention is of low rank; arguments and errors are GAM's. [N, C, H, W] -> the same."""

    spatial_attention = LowRankSpatialAttention
