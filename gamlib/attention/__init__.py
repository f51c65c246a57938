"""Attention mechanisms: one file for each paper, and the registry that finds them by name.

Every mechanism is a module [N, C, H, W] -> [N, C, H, W]. All have one vocabulary of arguments: first `channels`, C of
the map; `reduction`, the ratio r of C to the hidden channels, which divides C; `kernel_size`, odd; `gate_max_pool`,
whether a gate has max-pooling. A value that does not fit raises a ValueError, which says what is allowed.

A mechanism may have two things more: `slot = "stage"` where its place is behind a stage of the backbone instead of in
every block, and a method `init_weights` where it is initialised in a way of its own. One that is not listed here is
given by where its class is, see `gamlib.sources`, or as the class itself.
"""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gamlib.attention.bam import BAM
from gamlib.attention.cbam import CBAM
from gamlib.attention.checks import one_of
from gamlib.attention.gam import GAM
from gamlib.attention.gam_copied import CopiedGAM
from gamlib.attention.gam_variants import LowRankGAM, SeparableGAM, UngatedGAM
from gamlib.attention.se import SE
from gamlib.attention.triplet import TripletAttention
from gamlib.names import ATTENTIONS
from gamlib.sources import load_class, split_hash

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


def mechanism(attention: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The class that makes the blocks of a mechanism: a registered one, one of a file or module, or what is given.

    Raises:
        ValueError: an unknown mechanism, or code that cannot be used, see `gamlib.sources`; the message lists what is
            allowed.
    """
    if callable(attention):
        return attention
    if attention in MECHANISMS:
        return MECHANISMS[attention]
    if attention in ATTENTIONS:
        raise ValueError(f"attention={attention!r} is no block: allowed: {', '.join(MECHANISMS)}")
    return load_class(attention)


def parameters(attention: str | Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters beside the first, which is the number of channels; errors are `mechanism`'s."""
    made = mechanism(attention)
    try:
        signature = inspect.signature(made, eval_str=True)
    except Exception:  # an annotation that is no expression, or is imported for type checkers only
        signature = inspect.signature(made)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: one for one in list(signature.parameters.values())[1:] if one.kind in named}


def options(attention: str | Callable[..., nn.Module]) -> dict[str, Any]:
    """The constructor arguments that a mechanism takes beside `channels`, with their defaults.

    Raises:
        ValueError: an unknown mechanism; the message lists the known ones.
    """
    return {name: parameter.default for name, parameter in parameters(attention).items()}


def slot_of(attention: str | Callable[..., nn.Module]) -> str:
    """Where a mechanism goes: "block", into every block of the backbone, or "stage", behind its stages.

    Raises:
        ValueError: an unknown mechanism, or a class of one's own with another `slot`.
    """
    slot: str = getattr(mechanism(attention), "slot", "block")
    one_of("slot", slot, ("block", "stage"))
    return slot


def build_attention(attention: str | Callable[..., nn.Module], channels: int, /, **chosen: Any) -> nn.Module:
    """A block of a mechanism, [N, C, H, W] -> [N, C, H, W].

    Args:
        attention: a name, a mechanism of one's own (see `gamlib.sources`), or a class.
        channels: C.
        chosen: options of the mechanism.

    Raises:
        ValueError: an unknown mechanism, an option that it does not have, a value that does not fit, or a class of
            one's own that cannot be built or changes the shape of a map.
    """
    known, made = options(attention), mechanism(attention)
    for key, value in chosen.items():
        if key not in known:
            what = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"{key}={value!r}: attention={_named(attention)} has none; {what}")
    if made in MECHANISMS.values():
        return made(channels, **chosen)
    asked = ", ".join(
        [f"attention={_named(attention)}, channels={channels}", *(f"{k}={v!r}" for k, v in chosen.items())]
    )
    try:
        block = _tried(made, channels, chosen)
    except Exception as error:
        if torch.get_default_device().type != "meta":
            raise ValueError(f"{asked}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
        with torch.device("cpu"):  # not all that a CPU computes can be computed without values
            return build_attention(attention, channels, **chosen).to("meta")
    return block


@torch.no_grad()
def _tried(made: Callable[..., nn.Module], channels: int, chosen: dict[str, Any]) -> nn.Module:
    """A block that leaves the shape and type of two maps as they are; its statistics and its mode stay as they were."""
    block = made(channels, **chosen)
    if not isinstance(block, nn.Module):
        raise TypeError(f"it makes a {type(block).__name__}, allowed: torch.nn.Module")
    like, mode = next(chain(block.parameters(), block.buffers()), torch.empty(0)), block.training
    block.eval()
    with torch.random.fork_rng(devices=[]):
        for size in ((8, 8), (6, 10)):
            x = torch.zeros(2, channels, *size, device=like.device)
            y = block(x)
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
                found = f"{list(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
                raise ValueError(f"a map {list(x.shape)} of {x.dtype} becomes {found}; allowed: what it was")
    return block.train(mode)


def _named(attention: str | Callable[..., nn.Module]) -> str:
    return split_hash(attention)[0] if isinstance(attention, str) else getattr(attention, "__name__", repr(attention))
