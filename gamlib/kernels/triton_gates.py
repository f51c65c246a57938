"""GAM's gates on a GPU, as Triton kernels over rows [M, C]: every position of maps in channels_last, M = N H W.

Channel gate, W1 [h, C] and W2 [C, h]: u = relu(x W1' + b1), p = sigmoid(u W2' + b2), g = x p. Backwards, from dg:

    dl = dg x p (1 - p)         du = (dl W2) [u > 0]        dx = dg p + du W1
    dW1 = du' x    db1 = sum du        dW2 = dl' u    db2 = sum dl

Spatial gate, with q = sigmoid(s) and s from the convolutions: y = g q. Backwards, from dy:

    ds = dy g q (1 - q)         dg = dy q + (what the convolutions give back for ds)

A program owns some rows and goes over their columns in blocks, so u [rows, h] never leaves the chip; u, p and q are
computed again where they are needed, and dy q is added where dg is read. Maps [M, C] that are read and written:

    forward     g from x: 2.   y from g, s: 3.
    backward    g and ds from x, dy, s: 5.   dx from x, dy, s and the convolutions' gradient: 5.
    ch alone    forward 2, backward dx from x, dy: 3.    sp alone    forward 3, backward 5, and 3 for a sum of two.

dW1 and dW2 add up in the registers of a fixed number of programs while both fit there beside one tile of all columns
(`gpu.blocks`), and the programs' sums are added in one order: no atomics, the same bits every time. Beyond, cuBLAS
multiplies: dl is written and read, x read for it (3 maps, and 4/r for u and du). There a program also reads its rows
twice, x for g and all four maps for dx. Of 32 rows and 264 programs, 2 an H200's multiprocessor, that is 17 KiB C in
bfloat16: in 50 MiB of L2 cache up to C = 2048 for g, up to C = 512 for dx. Above, 4 maps more can come from memory; but
there the 7x7 convolutions have more than a thousand products for each number of a map.

Products are of the maps' type with sums in float32 (true float32 for float32); everything between is float32.
A kernel is compiled for every C, h and type, not for numbers of positions: the last batch is often a smaller one.
"""

