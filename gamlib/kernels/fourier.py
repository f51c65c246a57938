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
from gamlib.kernels.memory import workspace
from gamlib.kernels.native import products

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
    there = _real(rows, range(height), -1), _along_w(columns, range(width), -1, rows // 2)
    back = there[0] / rows, there[1] / columns
    back[0][PAIRS:].mul_(2)  # a complex frequency stands for its negative one too
    back[1][0, 2 * PAIRS :].mul_(2)
    taps = torch.eye(49, dtype=torch.float64, device="cpu").view(7, 7, 49, 1).permute(2, 3, 0, 1)
    of_taps = _real(rows, range(-3, 4), 1), _along_w(columns, range(-3, 4), 1, rows // 2)
    kernel = _spectrum(taps, of_taps, None)
    there, back = ((h.to(dtype), w.to(dtype)) for h, w in (there, back))
    return Transforms(there, back, kernel.view(-1, 49).to(dtype))


def length(size: int) -> int:
    """L: even, so that both frequencies that are real, 0 and L / 2, make one pair."""
    return size + 3 + (size + 3) % 2


def _angles(frequencies: int, length: int, at: range) -> Tensor:
    f = torch.arange(frequencies, dtype=torch.float64, device="cpu")[:, None] * (2 * math.pi / length)
    return f * torch.tensor(at, dtype=torch.float64, device="cpu")


def _real(length: int, at: range, sign: int) -> Tensor:
    """R [L, len(at)]: the frequencies 0 and L/2, then cosines and sines of 1, ..., L/2 - 1 in turns."""
    angle = _angles(length // 2 + 1, length, at)
    parts = torch.stack([angle.cos(), sign * angle.sin()], 1)
    return torch.cat([parts[[0, -1], 0], parts[1:-1].flatten(0, 1)])


def _along_w(length: int, at: range, sign: int, number: int) -> Tensor:
    """[number, 2 L, 2 len(at)]: for X[0] beside X[L/2], and for every complex X[f].

    Rows are a frequency's parts in turns, columns all real parts, then all imaginary ones. Of X[0] and X[L/2], which
    are two real sequences, the rows of their pairs come first, then the rest of each.
    """
    angle = _angles(length, length, at)
    c, s = angle.cos(), sign * angle.sin()
    found = torch.stack([torch.cat([c, -s], 1), torch.cat([s, c], 1)], 1).flatten(0, 1).repeat(number, 1, 1)
    real = _real(length, at, sign)
    first, second = torch.block_diag(real, real).chunk(2)
    found[0] = torch.cat([first[:PAIRS], second[:PAIRS], first[PAIRS:], second[PAIRS:]])
    return found


def _spectrum(x: Tensor, matrices: Pair, name: str | None) -> Tensor:
    """Of maps: [n, c, H, W] -> [S, 2, n, c], S pairs of f and g, in the workspace of a name or in new memory."""
    x = x.permute(2, 3, 0, 1)
    (along_h, along_w), columns = matrices, x.shape[2:].numel()
    found = workspace(name, x, len(along_w), along_w.shape[1], columns)
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
    else:
        first = workspace("first", spectrum, len(along_w), along_w.shape[2], number * channels)
        products(along_w.transpose(1, 2), spectrum.view(len(along_w), along_w.shape[1], -1), out=first)
        products(along_h.t()[None], first.view(1, len(along_h), -1), out=found.view(1, len(found), -1))
    return found.permute(2, 3, 0, 1)


def _by_native(x: Tensor) -> bool:
    """Whether `c/transforms.c` takes x [H, W, n, c], or gives it."""
    return x.stride(3) == 1 and native.takes(x.dtype, native.runs(x)[1])


def _empty(name: str | None, like: Tensor, height: int, width: int, number: int, channels: int) -> Tensor:
    """Memory [H, W, N, C] in the order that suits what computes: wide maps image after image for `c/transforms.c`."""
    if channels >= WIDE and native.takes(like.dtype, channels):
        return workspace(name, like, number, height, width, channels).permute(1, 2, 0, 3)
    return workspace(name, like, height, width, number, channels)


class Fourier:
    """An engine of `backends.Fused` for maps [N, C, H, W] in the order H, W, N, C."""

    def workspace(self, name: str, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return _empty(name, x, height, width, batch, channels).permute(2, 3, 0, 1)

    def convolve(self, x: Tensor, weight: Tensor, differentiates: bool) -> tuple[Tensor, ...]:
        transforms, is_wide = _transforms(*x.shape[2:], x.dtype), _narrows(weight)
        saves = differentiates and _fits_into_saved(x, weight)
        kernel = _kernel(weight, transforms, differentiates, None if saves else "kernel")
        spectrum = _spectrum(x, transforms.there, None if saves and is_wide else "known")
        known = _factor(spectrum, is_wide, 1, None if saves else "twice")
        found = _restored(_multiplied(known, kernel, is_wide, 1), transforms.back)
        return (found, known, kernel) if saves else (found,)

    def gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        transforms, is_wide = _transforms(*x.shape[2:], x.dtype), _narrows(weight)
        arrived = _factor(_spectrum(grad_output, transforms.back, "arrived"), not is_wide, -1, "twice")
        if saved:
            known, kernel = saved
        else:
            known = _factor(_spectrum(x, transforms.there, "known"), is_wide, 1, "twice")
            kernel = _of_taps(weight, transforms, "kernel")
        hidden, wide = (arrived, known) if is_wide else (known, arrived)
        of_taps = _taps_of(_product(hidden.mT, wide), transforms)
        of_x = _restored(_multiplied(arrived, kernel, not is_wide, -1), transforms.there)
        return of_x, of_taps if is_wide else of_taps.transpose(0, 1)


def _narrows(weight: Tensor) -> bool:
    return len(weight) <= weight.shape[1]


def _fits_into_saved(x: Tensor, weight: Tensor) -> bool:
    """Whether the backward pass shall find the spectra of a block: they save a tenth of its time."""
    narrow, wide = sorted(weight.shape[:2])
    numbers = length(x.shape[2]) * length(x.shape[3]) * wide * (len(x) + 2 * narrow)  # the wider map's, both weights'
    return numbers * x.element_size() <= SAVED_BYTES


_CACHE = WeakTensorKeyDictionary()  # weight -> its copy, the transforms, the spectrum


def _kernel(weight: Tensor, transforms: Transforms, differentiates: bool, name: str | None) -> Tensor:
    """`_of_taps`; without gradients kept until a number of the weight changes: comparing them is the cheaper part."""
    if differentiates:
        return _of_taps(weight, transforms, name)
    copy, known, kernel = _CACHE.get(weight, (None, None, None))
    if copy is None or known is not transforms or not torch.equal(copy, weight):
        kernel = _of_taps(weight, transforms, None)
        _CACHE[weight] = weight.detach().clone(), transforms, kernel
    return kernel


def _of_taps(weight: Tensor, transforms: Transforms, name: str | None) -> Tensor:
    """The spectrum of a weight, [h, C, 7, 7] or [C, h, 7, 7] -> [S, 2 h, C]."""
    taps = (weight if _narrows(weight) else weight.transpose(0, 1)).flatten(2)
    found = workspace(name, taps, 1, len(transforms.kernel), taps.shape[:2].numel())
    products(transforms.kernel[None], taps.reshape(1, -1, 49).mT, out=found)
    return found.view(-1, 2 * len(taps), taps.shape[1])


def _taps_of(spectrum: Tensor, transforms: Transforms) -> Tensor:
    """The transpose of `_of_taps`: [S, 2 h, C] -> [h, C, 7, 7]."""
    by_tap = spectrum.view(1, len(transforms.kernel), -1).mT
    return products(by_tap, transforms.kernel[None]).view(-1, spectrum.shape[2], 7, 7)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return products(a, b, out=workspace("product", a, len(a), a.shape[1], b.shape[2]))


def _factor(spectrum: Tensor, is_wide: bool, sign: int, name: str | None) -> Tensor:
    """[S, 2, N, c] as it is multiplied by a kernel: [S, 2 N, C] of the wide side, [S, 2 N, 2 h] of the hidden one.

    The sign is -1 for a product with the kernel's conjugate.
    """
    if is_wide:
        return spectrum.flatten(1, 2)
    found = workspace(name, spectrum, *spectrum.shape[:3], 2, spectrum.shape[3])
    found[:, :, :, 0] = spectrum
    torch.mul(spectrum[:, 1], -sign, out=found[:, 0, :, 1])
    torch.mul(spectrum[:, 0], sign, out=found[:, 1, :, 1])
    pairs = found[:PAIRS]
    pairs[:, 0, :, 1] = 0
    pairs[:, 1, :, 0] = 0
    pairs[:, 1, :, 1] = spectrum[:PAIRS, 1]
    return found.view(len(spectrum), -1, 2 * spectrum.shape[3])


def _multiplied(factor: Tensor, kernel: Tensor, is_wide: bool, sign: int) -> Tensor:
    """The complex product of a factor with a kernel [S, 2 h, C]: [S, 2, N, h], or [S, 2, N, C] of the hidden side."""
    if not is_wide:
        return _product(factor, kernel).unflatten(1, (2, -1))
    parts = _product(factor, kernel.mT).unflatten(2, (2, -1)).unflatten(1, (2, -1))  # of both parts with both
    found = workspace("added", parts, len(parts), 2, parts.shape[2], parts.shape[4])
    torch.sub(parts[:, 0, :, 0], parts[:, 1, :, 1], alpha=sign, out=found[:, 0])
    torch.add(parts[:, 1, :, 0], parts[:, 0, :, 1], alpha=sign, out=found[:, 1])
    found[:PAIRS, 0] = parts[:PAIRS, 0, :, 0]
    found[:PAIRS, 1] = parts[:PAIRS, 1, :, 1]
    return found
