"""Which of several exact ways computes a GAM block for a map: by shape, type, device, and what else is going on."""

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gamlib.attention.dense import Dense
from gamlib.attention.direct import Direct
from gamlib.attention.fourier import Fourier, length
from gamlib.attention.fused import Engine, Fused, Weights, attend

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

ENGINES: dict[str, Engine] = {"direct": Direct(), "fourier": Fourier(), "dense": Dense()}
WITHOUT_GRADIENTS = ENGINES | {"fourier": Fourier(keeps=True)}
IMPLEMENTATIONS = ("auto", "plain", *ENGINES)

DENSE_UP_TO = 2  # H and W
ADVANTAGE = {"AVX512": 1.2, "AVX2": 1.0}  # of a product in torch's convolution over one in its matrix product, measured


def choose(block: "GAM", x: Tensor) -> str:
    """ "plain", or a name of `ENGINES` that gives the same numbers faster."""
    if block.implementation == "plain" or not _fits(block, x):
        return "plain"
    if block.implementation == "auto":
        hidden = block.spatial.squeeze.out_channels if block.spatial is not None else 0
        return _fastest(tuple(x.shape), hidden, _with_gradients(block, x))
    return "plain" if block.implementation == "dense" and max(x.shape[2:]) > 4 else block.implementation


def compute(way: str, block: "GAM", x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, W] by an engine."""
    if _with_gradients(block, x):
        return Fused.apply(ENGINES[way], x, *_weights(block))  # type: ignore[no-untyped-call, no-any-return]
    return attend(WITHOUT_GRADIENTS[way], x, _weights(block))[0]


def _weights(block: "GAM") -> Weights:
    """Of the MLP: weight, bias, weight, bias; of the convolutions: two weights. None where a submodule is not there."""
    channel: tuple[Tensor | None, ...] = (None,) * 4
    spatial: tuple[Tensor | None, ...] = (None,) * 2
    if block.channel is not None:
        first, _, second = block.channel.mlp
        channel = first.weight, first.bias, second.weight, second.bias
    if block.spatial is not None:
        spatial = block.spatial.squeeze.weight, block.spatial.expand.weight
    return channel + spatial


def _with_gradients(block: "GAM", x: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(value.requires_grad for value in block.parameters()))


def _fits(block: "GAM", x: Tensor) -> bool:
    """Whether engines may stand for a block: GAM itself, one map of real numbers on a CPU, nobody looking inside."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None:
        return False  # whoever counts, fakes or records operations wants those of the equations
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.maybe_current_level() is not None:
        return False
    if forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return False
    if x.device.type != "cpu" or x.ndim != 4 or not x.numel() or x.dtype not in (torch.float32, torch.float64):
        return False
    if not _is_gam(block) or any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in _inner(block)):
        return False
    return all(value is None or (value.dtype == x.dtype and value.device == x.device) for value in _weights(block))


def _is_gam(block: "GAM") -> bool:
    """Whether the layers are GAM's own, not those of a variant."""
    from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

    parts = [(block, GAM), (block.channel, ChannelAttention), (block.spatial, SpatialAttention)]
    if any(part is not None and type(part) is not kind for part, kind in parts):
        return False
    spatial = block.spatial
    return spatial is None or (spatial.squeeze.groups == 1 and isinstance(spatial.pool, nn.Identity))


@lru_cache(maxsize=256)
def _fastest(shape: tuple[int, int, int, int], hidden: int, gradients: bool) -> str:
    """By what is to be multiplied, and how fast this processor does it."""
    batch, channels, height, width = shape
    if not hidden:
        return "direct"
    if max(height, width) <= DENSE_UP_TO:
        return "dense"
    rows, columns = length(height), length(width)
    along = rows * height * width + 2 * rows * columns * width  # of one channel of one map, there or back
    of_kernels = rows * 7 * 7 + 2 * rows * columns * 7
    maps, kernels = (4, 4) if gradients else (2, 0)  # transformed; those of weights are kept where no gradient is asked
    convolutions = 6 if gradients else 2
    directly = convolutions * 49 * batch * height * width * channels * hidden
    transforms = maps * batch * (channels + hidden) * along + kernels * channels * hidden * of_kernels
    by_fourier = transforms + convolutions * 2 * rows * columns * batch * channels * hidden
    advantage = ADVANTAGE.get(torch.backends.cpu.get_cpu_capability(), min(ADVANTAGE.values()))
    return "fourier" if by_fourier * advantage < directly else "direct"
