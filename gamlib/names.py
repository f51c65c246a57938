"""What `build_model` can be asked for, as tables that need no torch, so that a configuration is checked at once.

The classes have the same names, options, slots and defaults; a test compares them.
"""

from typing import Any

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "mobilenet_v2")
STEMS = ("imagenet", "cifar")
STAGES = dict.fromkeys(RESNETS, 4) | {"mobilenet_v2": 7}  # layer1 to layer4; the rows of Table 2 of MobileNetV2's paper

_OF_GAM: dict[str, Any] = {"submodules": "ch+sp", "reduction": 16, "groups": 1, "gate_max_pool": False}
OPTIONS = tuple(_OF_GAM)  # of mechanisms, as far as `build_model` takes them

ATTENTIONS: dict[str, dict[str, Any]] = {  # mechanisms, and the defaults of the options that each has
    "none": {},
    "se": {"reduction": 16},
    "bam": {"reduction": 16},
    "cbam": {"reduction": 16, "gate_max_pool": True},
    "tam": {},
    "gam": _OF_GAM,
    "gam_separable": _OF_GAM,
    "gam_low_rank": _OF_GAM,
    "gam_no_gate": _OF_GAM,
    "gam_copied": {"reduction": 4},
    "abn": {},
}
WITHOUT_BLOCKS = ("none", "abn")
SLOTS = {"bam": "stage"}  # of mechanisms that go behind stages and not into every block
MORE_OPTIONS: dict[str, dict[str, Any]] = {  # and those that only `options` takes
    "bam": {"dilation": 4},
    "cbam": {"kernel_size": 7},
    "tam": {"kernel_size": 7},
    "gam_copied": {"channel_sigmoid": False},
}


def has_max_pool(backbone: str, stem: str) -> bool:
    """Whether a network has a max-pooling that `max_pool=False` can take out."""
    return backbone in RESNETS and stem == "imagenet"


def chosen_stages(stages: Any, backbone: str, attention: Any, slot: str) -> list[int] | None:
    """The stages of a backbone, from 1, that attention is limited to, ascending; None where that is no limit.

    Args:
        stages: what was asked for, numbers in any order, each once.
        backbone: one of `BACKBONES`.
        attention: the mechanism.
        slot: of the mechanism, "block" or "stage"; behind the last stage of a ResNet there is no block.

    Raises:
        ValueError: the mechanism has no blocks, or the stages are others than the backbone has.
    """
    if attention in WITHOUT_BLOCKS:
        raise ValueError(f"stages={stages!r}: attention={attention} has no blocks to place in stages")
    last = STAGES[backbone] - (slot == "stage" and backbone in RESNETS)
    every = list(range(1, last + 1))
    numbers = sorted(stages) if isinstance(stages, list | tuple) and all(type(n) is int for n in stages) else []
    if not numbers or len({*numbers}) < len(numbers) or not {*numbers} <= {*every}:
        where = f"{backbone} with attention={attention}" if last < STAGES[backbone] else backbone
        allowed = f"a list of some or all of {', '.join(map(str, every))}, each once"
        raise ValueError(f"stages={stages!r}: allowed in {where}: {allowed}")
    return None if numbers == every else numbers
