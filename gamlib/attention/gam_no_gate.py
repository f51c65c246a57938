"""GAM without its gates: a control that tells what attention does from what size does.

Ours, not the paper's. The MLP and the 7x7 convolutions of GAM stay, and become residual branches: b being what a
submodule computes before its sigmoid,

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

from torch import Tensor

from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention


class ChannelBranch(ChannelAttention):
    """The MLP of GAM's channel attention, without a sigmoid. [N, C, H, W] -> [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class SpatialBranch(SpatialAttention):
    """The convolutions of GAM's spatial attention, without a sigmoid. [N, C, H, W] -> [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class UngatedGAM(GAM):
    """GAM's submodules as residual branches; arguments and errors are GAM's. [N, C, H, W] -> [N, C, H, W]."""

    channel_attention = ChannelBranch
    spatial_attention = SpatialBranch

    @staticmethod
    def join(x: Tensor, attention: Tensor) -> Tensor:
        """Half the map and a quarter of the branch."""
        return x / 2 + attention / 4
