"""GAM as one function on a GPU: gates by the kernels of `triton_gates.py`, 7x7 convolutions by cuDNN in channels_last.

Eager PyTorch writes and keeps both gates, the gated map and what comes before every sigmoid. Here x, the squeezed map
and what comes before the spatial gate are kept; the rest is computed again in the passes that need it.

How maps are cut into tiles follows what the compiler reports for compute capability 9.0, and was not measured on a GPU.
In bfloat16 at most 8 bytes a thread are spilled; in float32 some hundred in the backward kernel of more than 128
channels or 16 hidden ones, and KiB from 512 hidden.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.attention.ways import triton_gates
from gamlib.attention.ways.conditions import is_usable_gradient
from gamlib.attention.ways.fused import differentiable
from gamlib.attention.ways.gating import maps

IN_REGISTERS = 4096  # elements of dW1 and of dW2, padded, that a program of 8 warps holds beside its tiles
FLAT = 1024  # elements of a program where positions and channels are alike


class Mlp(NamedTuple):
    """Weights [h, C], [C, h] of the maps' type and biases [h], [C] of any, all contiguous."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


class OnGPU(torch.autograd.Function):
    """Channel gate and spatial gate of GAM; [N, C, H, W] -> the same in channels_last. Either may be missing (None).

    Weights of another type than x are cast to it, as autocast would; their gradients are of their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor | None) -> Tensor:
        mlp, (k1, k2) = _mlp(x, *weights[:4]), weights[4:]
        squeezed = logits = None
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            rows, out = _rows(x), torch.empty_like(x, memory_format=torch.channels_last)
            gated = rows
            if mlp is not None:
                gated = channel_gate(rows, mlp, _rows(out) if k1 is None else torch.empty_like(rows))
            if k1 is not None and k2 is not None:
                squeezed = F.conv2d(maps(gated, x), _kernel(k1, x), padding=3).relu_()
                logits = F.conv2d(squeezed, _kernel(k2, x), padding=3)
                spatial_gate(gated, _rows(logits), _rows(out))
        ctx.save_for_backward(x, squeezed, logits, *weights)
        return out  # no view: what follows may change it in place, as a residual block does

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, squeezed, logits, *weights = ctx.saved_tensors
        if not is_usable_gradient(gradient):
            return differentiable(gradient, x, tuple(weights))
        mlp, (k1, k2) = _mlp(x, *weights[:4]), weights[4:]
        with torch.autocast(x.device.type, enabled=False):
            rows, dy = _rows(x), _rows(gradient)
            if k1 is None:
                assert mlp is not None
                dx, of_mlp = channel_gate_backward(rows, mlp, dy)
                return maps(dx, x), *_like(of_mlp, weights), None, None
            s = _rows(logits)
            if mlp is None:
                of_logits, through = spatial_gate_backward(rows, s, dy)
                convolved, *of_kernels = _convolutions_backward(x, of_logits, squeezed, rows, k1, k2)
                return maps(through.add_(convolved), x), *(None,) * 4, *of_kernels
            gated, of_logits = channel_gate_again(rows, mlp, dy, s)
            convolved, *of_kernels = _convolutions_backward(x, of_logits, squeezed, gated, k1, k2)
            del gated, of_logits  # two maps of memory, which the kernel's result and the cuBLAS products may need
            dx, of_mlp = channel_gate_backward(rows, mlp, dy, s, convolved)
            return maps(dx, x), *_like(of_mlp, weights), *of_kernels


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C], contiguous; the same memory where that is in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def _mlp(x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None) -> Mlp | None:
    if w1 is None or b1 is None or w2 is None or b2 is None:
        return None
    return Mlp(w1.to(x.dtype).contiguous(), b1.contiguous(), w2.to(x.dtype).contiguous(), b2.contiguous())


def _like(gradients: Mlp, weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients in the types of their weights."""
    return [found.to(weight.dtype) for found, weight in zip(gradients, weights, strict=False)]


