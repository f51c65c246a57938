"""Attention mechanisms: one file each, named after its paper, and the registry that finds them by name."""

import inspect

from torch import nn

from gamlib.attention.cbam import CBAM
from gamlib.attention.gam import GAM

__all__ = ["CBAM", "GAM", "MECHANISMS", "build_attention", "options"]

MECHANISMS: dict[str, type[nn.Module]] = {"cbam": CBAM, "gam": GAM}


def options(attention: str) -> set[str]:
    """Names of the constructor arguments that a mechanism takes beside `channels`; none for "none".

    Raises:
        ValueError: an unknown mechanism; the message lists the known ones.
    """
    if attention == "none":
        return set()
    if attention not in MECHANISMS:
        raise ValueError(f"attention={attention!r}: allowed: none, {', '.join(MECHANISMS)}")
    return set(inspect.signature(MECHANISMS[attention]).parameters) - {"channels"}


def build_attention(attention: str, channels: int, **chosen: object) -> nn.Module:
    """A mechanism by its name, [N, C, H, W] -> [N, C, H, W]; of the options given it gets those that it takes."""
    return MECHANISMS[attention](channels, **{key: chosen[key] for key in options(attention) & chosen.keys()})
