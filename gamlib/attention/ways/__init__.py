"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gamlib.attention.ways import native
from gamlib.attention.ways.conditions import Weights, usable_weights
from gamlib.attention.ways.dense import LARGEST, Dense, Whole
from gamlib.attention.ways.dense import attend as whole
from gamlib.attention.ways.direct import Direct
from gamlib.attention.ways.fourier import Fourier, length
from gamlib.attention.ways.fused import Engine, Fused, apart, attend

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES: dict[str, Engine] = {"direct": Direct(), "fourier": Fourier(), "dense": Dense()}
WITHOUT_GRADIENTS = ENGINES | {"fourier": Fourier(keeps=True)}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES, "triton")

DENSE_UP_TO = 2  # H and W, where each step of it is a call
CALLS = 3e8  # products that could be computed while the calls of the other engines are made, measured
# How many times as fast torch's convolution multiplies as `native.products`, or as torch's matrix product, measured
ADVANTAGE = {("AVX512", True): 1.5, ("AVX512", False): 3.5, ("AVX2", True): 1.2, ("AVX2", False): 1.5}


def choose(block: "GAM", x: Tensor) -> str:
    """One of `IMPLEMENTATIONS` but "auto": the one that was asked for, or the fastest; "plain" where that cannot be."""
    return _chosen(block, x)[0]


def compute(block: "GAM", x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, W], by what `choose` says."""
    way, weights = _chosen(block, x)
    return block.plain(x) if weights is None else _computed(way, x, weights)


def _chosen(block: "GAM", x: Tensor) -> tuple[str, Weights | None]:
    """The way, and the weights that it needs unless it is "plain"."""
    wanted = block.implementation
    weights = None if wanted == "plain" else usable_weights(block, x)
    if weights is None:
        return "plain", None
    if x.device.type == "cuda":  # never by itself: what has not run on a kind of device is not its default
        return ("triton", weights) if wanted == "triton" and _triton_can(x.device) else ("plain", None)
    if wanted == "triton" or (wanted == "dense" and max(x.shape[2:]) > LARGEST):
        return "plain", None
    if wanted != "auto":
        return wanted, weights
    hidden = 0 if weights[4] is None else len(weights[4])
    return fastest(*x.shape, hidden, _with_gradients(weights, x), native.fits(x)), weights


def _computed(way: str, x: Tensor, weights: Weights) -> Tensor:
    if way == "triton":
        from gamlib.attention.ways.gpu import OnGPU

        return OnGPU.apply(x, *weights)
    differentiates = _with_gradients(weights, x)
    if way == "dense" and weights[4] is not None and native.fits(x):
        return Whole.apply(x, *weights) if differentiates else whole(x, weights, differentiates=False)[0]
    if differentiates:
        return Fused.apply(ENGINES[way], x, *weights)
    return attend(WITHOUT_GRADIENTS[way], x, *apart(weights))[0]


@lru_cache(maxsize=256)
def fastest(
    batch: int, channels: int, height: int, width: int, hidden: int, gradients: bool, in_one_call: bool = False
) -> str:
    """The engine for maps [N, C, H, W] and C/r hidden channels, by what it multiplies and how fast that goes here.

    `in_one_call` says whether `dense` is one call for the whole block.
    """
    if not hidden:
        return "direct"
    if max(height, width) <= DENSE_UP_TO:
        return "dense"
    rows, columns = length(height), length(width)
    along = rows * height * width + 2 * rows * columns * width  # of one channel of one map, there or back
    of_weights = rows * columns * 49
    maps, weights = (4, 4) if gradients else (2, 0)  # transformed; a weight's is kept where no gradient is asked for
    convolutions = 6 if gradients else 2
    directly = convolutions * 49 * batch * height * width * channels * hidden
    transforms = maps * batch * (channels + hidden) * along + weights * channels * hidden * of_weights
    by_fourier = transforms + convolutions * 2 * rows * columns * batch * channels * hidden
    if in_one_call and max(height, width) <= LARGEST:
        densely = convolutions * (height * width) ** 2 * batch * channels * hidden
        if densely < CALLS + min(by_fourier, directly):
            return "dense"
    kind = torch.backends.cpu.get_cpu_capability(), native.library() is not None
    return "fourier" if by_fourier * ADVANTAGE.get(kind, min(ADVANTAGE.values())) < directly else "direct"


def _with_gradients(weights: Weights, x: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(value is not None and value.requires_grad for value in weights)


@cache
def _triton_can(device: torch.device) -> bool:
    """Whether Triton is installed, and has products of bfloat16 for this GPU."""
    try:
        import gamlib.attention.ways.gpu  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
