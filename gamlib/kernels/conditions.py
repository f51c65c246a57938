"""When a fast form may compute a GAM block: what has to be true of the block, of its tensors, and around them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import has_torch_function

from gamlib.attention.gam import GAM, ChannelAttention, SpatialAttention

Weights = tuple[Tensor, ...]  # of the MLP: weight, bias, weight, bias; then of both convolutions; or one group alone
Mlp = tuple[Tensor, Tensor, Tensor, Tensor]  # weight [C/r, C], bias, weight [C, C/r], bias
Kernels = tuple[Tensor, Tensor]  # of the convolutions, [C/r, C, 7, 7] and [C, C/r, 7, 7]

MLP = [nn.Linear, nn.ReLU, nn.Linear]
CONVOLUTIONS = [nn.Identity, nn.Conv2d, nn.ReLU, nn.Identity, nn.Conv2d]  # no pooling and no shuffling
CONVOLUTION = ((7, 7), (3, 3), (1, 1), (1, 1), 1, "zeros")
METHODS = frozenset(("forward", "branch", "join", "_conv_forward"))  # what the equations are made of
# The methods of the classes of a block and of its layers, as they were when this was imported.
EQUATIONS = [
    (vars(owner), name, vars(owner)[name])
    for owner in (GAM, ChannelAttention, SpatialAttention, nn.Sequential, *MLP[:2], *CONVOLUTIONS[:2])
    for name in METHODS
    if name in vars(owner)
]


def usable_weights(block: GAM, x: Tensor) -> Weights | None:
    """The weights by which a fast form may compute a block's map x; None where the equations have to run.

    A fast form reads x and the weights from memory, and computes nothing but GAM. Asked for in every call, since all
    of it can change between two calls:

    - *Nobody else needs the equations*: torch.compile, torch.export and torch.jit.trace look into them, and so do modes
      and subclasses that override functions.
    - *The layers are those that `gam.py` makes*, with its settings, none replaced, pruned or quantized, and no method
      of theirs replaced.
    - *No layer is hooked*: a hook may look at or change what a fast form never computes. PyTorch answers no question
      for hooks: the dictionaries in which modules keep them, their layers and parameters are all of its inside that is
      read here.
    - *The shapes fit*: x is [N, C, H, W] and not empty, and each weight has the shape that C, C/r and the 7x7 window
      give it. Memory would be read beyond its end otherwise; the equations raise an error.
    - *There are two channels or more*: with one, every order of memory is channels_last, and torch's CPU convolutions
      (oneDNN, torch 2.11) leave numbers of such a map unwritten.
    - *Memory holds the numbers* of all tensors (`is_readable`).
    - *One device, and types that it computes with*: on a CPU x and the weights are all float32 or all float64, without
      autocast, which would choose types by operation; of a GPU see `_fits_gpu`.
    """
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if is_traced or torch.compiler.is_compiling() or not is_readable(x):
        return None
    weights = _weights(block)
    if weights is None or has_torch_function((x, *weights)):
        return None
    if x.ndim != 4 or not x.numel() or x.shape[1] < 2 or not _shapes_fit(x.shape[1], *split(weights)):
        return None
    device, dtype = x.device, x.dtype
    for value in weights:
        if not is_readable(value) or value.device != device or (value.dtype != dtype and device.type == "cpu"):
            return None
    if device.type == "cpu":
        return weights if dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu") else None
    return weights if device.type == "cuda" and _fits_gpu(x, weights) else None


def is_usable_gradient(grad_output: Tensor) -> bool:
    """Whether a fast form's own backward pass may run; else PyTorch differentiates the equations.

    Not while a graph of the gradients is wanted, nor on a CPU under autocast, which would cast some of its operations.
    """
    if torch.is_grad_enabled() or not is_readable(grad_output) or has_torch_function((grad_output,)):
        return False
    return grad_output.device.type != "cpu" or not torch.is_autocast_enabled("cpu")


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers, at its strides, and nothing else belongs to them.

    Not of a subclass, a sparse or nested tensor, a lazy negation, a tensor of forward-mode differentiation, nor of one
    without memory of its own: a tensor on the meta device, or one within a transformation of `torch.func`.
    """
    if x.__class__ not in (Tensor, nn.Parameter) or x.layout is not torch.strided or x.is_nested or x.is_neg():
        return False
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    try:
        return x.data_ptr() != 0
    except RuntimeError:
        return False


def split(weights: Weights) -> tuple[Mlp | None, Kernels | None]:
    """Those of the MLP and those of both convolutions, where they are there."""
    w: Any = weights
    return (w[:4] if len(w) != 2 else None), (w[-2:] if len(w) != 4 else None)


def _fits_gpu(x: Tensor, weights: Weights) -> bool:
    """Whether the kernels take these types: weights have x's, or under autocast float32, and are cast."""
    allowed = {x.dtype}
    if torch.is_autocast_enabled("cuda"):
        if x.dtype != torch.get_autocast_dtype("cuda"):
            return False
        allowed.add(torch.float32)
    is_known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return is_known and all(value.dtype in allowed for value in weights)


def _weights(block: GAM) -> Weights | None:
    """Those of a block with the layers of `gam.py`. Modules keep them in dictionaries; as attributes they take long."""
    if _has_any_global_hook() or "join" in block.__dict__ or block.__class__.join is not GAM.join:
        return None
    for methods, name, method in EQUATIONS:
        if methods[name] is not method:
            return None
    channel, spatial = block._modules.get("channel"), block._modules.get("spatial")
    weights: list[Any] = []
    if channel is not None:
        (mlp,) = _layers(channel, ChannelAttention, [nn.Sequential]) or (channel,)
        for layer in _layers(mlp, nn.Sequential, MLP)[::2]:
            weights += layer._parameters.get("weight"), layer._parameters.get("bias")
    if spatial is not None:
        for layer in _layers(spatial, SpatialAttention, CONVOLUTIONS)[1::3]:
            given = layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode
            if given != CONVOLUTION or layer._parameters.get("bias") is not None:
                return None
            weights.append(layer._parameters.get("weight"))
    complete = len(weights) == 4 * (channel is not None) + 2 * (spatial is not None)
    return tuple(weights) if complete and all(value is not None for value in weights) else None


def _layers(module: nn.Module, kind: type[nn.Module], kinds: list[type[nn.Module]]) -> list[Any]:
    """The layers of a module, if it and they are of these kinds, and nobody looks into them or replaced a method."""
    layers: list[Any] = [*module._modules.values()]
    if module.__class__ is not kind or [*map(type, layers)] != kinds:
        return []
    for m in (module, *layers):
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return []
        if not METHODS.isdisjoint(m.__dict__):
            return []
    return layers


def _shapes_fit(channels: int, mlp: Mlp | None, kernels: Kernels | None) -> bool:
    """Whether the weights fit each other and maps of so many channels: one C, one C/r."""
    hidden = set[int]()
    if mlp is not None:
        w1, b1, w2, b2 = mlp
        hidden.add(narrow := b1.numel())
        if (w1.shape, b1.shape, w2.shape, b2.shape) != ((narrow, channels), (narrow,), (channels, narrow), (channels,)):
            return False
    if kernels is not None:
        k1, k2 = kernels
        hidden.add(narrow := k2.shape[1] if k2.ndim == 4 else 0)
        if (k1.shape, k2.shape) != ((narrow, channels, 7, 7), (channels, narrow, 7, 7)):
            return False
    return len(hidden) == 1 and 0 not in hidden
