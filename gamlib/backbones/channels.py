"""How many channels modules put out: as they say themselves, or as a run of their network shows."""

import copy
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

# Of these classes themselves: a subclass may put out something else.
TELLING: dict[type[nn.Module], Callable[[Any], int]] = {
    nn.Conv2d: attrgetter("out_channels"),
    nn.ConvTranspose2d: attrgetter("out_channels"),
    nn.BatchNorm2d: attrgetter("num_features"),
    nn.SyncBatchNorm: attrgetter("num_features"),
    nn.InstanceNorm2d: attrgetter("num_features"),
    nn.GroupNorm: attrgetter("num_channels"),
    FrozenBatchNorm2d: lambda norm: len(norm.weight),
    LayerNorm2d: lambda norm: norm.normalized_shape[0],
}
ELEMENTWISE = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU),
    *(nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)


def plain_sequential(module: nn.Module) -> bool:
    """Whether a module calls its children one after another, a further one too."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def told_channels(module: nn.Module) -> int | None:
    """The channels of a convolution or normalisation, or of one that ends a Sequential; None where neither tells."""
    if plain_sequential(module):
        last = next((part for part in reversed([*module.children()]) if type(part) not in ELEMENTWISE), None)
        return None if last is None else told_channels(last)
    tell = TELLING.get(type(module))
    return None if tell is None else tell(module)


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of a module in evaluation mode, whose parameters and buffers are on the meta device."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    # What a reparametrization computed, as weight_norm's weight, is no leaf of autograd, and cannot be copied.
    held = (value for module in model.modules() for value in tree_leaves(vars(module)) if isinstance(value, Tensor))
    memo |= {id(value): value.detach().to("meta") for value in held if not value.is_leaf}
    return copy.deepcopy(model, memo).eval()


def found_channels(model: nn.Module, names: Iterable[str], example: Any = None) -> dict[str, int]:
    """The channels that modules put out when their network runs, at two sizes, so that [N, H, W, C] is told apart.

    The network is copied to the meta device; nothing is computed. A run may fail behind the modules.

    Args:
        names: the modules' names.
        example: an input, or its shape [N, C, H, W]; by default [1, C, 224, 224] with the C of the first convolution.

    Raises:
        ValueError: another example, a module that the network does not reach or that puts out no [N, C, H, W].
    """
    shape = _shape(model, example)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    outputs: defaultdict[str, list[Any]] = defaultdict(list)
    reason = ""
    try:
        twin = without_memory(model)
        for name in names:
            twin.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: outputs[name].append(y))
        for more in (0, 32):
            with torch.device("meta"), torch.no_grad():
                twin(torch.empty(*shape[:2], shape[2] + more, shape[3] + more, dtype=dtype))
    except Exception as error:  # whatever a network raises
        reason = textwrap.shorten(f": {error}", 150, placeholder=" …")
    return {name: _channels(model, name, outputs[name], shape, reason) for name in names}


def _channels(model: nn.Module, name: str, outputs: list[Any], shape: tuple[int, ...], reason: str) -> int:
    """What the outputs of one module say; see `found_channels`."""
    what = f"{name} ({type(model.get_submodule(name)).__name__})"
    if not outputs:
        raise ValueError(
            f"the channels of {what} cannot be told: {type(model).__name__} does not reach it with {list(shape)}"
            f"{reason}; say channels=, or an example= that it can be run with"
        )
    shown = " and ".join(dict.fromkeys(str(list(y.shape) if isinstance(y, Tensor) else type(y)) for y in outputs))
    if not all(isinstance(y, Tensor) and y.ndim == 4 for y in outputs):
        raise ValueError(f"{what} puts out {shown}: allowed: [N, C, H, W]")
    # A map that grew with the input has its channels where nothing grew. One that did not, not square, of a square
    # input: had it been [N, H, W, C], H and W would be the same.
    channels, sizes = {y.shape[1] for y in outputs}, {y.shape for y in outputs}
    certain = len(sizes) > 1 or (shape[2] == shape[3] and outputs[0].shape[1] != outputs[0].shape[2])
    if len(channels) > 1 or not certain:
        raise ValueError(
            f"{what} puts out {shown}, which does not show where its channels are: allowed: [N, C, H, W]; say channels="
            " if it is that"
        )
    return int(channels.pop())


def _shape(model: nn.Module, example: Any) -> tuple[int, ...]:
    """The shape of an example [N, C, H, W]."""
    if example is None:
        return 1, next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3), 224, 224
    shape = example.shape if isinstance(example, Tensor) else example
    if not isinstance(shape, tuple | list) or len(shape) != 4 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"example={shape!r}: allowed: a tensor [N, C, H, W], or its shape, e.g. (1, 3, 224, 224)")
    return tuple(shape)
