"""Attention mechanisms: one file for each paper, and the registry that finds them by name.

Every mechanism is a module [N, C, H, W] -> [N, C, H, W]. All have one vocabulary of arguments: first `channels`, C of
the map; `reduction`, the ratio r of C to the hidden channels, which divides C; `kernel_size`, odd; `gate_max_pool`,
whether a gate has max-pooling. A value that does not fit raises a ValueError, which says what is allowed.

A mechanism may have two things more: `slot = "stage"` where its place is behind a stage of the backbone instead of in
every block, and a method `init_weights` where it is initialised in a way of its own.
"""

import inspect
from typing import Any

from torch import nn

from gamlib.attention.bam import BAM
from gamlib.attention.cbam import CBAM
from gamlib.attention.checks import one_of
from gamlib.attention.gam import GAM
from gamlib.attention.gam_copied import CopiedGAM
from gamlib.attention.gam_variants import LowRankGAM, SeparableGAM, UngatedGAM
from gamlib.attention.se import SE
from gamlib.attention.triplet import TripletAttention

__all__ = [
    "BAM",
    "CBAM",
    "GAM",
    "MECHANISMS",
    "SE",
    "CopiedGAM",
    "LowRankGAM",
    "SeparableGAM",
    "TripletAttention",
    "UngatedGAM",
]

MECHANISMS: dict[str, type[nn.Module]] = {
    "se": SE,
    "bam": BAM,
    "cbam": CBAM,
    "tam": TripletAttention,
    "gam": GAM,
    "gam_separable": SeparableGAM,
    "gam_low_rank": LowRankGAM,
    "gam_no_gate": UngatedGAM,
    "gam_copied": CopiedGAM,
}


def options(attention: str) -> dict[str, Any]:
    """The constructor arguments that a mechanism takes beside `channels`, with their defaults.

    Raises:
        ValueError: an unknown mechanism; the message lists the known ones.
    """
    one_of("attention", attention, MECHANISMS)
    parameters = inspect.signature(MECHANISMS[attention]).parameters.values()
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
    return MECHANISMS[attention](channels, **chosen)
