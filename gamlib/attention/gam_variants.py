"""Variants of GAM, ours and not the paper's: two that save parameters, and a control that has all but the gates.

The paper leaves to future work how to save parameters. Each 7x7 convolution of the spatial attention, of 49 C C/r
weights, becomes two; its window stays 7x7, the block's 13x13.

- `SeparableGAM`: a depthwise 7x7 and a pointwise 1x1 (Chollet 2017, https://arxiv.org/abs/1610.02357) of 49 C + C C/r
  weights (on the way back 49 C/r + C C/r). What is lost is a window of its own for every pair of channels.
- `LowRankGAM`: a 7x1 and a 1x7 through C/r channels (Jaderberg et al. 2014, https://arxiv.org/abs/1405.3866) of
  7 (C + C/r) C/r weights. What is lost are windows that are no product of a column and a row.

`UngatedGAM` tells what attention does from what size does. The MLP and the 7x7 convolutions stay, and become residual
branches: b being what a submodule computes before its sigmoid,

    GAM:   F' = sigmoid(b(F)) * F  =  F / 2 + b(F) * F / 4 + ...
    here:  F' = F / 2 + b(F) / 4

The halves and quarters are those of the sigmoid's tangent at 0, where a gate begins, so that the only thing that goes
is the product of the map and what was computed from it. Parameters, FLOPs (a sigmoid, products and sums of maps count
nothing), windows, order, place, names and initial weights are GAM's. So are the sizes at the beginning: of a map's mean
square a block leaves about 0.09, GAM 0.07. A plain F + b(F) would make it three times as large and answer a step of
the optimiser four times as strongly, and what it lost by that would pass for the merit of the gate. It was tried: with
`join` written so, `gamlib run -p attention=gam_no_gate -p evaluate_on=validation -p seed=3` (4, 5) ended at training
errors of 27, 21 and 23 %, and diverged with `-p lr=0.1` (2026-11-21, two cores of an AMD EPYC).
"""

from torch import Tensor, nn

from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention


class SeparableGAM(GAM):
    """GAM with depthwise-separable convolutions; arguments and errors are GAM's. [N, C, H, W] -> [N, C, H, W]."""

    @staticmethod
    def convolution(inputs: int, outputs: int, groups: int) -> nn.Module:
        """A depthwise 7x7, then a pointwise 1x1 in `groups`."""
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 7, padding=3, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False),
        )


class LowRankGAM(GAM):
    """GAM with low-rank convolutions; arguments and errors are GAM's. [N, C, H, W] -> [N, C, H, W]."""

    @staticmethod
    def convolution(inputs: int, outputs: int, groups: int) -> nn.Module:
        """A 7x1, then a 1x7, with as few channels between them as the thinner side has."""
        hidden = min(inputs, outputs)
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, (7, 1), padding=(3, 0), groups=groups, bias=False),
            nn.Conv2d(hidden, outputs, (1, 7), padding=(0, 3), groups=groups, bias=False),
        )


class ChannelBranch(ChannelAttention):
    """The MLP of GAM's channel attention, without a sigmoid. [N, C, H, W] -> [N, C, H, W]."""

    forward = ChannelAttention.branch


class SpatialBranch(SpatialAttention):
    """The convolutions of GAM's spatial attention, without a sigmoid. [N, C, H, W] -> [N, C, H, W]."""

    forward = SpatialAttention.branch


class UngatedGAM(GAM):
    """GAM's submodules as residual branches; arguments and errors are GAM's. [N, C, H, W] -> [N, C, H, W]."""

    channel_attention, spatial_attention = ChannelBranch, SpatialBranch

    @staticmethod
    def join(x: Tensor, attention: Tensor) -> Tensor:
        """Half the map and a quarter of the branch."""
        return x / 2 + attention / 4
