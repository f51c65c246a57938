"""The GAM block that is widely copied, written as there: what `benchmarks/gam.py` compares the paper's block with.

What it computes, and where that is not what the paper counts, stands in `gamlib/attention/gam_copied.py`.
"""

from typing import Any

import torch
from torch import Tensor

from gamlib.attention import CopiedGAM
from gamlib.kernels.backends import BACKENDS, fastest


class Copied(CopiedGAM):
    """`CopiedGAM` with the operations of the copies. [N, C, H, W] -> [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """The MLP sees positions as rows of one matrix for each image, as the copies have it."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        x = x * self.channel_attention(rows).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x * self.spatial_attention(x).sigmoid()


class CopiedByOurs(CopiedGAM):
    """The same numbers, from the same weights, with the 7x7 convolutions of our engines."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Copied`, in channels_last."""
        squeeze, norm, relu, expand, last = self.spatial_attention
        x = x * self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        squeezed = relu(norm(_Convolution.apply(x, *squeeze.parameters())))
        logits = last(_Convolution.apply(squeezed, *expand.parameters()))
        return x * logits.sigmoid()


class _Convolution(torch.autograd.Function):
    """A 7x7 convolution to fewer or to more channels, with a bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        outputs, inputs = weight.shape[:2]
        name = fastest(len(x), max(outputs, inputs), *x.shape[2:], min(outputs, inputs), True)
        ctx.engine = BACKENDS[name].engine
        found, *saved = ctx.engine.convolve(x, weight, True)
        ctx.save_for_backward(x, weight, *saved)
        return found.add_(bias[:, None, None]).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        of_x, of_weight = ctx.engine.gradients(gradient, x, weight, tuple(saved))
        return of_x.contiguous(memory_format=torch.channels_last), of_weight, gradient.sum((0, 2, 3))
