"""What is asked for and cannot be done: the error, its one line, and what is checked when it is given."""

import difflib
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A value that is refused; the message is one line that names it and what is allowed."""


class Checked(BaseModel):
    """Values that are checked when they are given, and final from then on.

    Raises:
        ConfigError: an unknown name, a wrong type, or a value outside what its field's `description` allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(one_line(error, type(self))) from None


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found, in one line: every refused value and what is allowed in its place."""
    found = []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == "extra_forbidden":
            found.append(unknown_name(name, model.model_fields))
        elif name in model.model_fields and (allowed := model.model_fields[name].description):
            found.append(f"{name}={detail['input']!r}: allowed: {allowed}")
        else:
            found.append(": ".join(filter(None, (name, detail["msg"].removeprefix("Value error, ")))))
    return "; ".join(found)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The line that refuses a parameter of an unknown name."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not a parameter: {hint}There are {', '.join(known)}"


@cache
def warn_once(line: str) -> None:
    """Print a line on stderr that is no error, once in a process."""
    print(line, file=sys.stderr)
