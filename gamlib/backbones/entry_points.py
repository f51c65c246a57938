"""Every network with a mechanism under one name, such as resnet18_gam: for timm's registry and for torch.hub."""

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

from torch import nn

from gamlib.attention.checks import one_of
from gamlib.backbones import build_model

ARGUMENTS = tuple(inspect.signature(build_model).parameters)[2:]  # without backbone and attention


def entry_points(module: str) -> dict[str, Callable[..., nn.Module]]:
    """A function that builds the network, for every backbone and every mechanism, by its name.

    The functions take the keyword arguments of `build_model` but `backbone` and `attention`, and raise its ValueErrors.

    Args:
        module: name of the module that they are entry points of.
    """
    pairs = product(build_model.backbones(), build_model.attentions())
    return {f"{pair[0]}_{pair[1]}": _entry_point(module, *pair) for pair in pairs if pair[1] != "none"}


def _entry_point(module: str, backbone: str, attention: str) -> Callable[..., nn.Module]:
    name = f"{backbone}_{attention}"

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **arguments: Any,
    ) -> nn.Module:
        # The first four are what timm gives to each of its entry points.
        for key, value in {
            "pretrained": pretrained,
            "pretrained_cfg": pretrained_cfg or pretrained_cfg_overlay,
        }.items():
            if value:
                raise ValueError(
                    f"{key}={value!r}: {name} has no trained weights; weights='DEFAULT' loads torchvision's into its "
                    "backbone"
                )
        for argument in arguments:
            one_of("argument", argument, ARGUMENTS)
        return build_model(backbone, attention, **arguments)

    build.__name__ = build.__qualname__ = name
    build.__module__ = module
    build.__doc__ = (
        f"{backbone} with attention={attention!r}, initialised: [N, 3, H, W] -> [N, num_classes] scores.\n\n"
        f"Keyword arguments are those of `build_model`: {', '.join(ARGUMENTS)}.\n"
        "There are no trained weights: pretrained=True is refused with a ValueError, as is a value that does not fit."
    )
    return build
