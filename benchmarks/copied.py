"""The GAM block that is widely copied, written anew: what `benchmarks/gam.py` compares the paper's block with.

It goes by the paper's name (arXiv 2112.05561) and computes something else: r = 4, convolutions with biases and a
BatchNorm behind each, and no sigmoid behind the MLP (some copies add one). Our `GAM` is the block that the paper's
Parameters and FLOPs columns count.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gamlib.kernels.backends import BACKENDS, fastest


class Copied(nn.Module):
    """x -> g = x * mlp(x), then g * sigmoid(norm(conv(relu(norm(conv(g)))))). [N, C, H, W] -> [N, C, H, W].

    Args:
        channels: C of the map.
        rate: what the hidden layers have fewer channels by; divides `channels`.
    """

    def __init__(self, channels: int, rate: int = 4) -> None:
        super().__init__()
        hidden = channels // rate
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, hidden, 7, padding=3),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 7, padding=3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The MLP sees positions as rows of one matrix for each image, as the copies have it."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        x = x * self.mlp(rows).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x * self.convolutions(x).sigmoid()


class CopiedByOurs(Copied):
    """The same numbers, from the same weights, with the 7x7 convolutions of our engines."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Copied`, in channels_last."""
        squeeze, norm, relu, expand, last = self.convolutions
        x = x * self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
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
