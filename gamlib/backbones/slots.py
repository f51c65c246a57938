"""Slots: where an attention block goes in a network, and how it gets there.

In a residual block of torchvision's it goes behind the last BatchNorm and before the addition, in an inverted residual
behind the projection's BatchNorm: CBAM's place, and the one that the paper's parameter counts imply. BAM goes behind
stages 1 to 3 of a ResNet and behind each of the seven of a MobileNetV2.
"""

from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from torch import nn
from torchvision.models import mobilenetv2, resnet

from gamlib.attention import build_attention, options, slot
from gamlib.backbones.initial import initialise
from gamlib.backbones.mobilenet_v2 import STAGES


def attach(model: nn.Module, attention: str = "gam", after: str | Iterable[str] = (), **chosen: Any) -> nn.Module:
    """Put a new attention block into every slot of a network, in place; the network's own weights stay as they are.

    The block gets the device and dtype of the module that it follows. A Sequential takes it as a further child named
    `attention`; any other module is wrapped in a Sequential of `inner` and `attention`, so load weights before.

    Args:
        model: a network with torchvision's residual blocks, or any other together with `after`.
        attention: a mechanism, e.g. "gam", "cbam"; see `gamlib.attention.MECHANISMS`.
        after: names of the modules to put a block behind, as `model.named_modules()` has them; * stands for anything,
            dots included, e.g. "stages.*.norm2". Each must put out [N, C, H, W]. By default the slots described above.
        chosen: options of the mechanism, e.g. `reduction=8`.

    Returns:
        The same network.

    Raises:
        ValueError: an unknown mechanism or option, a value that does not fit (nothing is changed then), no slot, a name
            that matches no module, a module of unknown channels, or a slot that is filled.
    """
    known = options(attention)
    names = (
        _named(model, [after] if isinstance(after, str) else list(after)) if after else _usual(model, slot(attention))
    )
    modules = {name: model.get_submodule(name) for name in names}
    widths = {name: _channels(name, module) for name, module in modules.items()}
    blocks = {}
    for name, channels in widths.items():
        own = dict(chosen)
        if "reduction" in known and isinstance(model, mobilenetv2.MobileNetV2):
            own["reduction"] = _fitting(chosen.get("reduction", known["reduction"]), channels, widths.values())
        blocks[name] = build_attention(attention, channels, **own)
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}  # before any is wrapped itself
    for name, block in blocks.items():
        initialise(block)
        block.train(model.training)
        if (near := next(modules[name].parameters(), None)) is not None:
            block.to(near.device, near.dtype)
        if isinstance(module := modules[name], nn.Sequential):
            module.add_module("attention", block)
        else:
            pair = nn.Sequential(OrderedDict(inner=module, attention=block))
            setattr(parents[name], name.rpartition(".")[2], pair)
    return model


def _usual(model: nn.Module, place: str) -> list[str]:
    """Names of the modules that a block follows by default."""
    found = []
    if place == "block":
        for name, module in model.named_modules():
            for kind, last in (
                (resnet.BasicBlock, "bn2"),
                (resnet.Bottleneck, "bn3"),
                (mobilenetv2.InvertedResidual, "conv"),
            ):
                if isinstance(module, kind):
                    found.append(f"{name}.{last}".removeprefix("."))
    elif isinstance(model, resnet.ResNet):
        found = ["layer1", "layer2", "layer3"]
    elif isinstance(model, mobilenetv2.MobileNetV2):
        found = [f"features.{last}" for last in accumulate(blocks for _, _, blocks, _ in STAGES)]
    if not found:
        kind = {"block": "residual blocks", "stage": "stages"}[place]
        raise ValueError(
            f"{type(model).__name__} has no {kind} of torchvision's ResNet or MobileNetV2; say with after= which "
            f"modules the attention follows, of: {_listed(name for name, _ in model.named_modules() if name)}"
        )
    return found


def _named(model: nn.Module, patterns: list[str]) -> list[str]:
    every = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(f"after={pattern!r}: no such module; {type(model).__name__} has {_listed(every)}")
    return [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _channels(name: str, module: nn.Module) -> int:
    """Channels that a module puts out: those of the last normalisation or convolution in it."""
    if "attention" in dict(module.named_children()):
        raise ValueError(f"{name} has an attention block already")
    found = 0
    for part in module.modules():
        for key in ("num_features", "out_channels", "num_channels"):
            found = getattr(part, key, None) or found
    if not found:
        raise ValueError(
            f"{name} ({type(module).__name__}) has neither a convolution nor a normalisation to tell its channels"
        )
    return found


def _fitting(reduction: int, channels: int, every: Iterable[int]) -> int:
    """The smallest ratio from `reduction` up that divides `channels`; else `channels` itself, one hidden channel.

    The paper has r = 16 in MobileNetV2 too, whose 24 channels it does not divide; the printed 4.93M have one hidden
    channel there.
    """
    every = sorted(set(every))
    if reduction < 1 or all(number % reduction for number in every):
        raise ValueError(f"reduction={reduction} divides none of the channels {', '.join(map(str, every))}")
    return next((ratio for ratio in range(reduction, channels) if channels % ratio == 0), channels)
