"""Attention mechanisms: one file each, named after its paper, and the registry that finds them by name.

Every mechanism is a module [N, C, H, W] -> [N, C, H, W] whose first argument is `channels`. It may have two things
more: `slot = "stage"` where its place is behind a stage of the backbone instead of in every block, and a method
`init_weights` where it is initialised in a way of its own.
"""

import inspect
from typing import Any

from torch import nn

from gamlib.attention.bam import BAM
from gamlib.attention.cbam import CBAM
from gamlib.attention.gam import GAM
from gamlib.attention.gam_low_rank import LowRankGAM
from gamlib.attention.gam_no_gate import UngatedGAM
from gamlib.attention.gam_separable import SeparableGAM
from gamlib.attention.se import SE
from gamlib.attention.triplet import TripletAttention

__all__ = ["BAM", "CBAM", "GAM", "MECHANISMS", "SE", "LowRankGAM", "SeparableGAM", "TripletAttention", "UngatedGAM"]

MECHANISMS: dict[str, type[nn.Module]] = {
    "se": SE,
    "bam": BAM,
    "cbam": CBAM,
    "tam": TripletAttention,
    "gam": GAM,
    "gam_separable": SeparableGAM,
    "gam_low_rank": LowRankGAM,
    "gam_no_gate": UngatedGAM,
}


def mechanism(attention: str) -> type[nn.Module]:
    """The class of a mechanism.

    Raises:
        ValueError: an unknown mechanism; the message lists the known ones.
    """
    if attention not in MECHANISMS:
        raise ValueError(f"attention={attention!r}: allowed: {', '.join(MECHANISMS)}")
    return MECHANISMS[attention]


def options(attention: str) -> dict[str, Any]:
    """The constructor arguments that a mechanism takes beside `channels`, with their defaults.

    Raises:
        ValueError: an unknown mechanism; the message lists the known ones.
    """
    parameters = inspect.signature(mechanism(attention)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "channels"}


def build_attention(attention: str, channels: int, /, **chosen: Any) -> nn.Module:
    """A mechanism by its name, [N, C, H, W] -> [N, C, H, W].

    Raises:
        ValueError: an unknown mechanism, an option that it does not have, or a value that does not fit.
    """
    known = options(attention)
    for key, value in chosen.items():
        if key not in known:
            raise ValueError(f"{key}={value!r}: attention={attention} has none; its options are {', '.join(known)}")
    return mechanism(attention)(channels, **chosen)
