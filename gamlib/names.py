"""What `build_model` can be asked for, as tables that need no torch, so that a configuration is checked at once.

The classes have the same names, options and defaults; a test compares them.
"""

from typing import Any

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "mobilenet_v2")
STEMS = ("imagenet", "cifar")

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
MORE_OPTIONS: dict[str, dict[str, Any]] = {  # and those that only `options` takes
    "bam": {"dilation": 4},
    "cbam": {"kernel_size": 7},
    "tam": {"kernel_size": 7},
    "gam_copied": {"channel_sigmoid": False},
}


def has_max_pool(backbone: str, stem: str) -> bool:
    """Whether a network has a max-pooling that `max_pool=False` can take out."""
    return backbone in RESNETS and stem == "imagenet"
