"""Checks of arguments, with one wording: a ValueError names the argument, its value and what is allowed."""

from collections.abc import Iterable
from typing import Any


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse a name that is not listed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed: {', '.join(allowed)}")


def whole(name: str, value: Any) -> None:
    """Refuse what is no whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: allowed: whole numbers from 1")


def yes_or_no(name: str, value: Any) -> None:
    """Refuse what is neither True nor False; the text "false" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: allowed: True, False")


def odd(name: str, value: Any) -> None:
    """Refuse a size of a centred window that is not odd."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name}={value!r}: allowed: odd numbers from 1")


def divides(name: str, value: Any, number: int, what: str) -> None:
    """Refuse a value that does not divide a number, whose divisors are named."""
    if not isinstance(value, int) or isinstance(value, bool):
        whole(name, value)
    if value < 1 or number % value:
        divisors = ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
        raise ValueError(f"{name}={value} does not divide the {number} {what}; allowed: {divisors}")


def hidden_channels(channels: Any, reduction: Any) -> int:
    """The channels C/r that a ratio r leaves of C; refuse one that does not divide them."""
    whole("channels", channels)
    divides("reduction", reduction, channels, "channels")
    hidden: int = channels // reduction
    return hidden
