"""When a fast form may compute a block of GAM: what has to be true of the block, of its tensors, and around them."""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

if TYPE_CHECKING:
    from gamlib.attention.gam import GAM

Weights = tuple[Tensor | None, ...]  # of the MLP: weight, bias, weight, bias; of both convolutions; None if not there

MLP = [nn.Linear, nn.ReLU, nn.Linear]
CONVOLUTIONS = [nn.Identity, nn.Conv2d, nn.ReLU, nn.Identity, nn.Conv2d]  # without pooling and shuffling
WINDOW = (7, 7)
METHODS = frozenset(
    ("forward", "branch", "join", "plain", "_conv_forward", "__call__", "_call_impl", "_compiled_call_impl")
)
_CLASSES: list[type[nn.Module]] = []  # GAM and its submodules
_EQUATIONS: list[tuple[Any, str, Any]] = []  # where a function of the equations stands, its name, and itself


def remember(*classes: type[nn.Module]) -> None:
    """Note the classes of GAM, the block first, and the functions that they compute with, as they are now."""
    _CLASSES.extend(classes)
    layers = nn.Module, nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.Identity
    owners: list[Any] = [*classes, *layers]
    named = [(owner, name) for owner in owners for name in METHODS if name in vars(owner)]
    named += [(F, name) for name in ("linear", "conv2d", "relu")]
    _EQUATIONS.extend((owner, name, getattr(owner, name)) for owner, name in named)


def usable_weights(block: "GAM", x: Tensor) -> Weights | None:
    """The weights of a block by which a fast form may compute the map x; None where the plain block has to run.

    A fast form reads x and the weights from memory, and computes nothing but the equations of GAM. Asked for in every
    call, since all of it can change between two calls:

    - *Nobody follows the operations* (`_is_followed`): whoever counts, records, compiles or transforms them wants those
      of the equations, and a transformed tensor may have no memory, or more derivatives than the fast forms know.
    - *The block is GAM* and no class made of it, its layers are those that `gam.py` makes, with their settings: a
      variant, a pruned or a quantized layer computes something else.
    - *Nothing in it is replaced or hooked*: a hook may look at or change what a fast form never computes, and a
      `forward` that was set on a module, or on its class, is not what the fast forms compute.
    - *The shapes fit*: x is [N, C, H, W] and not empty, and each weight has the shape that C, C/r and the 7x7 window
      give it. Memory would be read beyond its end otherwise; the plain block raises an error.
    - *There are two channels or more*: with one, every order of memory is channels_last, and torch's CPU convolutions
      (oneDNN, torch 2.11) leave numbers of such a map unwritten.
    - *The tensors are ordinary* (`is_ordinary`): of a subclass, of a lazy negation or of a sparse tensor the memory
      does not hold the numbers.
    - *One device, and a type that it computes with*: on a CPU x and the weights are all float32 or all float64, without
      autocast, which would choose types by operation; a GPU's kernels say themselves what they take (`fits_gpu`).
    """
    if _is_followed() or not is_ordinary(x):
        return None
    weights = _weights(block)
    if weights is None or x.ndim != 4 or not x.numel() or x.shape[1] < 2 or not _shapes_fit(x.shape[1], *weights):
        return None
    tensors = [x, *(value for value in weights if value is not None)]
    if not all(map(is_ordinary, tensors[1:])) or any(value.device != x.device for value in tensors):
        return None
    if x.device.type == "cpu":
        fits = x.dtype in (torch.float32, torch.float64) and all(value.dtype == x.dtype for value in tensors)
        return weights if fits and not torch.is_autocast_enabled("cpu") else None
    return weights if x.device.type == "cuda" and fits_gpu(tensors) else None


def fits_gpu(tensors: list[Tensor]) -> bool:
    """Whether the kernels take these types, x's first: weights have x's, or under autocast float32, and are cast."""
    x = tensors[0]
    allowed = {x.dtype}
    if torch.is_autocast_enabled("cuda"):
        if x.dtype != torch.get_autocast_dtype("cuda"):
            return False
        allowed.add(torch.float32)
    is_known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return is_known and all(value.dtype in allowed for value in tensors)


