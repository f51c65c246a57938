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

TYPES: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
LAYERS: dict[type, list[type]] = {
    ChannelAttention: [nn.Sequential],
    nn.Sequential: [nn.Linear, nn.ReLU, nn.Linear],
    SpatialAttention: [nn.Identity, nn.Conv2d, nn.ReLU, nn.Identity, nn.Conv2d],  # no pooling and no shuffling
}
CONVOLUTION = ((7, 7), (3, 3), (1, 1), (1, 1), 1, "zeros")
METHODS = frozenset(("forward", "branch", "join", "_conv_forward"))  # what the equations are made of
# The methods of the classes of a block and of its layers, as they were when this was imported.
EQUATIONS = [
    (vars(owner), name, vars(owner)[name])
    for owner in (GAM, *LAYERS, nn.Linear, nn.ReLU, nn.Identity, nn.Conv2d)
    for name in METHODS
    if name in vars(owner)
]


def usable_weights(block: GAM, x: Tensor) -> Weights:
    """The weights by which a fast form may compute a block's map x; none where the equations have to run.

    A fast form reads x and the weights from memory, and computes nothing but GAM. Asked for in every call, since all
    of it can change between two calls:

    - *Nobody looks into the equations*: no compiler, tracer or mode, no hook on a layer.
    - *The layers are those that `gam.py` makes*, with its settings and methods, none replaced, pruned or quantized.
    - *Memory holds the numbers* of all tensors (`is_readable`).
    - *The shapes fit*: C, C/r and the 7x7 window. Memory would be read beyond its end otherwise; the equations raise.
      With one channel every order of memory is channels_last, and torch's CPU convolutions (oneDNN, torch 2.11) leave
      numbers of such a map unwritten.
    - *One device, and types that it computes with*: on a CPU without autocast, which would choose types by operation;
      on a GPU under autocast its type, to which weights of float32 are cast.
    """
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    weights = () if is_traced or torch.compiler.is_compiling() else _weights(block)
    if not weights or has_torch_function((x, *weights)) or not all(map(is_readable, (x, *weights))):
        return ()
    if x.ndim != 4 or x.shape[1] < 2 or x.device.type not in TYPES:
        return ()
    c, h = x.shape[1], weights[0].shape[:1].numel()
    of_mlp: list[tuple[int, ...]] = [(h, c), (h,), (c, h), (c,)]
    of_kernels: list[tuple[int, ...]] = [(h, c, 7, 7), (c, h, 7, 7)]
    shapes = of_mlp * (len(weights) != 2) + of_kernels * (len(weights) != 4)
    types, of_weights = TYPES[x.device.type], [x.dtype]
    if torch.is_autocast_enabled(x.device.type):
        types, of_weights = (torch.get_autocast_dtype("cuda"),) if x.is_cuda else (), [x.dtype, torch.float32]
    if x.dtype not in types or [value.shape for value in weights] != shapes:
        return ()
    return weights if all(value.device == x.device and value.dtype in of_weights for value in weights) else ()


def is_usable_gradient(grad_output: Tensor) -> bool:
    """Whether a fast form's own backward pass may run; else PyTorch differentiates the equations.

    Not while a graph of the gradients is wanted, nor on a CPU under autocast, which would cast some of its operations.
    """
    if torch.is_grad_enabled() or not is_readable(grad_output) or has_torch_function((grad_output,)):
        return False
    return grad_output.is_cuda or not torch.is_autocast_enabled("cpu")


def is_readable(x: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers, at its strides, and nothing else belongs to them.

    Not of a subclass, a sparse or nested tensor, a lazy negation, a tensor of forward-mode differentiation, nor of one
    without memory of its own: an empty one, one on the meta device, or within a transformation of `torch.func`.
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


def _weights(block: GAM) -> Weights:
    """Those of a block with the layers of `gam.py`, else none."""
    if _has_any_global_hook() or "join" in block.__dict__ or block.__class__.join is not GAM.join:
        return ()
    if any(methods[name] is not method for methods, name, method in EQUATIONS):
        return ()
    found: list[Any] = []
    for name, kind in (("channel", ChannelAttention), ("spatial", SpatialAttention)):
        module = block._modules.get(name)
        if module is not None:
            found += _weights_within(module) if module.__class__ is kind else [None]
    return () if any(weight is None for weight in found) else tuple(found)


def _weights_within(module: nn.Module) -> list[Any]:
    """Those of a module and of its layers, None among them where something is not as `gam.py` makes it."""
    layers: list[Any] = [*module._modules.values()]  # as attributes they take long
    if [*map(type, layers)] != LAYERS.get(module.__class__, []) or not METHODS.isdisjoint(module.__dict__):
        return [None]
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return [None]
    found = [weight for layer in layers for weight in _weights_within(layer)]
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if isinstance(module, nn.Conv2d):
        given = module.kernel_size, module.padding, module.stride, module.dilation, module.groups, module.padding_mode
        found.append(weight if given == CONVOLUTION and bias is None else None)
    elif isinstance(module, nn.Linear):
        found += weight, bias
    return found
