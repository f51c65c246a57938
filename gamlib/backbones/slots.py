"""Slots: where an attention block goes in a network, and how it gets there.

In a residual block of torchvision's it goes behind the last BatchNorm and before the addition, in an inverted residual
behind the projection's BatchNorm: CBAM's place, and the one that the paper's parameter counts imply. BAM goes behind
every stage of a network but the last, and behind each of the seven of a MobileNetV2.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from fnmatch import filter as matching
from itertools import accumulate, chain
from typing import Any, TypeVar

from torch import nn
from torchvision.models import mobilenetv2

from gamlib import attention as mechanisms
from gamlib.attention import MECHANISMS, build_attention
from gamlib.attention.checks import one_of, whole, yes_or_no
from gamlib.backbones.attached import Attended, ReZero
from gamlib.backbones.channels import TELLING, found_channels, plain_sequential, told_channels
from gamlib.backbones.networks import STAGES, MobileNetV2, ResNet
from gamlib.backbones.weights import initialise

T = TypeVar("T")

ENDS = list(accumulate(blocks for _, _, blocks, _ in STAGES))  # of MobileNetV2's stages, among its `features`

# What a block follows, by the class's name, so that nothing is imported for it: a part of it, or itself.
LAST = {
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.resnet.Bottleneck": "bn3",
    "torchvision.models.mobilenetv2.InvertedResidual": "conv",
    "torchvision.models.convnext.CNBlock": "block",  # before the layer scale
    "torchvision.models.efficientnet.MBConv": "block",
    "torchvision.models.efficientnet.FusedMBConv": "block",
    "torchvision.models.regnet.ResBottleneckBlock": "f",
    "torchvision.models.densenet._DenseBlock": "",
    "timm.models.resnet.BasicBlock": "bn2",
    "timm.models.resnet.Bottleneck": "bn3",
}
# The stages of a network, and how many of these modules, from the end, no block follows: the last stage, and a head.
BEHIND = {
    "torchvision.models.resnet.ResNet": ("layer?", 1),
    "torchvision.models._utils.IntermediateLayerGetter": ("layer?", 1),  # of a ResNet, for detection
    "torchvision.models.convnext.ConvNeXt": ("features.[13579]", 1),
    "torchvision.models.efficientnet.EfficientNet": ("features.[1-9]", 2),
    "torchvision.models.regnet.RegNet": ("trunk_output.block?", 1),
    "torchvision.models.densenet.DenseNet": ("features.denseblock?", 1),
    "timm.models.resnet.ResNet": ("layer?", 1),
}
FAMILIES = "ResNet, MobileNetV2, ConvNeXt, EfficientNet, RegNet or DenseNet, or timm's ResNet"

HINT = "; any with round_reduction=True"


def attach(
    model: nn.Module,
    attention: str | Callable[..., nn.Module] = "gam",
    after: str | Iterable[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
    initial: str = "own",
    channels: int | Mapping[str, int] | None = None,
    example: Any = None,
    round_reduction: bool = False,
    **chosen: Any,
) -> nn.Module:
    """Put a new attention block into every slot of a network, in place; the network's own weights stay as they are.

    So do the keys of its `state_dict`: weights load before or after. The block gets the device and dtype of the module
    that it follows. A Sequential takes it as a further child named `attention`; any other module is wrapped, see
    `gamlib.backbones.attached.Attended`.

    Args:
        model: a network of torchvision's with residual or dense blocks, a ResNet of timm's, one that has such a network
            in it, as detectors have, or any other together with `after`.
        attention: a mechanism, e.g. "gam", "cbam", see `gamlib.attention.MECHANISMS`; or one of one's own, as a class
            or by its place, see `gamlib.sources`.
        after: names of the modules to put a block behind, as `model.named_modules()` has them; * stands for anything,
            dots included, e.g. "stages.*.norm2". Each must put out [N, C, H, W]. By default the slots described above.
        initial: "own" are the mechanism's own initial weights, which change what the network puts out. With "identity"
            it puts out in evaluation mode what it did without: every block begins as x + share * (block(x) - x) with
            a learnable share of zero, see `gamlib.backbones.attached.ReZero`.
        channels: C, for all modules or by their names (* as in `after`), where the modules do not tell it.
        example: an input, or its shape [N, C, H, W], with which a copy of the network is run without memory if a module
            is no convolution or normalisation, and ends in none. By default [1, C, 224, 224], with the C of the
            network's first convolution.
        round_reduction: a `reduction` that does not divide the channels becomes the next that does.
        options: of the mechanism, by name.
        chosen: more of them, e.g. `reduction=8`; of MobileNetV2's `reduction` see `build_model`.

    Returns:
        The same network.

    Raises:
        ValueError: an unknown mechanism or option, a value that does not fit (nothing is changed then), no slot, a name
            that matches no module, a module of unknown channels or not of [N, C, H, W], or a slot that is filled.
    """
    known, chosen = mechanisms.options(attention), {**(options or {}), **chosen}
    slot = mechanisms.slot_of(attention)
    one_of("initial", initial, ("own", "identity"))
    yes_or_no("round_reduction", round_reduction)
    patterns = [after] if isinstance(after, str) else list(after)
    modules = _matching(model, patterns) if patterns else _usual(model, slot)
    mobile = attention in MECHANISMS and any(isinstance(part, mobilenetv2.MobileNetV2) for part in model.modules())
    blocks: dict[nn.Module, nn.Module] = {}
    for name, number in _channels(model, modules, channels, example).items():
        own = dict(chosen)
        if (mobile or round_reduction) and "reduction" in known:
            own["reduction"] = _fitting(chosen.get("reduction", known["reduction"]), number, round_reduction)
        try:
            blocks[modules[name]] = build_attention(attention, number, **own)
        except ValueError as error:
            if not re.match(r"reduction=\d+ does not divide", str(error)):
                raise
            raise ValueError(f"{error}{HINT}") from None
    followed = {module: _followed(module, block, model, initial) for module, block in blocks.items()}
    for name, module in reversed(modules.items()):  # what lies in a module first: wrapping it changes the names
        model.set_submodule(name, followed[module])
    return model


def _followed(module: nn.Module, block: nn.Module, model: nn.Module, initial: str) -> nn.Module:
    """A module with an initialised block behind it, which gets the device, dtype and mode of what is around it."""
    initialise(block)
    block = ReZero(block) if initial == "identity" else block
    tensors = chain(module.parameters(), module.buffers(), model.parameters())
    if (like := next((tensor for tensor in tensors if tensor.is_floating_point()), None)) is not None:
        block.to(like.device, like.dtype)
    block.train(model.training)
    if not plain_sequential(module):
        return Attended(module, block)
    module.add_module("attention", block)
    return module


def _class_of(module: nn.Module, table: Mapping[str, T]) -> T | None:
    """What a table says of the class of a module, or of one that it is derived from."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def slots_in(model: ResNet | MobileNetV2, slot: str, stages: Container[int]) -> list[str]:
    """The names of the modules that a block follows by default, of some stages of a network of `build_model`'s."""
    return [name for name in _usual(model, slot) if _stage(name) in stages]


