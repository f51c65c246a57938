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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gamlib.kernels import native
from gamlib.kernels.native import products
from gamlib.kernels.workspace import workspace

SAVED_BYTES = 2**25  # for each block; of more, the spectra are computed again
WIDE = 64  # channels
PAIRS = 2  # of real numbers, in front of the complex ones

Pair = tuple[Tensor, Tensor]


class Transforms(NamedTuple):
    """The matrices for maps of one size, along H and along W."""

    there: Pair  # [L, H] and [L / 2, 2 L', 2 W], of maps
    back: Pair  # [L, H] and [L / 2, 2 L', 2 W], whose transposes make maps
    kernel: Tensor  # [L L', 49], of weights


@lru_cache(maxsize=64)
def _transforms(height: int, width: int, dtype: torch.dtype) -> Transforms:
    rows, columns = length(height), length(width)
    of_rows, of_columns = _real(rows, range(height), -1), _real(columns, range(width), -1)
    there = of_rows, _along_w(columns, range(width), -1, rows // 2)
    back_w = there[1] / columns
    back_w[0] = _along_w_of_reals(_both_signs(of_columns) / columns)
    back = _both_signs(of_rows) / rows, back_w
    taps = torch.eye(49, dtype=torch.float64, device="cpu").view(7, 7, 49, 1).permute(2, 3, 0, 1)
    of_taps = _real(rows, range(-3, 4), 1), _along_w(columns, range(-3, 4), 1, rows // 2)
    kernel = _spectrum(taps, of_taps, None)
    there, back = ((h.to(dtype), w.to(dtype)) for h, w in (there, back))
    return Transforms(there, back, kernel.view(-1, 49).to(dtype))


def length(size: int) -> int:
    """L: even, so that both frequencies that are real, 0 and L / 2, make one pair."""
    return size + 3 + (size + 3) % 2


def _both_signs(real: Tensor) -> Tensor:
    """R with every complex frequency for its negative one too."""
    return torch.cat([real[:PAIRS], 2 * real[PAIRS:]])


def _angles(frequencies: int, length: int, at: range) -> Tensor:
    f = torch.arange(frequencies, dtype=torch.float64, device="cpu")[:, None] * (2 * math.pi / length)
    return f * torch.tensor(at, dtype=torch.float64, device="cpu")


def _real(length: int, at: range, sign: int) -> Tensor:
    """R [L, len(at)]: the frequencies 0 and L/2, then cosines and sines of 1, ..., L/2 - 1 in turns."""
    angle = _angles(length // 2 + 1, length, at)
    parts = torch.stack([angle.cos(), sign * angle.sin()], 1)
    return torch.cat([parts[[0, -1], 0], parts[1:-1].flatten(0, 1)])


def _complex(length: int, at: range, sign: int) -> Tensor:
    """[2 L, 2 len(at)]: rows are a frequency's parts in turns, columns all real parts, then all imaginary ones."""
    angle = _angles(length, length, at)
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


def _spectrum(x: Tensor, matrices: Pair, name: str | None) -> Tensor:
    """Of maps: [n, c, H, W] -> [S, 2, n, c], S pairs of f and g, in the workspace of a name or in new memory."""
    x = x.permute(2, 3, 0, 1)
    (along_h, along_w), columns = matrices, x.shape[2:].numel()
    found = _memory(name, x, len(along_w), along_w.shape[1], columns)
    if _by_native(x):
        native.library().transform(matrices, x, found, False)
    else:
        first = workspace("first", x, 1, len(along_h), x.shape[1] * columns)
        products(along_h[None], x.reshape(1, len(x), -1), out=first)
        products(along_w, first.view(len(along_w), along_w.shape[2], -1), out=found)
    return found.view(-1, 2, *x.shape[2:])


def _restored(spectrum: Tensor, matrices: Pair) -> Tensor:
    """The transpose of `_spectrum`: [S, 2, n, c] -> [n, c, H, W], in memory of its own."""
    (along_h, along_w), (number, channels) = matrices, spectrum.shape[2:]
    found = _empty(None, spectrum, along_h.shape[1], along_w.shape[2] // 2, number, channels)
    if _by_native(found):
        native.library().transform(matrices, found, spectrum, True)
        return found.permute(2, 3, 0, 1)
    first = workspace("first", spectrum, len(along_w), along_w.shape[2], number * channels)
    products(along_w.transpose(1, 2), spectrum.view(len(along_w), along_w.shape[1], -1), out=first)
    products(along_h.t()[None], first.view(1, len(along_h), -1), out=found.view(1, len(found), -1))
    return found.permute(2, 3, 0, 1)


def _by_native(x: Tensor) -> bool:
    """Whether `c/transforms.c` takes x [H, W, n, c], or gives it."""
    fills = x.stride(3) == 1 and native.runs(x)[1] % native.FILL == 0
    return fills and x.dtype == torch.float32 and native.library() is not None


def _empty(name: str | None, like: Tensor, height: int, width: int, number: int, channels: int) -> Tensor:
    """Memory [H, W, N, C] in the order that suits what computes: wide maps image after image for `c/transforms.c`."""
    by_native = like.dtype == torch.float32 and channels % native.FILL == 0 and native.library() is not None
    if by_native and channels >= WIDE:
        return _memory(name, like, number, height, width, channels).permute(1, 2, 0, 3)
    return _memory(name, like, height, width, number, channels)


class Fourier:
    """An engine of `fused.Fused` for maps [N, C, H, W] in the order H, W, N, C; `caches` the spectra of weights."""

    def __init__(self, caches: bool = False) -> None:
        self.caches = caches

    def workspace(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return _empty(name, x, height, width, batch, channels).permute(2, 3, 0, 1)

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        transforms, saves = _transforms(*x.shape[2:], x.dtype), self._saves(x, weight)
        known = _spectrum(x, transforms.there, None if saves else "known").flatten(1, 2)
        kernel = self._of_kernel(weight, weight.flatten(2), transforms, None if saves else "kernel")
        product = _product(known, kernel.transpose(1, 2))
        found = _restored(_added(product, 1), transforms.back)
        return (found, known, kernel) if saves else (found,)

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        transforms, saves = _transforms(*x.shape[2:], x.dtype), self._saves(x, weight)
        known = _twice(_spectrum(x, transforms.there, "known"), 1, None if saves else "twice")
        kernel = self._of_kernel(weight, weight.flatten(2).transpose(0, 1), transforms, None if saves else "kernel")
        found = _restored(_product(known, kernel).unflatten(1, (2, -1)), transforms.back)
        return (found, known, kernel) if saves else (found,)

    def squeeze_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        transforms, of_weight = _transforms(*x.shape[2:], x.dtype), native.empty_like(weight)
        arrived = _twice(_spectrum(grad_output, transforms.back, "arrived"), -1, "twice")
        known = saved[0] if saved else _spectrum(x, transforms.there, "known").flatten(1, 2)
        _taps_of(_product(arrived.transpose(1, 2), known), of_weight.flatten(2), transforms)
        kernel = saved[1] if saved else _of_taps(weight.flatten(2), transforms, "kernel")
        return _restored(_product(arrived, kernel).unflatten(1, (2, -1)), transforms.there), of_weight

    def expand_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        transforms, of_weight = _transforms(*x.shape[2:], x.dtype), native.empty_like(weight)
        arrived = _spectrum(grad_output, transforms.back, "arrived").flatten(1, 2)
        known = saved[0] if saved else _twice(_spectrum(x, transforms.there, "known"), 1, "twice")
        _taps_of(_product(known.transpose(1, 2), arrived), of_weight.flatten(2).transpose(0, 1), transforms)
        kernel = saved[1] if saved else _of_taps(weight.flatten(2).transpose(0, 1), transforms, "kernel")
        return _restored(_added(_product(arrived, kernel.transpose(1, 2)), -1), transforms.there), of_weight

    def _saves(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the backward pass shall find the spectra of a block: they save a tenth of its time."""
        narrow, wide = sorted(weight.shape[:2])
        pairs = len(_transforms(*x.shape[2:], x.dtype).kernel)
        numbers = pairs * wide * (len(x) + 2 * narrow)  # the wider map's, both weights'
        return not self.caches and numbers * x.element_size() <= SAVED_BYTES

    def _of_kernel(self, weight: Tensor, taps: Tensor, transforms: Transforms, name: str | None) -> Tensor:
        return _cached(weight, taps, transforms) if self.caches else _of_taps(taps, transforms, name)


def _of_taps(taps: Tensor, transforms: Transforms, name: str | None) -> Tensor:
    """The spectrum of a weight: taps [h, C, 49] -> [S, 2 h, C]."""
    hidden, channels, _ = taps.shape
    if native.library() is None:  # torch's library is faster with one product than with many
        return (transforms.kernel @ taps.reshape(-1, 49).t()).view(-1, 2 * hidden, channels)
    found = _memory(name, taps, len(transforms.kernel), hidden, channels)
    products(transforms.kernel.expand(hidden, -1, -1), taps.transpose(1, 2), out=found.transpose(0, 1))
    return found.view(-1, 2 * hidden, channels)


def _taps_of(spectrum: Tensor, found: Tensor, transforms: Transforms) -> Tensor:
    """The transpose of `_of_taps`, written into `found` [h, C, 49]."""
    kernel = transforms.kernel
    if native.library() is None:
        return found.copy_((spectrum.view(len(kernel), -1).t() @ kernel).view(found.shape))
    known = spectrum.view(len(kernel), *found.shape[:2]).permute(1, 2, 0)
    return products(known, kernel.expand(len(found), -1, -1), out=found)


_CACHE = WeakTensorKeyDictionary()  # weight -> its copy, the transforms, the spectrum


def _cached(weight: Tensor, taps: Tensor, transforms: Transforms) -> Tensor:
    """`_of_taps`, computed once for a weight until one of its numbers changes: comparing them is the cheaper part."""
    copy, known, kernel = _CACHE.get(weight, (None, None, None))
    if copy is None or known is not transforms or not torch.equal(copy, weight):
        kernel = _of_taps(taps, transforms, None)
        _CACHE[weight] = weight.detach().clone(), transforms, kernel
    return kernel


def _product(a: Tensor, b: Tensor) -> Tensor:
    return products(a, b, out=workspace("product", a, len(a), a.shape[1], b.shape[2]))


def _memory(name: str | None, like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape) if name is None else workspace(name, like, *shape)


def _twice(spectrum: Tensor, sign: int, name: str | None) -> Tensor:
    """[S, 2, N, h] -> [S, 2 N, 2 h], whose product with a kernel is the complex one, or (-1) with its conjugate."""
    found = _memory(name, spectrum, *spectrum.shape[:3], 2, spectrum.shape[3])
    found[:, :, :, 0] = spectrum
    torch.mul(spectrum[:, 1], -sign, out=found[:, 0, :, 1])
    torch.mul(spectrum[:, 0], sign, out=found[:, 1, :, 1])
    pairs = found[:PAIRS]
    pairs[:, 0, :, 1] = 0
    pairs[:, 1, :, 0] = 0
    pairs[:, 1, :, 1] = spectrum[:PAIRS, 1]
    return found.view(len(spectrum), -1, 2 * spectrum.shape[3])


def _added(product: Tensor, sign: int) -> Tensor:
    """[S, 2 N, 2 h], of both parts with both of a kernel, -> [S, 2, N, h], the complex product, or (-1) as above."""
    parts = product.view(len(product), 2, -1, 2, product.shape[2] // 2)
    found = workspace("added", product, len(parts), 2, parts.shape[2], parts.shape[4])
    torch.sub(parts[:, 0, :, 0], parts[:, 1, :, 1], alpha=sign, out=found[:, 0])
    torch.add(parts[:, 1, :, 0], parts[:, 0, :, 1], alpha=sign, out=found[:, 1])
    found[:PAIRS, 0] = parts[:PAIRS, 0, :, 0]
    found[:PAIRS, 1] = parts[:PAIRS, 1, :, 1]
    return found
