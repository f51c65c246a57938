"""GAM on a GPU: gates by the kernels of `triton_gates.py`, 7x7 convolutions by cuDNN in channels_last.

Eager PyTorch writes and keeps both gates, the gated map and what comes before every sigmoid. Here the squeezed map and
what comes before the spatial gate are kept beside x; the rest is computed again in the passes that need it.

How maps are cut into tiles follows what the compiler reports for compute capability 9.0, and was not measured on a GPU.
In bfloat16 at most 8 bytes a thread are spilled; in float32 some hundred in the backward kernel of more than 128
channels or 16 hidden ones, and KiB from 512 hidden.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.kernels import triton_gates
from gamlib.kernels.conditions import Weights, split
from gamlib.kernels.gates import empty_in_channels_last, maps
from gamlib.kernels.gates import rows as rows_of

IN_REGISTERS = 4096  # elements of dW1 and of dW2, padded, that a program of 8 warps holds beside its tiles
FLAT = 1024  # elements of a program where positions and channels are alike


class Mlp(NamedTuple):
    """Weights [h, C], [C, h] of the maps' type and biases [h], [C] of any, all contiguous."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


def forward(x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
    """As `backends.Backend` has it; the map in channels_last. Weights are cast to its type, as autocast would."""
    mlp, kernels = _cast(x, weights)
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        rows, out = _rows(x), empty_in_channels_last(x)
        gated = rows
        if mlp is not None:
            gated = channel_gate(rows, mlp, torch.empty_like(rows) if kernels else _rows(out))
        if not kernels:
            return [out]
        squeezed = F.conv2d(maps(gated, x), kernels[0], padding=3).relu_()
        logits = F.conv2d(squeezed, kernels[1], padding=3)
        spatial_gate(gated, _rows(logits), _rows(out))
    return [out, squeezed, logits] if differentiates else [out]


def backward(grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
    """As `backends.Backend` has it; each gradient in its weight's type."""
    mlp, kernels = _cast(x, weights)
    with torch.autocast(x.device.type, enabled=False):
        rows, dy = _rows(x), _rows(grad_output)
        if mlp is None:
            of_logits, through = spatial_gate_backward(rows, _rows(saved[1]), dy)
            convolved, *found = _convolutions_backward(x, of_logits, saved[0], rows, kernels)
            dx = through.add_(convolved)
        elif not kernels:
            dx, found = channel_gate_backward(rows, mlp, dy)
        else:
            s = _rows(saved[1])
            gated, of_logits = channel_gate_again(rows, mlp, dy, s)
            convolved, *of_kernels = _convolutions_backward(x, of_logits, saved[0], gated, kernels)
            del gated, of_logits  # two maps of memory, which the kernel's result and the cuBLAS products may need
            dx, of_mlp = channel_gate_backward(rows, mlp, dy, s, convolved)
            found = [*of_mlp, *of_kernels]
        return [maps(dx, x), *(of.to(weight.dtype) for of, weight in zip(found, weights, strict=True))]


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C], contiguous; the same memory where that is in channels_last."""
    return rows_of(x).contiguous()


def _cast(x: Tensor, weights: Weights) -> tuple[Mlp | None, list[Tensor]]:
    mlp, kernels = split(weights)
    cast = [kernel.to(x.dtype).contiguous(memory_format=torch.channels_last) for kernel in kernels or ()]
    if mlp is None:
        return None, cast
    w1, b1, w2, b2 = (value.contiguous() for value in mlp)
    return Mlp(w1.to(x.dtype).contiguous(), b1, w2.to(x.dtype).contiguous(), b2), cast


def _convolutions_backward(
    x: Tensor, of_logits: Tensor, squeezed: Tensor, gated: Tensor, kernels: list[Tensor]
) -> list[Tensor]:
    """Gradients by the gated rows and by both kernels from ds in rows."""
    of_squeezed, dk2 = _convolution_backward(maps(of_logits, x), squeezed, kernels[1])
    of_squeezed = torch.ops.aten.threshold_backward(of_squeezed, squeezed, 0)
    of_gated, dk1 = _convolution_backward(of_squeezed, maps(gated, x), kernels[0])
    return [_rows(of_gated), dk1, dk2]


def _convolution_backward(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad_output, x, weight, None, [1, 1], [3, 3], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return of_x, of_weight


class Blocks(NamedTuple):
    """How a channel gate is cut: rows and columns of a tile, hidden units (padded), warps and stages of a program."""

    rows: int
    columns: int
    units: int
    warps: int
    stages: int
    in_registers: bool  # one tile holds all columns, and a program's registers dW1 and dW2

    @classmethod
    def of(cls, channels: int, hidden: int, dtype: torch.dtype) -> "Blocks":
        """Tiles of 8 to 16 elements a thread; true float32 takes more registers than products of tensor cores."""
        columns, units = (max(16, 1 << (number - 1).bit_length()) for number in (channels, hidden))
        exact = dtype == torch.float32
        if columns * units <= IN_REGISTERS:
            rows = 16 if exact or columns > 128 else 32
            return cls(rows, columns, units, 4 if columns <= 64 else 8, 1, True)
        rows = 16 if units > 128 or (exact and units > 32) else 32
        columns = min(columns, 16 if exact and units > 128 else 32 if exact or units > 128 else 64)
        return cls(rows, columns, units, 8 if exact or units > 128 else 4, 1 if exact else 2, False)

    def constants(self, mlp: Mlp) -> dict[str, int]:
        """What a kernel is compiled for."""
        hidden, channels = mlp.w1.shape
        sizes = {"C": channels, "H": hidden, "BM": self.rows, "BC": self.columns, "BH": self.units}
        return sizes | {"num_warps": self.warps, "num_stages": self.stages}


def channel_gate(x: Tensor, mlp: Mlp, g: Tensor, dy: Any = None, s: Any = None, ds: Any = None) -> Tensor:
    """g of rows x [M, C], written into `g`; with dy and s given also ds, into `ds`."""
    blocks = Blocks.of(x.shape[1], len(mlp.b1), x.dtype)
    grid = (_parts(len(x), blocks.rows),)
    triton_gates.channel_gate[grid](x, *mlp, dy, s, g, ds, len(x), **blocks.constants(mlp))
    return g


def channel_gate_again(x: Tensor, mlp: Mlp, dy: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """g of rows x [M, C] for the backward pass, and ds, as both need a pass over x."""
    g, ds = torch.empty_like(x), torch.empty_like(x)
    return channel_gate(x, mlp, g, dy, s, ds), ds


def channel_gate_backward(
    x: Tensor, mlp: Mlp, dy: Tensor, s: Tensor | None = None, convolved: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by x and by the MLP's four from rows [M, C]; dg is dy, or dy sigmoid(s) + convolved."""
    (positions, channels), hidden = x.shape, len(mlp.b1)
    blocks = Blocks.of(channels, hidden, x.dtype)
    programs = _parts(positions, blocks.rows)
    sums: list[Any] = [None] * 2
    kept: list[Any] = [None] * 3
    if blocks.in_registers:
        programs = min(programs, _resident(x.device))
        sums = [x.new_empty(programs, *weight.shape, dtype=torch.float32) for weight in (mlp.w1, mlp.w2)]
    else:
        kept = [x.new_empty(positions, width) for width in (hidden, hidden, channels)]
    biases = [x.new_empty(programs, width, dtype=torch.float32) for width in (hidden, channels)]
    dx = torch.empty_like(x)
    triton_gates.channel_gate_backward[(programs,)](
        x, *mlp, convolved, dy, s, dx, *biases, *sums, *kept, positions, **blocks.constants(mlp)
    )
    db1, db2 = (part.sum(0) for part in biases)
    if blocks.in_registers:
        dw1, dw2 = (part.sum(0) for part in sums)
    else:
        u, du, dl = kept
        dw1, dw2 = du.t() @ x, dl.t() @ u
    return dx, [dw1, db1, dw2, db2]


def spatial_gate(g: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """y of rows g and s [M, C], written into `y`."""
    triton_gates.spatial_gate[(_parts(g.numel(), FLAT),)](g, s, y, g.numel(), BLOCK=FLAT)
    return y


def spatial_gate_backward(g: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """ds, and dg but for what the convolutions give back, of rows [M, C]."""
    ds, dg = torch.empty_like(g), torch.empty_like(g)
    triton_gates.spatial_gate_backward[(_parts(g.numel(), FLAT),)](g, s, dy, ds, dg, g.numel(), BLOCK=FLAT)
    return ds, dg


def _resident(device: torch.device) -> int:
    """Programs that sum weight gradients: what a GPU runs at once; two under Triton's interpreter on a CPU."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _parts(size: int, part: int) -> int:
    return -(-size // part)