import triton
import triton.language as tl


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
def _product(left, right, total):  # type: ignore[no-untyped-def]
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _zeros(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.full([HEIGHT, WIDTH], 0, tl.float32)  # tl.zeros cannot be interpreted once triton was imported to compile


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1 / (1 + tl.exp(-x.to(tl.float32)))


@triton.jit  # type: ignore[untyped-decorator]
def _hidden(x, w1, b1, rows, units, M, C: tl.constexpr, H: tl.constexpr, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    """u of these rows, in the maps' type as the products take it."""
    total = _zeros(rows.shape[0], units.shape[0])
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        weight = _load(w1, units, columns, H, C)
        total = _product(_load(x, rows, columns, M, C), tl.trans(weight), total)
    total += tl.load(b1 + units, mask=units < H, other=0.0).to(tl.float32)[None, :]
    return tl.where(total < 0, 0.0, total).to(x.dtype.element_ty)  # unlike a maximum it lets NaN through


@triton.jit  # type: ignore[untyped-decorator]
def _gate(hidden, weight, b2, columns, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """p of these columns; `weight` is their tile of W2."""
    logits = _product(hidden, tl.trans(weight), _zeros(hidden.shape[0], columns.shape[0]))
    return _sigmoid(logits + tl.load(b2 + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :])


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def channel_gate(  # type: ignore[no-untyped-def]
    x, w1, b1, w2, b2, dy, s, g, ds, M, C: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """g of BM rows; with dy and s given, also ds."""
    first_row = tl.program_id(0) * BM
    start, left = first_row.to(tl.int64) * C, M - first_row
    rows = tl.arange(0, BM)
    units = tl.arange(0, BH)
    hidden = _hidden(x + start, w1, b1, rows, units, left, C, H, BC)
    for first in range(0, C, BC):
        columns = first + tl.arange(0, BC)
        gate = _gate(hidden, _load(w2, columns, units, C, H), b2, columns, C)
        gated = _load(x + start, rows, columns, left, C).to(tl.float32) * gate
        _store(g + start, gated, rows, columns, left, C)
        if ds is not None:
            spatial = _sigmoid(_load(s + start, rows, columns, left, C))
            of_logits = _load(dy + start, rows, columns, left, C).to(tl.float32) * gated * spatial * (1 - spatial)
            _store(ds + start, of_logits, rows, columns, left, C)


@triton.jit  # type: ignore[untyped-decorator]
def _of_gated(convolved, dy, s, start, rows, columns, left, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """dg of a tile; without convolutions it is dy."""
    arrived = _load(dy + start, rows, columns, left, C).to(tl.float32)
    if s is not None:
        arrived *= _sigmoid(_load(s + start, rows, columns, left, C))
        arrived += _load(convolved + start, rows, columns, left, C).to(tl.float32)
    return arrived


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def channel_gate_backward(  # type: ignore[no-untyped-def]
    x, w1, b1, w2, b2, convolved, dy, s, dx, db1, db2, dw1, dw2, u, du, dl, M, C: tl.constexpr, H: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """dx of blocks of BM rows, each program its share, and its part of db1, db2 [programs, ...].

    With dw1 and dw2 [programs, ...] given, also its part of those: one block holds all columns. Otherwise u, du, dl
    [M, ...], and a program has one block of rows.
    """
    kind = x.dtype.element_ty
    program = tl.program_id(0)
    units = tl.arange(0, BH)
    rows = tl.arange(0, BM)
    total_b1 = tl.full([BH], 0, tl.float32)
    if dw1 is not None:
        total_b2 = tl.full([BC], 0, tl.float32)
        total_w1 = _zeros(BH, BC)
        total_w2 = _zeros(BC, BH)
    block = program
    while block * BM < M:
        start, left = (block * BM).to(tl.int64) * C, M - block * BM
        hidden = _hidden(x + start, w1, b1, rows, units, left, C, H, BC)
        of_hidden = _zeros(BM, BH)
        for first in range(0, C, BC):
            columns = first + tl.arange(0, BC)
            weight = _load(w2, columns, units, C, H)
            gate = _gate(hidden, weight, b2, columns, C)
            value = _load(x + start, rows, columns, left, C).to(tl.float32)
            of_logits = _of_gated(convolved, dy, s, start, rows, columns, left, C) * value * gate * (1 - gate)
            of_hidden = _product(of_logits.to(kind), weight, of_hidden)
            if dw1 is not None:
                total_b2 += tl.sum(of_logits, 0)
                total_w2 = _product(tl.trans(of_logits.to(kind)), hidden, total_w2)
            else:
                _store(dl + start, of_logits, rows, columns, left, C)
                tl.store(db2 + program * C + columns, tl.sum(of_logits, 0), mask=columns < C)
        of_hidden = tl.where(hidden.to(tl.float32) <= 0, 0.0, of_hidden)
        total_b1 += tl.sum(of_hidden, 0)
        for first in range(0, C, BC):
            columns = first + tl.arange(0, BC)
            gate = _gate(hidden, _load(w2, columns, units, C, H), b2, columns, C)
            direct = _of_gated(convolved, dy, s, start, rows, columns, left, C) * gate
            if dw1 is not None:  # before the store: behind it the compiler would load x once more
                total_w1 = _product(tl.trans(of_hidden.to(kind)), _load(x + start, rows, columns, left, C), total_w1)
            of_x = _product(of_hidden.to(kind), _load(w1, units, columns, H, C), direct)
            _store(dx + start, of_x, rows, columns, left, C)
        if dw1 is None:
            _store(u + start // C * H, hidden, rows, units, left, H)
            _store(du + start // C * H, of_hidden, rows, units, left, H)
        block += tl.num_programs(0)
    tl.store(db1 + program * H + units, total_b1, mask=units < H)
    if dw1 is not None:
        columns = tl.arange(0, BC)
        tl.store(db2 + program * C + columns, total_b2, mask=columns < C)
        _store(dw1 + program * C * H, total_w1, units, columns, H, C)
        _store(dw2 + program * C * H, total_w2, columns, units, C, H)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def spatial_gate(g, s, y, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """y of BLOCK elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = _sigmoid(tl.load(s + at, mask=at < size, other=0.0))
    value = tl.load(g + at, mask=at < size, other=0.0).to(tl.float32) * gate
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < size)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def spatial_gate_backward(g, s, dy, ds, dg, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """ds, and dg but for what the convolutions give back, of BLOCK elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = _sigmoid(tl.load(s + at, mask=at < size, other=0.0))
    through = tl.load(dy + at, mask=at < size, other=0.0).to(tl.float32) * gate
    tl.store(dg + at, through.to(dg.dtype.element_ty), mask=at < size)
    value = tl.load(g + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(ds + at, (through * value * (1 - gate)).to(ds.dtype.element_ty), mask=at < size)
