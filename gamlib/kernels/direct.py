"""The 7x7 convolutions of GAM in channels_last, by torch's convolution, or on tiny maps as one product of matrices.

A processor multiplies vectors of 8 or 16 numbers, and a convolution to C/r = 4 channels leaves most of each unused.
Here p neighbouring columns are computed together, as p C/r channels of a convolution with stride p along the row, whose
kernel of 7 x (6 + p) holds the 7x7 one p times, each a column further. It has (6 + p) / 7 times the products and fills
the vectors. The gradient by the weight is that of the wide kernel, its p parts added.

On a map of H x W up to 4x4 only the middle (2H - 1) x (2W - 1) taps ever meet it. Every pair of an output position and
an input position has one tap, so that a convolution is a matrix of [H W C_in, H W C_out] whose blocks are taps: a 1x1
map takes one, the tap in the middle, and a 2x2 map 16, four for each position, where a convolution takes 49.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.kernels.memory import in_channels_last, maps
from gamlib.kernels.native import products

LARGEST = 4  # H and W of a map for `Dense`, whose taps all are in the kernel


class Direct:
    """An engine of `backends.Fused` for maps [N, C, H, W] in channels_last; `lanes`: hidden channels times columns."""

    def __init__(self, lanes: int = 16) -> None:
        self.lanes = lanes

    def workspace(self, name: str, x: Tensor) -> Tensor:
        return in_channels_last(x, name)

    def convolve(self, x: Tensor, weight: Tensor, differentiates: bool) -> tuple[Tensor]:
        columns = self._columns(x, weight)
        found = F.conv2d(x, _spread(weight, columns), stride=(1, columns), padding=3)
        return (maps(found.permute(0, 2, 3, 1), x),)

    def gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        columns, (batch, _, height, width) = self._columns(x, weight), x.shape
        packed = grad_output.permute(0, 2, 3, 1).reshape(batch, height, width // columns, -1).permute(0, 3, 1, 2)
        spread, settings = _spread(weight, columns), ([1, columns], [3, 3], [1, 1], False, [0, 0], 1)
        _, of_spread, _ = torch.ops.aten.convolution_backward(packed, x, spread, None, *settings, [False, True, False])
        parts = of_spread.unflatten(0, (columns, -1))
        of_weight = torch.stack([part[..., column : column + 7] for column, part in enumerate(parts)]).sum(0)
        back = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        (of_x,) = self.convolve(grad_output, back, False)
        return of_x, of_weight

    def _columns(self, x: Tensor, weight: Tensor) -> int:
        outputs, inputs = weight.shape[:2]
        fits = [p for p in (4, 2) if p * outputs <= self.lanes and x.shape[3] % p == 0 and outputs <= inputs]
        return max(fits, default=1)


def _spread(weight: Tensor, columns: int) -> Tensor:
    """[h, C, 7, 7] -> [columns h, C, 7, 6 + columns]: the kernel once a column, each a column further."""
    if columns == 1:
        return weight
    spread = weight.new_zeros(columns, *weight.shape[:3], 6 + columns)
    for column in range(columns):
        spread[column, ..., column : column + 7] = weight
    return spread.flatten(0, 1).contiguous(memory_format=torch.channels_last)


class Dense:
    """An engine of `backends.Fused` for maps [N, C, H, W] in channels_last, H and W at most `LARGEST`."""

    def workspace(self, name: str, x: Tensor) -> Tensor:
        return in_channels_last(x, name)

    def convolve(self, x: Tensor, weight: Tensor, differentiates: bool) -> tuple[Tensor, ...]:
        rows, (height, width) = _flat(x), x.shape[2:]
        middle = weight[:, :, 4 - height : 3 + height, 4 - width : 3 + width]
        blocks = middle.unfold(2, height, 1).unfold(3, width, 1)  # [O, I, output position, input position]
        blocks = blocks.flip(2, 3) if height * width > 1 else blocks  # which would copy the one tap
        matrix = blocks.permute(4, 5, 1, 2, 3, 0).reshape(rows.shape[1], -1)
        found = maps(_product(rows, matrix), x)
        return (found, rows.clone(), matrix) if differentiates else (found,)

    def gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        (rows, matrix), (height, width), of_rows = saved, x.shape[2:], _flat(grad_output)
        of_matrix = _product(rows.t(), of_rows).view(height, width, -1, height, width, len(weight))
        blocks = of_matrix.permute(5, 2, 0, 1, 3, 4).flip(4, 5).reshape(1, -1, height * width)
        middle = F.fold(blocks, (2 * height - 1, 2 * width - 1), (height, width)).unflatten(1, weight.shape[:2])[0]
        of_weight = F.pad(middle, (4 - width, 4 - width, 4 - height, 4 - height))
        return maps(_product(of_rows, matrix.t()), x), of_weight


def _product(a: Tensor, b: Tensor) -> Tensor:
    return products(a[None], b[None])[0]


def _flat(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last -> [N, H W C] of the same memory."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)
