"""GAM without its gates: a control that tells what attention does from what size does.

Ours, not the paper's. The MLP and the 7x7 convolutions of GAM stay, and become residual branches: b being what a
submodule computes before its sigmoid,

    GAM:   F' = sigmoid(b(F)) * F
    here:  F' = F + b(F)

Parameters, FLOPs (a sigmoid, a product and a sum count nothing), windows, order, place, names and initial weights are
GAM's, so that nothing but the gate differs. For that reason nothing is rescaled, normalised or begun at zero either,
which would be a second difference. The branches are not too large for that: of an input of mean square 1 the MLP makes
at first about 1/18 and the convolutions, away from the borders, about 2, so that a block puts out some three times the
mean square that goes in, and BatchNorm follows behind the next convolution. GAM's two gates of about 1/2 leave 0.07 of
it: to damp a residual block against its shortcut is something that gates do, and so a part of what is compared.
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
        """Their sum."""
        return x + attention
