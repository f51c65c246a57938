"""The 7x7 convolutions of GAM with less arithmetic: discrete Fourier transforms, written as products of matrices.

A zero-padded convolution y[i] = sum_d k[d] x[i + d], d = -3..3, i = 0..n-1, is a circular one of length L = n + 3: what
wraps around falls on the three zeros behind the map. Circular convolutions are products of Fourier transforms,

    X[f] = sum_i x[i] exp(-2 pi j f i / L)    K[f] = sum_d k[d] exp(2 pi j f d / L)    Y[f] = X[f] K[f]

in both directions, with a sum over channels: Y[f, g, o] = sum_c X[f, g, c] K[f, g, o, c]. Maps are real, so that the
frequencies f = 0..L/2 of one direction are enough. Of maps of n x n with C channels, C/r of them hidden, a convolution
takes 49 n^2 C C/r products directly; here 2 L^2 C C/r, and some 3 L n^2 C for the transform of the wider side.

Rows are in the order H, W, N: the transform along H is one product of matrices, that along W one for each f, and those
with the weights one for each pair of f and g over the whole batch. A complex number is two rows, real and imaginary
part, and a complex product a real one of twice the size.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def _waves(height: int, width: int, dtype: torch.dtype) -> tuple[Pair, Pair, Pair]:
    """Matrices (along H, along W): of the transform of maps, of its inverse, and of the transform of kernels."""
    rows, columns = height + 3, width + 3
    f = torch.arange(rows // 2 + 1, dtype=torch.float64)[:, None] * (2 * math.pi / rows)
    g = torch.arange(columns, dtype=torch.float64)[:, None] * (2 * math.pi / columns)

    def along_h(at: Tensor, sign: int) -> Tensor:  # real -> complex: [2 F, len(at)]
        return torch.stack([(f * at).cos(), sign * (f * at).sin()], 1).flatten(0, 1)

    def along_w(at: Tensor, sign: int) -> Tensor:  # complex -> complex: [2 L, 2 len(at)]
        c, s = (g * at).cos(), sign * (g * at).sin()
        return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1).view(2 * columns, -1)

    taps, i, j = (torch.arange(*ends, dtype=torch.float64) for ends in ((-3, 4), (0, height), (0, width)))
    twice = torch.full((len(f),), 2.0, dtype=torch.float64)  # f stands for -f too, but for 0 and L/2
    twice[0] = 1
    twice[-1] = 1 if rows % 2 == 0 else 2
    there = along_h(i, -1), along_w(j, -1)
    back = (there[0] * twice.repeat_interleave(2)[:, None]).t() / rows, there[1].t() / columns
    of_kernels = along_h(taps, 1), along_w(taps, 1)
    return tuple((h.to(dtype).contiguous(), w.to(dtype).contiguous()) for h, w in (there, back, of_kernels))


@dataclass(frozen=True)
class Fourier:
    """An engine of `fused.Fused` for maps [N, C, H, W]; rows are in the order H, W, N."""

    batch: int
    height: int
    width: int

    def lay(self, x: Tensor) -> Tensor:
        return x.permute(2, 3, 0, 1).reshape(-1, x.shape[1])

    def unlay(self, rows: Tensor) -> Tensor:
        maps = rows.view(self.height, self.width, self.batch, -1)
        return maps.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)

    def squeeze(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        known, kernels = self._there(rows), self._kernels(weight)
        return self._back(_separate(_real(known) @ _beside(kernels))), (known, kernels)

    def expand(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        known, kernels = self._there(rows), self._kernels(weight)
        return self._back(_complex(_doubled(known) @ _above(kernels))), (known, kernels)

    def squeeze_gradients(
        self, gradient: Tensor, rows: Tensor, weight: Tensor, saved: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        known, kernels = saved
        arrived = self._adjoint_of_back(gradient)
        of_rows = self._adjoint_of_there(_complex(_doubled(arrived, -1) @ kernels.flatten(1, 2)))
        of_kernels = _real(known).transpose(1, 2) @ _doubled(arrived, -1)  # [FL, C, 2 h]
        return of_rows, self._of_weight(of_kernels.unflatten(2, (2, -1)).permute(0, 2, 3, 1))

    def expand_gradients(
        self, gradient: Tensor, rows: Tensor, weight: Tensor, saved: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        known, kernels = saved
        arrived = self._adjoint_of_back(gradient)
        wide = kernels.transpose(1, 2).flatten(2, 3)  # [FL, C, 2 h]
        of_rows = self._adjoint_of_there(_separate(_real(arrived) @ wide, -1))
        of_kernels = _doubled(known).transpose(1, 2) @ _real(arrived)  # [FL, 2 h, C]
        return of_rows, self._of_weight(of_kernels.unflatten(1, (2, -1)).transpose(2, 3))

    def _there(self, rows: Tensor) -> Tensor:
        """Rows [H W N, C] -> [F L, 2, N, C]."""
        return self._transformed(rows, *_waves(self.height, self.width, rows.dtype)[0])

    def _back(self, known: Tensor) -> Tensor:
        return self._restored(known, *_waves(self.height, self.width, known.dtype)[1])

    def _adjoint_of_there(self, known: Tensor) -> Tensor:
        h, w = _waves(self.height, self.width, known.dtype)[0]
        return self._restored(known, h.t(), w.t())

    def _adjoint_of_back(self, rows: Tensor) -> Tensor:
        h, w = _waves(self.height, self.width, rows.dtype)[1]
        return self._transformed(rows, h.t(), w.t())

    def _transformed(self, rows: Tensor, h: Tensor, w: Tensor) -> Tensor:
        first = (h @ rows.reshape(self.height, -1)).view(len(h) // 2, 2 * self.width, -1)
        return (w @ first).view(-1, 2, self.batch, rows.shape[1])

    def _restored(self, known: Tensor, h: Tensor, w: Tensor) -> Tensor:
        first = w @ known.reshape(h.shape[1] // 2, w.shape[1], -1)
        return (h @ first.view(h.shape[1], -1)).view(-1, known.shape[-1])

    def _kernels(self, weight: Tensor) -> Tensor:
        """[O, I, 7, 7] -> [F L, 2, O, I]."""
        h, w = _waves(self.height, self.width, weight.dtype)[2]
        first = (h @ weight.permute(2, 3, 0, 1).reshape(7, -1)).view(len(h) // 2, 14, -1)
        return (w @ first).view(-1, 2, *weight.shape[:2])

    def _of_weight(self, kernels: Tensor) -> Tensor:
        h, w = _waves(self.height, self.width, kernels.dtype)[2]
        outputs, inputs = kernels.shape[2:]
        first = w.t() @ kernels.reshape(len(h) // 2, len(w), -1)
        return (h.t() @ first.view(len(h), -1)).view(7, 7, outputs, inputs).permute(2, 3, 0, 1)


def _real(known: Tensor) -> Tensor:
    """[FL, 2, N, c] -> [FL, 2 N, c]."""
    return known.flatten(1, 2)


def _complex(known: Tensor) -> Tensor:
    """[FL, 2 N, c] -> [FL, 2, N, c]."""
    return known.unflatten(1, (2, -1))


def _beside(kernels: Tensor) -> Tensor:
    """[FL, 2, O, I] -> [FL, I, 2 O]."""
    return kernels.permute(0, 3, 1, 2).flatten(2, 3)


def _above(kernels: Tensor) -> Tensor:
    """[FL, 2, O, I] -> [FL, 2 I, O]."""
    return kernels.transpose(2, 3).flatten(1, 2)


def _doubled(known: Tensor, sign: int = 1) -> Tensor:
    """[FL, 2, N, h] -> [FL, 2 N, 2 h], whose product with [K_re; K_im] is that with K, or (-1) with its conjugate."""
    real, imaginary = known.unbind(1)
    rows = (real, -sign * imaginary), (imaginary, sign * real)
    return torch.stack([torch.cat(row, 2) for row in rows], 1).flatten(1, 2)


def _separate(product: Tensor, sign: int = 1) -> Tensor:
    """[FL, 2 N, 2 h], of both parts with both of K, -> [FL, 2, N, h], the product with K, or (-1) its conjugate."""
    (rr, ri), (ir, ii) = (part.chunk(2, 2) for part in product.chunk(2, 1))
    return torch.stack([rr - sign * ii, ir + sign * ri], 1)