def _stage(name: str) -> int:
    """The stage, from 1, of a module: 2 of "layer2.0.bn2" in a ResNet, and of "features.3.conv" in a MobileNetV2."""
    _, number = re.findall(r"^(layer|features\.)(\d+)", name)[0]
    return int(number) if name.startswith("layer") else 1 + bisect_left(ENDS, int(number))


def _usual(model: nn.Module, slot: str) -> dict[str, nn.Module]:
    """The modules that a block follows by default, by their names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner: list[str] = []
        if slot == "block":
            inner = [part for part in [_class_of(module, LAST)] if part is not None]
        elif (stages := _class_of(module, BEHIND)) is not None:
            pattern, dropped = stages
            inner = matching((part for part, _ in module.named_modules()), pattern)[:-dropped]
        elif isinstance(module, mobilenetv2.MobileNetV2) and len(module.features) == ENDS[-1] + 2:
            inner = [f"features.{end}" for end in ENDS]
        found |= {f"{name}.{part}".strip("."): module.get_submodule(part) for part in inner if name or part}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no {'stages' if slot == 'stage' else 'residual blocks'} of torchvision's "
            f"{FAMILIES}; say with after= which modules the attention follows, e.g. {_suggested(model)}"
        )
    return found


def _matching(model: nn.Module, patterns: list[str]) -> dict[str, nn.Module]:
    """The modules whose names match; one module may stand under several names."""
    every = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    for pattern in patterns:
        if not matching(every, pattern):
            raise ValueError(f"after={pattern!r}: no such module; {type(model).__name__} has {_suggested(model)}")
    matched = {name for pattern in patterns for name in matching(every, pattern)}
    return {name: module for name, module in every.items() if name in matched}


def _suggested(model: nn.Module) -> str:
    """At most six patterns that only convolutions and normalisations match, those with the most of them first."""
    every = [name for name, _ in model.named_modules() if name]
    telling = {name for name in every if isinstance(model.get_submodule(name), tuple(TELLING))}
    patterns = {name: re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in every if name in telling}
    precise = {pattern for pattern in {*patterns.values()} if telling.issuperset(matching(every, pattern))}
    counted = Counter(pattern if pattern in precise else name for name, pattern in patterns.items())
    return ", ".join(pattern for pattern, _ in counted.most_common(6)) or "no convolution or normalisation of 2-d maps"


def _channels(
    model: nn.Module, modules: Mapping[str, nn.Module], channels: int | Mapping[str, int] | None, example: Any
) -> dict[str, int]:
    """Channels of the modules, by their names: told by themselves, given, or found by a run."""
    if filled := next((name for name, module in modules.items() if hasattr(module, "attention")), None):
        raise ValueError(f"{filled} has an attention block already, or something else with the name attention")
    by_pattern = channels if isinstance(channels, Mapping) else {} if channels is None else {"*": channels}
    given: dict[str, int] = {}
    for pattern, number in by_pattern.items():
        whole("channels" if by_pattern is not channels else f"channels of {pattern}", number)
        if not (names := matching(modules, pattern)):
            raise ValueError(f"channels={pattern!r}: no attention follows it; it follows {', '.join([*modules][:6])}")
        given = dict.fromkeys(names, number) | given
    for name, number in given.items():
        if (told := told_channels(modules[name])) not in (None, number):
            raise ValueError(f"channels={number}: {name} puts out {told}")
    known = {name: given.get(name) or told_channels(module) for name, module in modules.items()}
    unknown = [name for name, number in known.items() if number is None]
    return known | (found_channels(model, unknown, example) if unknown else {})  # type: ignore[return-value]


def _fitting(reduction: int, channels: int, rounded: bool) -> int:
    """The smallest ratio from `reduction` up that divides `channels`; else `channels` itself, one hidden channel.

    The paper has r = 16 in MobileNetV2 too, whose 24 channels it does not divide; the printed 4.93M have one hidden
    channel there. Since all its channels are multiples of eight, a ratio that is no power of two is a mistake unless
    rounding was asked for.
    """
    whole("reduction", reduction)
    if reduction & (reduction - 1) and not rounded:
        raise ValueError(f"reduction={reduction}: allowed in MobileNetV2: powers of two")
    return next((ratio for ratio in range(reduction, channels) if channels % ratio == 0), channels)
