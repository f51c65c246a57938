"""The 7x7 convolutions of GAM in channels_last; where the hidden channels are few, several columns at once.

A processor multiplies vectors of 8 or 16 numbers, and a convolution to C/r = 4 channels leaves most of each unused.
Here p neighbouring columns are computed together, as p C/r channels of a convolution with stride p along the row, whose
kernel of 7 x (6 + p) holds the 7x7 one p times, each a column further. It has (6 + p) / 7 times the products and fills
the vectors. The gradient by the weight is that of the wide kernel, its p parts added.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.kernels.workspace import workspace_in_channels_last

LANES = 16  # hidden channels times columns
CHANNELS_LAST = torch.channels_last


class Direct:
    """An engine of `fused.Fused` for maps [N, C, H, W] in channels_last."""

    def workspace(self, name: str, x: Tensor) -> Tensor:
        return workspace_in_channels_last(name, x)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (_narrow(x, weight),)

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (_wide(x, weight),)

    def squeeze_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        columns = _columns(x, weight)
        of_spread = _weight_gradient(_packed(grad_output, columns), x, _spread(weight, columns), columns)
        return _wide(grad_output, _transposed(weight)), _gathered(of_spread, columns)

    def expand_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        return _narrow(grad_output, _transposed(weight)), _weight_gradient(grad_output, x, weight, 1)


def _columns(x: Tensor, weight: Tensor) -> int:
    return next((p for p in (4, 2) if p * len(weight) <= LANES and x.shape[3] % p == 0), 1)


def _narrow(x: Tensor, weight: Tensor) -> Tensor:
    columns = _columns(x, weight)
    found = F.conv2d(x, _spread(weight, columns), stride=(1, columns), padding=3)
    return found.permute(0, 2, 3, 1).reshape(len(x), *x.shape[2:], len(weight)).permute(0, 3, 1, 2)


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3).contiguous(memory_format=CHANNELS_LAST)


def _packed(x: Tensor, columns: int) -> Tensor:
    """[N, h, H, W] -> [N, columns h, H, W / columns] of the same memory."""
    batch, _, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width // columns, -1).permute(0, 3, 1, 2)


def _spread(weight: Tensor, columns: int) -> Tensor:
    """[h, C, 7, 7] -> [columns h, C, 7, 6 + columns]: the kernel once a column, each a column further."""
    if columns == 1:
        return weight
    wide = weight.new_zeros(columns, *weight.shape[:3], 6 + columns)
    for column in range(columns):
        wide[column, ..., column : column + 7] = weight
    return wide.flatten(0, 1).contiguous(memory_format=CHANNELS_LAST)


def _gathered(gradient: Tensor, columns: int) -> Tensor:
    """The gradient of `_spread`."""
    parts = gradient.view(columns, -1, *gradient.shape[1:]) if columns > 1 else gradient[None]
    return torch.stack([part[..., column : column + 7] for column, part in enumerate(parts)]).sum(0)


def _transposed(weight: Tensor) -> Tensor:
    """[O, I, 7, 7] -> [I, O, 7, 7]: the convolution that takes gradients back."""
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=CHANNELS_LAST)


def _weight_gradient(grad_output: Tensor, x: Tensor, weight: Tensor, columns: int) -> Tensor:
    found = torch.ops.aten.convolution_backward(
        grad_output, x, weight, None, [1, columns], [3, 3], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return found[1]
