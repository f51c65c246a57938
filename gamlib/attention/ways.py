"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gamlib.attention.direct import Direct
from gamlib.attention.fourier import Fourier
from gamlib.attention.fused import Fused

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES = {"direct": Direct, "fourier": Fourier}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES)


def choose(block: "GAM", x: Tensor) -> str:
    """"plain", or a name of `ENGINES` that gives the same numbers faster."""
    if block.implementation == "plain" or not _fits(block, x):
        return "plain"
    return _fastest(block, x) if block.implementation == "auto" else block.implementation


def compute(way: str, block: "GAM", x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, W] by an engine."""
    batch, _, height, width = x.shape
    return Fused.apply(ENGINES[way](batch, height, width), x, *_weights(block))  # type: ignore[no-untyped-call]


def _weights(block: "GAM") -> tuple[Tensor | None, ...]:
    """Of the MLP: weight, bias, weight, bias; of the convolutions: two weights. None for a submodule that is not there."""
    channel: tuple[Tensor | None, ...] = (None,) * 4
    spatial: tuple[Tensor | None, ...] = (None,) * 2
    if block.channel is not None:
        first, _, second = block.channel.mlp
        channel = first.weight, first.bias, second.weight, second.bias
    if block.spatial is not None:
        spatial = block.spatial.squeeze.weight, block.spatial.expand.weight
    return channel + spatial


def _fits(block: "GAM", x: Tensor) -> bool:
    """Whether engines may stand for a block: GAM itself, one map of real numbers on a CPU, nobody looking inside."""
    from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

    parts = [(block, GAM), (block.channel, ChannelAttention), (block.spatial, SpatialAttention)]
    if any(part is not None and type(part) is not kind for part, kind in parts):
        return False  # a variant, with other layers
    if block.spatial is not None and (block.spatial.squeeze.groups > 1 or not isinstance(block.spatial.pool, nn.Identity)):
        return False
    if x.device.type != "cpu" or x.ndim != 4 or not x.numel() or x.dtype not in (torch.float32, torch.float64):
        return False
    if any(parameter.dtype != x.dtype or parameter.device != x.device for parameter in block.parameters()):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    inner = (module for module in block.modules() if module is not block)
    return not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in inner)


def _fastest(block: "GAM", x: Tensor) -> str:
    return "direct"
