"""The 7x7 convolutions of GAM with less arithmetic: discrete Fourier transforms, written as products of matrices.

A zero-padded convolution y[i] = sum_d k[d] x[i + d], d = -3..3, i = 0..n-1, is a circular one of any length
L >= n + 3: what wraps around falls on the zeros behind the map. Circular convolutions are products of Fourier
transforms,

    X[f] = sum_i x[i] exp(-2 pi j f i / L)    K[f] = sum_d k[d] exp(2 pi j f d / L)    Y[f] = X[f] K[f]

in both directions, with a sum over channels: Y[f, g, o] = sum_c X[f, g, c] K[f, g, o, c]. Of a map of n x n with C
channels, C/r of them hidden, a convolution takes 49 n^2 C C/r products directly; here 2 L^2 C C/r, and some 3 L n^2 C
for the transform of the wider side.

Maps are real, so half of the frequencies are enough, L^2 / 2 of them with L even: along H the transform has the L real
numbers R x, which are X[0], X[L/2] and the parts of X[1], ..., X[L/2 - 1]. Each complex one of these is transformed
along W into L complex ones. X[0] and X[L/2] are real, so R again takes both to L numbers each; four of these are real,
and stand as two pairs, the first two of all, which are no complex numbers and multiply part by part.

Maps lie in the order H, W, N, C, so that the transform along H is one product of matrices, that along W one for each f,
and those with the weights one for each pair of f and g over the whole batch. A complex number is two rows, and a
complex product a real one of twice the size: the side of the hidden channels, which is small, is written twice for it.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gamlib.attention.ways import native
from gamlib.attention.ways.native import Saved, products
from gamlib.attention.ways.rooms import room

KEPT_BYTES = 2**25  # for each block; of more, the transforms are computed again
WIDE = 64  # channels
PAIRS = 2  # of real numbers, in front of the complex ones


Pair = tuple[Tensor, Tensor]


class Waves(NamedTuple):
    """The matrices for maps of one size, along H and along W."""

    there: Pair  # [L, H] and [L / 2, 2 L', 2 W], of maps
    back: Pair  # [L, H] and [L / 2, 2 L', 2 W], whose transposes make maps
    kernel: Tensor  # [L L', 49], of weights


@lru_cache(maxsize=64)
def _waves(height: int, width: int, dtype: torch.dtype) -> Waves:
    rows, columns = length(height), length(width)
    of_rows, of_columns = _real(rows, range(height), -1), _real(columns, range(width), -1)
    there = of_rows, _along_w(columns, range(width), -1, rows // 2)
    back_w = there[1] / columns
    back_w[0] = _along_w_of_reals(_both_signs(of_columns) / columns)
    back = _both_signs(of_rows) / rows, back_w
    taps = torch.eye(49, dtype=torch.float64, device="cpu").view(7, 7, 49, 1)
    of_taps = _real(rows, range(-3, 4), 1), _along_w(columns, range(-3, 4), 1, rows // 2)
    kernel = _transformed(taps, of_taps, None)
    there, back = ((h.to(dtype), w.to(dtype)) for h, w in (there, back))
    return Waves(there, back, kernel.view(-1, 49).to(dtype))


def length(size: int) -> int:
    """L: even, so that both frequencies that are real, 0 and L / 2, make one pair."""
    return size + 3 + (size + 3) % 2


def _both_signs(real: Tensor) -> Tensor:
    """R with every complex frequency for its negative one too."""
    return torch.cat([real[:PAIRS], 2 * real[PAIRS:]])


def _real(length: int, at: range, sign: int) -> Tensor:
    """R [L, len(at)]: the frequencies 0 and L/2, then cosines and sines of 1, ..., L/2 - 1 in turns."""
    f = torch.arange(length // 2 + 1, dtype=torch.float64, device="cpu")[:, None] * (2 * math.pi / length)
    angle = f * torch.tensor(at, dtype=torch.float64, device="cpu")
    parts = torch.stack([angle.cos(), sign * angle.sin()], 1)
    return torch.cat([parts[[0, -1], 0], parts[1:-1].flatten(0, 1)])


def _complex(length: int, at: range, sign: int) -> Tensor:
    """[2 L, 2 len(at)]: rows are a frequency's parts in turns, columns all real parts, then all imaginary ones."""
    g = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * (2 * math.pi / length)
    angle = g * torch.tensor(at, dtype=torch.float64, device="cpu")
    c, s = angle.cos(), sign * angle.sin()
    return torch.stack([torch.cat([c, -s], 1), torch.cat([s, c], 1)], 1).flatten(0, 1)


def _along_w(length: int, at: range, sign: int, number: int) -> Tensor:
    """[number, 2 L, 2 len(at)]: for X[0] beside X[L/2], and for every complex X[f]."""
    found = _complex(length, at, sign).repeat(number, 1, 1)
    found[0] = _along_w_of_reals(_real(length, at, sign))
    return found


