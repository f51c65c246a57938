"""What the benchmarks are given on the command line, as text: refused in one line that says what is allowed."""

from collections.abc import Collection

import torch

from ablation.errors import ConfigError


def device(name: str) -> str:
    """ "cpu" or "cuda"; "auto" is a GPU where there is one."""
    allowed = ["auto", "cpu"] + ["cuda"] * torch.cuda.is_available()
    if name not in allowed:
        raise ConfigError(f"device={name!r}: allowed here: {', '.join(allowed)}")
    return allowed[-1] if name == "auto" and len(allowed) > 2 else name.replace("auto", "cpu")


def number(option: str, text: str, otherwise: int, least: int = 1) -> int:
    """A whole number; the other one where nothing is given."""
    if text and (not text.isdecimal() or int(text) < least):
        raise ConfigError(f"{option}={text!r}: allowed: a whole number from {least}")
    return int(text or otherwise)


def names(option: str, text: str, allowed: Collection[str]) -> list[str]:
    """Names out of those that are allowed, separated by commas, each once."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in allowed:
            raise ConfigError(f"{option}={name!r}: allowed: {', '.join(allowed)}")
    return found