def is_usable_gradient(gradient: Tensor) -> bool:
    """Whether a fast form's own backward pass may compute with what arrives; else the equations are differentiated.

    Not while a graph of the gradients is wanted, nor inside of a transformation (`torch.func`, batched gradients), nor
    for a gradient whose memory does not hold its numbers, nor on a CPU under autocast, which would cast some of its
    operations.
    """
    if torch.is_grad_enabled() or _is_followed() or not is_ordinary(gradient):
        return False
    return gradient.device.type != "cpu" or not torch.is_autocast_enabled("cpu")


def is_ordinary(x: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers, at its strides: no subclass, and nothing but an array for PyTorch.

    PyTorch dispatches by a set of keys. A subclass, a sparse, nested or batched tensor, a lazy negation, a tensor of
    zeros without memory, a fake and a meta tensor each have one that a plain array has not.
    """
    return x.__class__ in (Tensor, nn.Parameter) and torch._C._dispatch_keys(x).raw_repr() in _keys(x.device.type)


@cache
def _keys(device: str) -> frozenset[int]:
    """The sets of dispatch keys of arrays on a device, made outside and inside of inference mode."""
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.append(torch._C._dispatch_keys(torch.empty(1, device=device)).raw_repr())
    return frozenset(found)


def _is_followed() -> bool:
    """Whether somebody counts, fakes, records or transforms operations."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or forward_ad._current_level >= 0:
        return True
    if torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode() is not None:
        return True
    return torch._C._len_torch_function_stack() > 0


def _weights(block: "GAM") -> Weights | None:
    """Those of GAM itself, with the layers that `gam.py` makes, none replaced and none hooked; else None.

    Modules lie in dictionaries, and `nn.Module` takes long to find them there.
    """
    gam, of_channel, of_spatial = _CLASSES
    if block.__class__ is not gam or _has_any_global_hook() or not block.__dict__.keys().isdisjoint(("plain", "join")):
        return None
    if any(getattr(owner, name) is not function for owner, name, function in _EQUATIONS):
        return None
    channel, spatial = block._modules.get("channel"), block._modules.get("spatial")
    weights: list[Tensor | None] = []
    if channel is not None:
        (sequence,) = _layers(channel, of_channel, [nn.Sequential]) or (channel,)
        linear = _layers(sequence, nn.Sequential, MLP)[::2]
        weights += [layer._parameters.get(name) for layer in linear for name in ("weight", "bias")]
    if spatial is not None:
        weights += map(_kernel, _layers(spatial, of_spatial, CONVOLUTIONS)[1::3])
    if any(value is None for value in weights) or len(weights) != 4 * (channel is not None) + 2 * (spatial is not None):
        return None
    return (*([None] * 4 if channel is None else []), *weights, *([None] * 2 if spatial is None else []))


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


def _kernel(layer: nn.Conv2d) -> Tensor | None:
    given = layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode
    usual = (WINDOW, (3, 3), (1, 1), (1, 1), 1, "zeros")
    parameters = layer._parameters
    return parameters.get("weight") if given == usual and parameters.get("bias") is None else None


def _shapes_fit(
    channels: int,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    k1: Tensor | None,
    k2: Tensor | None,
) -> bool:
    """Whether the six weights, those that are there, fit each other and maps of so many channels: one C, one C/r."""
    hidden = set[int]()
    if w1 is not None and b1 is not None and w2 is not None and b2 is not None:
        hidden.add(narrow := len(b1) if b1.ndim == 1 else 0)
        found = w1.shape, b1.shape, w2.shape, b2.shape
        if not narrow or found != ((narrow, channels), (narrow,), (channels, narrow), (channels,)):
            return False
    if k1 is not None and k2 is not None:
        hidden.add(narrow := len(k1) if k1.ndim == 4 else 0)
        if not narrow or (k1.shape, k2.shape) != ((narrow, channels, *WINDOW), (channels, narrow, *WINDOW)):
            return False
    return len(hidden) == 1