def _kernel(weight: Tensor, x: Tensor) -> Tensor:
    return weight.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _convolutions_backward(
    x: Tensor, of_logits: Tensor, squeezed: Tensor, gated: Tensor, k1: Tensor, k2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the gated rows and by both kernels, those in the kernels' types, from ds in rows."""
    of_squeezed, dk2 = _convolution_backward(maps(of_logits, x), squeezed, k2)
    of_squeezed = torch.ops.aten.threshold_backward(of_squeezed, squeezed, 0)
    of_gated, dk1 = _convolution_backward(of_squeezed, maps(gated, x), k1)
    return _rows(of_gated), dk1, dk2


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, _kernel(weight, x), None, [1, 1], [3, 3], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return of_x, of_weight.to(weight.dtype)


class Blocks(NamedTuple):
    """How a channel gate is cut: rows and columns of a tile, hidden units (padded), warps and stages of a program."""

    rows: int
    columns: int
    units: int
    warps: int
    stages: int
    whole: bool  # one tile holds all columns, and a program's registers dW1 and dW2


def blocks(channels: int, hidden: int, dtype: torch.dtype) -> Blocks:
    """Tiles of 8 to 16 elements a thread; products in true float32 take more registers than those of tensor cores."""
    columns, units = (max(16, 1 << (number - 1).bit_length()) for number in (channels, hidden))
    exact = dtype == torch.float32
    if columns * units <= IN_REGISTERS:
        rows = 16 if exact or columns > 128 else 32
        return Blocks(rows, columns, units, 4 if columns <= 64 else 8, 1, True)
    rows = 16 if units > 128 or (exact and units > 32) else 32
    columns = min(columns, 16 if exact and units > 128 else 32 if exact or units > 128 else 64)
    return Blocks(rows, columns, units, 8 if exact or units > 128 else 4, 1 if exact else 2, False)


def channel_gate(x: Tensor, mlp: Mlp, g: Tensor) -> Tensor:
    """g of rows x [M, C], written into `g`."""
    _launch(x, mlp, None, None, g, None)
    return g


def channel_gate_again(x: Tensor, mlp: Mlp, dy: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """g of rows x [M, C] for the backward pass, and ds, as both need a pass over x."""
    g, ds = torch.empty_like(x), torch.empty_like(x)
    _launch(x, mlp, dy, s, g, ds)
    return g, ds


def _launch(x: Tensor, mlp: Mlp, dy: Tensor | None, s: Tensor | None, g: Tensor, ds: Tensor | None) -> None:
    (positions, channels), hidden = x.shape, len(mlp.b1)
    cut = blocks(channels, hidden, x.dtype)
    triton_gates.channel_gate[(_parts(positions, cut.rows),)](
        x, *mlp, dy, s, g, ds, positions, C=channels, H=hidden, **_constants(cut)
    )


def channel_gate_backward(
    x: Tensor, mlp: Mlp, dy: Tensor, s: Tensor | None = None, convolved: Tensor | None = None
) -> tuple[Tensor, Mlp]:
    """Gradients by x and by the MLP from rows [M, C]; dg is dy, or dy sigmoid(s) + convolved."""
    (positions, channels), hidden = x.shape, len(mlp.b1)
    cut = blocks(channels, hidden, x.dtype)
    programs = _parts(positions, cut.rows)
    sums, kept = [], []
    if cut.whole:
        programs = min(programs, _resident(x.device))
        sums = [_partial(x, programs, *weight.shape) for weight in (mlp.w1, mlp.w2)]
    else:
        kept = [x.new_empty(positions, width) for width in (hidden, hidden, channels)]
    biases = [_partial(x, programs, width) for width in (hidden, channels)]
    dx = torch.empty_like(x)
    triton_gates.channel_gate_backward[(programs,)](
        x, *mlp, convolved, dy, s, dx, *biases, *(sums or (None,) * 2), *(kept or (None,) * 3),
        positions, C=channels, H=hidden, **_constants(cut),
    )  # fmt: skip
    db1, db2 = (part.sum(0) for part in biases)
    if sums:
        dw1, dw2 = (part.sum(0) for part in sums)
    else:
        u, du, dl = kept
        dw1, dw2 = du.t() @ x, dl.t() @ u
    return dx, Mlp(dw1, db1, dw2, db2)


def spatial_gate(g: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """y of rows g and s [M, C], written into `y`."""
    triton_gates.spatial_gate[(_parts(g.numel(), FLAT),)](g, s, y, g.numel(), BLOCK=FLAT)
    return y


def spatial_gate_backward(g: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """ds, and dg but for what the convolutions give back, of rows [M, C]."""
    ds, dg = torch.empty_like(g), torch.empty_like(g)
    triton_gates.spatial_gate_backward[(_parts(g.numel(), FLAT),)](g, s, dy, ds, dg, g.numel(), BLOCK=FLAT)
    return ds, dg


def _constants(cut: Blocks) -> dict[str, int]:
    return {"BM": cut.rows, "BC": cut.columns, "BH": cut.units, "num_warps": cut.warps, "num_stages": cut.stages}


def _partial(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _resident(device: torch.device) -> int:
    """Programs that sum weight gradients: what a GPU runs at once; two under Triton's interpreter on a CPU."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _parts(size: int, part: int) -> int:
    return -(-size // part)
