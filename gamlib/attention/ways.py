"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gamlib.attention.direct import Direct
from gamlib.attention.fourier import Fourier
from gamlib.attention.fused import Fused

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES = {"direct": Direct, "fourier": Fourier}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES, "triton")


def choose(block: "GAM", x: Tensor) -> str:
    """ "plain", or another of `IMPLEMENTATIONS` that gives the same numbers faster."""
    if x.device.type == "cuda":
        return "triton" if block.implementation in ("auto", "triton") and _fits_gpu(block, x) else "plain"
    if block.implementation == "plain" or not _fits(block, x):
        return "plain"
    if block.implementation == "triton":
        return "plain"
    return _fastest(block, x) if block.implementation == "auto" else block.implementation


def compute(way: str, block: "GAM", x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, W] by an engine, or by the kernels for a GPU."""
    if way == "triton":
        from gamlib.attention.gpu import OnGPU

        return OnGPU.apply(x, *_weights(block))
    batch, _, height, width = x.shape
    return Fused.apply(ENGINES[way](batch, height, width), x, *_weights(block))  # type: ignore[no-untyped-call]


def _weights(block: "GAM") -> tuple[Tensor | None, ...]:
    """Of the MLP: weight, bias, weight, bias; of the convolutions: two weights. None for a missing submodule."""
    channel: tuple[Tensor | None, ...] = (None,) * 4
    spatial: tuple[Tensor | None, ...] = (None,) * 2
    if block.channel is not None:
        first, _, second = block.channel.mlp
        channel = first.weight, first.bias, second.weight, second.bias
    if block.spatial is not None:
        spatial = block.spatial.squeeze.weight, block.spatial.expand.weight
    return channel + spatial


def _fits(block: "GAM", x: Tensor) -> bool:
    """Whether engines may stand for a block and a map: of real numbers, on a CPU."""
    if x.device.type != "cpu" or x.ndim != 4 or not x.numel() or x.dtype not in (torch.float32, torch.float64):
        return False
    if any(parameter.dtype != x.dtype or parameter.device != x.device for parameter in block.parameters()):
        return False
    return not torch.is_autocast_enabled("cpu") and _replaceable(block)


def _fits_gpu(block: "GAM", x: Tensor) -> bool:
    """Whether Triton's kernels may stand for a block and a map on a GPU."""
    if not _replaceable(block):
        return False
    if x.ndim != 4 or not x.numel() or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    types = {x.dtype}
    if torch.is_autocast_enabled("cuda"):
        if x.dtype != torch.get_autocast_dtype("cuda"):
            return False
        types.add(torch.float32)  # is cast to x's, as autocast casts
    if any(parameter.dtype not in types or parameter.device != x.device for parameter in block.parameters()):
        return False
    if block.implementation == "auto":
        if not x.is_contiguous(memory_format=torch.channels_last):
            return False  # twice over the map, and what follows would get it in another layout
        bias = _weights(block)[1]
        if bias is not None and len(bias) > 128 and x.dtype == torch.float32:
            return False  # true float32 products of this size spill registers
    return _triton_can(x.device)


@functools.cache
def _triton_can(device: torch.device) -> bool:
    """Whether Triton is installed, and has products of bfloat16 for this GPU."""
    try:
        import gamlib.attention.gpu  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _replaceable(block: "GAM") -> bool:
    """Whether a block is GAM itself, computed now, and nobody looks inside."""
    from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    parts = [(block, GAM), (block.channel, ChannelAttention), (block.spatial, SpatialAttention)]
    if any(part is not None and type(part) is not kind for part, kind in parts):
        return False  # a variant, with other layers
    if block.spatial is not None and (
        block.spatial.squeeze.groups > 1 or not isinstance(block.spatial.pool, nn.Identity)
    ):
        return False
    inner = (module for module in block.modules() if module is not block)
    return not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in inner)


def _fastest(block: "GAM", x: Tensor) -> str:
    return "direct"
