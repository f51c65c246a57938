"""Checks that several mechanisms make of their arguments, with one wording."""


def divides(name: str, value: int, number: int, what: str) -> None:
    """Refuse a value that does not divide a number.

    Raises:
        ValueError: names the value, the number and its divisors.
    """
    if value < 1 or number % value:
        divisors = ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
        raise ValueError(f"{name}={value} does not divide the {number} {what}; allowed: {divisors}")


def odd(name: str, value: int) -> None:
    """Refuse a size of a centred window that is not odd.

    Raises:
        ValueError: names the value.
    """
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{name}={value}: allowed: odd numbers from 1")
