"""Checks that several mechanisms make of their arguments, with one wording.

Each raises ValueError, with the name of the argument, its value and what is allowed.
"""

from typing import Any


def whole(name: str, value: Any) -> None:
    """Refuse what is no whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: allowed: whole numbers from 1")


def yes_or_no(name: str, value: Any) -> None:
    """Refuse what is neither True nor False; the text "false" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: allowed: True, False")


def divides(name: str, value: Any, number: int, what: str) -> None:
    """Refuse a value that does not divide a number, whose divisors are named."""
    if not isinstance(value, int) or isinstance(value, bool):
        whole(name, value)
    if value < 1 or number % value:
        divisors = ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
        raise ValueError(f"{name}={value} does not divide the {number} {what}; allowed: {divisors}")


def odd(name: str, value: Any) -> None:
    """Refuse a size of a centred window that is not odd."""
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{name}={value!r}: allowed: odd numbers from 1")
