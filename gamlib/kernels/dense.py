"""The 7x7 convolutions of GAM on maps smaller than their kernel, as one product of matrices.

On a map of H x W only the middle (2H - 1) x (2W - 1) taps ever meet it. Every pair of an output position and an input
position has one tap, so that a convolution is a matrix of [H W C_in, H W C_out] whose blocks are taps: a 1x1 map takes
one block, the tap in the middle, and a 2x2 map 16, four for each of its positions, where a convolution takes 49.

On such maps calls take longer than products: where `c/dense.c` can be used, it computes the whole block in one.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.kernels import native
from gamlib.kernels.conditions import Kernels, Mlp, Weights, split
from gamlib.kernels.fused import Fused
from gamlib.kernels.gates import empty_in_channels_last, in_order_of, maps
from gamlib.kernels.native import products
from gamlib.kernels.workspace import workspace, workspace_in_channels_last

LARGEST = 4  # H and W, whose taps all are in the kernel


class OneCall:
    """`c/dense.c`, which has a map once and its block in one call; another backend where it cannot be used."""

    def __init__(self, otherwise: Fused) -> None:
        self.otherwise = otherwise

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        mlp, kernels = split(weights)
        if kernels is None or not native.fits(x):
            return self.otherwise.forward(x, weights, differentiates)
        rows, mlp, out = x.permute(0, 2, 3, 1).contiguous(), _contiguous(mlp), empty_in_channels_last(x)
        saved = x.new_empty(native.library().dense_keeps(x, len(kernels[0])))
        into = out.permute(0, 2, 3, 1)
        native.library().dense(x, rows, mlp, _laid(kernels), differentiates, saved, into)
        return [in_order_of(x, out), saved] if differentiates else [in_order_of(x, out)]

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        mlp, kernels = split(weights)
        if kernels is None or not native.fits(x):
            return self.otherwise.backward(grad_output, x, weights, saved)
        rows, mlp, kernels, (kept,) = x.permute(0, 2, 3, 1).contiguous(), _contiguous(mlp), _laid(kernels), saved
        of_rows, of_mlp = torch.empty_like(rows), mlp and [*map(torch.empty_like, mlp)]
        of_kernels = [*map(torch.empty_like, kernels)]
        grad_output, memory = grad_output.permute(0, 2, 3, 1).contiguous(), workspace("dense", x, len(kept))
        given = x, rows, mlp, kernels, kept, grad_output, memory
        native.library().dense_gradients(*given, of_rows, of_mlp, of_kernels)
        return [of_rows.permute(0, 3, 1, 2), *(of_mlp or ()), *of_kernels]


def _contiguous(mlp: Mlp | None) -> Any:
    return mlp and [value.contiguous() for value in mlp]


def _laid(kernels: Kernels) -> Kernels:
    """As they are, or their taps one after the other if these lie neither so nor behind the channels."""
    k1, k2 = (k if k.is_contiguous(memory_format=torch.channels_last) else k.contiguous() for k in kernels)
    return k1, k2


class Dense:
    """An engine of `fused.Fused` for maps [N, C, H, W] in channels_last, H and W at most `LARGEST`."""

    def workspace(self, name: str, x: Tensor) -> Tensor:
        return workspace_in_channels_last(name, x)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return *self.expand(x, weight), _flat(x).clone()

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        matrix = _matrix(weight, *x.shape[2:])
        return maps(_product(_flat(x), matrix), x), matrix

    def squeeze_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        matrix, rows = saved
        of_rows = _flat(grad_output)
        of_weight = _of_weight(_product(rows.t(), of_rows), weight, *x.shape[2:])
        return maps(_product(of_rows, matrix.t()), x), of_weight

    def expand_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        return self.squeeze_gradients(grad_output, x, weight, (*saved, _flat(x)))


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


@lru_cache(maxsize=64)
def _taps(height: int, width: int) -> Tensor:
    """Which of the middle taps an input position has for an output position: [H W, H W]."""
    along_h, along_w = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    i, j = (position.flatten() for position in torch.meshgrid(along_h, along_w, indexing="ij"))
    return (i[:, None] - i + height - 1) * (2 * width - 1) + (j[:, None] - j + width - 1)
