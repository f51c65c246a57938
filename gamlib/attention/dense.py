"""The 7x7 convolutions of GAM on maps smaller than their kernel, as one product of matrices.

On a map of H x W only the middle (2H - 1) x (2W - 1) taps ever meet it. Every pair of an output position and an input
position has one tap, so that a convolution is a matrix of [H W C_in, H W C_out] whose blocks are taps: a 1x1 map takes
one block, the tap in the middle, and a 2x2 map 16, four for each of its positions, where a convolution takes 49.
"""

from functools import lru_cache

import torch
from torch import Tensor

Shape = tuple[int, int]


@lru_cache(maxsize=64)
def _taps(height: int, width: int) -> Tensor:
    """Which of the 49 taps an input position [H W] has for an output position [H W]: [H W, H W]."""
    i, j = (position.flatten() for position in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    return (i[:, None] - i + 3) * 7 + (j[:, None] - j + 3)


class Dense:
    """An engine of `fused.Fused` for maps [N, C, H, W] in channels_last, H and W at most 4."""

    def empty(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.channels_last)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        matrix = _matrix(weight, x)
        return _maps(_flat(x) @ matrix, x), (matrix,)

    expand = squeeze

    def squeeze_gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, saved: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        (matrix,) = saved
        of_matrix = _flat(x).t() @ _flat(gradient)
        return _maps(_flat(gradient) @ matrix.t(), x), _of_weight(of_matrix, weight, x)

    expand_gradients = squeeze_gradients


def _flat(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last -> [N, H W C] of the same memory."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _maps(values: Tensor, like: Tensor) -> Tensor:
    return values.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


def _matrix(weight: Tensor, x: Tensor) -> Tensor:
    """[O, I, 7, 7] -> [H W I, H W O]."""
    taps = _taps(*x.shape[2:])
    blocks = weight.flatten(2).index_select(2, taps.flatten()).unflatten(2, taps.shape)  # [O, I, in, out]
    return blocks.permute(2, 1, 3, 0).reshape(taps.shape[0] * weight.shape[1], -1)


def _of_weight(of_matrix: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """The gradient of `_matrix`."""
    taps = _taps(*x.shape[2:])
    outputs, inputs = weight.shape[:2]
    blocks = of_matrix.view(len(taps), inputs, len(taps), outputs).permute(0, 2, 3, 1).reshape(-1, outputs, inputs)
    found = weight.new_zeros(49, outputs, inputs).index_add_(0, taps.flatten(), blocks)
    return found.permute(1, 2, 0).reshape(weight.shape)
