"""Slots: where an attention block goes in a network, and how it gets there.

In a residual block of torchvision's it goes behind the last BatchNorm and before the addition, in an inverted residual
behind the projection's BatchNorm: CBAM's place, and the one that the paper's parameter counts imply. BAM goes behind
stages 1 to 3 of a ResNet and behind each of the seven of a MobileNetV2.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import accumulate, chain
from typing import Any

from torch import nn
from torchvision.models import mobilenetv2, resnet
from torchvision.ops import FrozenBatchNorm2d

from gamlib import attention as mechanisms
from gamlib.attention import MECHANISMS, build_attention
from gamlib.attention.checks import whole
from gamlib.backbones.networks import STAGES
from gamlib.backbones.weights import initialise

ENDS = list(accumulate(blocks for _, _, blocks, _ in STAGES))  # of MobileNetV2's stages, among its `features`
LAST = {resnet.BasicBlock: "bn2", resnet.Bottleneck: "bn3", mobilenetv2.InvertedResidual: "conv"}  # in a block


def attach(
    model: nn.Module,
    attention: str | Callable[..., nn.Module] = "gam",
    after: str | Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> nn.Module:
    """Put a new attention block into every slot of a network, in place; the network's own weights stay as they are.

    The block gets the device and dtype of the module that it follows. A Sequential takes it as a further child named
    `attention`; any other module is wrapped in a Sequential of `inner` and `attention`, so load weights before.

    Args:
        model: a network with torchvision's residual blocks, or any other together with `after`.
        attention: a mechanism, e.g. "gam", "cbam", see `gamlib.attention.MECHANISMS`; or one of one's own, as a class
            or by its place, see `gamlib.sources`.
        after: names of the modules to put a block behind, as `model.named_modules()` has them; * stands for anything,
            dots included, e.g. "stages.*.norm2". Each must put out [N, C, H, W]. By default the slots described above.
        options: of the mechanism, by name.
        chosen: more of them, e.g. `reduction=8`; of MobileNetV2's `reduction` see `build_model`.

    Returns:
        The same network.

    Raises:
        ValueError: an unknown mechanism or option, a value that does not fit (nothing is changed then), no slot, a name
            that matches no module, a module of unknown channels, or a slot that is filled.
    """
    known, chosen = mechanisms.options(attention), {**(options or {}), **chosen}
    patterns = [after] if isinstance(after, str) else list(after)
    behind_stages = getattr(mechanisms.mechanism(attention), "slot", "block") == "stage"
    modules = _matching(model, patterns) if patterns else _usual(model, behind_stages)
    mobile = attention in MECHANISMS and any(isinstance(part, mobilenetv2.MobileNetV2) for part in model.modules())
    blocks: dict[nn.Module, nn.Module] = {}
    for name, module in modules.items():
        channels, own = _channels(name, module), dict(chosen)
        if mobile and "reduction" in known:
            own["reduction"] = _fitting(chosen.get("reduction", known["reduction"]), channels)
        blocks[module] = build_attention(attention, channels, **own)
    followed = {module: _followed(module, block, model) for module, block in blocks.items()}
    for name, module in reversed(modules.items()):  # what lies in a module first: wrapping it changes the names
        model.set_submodule(name, followed[module])
    return model


def _followed(module: nn.Module, block: nn.Module, model: nn.Module) -> nn.Module:
    """A module with an initialised block behind it, which gets the device, dtype and mode of what is around it."""
    initialise(block)
    block.train(model.training)
    tensors = chain(module.parameters(), module.buffers(), model.parameters())
    if (like := next((tensor for tensor in tensors if tensor.is_floating_point()), None)) is not None:
        block.to(like.device, like.dtype)
    if isinstance(module, nn.Sequential):
        module.add_module("attention", block)
        return module
    return nn.Sequential(OrderedDict(inner=module, attention=block))


def _usual(model: nn.Module, behind_stages: bool) -> dict[str, nn.Module]:
    """The modules that a block follows by default, by their names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner: Iterable[str] = ()
        if not behind_stages:
            inner = (child for kind, child in LAST.items() if isinstance(module, kind))
        elif isinstance(module, resnet.ResNet):
            inner = ("layer1", "layer2", "layer3")
        elif isinstance(module, mobilenetv2.MobileNetV2) and len(module.features) == ENDS[-1] + 2:
            inner = (f"features.{end}" for end in ENDS)
        found |= {f"{name}.{child}".removeprefix("."): module.get_submodule(child) for child in inner}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no {'stages' if behind_stages else 'residual blocks'} of torchvision's ResNet "
            f"or MobileNetV2; say with after= which modules the attention follows, of: {_listed(model)}"
        )
    return found


def _matching(model: nn.Module, patterns: list[str]) -> dict[str, nn.Module]:
    """The modules whose names match; one module may stand under several names."""
    every = dict(model.named_modules(remove_duplicate=False))
    for pattern in patterns:
        if not any(name and fnmatchcase(name, pattern) for name in every):
            raise ValueError(f"after={pattern!r}: no such module; {type(model).__name__} has {_listed(model)}")
    return {name: module for name, module in every.items() if name and any(fnmatchcase(name, p) for p in patterns)}


def _listed(model: nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _channels(name: str, module: nn.Module) -> int:
    """Channels that a module puts out: those of the last normalisation or convolution in it."""
    if any(isinstance(child, tuple(MECHANISMS.values())) for child in module.children()):
        raise ValueError(f"{name} has an attention block already")
    found = 0
    for part in module.modules():
        for key in ("num_features", "out_channels", "num_channels"):
            found = getattr(part, key, None) or found
        if isinstance(part, FrozenBatchNorm2d):
            found = len(part.weight)
    if not found:
        raise ValueError(
            f"{name} ({type(module).__name__}) has neither a convolution nor a normalisation to tell its channels"
        )
    return found


def _fitting(reduction: int, channels: int) -> int:
    """The smallest ratio from `reduction` up that divides `channels`; else `channels` itself, one hidden channel.

    The paper has r = 16 in MobileNetV2 too, whose 24 channels it does not divide; the printed 4.93M have one hidden
    channel there. Since all its channels are multiples of eight, a ratio that is no power of two is a mistake.
    """
    whole("reduction", reduction)
    if reduction & (reduction - 1):
        raise ValueError(f"reduction={reduction}: allowed in MobileNetV2: powers of two")
    return next((ratio for ratio in range(reduction, channels) if channels % ratio == 0), channels)
