"""GAM's gates on a GPU, as Triton kernels over rows [M, C]: every position of maps in channels_last, M = N H W.

Channel gate, W1 [h, C] and W2 [C, h]: u = relu(x W1' + b1), p = sigmoid(u W2' + b2), g = x p. Backwards, from dg:

    dl = dg x p (1 - p)         du = (dl W2) [u > 0]        dx = dg p + du W1
    dW1 = du' x    db1 = sum du        dW2 = dl' u    db2 = sum dl

Spatial gate, with q = sigmoid(s) and s from the convolutions: y = g q. Backwards, from dy:

    ds = dy g q (1 - q)         dg = dy q + (what the convolutions give back for ds)

A program owns some rows and goes over their columns in blocks. Maps [M, C] that are read and written:

    forward     g from x: 2.   y from g, s: 3.
    backward    g and ds from x, dy, s: 5.   dx and dl from x, dy, s and the convolutions' gradient: 6.

While one block has all columns, every map is read once; else x twice for g, and all four maps for dx. cuBLAS multiplies
for dW1 and dW2: the same bits every time. Products are of the maps' type with sums in float32 (true float32 for
float32); what stays on the chip is float32. A kernel is compiled for every C, h and type, not for numbers of positions:
the last batch is often a smaller one. How maps are cut follows what the compiler reports for compute capability 9.0,
and was not measured on a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gamlib.kernels import memory
from gamlib.kernels.conditions import Mlp

NARROW = 4096  # numbers of a padded W1, up to which one block has all columns
FLAT = 1024  # numbers of a program where positions and channels are alike


def channel_gate(
    x: Tensor, mlp: Mlp, out: Tensor, spatial: tuple[Tensor, ...] | None = None, *, is_needed: bool = True
) -> Tensor:
    """As `gates.channel_gate`."""
    hidden, weights = x.new_empty(x.numel() // x.shape[1], len(mlp[0])), (value.contiguous() for value in mlp)
    _launch(_channel_gate, hidden, _rows(x), *weights, *map(_rows, (out, *(spatial or (None,) * 3))))
    return hidden


def channel_gate_gradients(x: Tensor, mlp: Mlp, hidden: Tensor, grad_output: Tensor, *further: Tensor) -> list[Tensor]:
    """As `gates.channel_gate_gradients`."""
    (w1, _, w2, b2), rows, of_x = (value.contiguous() for value in mlp), _rows(x), memory.in_channels_last(x)
    of_hidden, of_logits = torch.empty_like(hidden), torch.empty_like(rows)
    given = w1, w2, b2, *map(_rows, (grad_output, *(further or (None, None)), of_x))
    _launch(_channel_gate_backward, hidden, rows, *given, of_hidden, of_logits)
    return [of_x, of_hidden.t() @ rows, of_hidden.sum(0), of_logits.t() @ hidden, of_logits.sum(0)]


def spatial_gate(x: Tensor, logits: Tensor, out: Tensor, grad_output: Tensor | None = None) -> Tensor:
    """As `gates.spatial_gate`."""
    maps = map(_rows, (x, logits, grad_output, out))
    _gate[(triton.cdiv(x.numel(), FLAT),)](*maps, x.numel(), BLOCK=FLAT)
    return out


def _rows(x: Tensor | None) -> Any:
    """[N, C, H, W] -> [M, C], contiguous; the same memory where that is in channels_last."""
    return None if x is None else memory.rows(x).contiguous()


def _launch(kernel: Any, hidden: Tensor, x: Tensor, *arguments: Tensor | None) -> None:
    constants = tiles(x.shape[1], hidden.shape[1], x.dtype)
    kernel[(triton.cdiv(len(x), constants["BM"]),)](hidden, x, *arguments, len(x), **constants)


def tiles(channels: int, hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """What a channel gate is compiled for: C, h, and how it is cut: rows, columns and hidden units of a tile, warps.

    Of 8 to 16 numbers a thread; true float32 takes more registers than products of tensor cores.
    """
    columns, units = (max(16, triton.next_power_of_2(number)) for number in (channels, hidden))
    exact = dtype == torch.float32
    if columns * units <= NARROW:
        rows = 16 if exact or columns > 128 else 32
        warps, stages = 4 if columns <= 64 else 8, 1
    else:
        rows = 16 if units > 128 or (exact and units > 32) else 32
        columns = min(columns, 16 if exact and units > 128 else 32 if exact or units > 128 else 64)
        warps, stages = 8 if exact or units > 128 else 4, 1 if exact else 2
    sizes = {"C": channels, "H": hidden, "BM": rows, "BC": columns, "BH": units}
    return sizes | {"num_warps": warps, "num_stages": stages}


@triton.jit
def _load(matrix, rows, columns, height, width):  # type: ignore[no-untyped-def]
    """A tile of [height, width]; outside of it 0."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(matrix, tile, rows, columns, height, width):  # type: ignore[no-untyped-def]
    """The part of a tile inside of [height, width]."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    at = matrix + rows[:, None] * width + columns[None, :]
    tl.store(at, tile.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x.to(tl.float32)))


@triton.jit  # type: ignore[untyped-decorator]
def _channel_sigmoid(hidden, weight, b2, columns, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """p of these columns; `weight` is their tile of W2."""
    logits = tl.dot(hidden, tl.trans(weight), input_precision="ieee")
    return _sigmoid(logits + tl.load(b2 + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :])


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def _channel_gate(  # type: ignore[no-untyped-def]
    u, x, w1, b1, w2, b2, g, dy, s, ds, M, C: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """g and u of BM rows; with dy and s given, also ds."""
    first_row = tl.program_id(0).to(tl.int64) * BM
    start, left = first_row * C, M - first_row
    rows = tl.arange(0, BM)
    units = tl.arange(0, BH)
    total = tl.full([BM, BH], 0, tl.float32)  # tl.zeros cannot be interpreted once triton was imported to compile
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        weight = _load(w1, units, columns, H, C)
        total = tl.dot(_load(x + start, rows, columns, left, C), tl.trans(weight), total, input_precision="ieee")
    total += tl.load(b1 + units, mask=units < H, other=0.0).to(tl.float32)[None, :]
    hidden = tl.where(total < 0, 0.0, total).to(x.dtype.element_ty)  # unlike a maximum it lets NaN through
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        gate = _channel_sigmoid(hidden, _load(w2, columns, units, C, H), b2, columns, C)
        gated = _load(x + start, rows, columns, left, C).to(tl.float32) * gate
        if ds is not None:
            spatial = _sigmoid(_load(s + start, rows, columns, left, C))
            of_logits = _load(dy + start, rows, columns, left, C).to(tl.float32) * gated * spatial * (1 - spatial)
            _store(ds + start, of_logits, rows, columns, left, C)
        _store(g + start, gated, rows, columns, left, C)
    _store(u + first_row * H, hidden, rows, units, left, H)


@triton.jit  # type: ignore[untyped-decorator]
def _gradients_of_tile(  # type: ignore[no-untyped-def]
    x, hidden, weight, b2, grad, further, s, start, rows, columns, left, C: tl.constexpr
):
    """dg p and dl; dg is grad, or grad + further sigmoid(s)."""
    gate = _channel_sigmoid(hidden, weight, b2, columns, C)
    of_gated = _load(grad + start, rows, columns, left, C).to(tl.float32)
    if s is not None:
        spatial = _sigmoid(_load(s + start, rows, columns, left, C))
        of_gated += _load(further + start, rows, columns, left, C).to(tl.float32) * spatial
    direct = of_gated * gate
    return direct, direct * _load(x + start, rows, columns, left, C).to(tl.float32) * (1 - gate)


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def _channel_gate_backward(  # type: ignore[no-untyped-def]
    u, x, w1, w2, b2, grad, further, s, dx, du, dl, M, C: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """dx, du and dl of BM rows."""
    first_row = tl.program_id(0).to(tl.int64) * BM
    start, left = first_row * C, M - first_row
    rows = tl.arange(0, BM)
    units = tl.arange(0, BH)
    hidden = _load(u + first_row * H, rows, units, left, H)
    of_hidden = tl.full([BM, BH], 0, tl.float32)
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        weight = _load(w2, columns, units, C, H)
        _, of_logits = _gradients_of_tile(x, hidden, weight, b2, grad, further, s, start, rows, columns, left, C)
        of_hidden = tl.dot(of_logits.to(hidden.dtype), weight, of_hidden, input_precision="ieee")
    of_hidden = tl.where(hidden.to(tl.float32) <= 0, 0.0, of_hidden).to(hidden.dtype)
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        weight = _load(w2, columns, units, C, H)
        direct, of_logits = _gradients_of_tile(x, hidden, weight, b2, grad, further, s, start, rows, columns, left, C)
        of_x = tl.dot(of_hidden, _load(w1, units, columns, H, C), direct, input_precision="ieee")
        _store(dl + start, of_logits, rows, columns, left, C)
        _store(dx + start, of_x, rows, columns, left, C)
    _store(du + first_row * H, of_hidden, rows, units, left, H)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _gate(g, s, dy, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """y of BLOCK numbers; with dy given, ds."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = _sigmoid(tl.load(s + at, mask=at < size, other=0.0))
    found = tl.load(g + at, mask=at < size, other=0.0).to(tl.float32) * gate
    if dy is not None:
        found *= tl.load(dy + at, mask=at < size, other=0.0).to(tl.float32) * (1 - gate)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=at < size)
