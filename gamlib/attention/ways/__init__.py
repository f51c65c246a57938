"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gamlib.attention.ways import native
from gamlib.attention.ways.dense import LARGEST, Dense
from gamlib.attention.ways.direct import Direct
from gamlib.attention.ways.fourier import Fourier, length
from gamlib.attention.ways.fused import Engine, Fused, Weights, apart, attend

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES: dict[str, Engine] = {"direct": Direct(), "fourier": Fourier(), "dense": Dense()}
WITHOUT_GRADIENTS = ENGINES | {"fourier": Fourier(keeps=True)}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES, "triton")

DENSE_UP_TO = 2  # H and W
# How many times as fast torch's convolution multiplies as `native.products`, or as torch's matrix product, measured
ADVANTAGE = {("AVX512", True): 1.5, ("AVX512", False): 3.5, ("AVX2", True): 1.2, ("AVX2", False): 1.5}
TRITON_FLOAT32_UP_TO = 128  # hidden channels: more spill registers


def choose(block: "GAM", x: Tensor) -> str:
    """One of `IMPLEMENTATIONS` but "auto": the one that was asked for, or the fastest; "plain" where that cannot be."""
    wanted = block.implementation
    if wanted == "plain" or not _replaceable(block, x):
        return "plain"
    if x.device.type == "cuda":
        return "triton" if wanted in ("auto", "triton") and _fits_gpu(block, x) else "plain"
    if wanted == "triton" or not _fits_cpu(block, x) or (wanted == "dense" and max(x.shape[2:]) > LARGEST):
        return "plain"
    if wanted != "auto":
        return wanted
    squeeze = _weights(block)[4]
    return fastest(*x.shape, 0 if squeeze is None else len(squeeze), _with_gradients(block, x))


def compute(way: str, block: "GAM", x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, W] by an engine, or by the kernels for a GPU."""
    if way == "triton":
        from gamlib.attention.ways.gpu import OnGPU

        return OnGPU.apply(x, *_weights(block))
    if _with_gradients(block, x):
        return Fused.apply(ENGINES[way], x, *_weights(block))
    return attend(WITHOUT_GRADIENTS[way], x, *apart(_weights(block)))[0]


@lru_cache(maxsize=256)
def fastest(batch: int, channels: int, height: int, width: int, hidden: int, gradients: bool) -> str:
    """The engine for maps [N, C, H, W] and C/r hidden channels, by what it multiplies and how fast that goes here."""
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
    kind = torch.backends.cpu.get_cpu_capability(), native.library() is not None
    return "fourier" if by_fourier * ADVANTAGE.get(kind, min(ADVANTAGE.values())) < directly else "direct"


def _weights(block: "GAM") -> Weights:
    channel: Any = block.channel
    spatial: Any = block.spatial
    mlp: Weights = (None,) * 4
    kernels: Weights = (None,) * 2
    if channel is not None:
        first, _, second = channel.mlp
        mlp = first.weight, first.bias, second.weight, second.bias
    if spatial is not None:
        kernels = spatial.squeeze.weight, spatial.expand.weight
    return mlp + kernels


def _with_gradients(block: "GAM", x: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(value is not None and value.requires_grad for value in _weights(block))


def _replaceable(block: "GAM", x: Tensor) -> bool:
    """Whether a block is GAM itself, computed now on one map, and nobody looks inside."""
    from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

    if _is_watched(x) or x.ndim != 4 or not x.numel():
        return False
    parts = [(block, GAM), (block.channel, ChannelAttention), (block.spatial, SpatialAttention)]
    if any(part is not None and type(part) is not kind for part, kind in parts):
        return False  # a variant, with other layers
    if not _usual_layers(block) or _has_any_global_hook():
        return False
    inner = (module for module in block.modules() if module is not block)
    return not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in inner)


def _is_watched(x: Tensor) -> bool:
    """Whether somebody counts, fakes, records or transforms operations, and wants those of the equations."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or forward_ad._current_level >= 0:
        return True
    if torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode() is not None:
        return True
    return type(x) not in (Tensor, nn.Parameter)


def _usual_layers(block: "GAM") -> bool:
    """Whether the layers are those that `gam.py` makes, without groups and pooling, and nobody has put in others."""
    channel: Any = block.channel
    spatial: Any = block.spatial
    if channel is not None:
        kinds = [type(layer) for layer in channel.mlp]
        if kinds != [nn.Linear, nn.ReLU, nn.Linear] or channel.mlp[0].bias is None or channel.mlp[2].bias is None:
            return False
    if spatial is None:
        return True
    convolutions = spatial.squeeze, spatial.expand
    if any(type(layer) is not nn.Conv2d for layer in convolutions):
        return False
    others = type(spatial.pool), type(spatial.relu), type(spatial.shuffle)
    return others == (nn.Identity, nn.ReLU, nn.Identity) and all(map(_is_7x7, convolutions))


def _is_7x7(layer: nn.Conv2d) -> bool:
    given = layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode, layer.bias
    return given == ((7, 7), (3, 3), (1, 1), (1, 1), 1, "zeros", None)


def _fits_cpu(block: "GAM", x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    return all(value is None or (value.dtype == x.dtype and value.device == x.device) for value in _weights(block))


def _fits_gpu(block: "GAM", x: Tensor) -> bool:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    types = {x.dtype}
    if torch.is_autocast_enabled("cuda"):
        if x.dtype != torch.get_autocast_dtype("cuda"):
            return False
        types.add(torch.float32)  # is cast to x's, as autocast casts
    weights = [value for value in _weights(block) if value is not None]
    if any(value.dtype not in types or value.device != x.device for value in weights):
        return False
    if block.implementation == "auto":
        if not x.is_contiguous(memory_format=torch.channels_last):
            return False  # twice over the map, and what follows would get it in another layout
        if block.channel is not None and x.dtype == torch.float32:
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
