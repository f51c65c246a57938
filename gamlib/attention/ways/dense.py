"""The 7x7 convolutions of GAM on maps smaller than their kernel, as one product of matrices.

On a map of H x W only the middle (2H - 1) x (2W - 1) taps ever meet it. Every pair of an output position and an input
position has one tap, so that a convolution is a matrix of [H W C_in, H W C_out] whose blocks are taps: a 1x1 map takes
one block, the tap in the middle, and a 2x2 map 16, four for each of its positions, where a convolution takes 49.

On such maps calls take longer than products: where `c/dense.c` can be used, it computes the whole block in one.
"""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.attention.ways import native
from gamlib.attention.ways.conditions import Weights, is_usable_gradient
from gamlib.attention.ways.fused import apart, differentiable, in_order_of
from gamlib.attention.ways.gating import maps
from gamlib.attention.ways.native import Kernels, Saved, products
from gamlib.attention.ways.rooms import room_in_channels_last

LARGEST = 4  # H and W, whose taps all are in the kernel


@lru_cache(maxsize=64)
def _taps(height: int, width: int) -> Tensor:
    """Which of the middle taps an input position has for an output position: [H W, H W]."""
    along_h, along_w = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    i, j = (position.flatten() for position in torch.meshgrid(along_h, along_w, indexing="ij"))
    return (i[:, None] - i + height - 1) * (2 * width - 1) + (j[:, None] - j + width - 1)


class Dense:
    """An engine of `fused.Fused` for maps [N, C, H, W] in channels_last, H and W at most `LARGEST`."""

    def room(self, name: str, x: Tensor) -> Tensor:
        return room_in_channels_last(name, x)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        found, (matrix,) = self.expand(x, weight)
        return found, (matrix, _flat(x).clone())

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        matrix = _matrix(weight, *x.shape[2:])
        return maps(_product(_flat(x), matrix), x), (matrix,)

    def squeeze_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        matrix, rows = saved
        of_rows = _flat(gradient)
        of_weight = _of_weight(_product(rows.t(), of_rows), weight, *x.shape[2:])
        return maps(_product(of_rows, matrix.t()), x), of_weight

    def expand_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        return self.squeeze_gradients(gradient, x, weight, (*saved, _flat(x)))


class Whole(torch.autograd.Function):
    """What `fused.Fused` computes, by `c/dense.c`; there is a spatial gate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor | None) -> Tensor:
        out, kept = attend(x, weights, differentiates=True)
        ctx.save_for_backward(x, kept, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *weights = ctx.saved_tensors
        if not is_usable_gradient(gradient):
            return differentiable(gradient, x, tuple(weights))
        mlp, kernels = apart(tuple(weights))
        return native.dense_gradients(x, mlp, cast(Kernels, kernels), kept, gradient)


def attend(x: Tensor, weights: Weights, *, differentiates: bool) -> tuple[Tensor, Tensor]:
    """The block's map [N, C, H, W], and what its gradients need."""
    mlp, kernels = apart(weights)
    out, kept = native.dense(x, mlp, cast(Kernels, kernels), differentiates=differentiates)
    return in_order_of(x, out), kept


def _product(a: Tensor, b: Tensor) -> Tensor:
    return products(a[None], b[None])[0]


def _flat(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last -> [N, H W C] of the same memory."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _matrix(weight: Tensor, height: int, width: int) -> Tensor:
    """[O, I, 7, 7] -> [H W I, H W O]."""
    taps = _taps(height, width)
    middle = weight[:, :, 4 - height : 3 + height, 4 - width : 3 + width].permute(2, 3, 1, 0).flatten(0, 1)
    if len(taps) == 1:
        return middle[0]
    blocks = middle.index_select(0, taps.flatten()).unflatten(0, taps.shape)  # [in, out, I, O]
    return blocks.transpose(1, 2).reshape(len(taps) * weight.shape[1], -1)


def _of_weight(of_matrix: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """The gradient of `_matrix`."""
    taps = _taps(height, width)
    outputs, inputs = weight.shape[:2]
    blocks = of_matrix.view(len(taps), inputs, len(taps), outputs).transpose(1, 2).reshape(-1, inputs, outputs)
    middle = of_matrix.new_zeros((2 * height - 1) * (2 * width - 1), inputs, outputs)
    middle.index_add_(0, taps.flatten(), blocks)
    found = middle.permute(2, 1, 0).unflatten(2, (2 * height - 1, 2 * width - 1))
    return F.pad(found, (4 - width, 4 - width, 4 - height, 4 - height))
