"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gamlib.attention.ways import native
from gamlib.attention.ways.dense import LARGEST, Dense, Whole
from gamlib.attention.ways.dense import attend as whole
from gamlib.attention.ways.direct import Direct
from gamlib.attention.ways.fourier import Fourier, length
from gamlib.attention.ways.fused import Engine, Fused, Weights, apart, attend

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES: dict[str, Engine] = {"direct": Direct(), "fourier": Fourier(), "dense": Dense()}
WITHOUT_GRADIENTS = ENGINES | {"fourier": Fourier(keeps=True)}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES, "triton")

DENSE_UP_TO = 2  # H and W, where each step of it is a call
CALLS = 3e8  # products that could be computed while the calls of the other engines are made, measured
# How many times as fast torch's convolution multiplies as `native.products`, or as torch's matrix product, measured
ADVANTAGE = {("AVX512", True): 1.5, ("AVX512", False): 3.5, ("AVX2", True): 1.2, ("AVX2", False): 1.5}
MLP = [nn.Linear, nn.ReLU, nn.Linear]
CONVOLUTIONS = [nn.Identity, nn.Conv2d, nn.ReLU, nn.Identity, nn.Conv2d]  # without pooling and shuffling
TRITON_FLOAT32_UP_TO = 128  # hidden channels: more spill registers


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
    weights = None if wanted == "plain" or _is_watched(x) else _weights(block)
    if weights is None or x.ndim != 4 or not x.numel():
        return "plain", None
    if x.device.type == "cuda":
        by_triton = wanted in ("auto", "triton") and _fits_gpu(weights, x, is_free=wanted == "auto")
        return ("triton", weights) if by_triton else ("plain", None)
    if wanted == "triton" or not _fits_cpu(weights, x) or (wanted == "dense" and max(x.shape[2:]) > LARGEST):
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


def _is_watched(x: Tensor) -> bool:
    """Whether somebody counts, fakes, records or transforms operations, and wants those of the equations."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or forward_ad._current_level >= 0:
        return True
    if torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode() is not None:
        return True
    return type(x) not in (Tensor, nn.Parameter)


def _weights(block: "GAM") -> Weights | None:
    """Those of GAM itself, with the layers that `gam.py` makes, into which nobody looks; None for any other block.

    This is looked at in every call: modules lie in dictionaries, and `nn.Module` takes long to find them there.
    """
    from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

    if type(block) is not GAM or _has_any_global_hook():
        return None
    channel, spatial = block._modules.get("channel"), block._modules.get("spatial")
    weights: list[Tensor | None] = []
    if channel is not None:
        (sequence,) = _layers(channel, ChannelAttention, [nn.Sequential]) or (channel,)
        linear = _layers(sequence, nn.Sequential, MLP)[::2]
        weights += [layer._parameters.get(name) for layer in linear for name in ("weight", "bias")]
    if spatial is not None:
        weights += map(_kernel, _layers(spatial, SpatialAttention, CONVOLUTIONS)[1::3])
    if any(value is None for value in weights) or len(weights) != 4 * (channel is not None) + 2 * (spatial is not None):
        return None
    return (*([None] * 4 if channel is None else []), *weights, *([None] * 2 if spatial is None else []))


def _layers(module: nn.Module, kind: type[nn.Module], kinds: list[type[nn.Module]]) -> list[Any]:
    """The layers of a module, if it and they are of these kinds and nobody looks into them; else none."""
    layers: list[Any] = [*module._modules.values()]
    if type(module) is not kind or [*map(type, layers)] != kinds:
        return []
    for m in (module, *layers):
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return []
    return layers


def _kernel(layer: nn.Conv2d) -> Tensor | None:
    given = layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode
    usual = ((7, 7), (3, 3), (1, 1), (1, 1), 1, "zeros")
    parameters = layer._parameters
    return parameters.get("weight") if given == usual and parameters.get("bias") is None else None


def _fits_cpu(weights: Weights, x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    return all(value is None or (value.dtype == x.dtype and value.device == x.device) for value in weights)


def _fits_gpu(weights: Weights, x: Tensor, *, is_free: bool) -> bool:
    """Whether the kernels for a GPU can be used, and, where the choice `is_free`, should be."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    types = {x.dtype}
    if torch.is_autocast_enabled("cuda"):
        if x.dtype != torch.get_autocast_dtype("cuda"):
            return False
        types.add(torch.float32)  # is cast to x's, as autocast casts
    given = [value for value in weights if value is not None]
    if any(value.dtype not in types or value.device != x.device for value in given):
        return False
    if is_free:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return False  # twice over the map, and what follows would get it in another layout
        if weights[0] is not None and x.dtype == torch.float32:
            return len(weights[0]) <= TRITON_FLOAT32_UP_TO and _triton_can(x.device)
    return _triton_can(x.device)


@cache
def _triton_can(device: torch.device) -> bool:
    """Whether Triton is installed, and has products of bfloat16 for this GPU."""
    try:
        import gamlib.attention.ways.gpu  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
