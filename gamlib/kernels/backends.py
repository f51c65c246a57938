"""What computes a GAM block, by name, and which of them is the fastest for a map."""

from functools import cache, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from gamlib.kernels import native
from gamlib.kernels.conditions import Weights, split
from gamlib.kernels.dense import LARGEST, Dense, OneCall
from gamlib.kernels.direct import Direct
from gamlib.kernels.fourier import Fourier, length
from gamlib.kernels.fused import Fused

DENSE_UP_TO = 2  # H and W, where each step of it is a call
CALLS = 3e8  # products that could be computed while the calls of the other backends are made, measured
# How many times as fast torch's convolution multiplies as `native.products`, or as torch's matrix product, measured
ADVANTAGE = {("AVX512", True): 1.5, ("AVX512", False): 3.5, ("AVX2", True): 1.2, ("AVX2", False): 1.5}


class Backend(Protocol):
    """One way of computing a block from its map [N, C, H, W] and its weights."""

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        """The block's map; where it is to be differentiated, then what `backward` needs."""

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        """The gradients of x and of each weight."""


class _Triton:
    """`gpu.py`, imported when it is used: Triton may not be there."""

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        from gamlib.kernels import gpu

        return gpu.forward(x, weights, differentiates)

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        from gamlib.kernels import gpu

        return gpu.backward(grad_output, x, weights, saved)


BACKENDS: dict[str, Backend] = {
    "direct": Fused(Direct()),
    "fourier": Fused(Fourier(), for_inference=Fourier(caches=True)),
    "dense": OneCall(otherwise=Fused(Dense())),
    "triton": _Triton(),
}
CHOICES = ("auto", "plain", *BACKENDS)


def choose(wanted: str, x: Tensor, weights: Weights, differentiates: bool) -> str:
    """A name of `BACKENDS` for a map that fits: the one wanted, or with "auto" the fastest; "plain" where it cannot be.

    On a GPU "auto" is "plain": what has not run on a kind of device is not its default there.
    """
    if x.device.type == "cuda":
        return "triton" if wanted == "triton" and _triton_can(x.device) else "plain"
    if wanted == "triton" or (wanted == "dense" and max(x.shape[2:]) > LARGEST):
        return "plain"
    kernels = split(weights)[1]
    hidden = 0 if kernels is None else len(kernels[0])
    return wanted if wanted != "auto" else fastest(*x.shape, hidden, differentiates, native.fits(x))


@lru_cache(maxsize=256)
def fastest(
    batch: int, channels: int, height: int, width: int, hidden: int, differentiates: bool, in_one_call: bool = False
) -> str:
    """The backend on a CPU for maps [N, C, H, W] and C/r hidden channels, by what each multiplies and how fast.

    `in_one_call` says whether `dense` is one call for the whole block.
    """
    if not hidden:
        return "direct"
    if max(height, width) <= DENSE_UP_TO:
        return "dense"
    rows, columns = length(height), length(width)
    along = rows * height * width + 2 * rows * columns * width  # of one channel of one map, there or back
    of_weights = rows * columns * 49
    maps, weights = (4, 4) if differentiates else (2, 0)  # transformed; without gradients a weight's is cached
    convolutions = 6 if differentiates else 2
    directly = convolutions * 49 * batch * height * width * channels * hidden
    transforms = maps * batch * (channels + hidden) * along + weights * channels * hidden * of_weights
    by_fourier = transforms + convolutions * 2 * rows * columns * batch * channels * hidden
    if in_one_call and max(height, width) <= LARGEST:
        densely = convolutions * (height * width) ** 2 * batch * channels * hidden
        if densely < CALLS + min(by_fourier, directly):
            return "dense"
    kind = torch.backends.cpu.get_cpu_capability(), native.library() is not None
    return "fourier" if by_fourier * ADVANTAGE.get(kind, min(ADVANTAGE.values())) < directly else "direct"


@cache
def _triton_can(device: torch.device) -> bool:
    """Whether Triton is installed, and has products of bfloat16 for this GPU."""
    try:
        import gamlib.kernels.gpu  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