def _along_w_of_reals(real: Tensor) -> Tensor:
    """R [L, n] -> [2 L, 2 n], which takes two real sequences to their pairs, then to the rest of each."""
    none = torch.zeros_like(real)
    first, second = torch.cat([real, none], 1), torch.cat([none, real], 1)
    return torch.cat([first[:PAIRS], second[:PAIRS], first[PAIRS:], second[PAIRS:]])


def _transformed(x: Tensor, matrices: Pair, name: str | None) -> Tensor:
    """[H, W, n, c] -> [S, 2, n, c], S pairs of f and g, in the room of a name or in new memory."""
    (along_h, along_w), columns = matrices, x.shape[2:].numel()
    found = _memory(name, x, len(along_w), along_w.shape[1], columns)
    if native.transforms(x):
        native.transform(x, along_h, along_w, found)
    else:
        first = room("first", x, 1, len(along_h), x.shape[1] * columns)
        products(along_h[None], x.reshape(1, len(x), -1), out=first)
        products(along_w, first.view(len(along_w), along_w.shape[2], -1), out=found)
    return found.view(-1, 2, *x.shape[2:])


def _restored(known: Tensor, matrices: Pair) -> Tensor:
    """The transpose of `_transformed`: [S, 2, n, c] -> [H, W, n, c], in memory of its own."""
    (along_h, along_w), (number, channels) = matrices, known.shape[2:]
    found = _empty(None, known, along_h.shape[1], along_w.shape[2] // 2, number, channels)
    if native.transforms(found):
        native.restore(known, along_h, along_w, found)
        return found
    first = room("first", known, len(along_w), along_w.shape[2], number * channels)
    products(along_w.transpose(1, 2), known.view(len(along_w), along_w.shape[1], -1), out=first)
    products(along_h.t()[None], first.view(1, len(along_h), -1), out=found.view(1, len(found), -1))
    return found


def _empty(name: str | None, like: Tensor, height: int, width: int, number: int, channels: int) -> Tensor:
    """Memory [H, W, N, C] in the order that suits what computes: wide maps image after image for `c/transforms.c`."""
    by_native = like.dtype == torch.float32 and channels % native.FILL == 0 and native.library() is not None
    if by_native and channels >= WIDE:
        return _memory(name, like, number, height, width, channels).permute(1, 2, 0, 3)
    return _memory(name, like, height, width, number, channels)


class Fourier:
    """An engine of `fused.Fused` for maps [N, C, H, W] in the order H, W, N, C; `keeps` the transforms of weights."""

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps

    def room(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return _empty(name, x, height, width, batch, channels).permute(2, 3, 0, 1)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        waves, keeps = _waves_for(x), self._keeps(x, weight)
        known = _flat(_there(x, waves.there, None if keeps else "known"))
        kernel = self._kernel(weight, weight.flatten(2), waves, None if keeps else "kernel")
        found = _back(_apart(_product(known, kernel.transpose(1, 2)), 1), waves.back)
        return found, (known, kernel) if keeps else ()

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        waves, keeps = _waves_for(x), self._keeps(x, weight)
        known = _twice(_there(x, waves.there, "known"), 1, None if keeps else "twice")
        kernel = self._kernel(weight, weight.flatten(2).transpose(0, 1), waves, None if keeps else "kernel")
        found = _back(_parts(_product(known, kernel)), waves.back)
        return found, (known, kernel) if keeps else ()

    def squeeze_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        waves, of_weight = _waves_for(x), _taps_like(weight)
        arrived = _twice(_there(gradient, waves.back, "arrived"), -1, "twice")
        known = saved[0] if saved else _flat(_there(x, waves.there, "known"))
        _of_taps(_product(arrived.transpose(1, 2), known), of_weight.flatten(2), waves)
        kernel = saved[1] if saved else _kernel(weight.flatten(2), waves, "kernel")
        return _back(_parts(_product(arrived, kernel)), waves.there), of_weight

    def expand_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        waves, of_weight = _waves_for(x), _taps_like(weight)
        arrived = _flat(_there(gradient, waves.back, "arrived"))
        known = saved[0] if saved else _twice(_there(x, waves.there, "known"), 1, "twice")
        _of_taps(_product(known.transpose(1, 2), arrived), of_weight.flatten(2).transpose(0, 1), waves)
        kernel = saved[1] if saved else _kernel(weight.flatten(2).transpose(0, 1), waves, "kernel")
        return _back(_apart(_product(arrived, kernel.transpose(1, 2)), -1), waves.there), of_weight

    def _keeps(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the backward pass shall find the transforms of a block: they save a tenth of its time."""
        narrow, wide = sorted(weight.shape[:2])
        numbers = len(_waves_for(x).kernel) * wide * (len(x) + 2 * narrow)  # the wider map's, both weights'
        return not self.keeps and numbers * x.element_size() <= KEPT_BYTES

    def _kernel(self, weight: Tensor, taps: Tensor, waves: Waves, name: str | None) -> Tensor:
        return _kept(weight, taps, waves) if self.keeps else _kernel(taps, waves, name)


def _waves_for(x: Tensor) -> Waves:
    return _waves(*x.shape[2:], x.dtype)


def _there(x: Tensor, matrices: Pair, name: str | None) -> Tensor:
    """[N, c, H, W] -> [S, 2, N, c]."""
    return _transformed(x.permute(2, 3, 0, 1), matrices, name)


def _back(known: Tensor, matrices: Pair) -> Tensor:
    """[S, 2, N, c] -> [N, c, H, W]."""
    return _restored(known, matrices).permute(2, 3, 0, 1)


def _kernel(taps: Tensor, waves: Waves, name: str | None) -> Tensor:
    """Taps [h, C, 49] -> [S, 2 h, C]."""
    hidden, channels, _ = taps.shape
    if native.library() is None:  # torch's library is faster with one product than with many
        return (waves.kernel @ taps.reshape(-1, 49).t()).view(-1, 2 * hidden, channels)
    found = _memory(name, taps, len(waves.kernel), hidden, channels)
    products(waves.kernel.expand(hidden, -1, -1), taps.transpose(1, 2), out=found.transpose(0, 1))
    return found.view(-1, 2 * hidden, channels)


def _taps_like(weight: Tensor) -> Tensor:
    """Room for the gradient of a weight, its taps one after the other, as `products` writes them."""
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _of_taps(of_kernel: Tensor, found: Tensor, waves: Waves) -> Tensor:
    """The transpose of `_kernel`, written into `found` [h, C, 49]."""
    if native.library() is None:
        return found.copy_((of_kernel.view(len(waves.kernel), -1).t() @ waves.kernel).view(found.shape))
    known = of_kernel.view(len(waves.kernel), *found.shape[:2]).permute(1, 2, 0)
    return products(known, waves.kernel.expand(len(found), -1, -1), out=found)


_KEPT = WeakTensorKeyDictionary()  # weight -> its copy, the size of maps, the transform


def _kept(weight: Tensor, taps: Tensor, waves: Waves) -> Tensor:
    """`_kernel`, computed once for a weight until one of its numbers changes: comparing them is the cheaper part."""
    copy, known, kernel = _KEPT.get(weight, (None, None, None))
    if copy is None or known is not waves or not torch.equal(copy, weight):
        kernel = _kernel(taps, waves, None)
        _KEPT[weight] = weight.detach().clone(), waves, kernel
    return kernel


def _product(a: Tensor, b: Tensor) -> Tensor:
    return products(a, b, out=room("product", a, len(a), a.shape[1], b.shape[2]))


def _memory(name: str | None, like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape) if name is None else room(name, like, *shape)


def _flat(known: Tensor) -> Tensor:
    """[S, 2, n, c] -> [S, 2 n, c]."""
    return known.flatten(1, 2)


def _parts(known: Tensor) -> Tensor:
    """[S, 2 n, c] -> [S, 2, n, c]."""
    return known.unflatten(1, (2, -1))


def _twice(known: Tensor, sign: int, name: str | None) -> Tensor:
    """[S, 2, N, h] -> [S, 2 N, 2 h], whose product with a kernel is the complex one, or (-1) with its conjugate."""
    found = _memory(name, known, *known.shape[:3], 2, known.shape[3])
    found[:, :, :, 0] = known
    torch.mul(known[:, 1], -sign, out=found[:, 0, :, 1])
    torch.mul(known[:, 0], sign, out=found[:, 1, :, 1])
    pairs = found[:PAIRS]
    pairs[:, 0, :, 1] = 0
    pairs[:, 1, :, 0] = 0
    pairs[:, 1, :, 1] = known[:PAIRS, 1]
    return found.view(len(known), -1, 2 * known.shape[3])


def _apart(product: Tensor, sign: int) -> Tensor:
    """[S, 2 N, 2 h], of both parts with both of a kernel, -> [S, 2, N, h], the complex product, or (-1) as above."""
    parts = product.view(len(product), 2, -1, 2, product.shape[2] // 2)
    found = room("apart", product, len(parts), 2, parts.shape[2], parts.shape[4])
    torch.sub(parts[:, 0, :, 0], parts[:, 1, :, 1], alpha=sign, out=found[:, 0])
    torch.add(parts[:, 1, :, 0], parts[:, 0, :, 1], alpha=sign, out=found[:, 1])
    found[:PAIRS, 0] = parts[:PAIRS, 0, :, 0]
    found[:PAIRS, 1] = parts[:PAIRS, 1, :, 1]
    return found
