"""How values come in: as texts of a command line, or from the parameters cell of a notebook."""

import re
from collections.abc import Iterable, Mapping
from symtable import symtable
from typing import Any

from ablation.config import OLD_NAMES, ConfigError, RunConfig, translated, unknown_name


def key_values(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` texts of a command line as a dictionary.

    Raises:
        ConfigError: a text without "=", or one key twice, if by its old and its new name.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise ConfigError(f"-p {text}: allowed: texts like epochs=3")
        if key in pairs:
            raise ConfigError(f"-p {key}: given twice, as {pairs[key]} and as {value}")
        pairs[key] = value
    return translated(pairs)


def notebook_parameters(namespace: Mapping[str, Any], known: Iterable[str] | None = None) -> dict[str, Any]:
    """The parameters of the notebook that calls this: every name that its cells headed `# parameters` assign.

    papermill puts its values into a cell with that heading too, and only warns of names that the notebook does not
    know; so do names mistyped by hand go unseen. Here they are refused.

    Args:
        namespace: `globals()` of the notebook.
        known: names that are allowed; by default the fields of `RunConfig`.

    Raises:
        ConfigError: an unknown name, or no such cell.
    """
    names = list(RunConfig.model_fields if known is None else known)
    allowed = [*names, *(OLD_NAMES.values() if known is None else ())]
    latest: dict[str, str] = {}  # a cell that was corrected and run again stands in `In` twice
    for source in namespace.get("In", ()):
        heading = source.strip().partition("\n")[0].strip()
        if heading.lower() == "# parameters":
            latest[heading] = source
    if not latest:
        raise ConfigError("no cell headed `# parameters` was run in this notebook")
    found: dict[str, Any] = {}
    for source in latest.values():
        for symbol in symtable(source, "parameters", "exec").get_symbols():
            if not symbol.is_assigned():  # at the top of the cell, in a tuple or under an `if` too
                continue
            if symbol.get_name() not in allowed:
                raise ConfigError(unknown_name(symbol.get_name(), names))
            if symbol.get_name() in namespace:  # an `if` may have been false
                found[symbol.get_name()] = namespace[symbol.get_name()]
    return translated(found)


def parse_seeds(seeds: Iterable[int] | int | str) -> list[int]:
    """Seeds as a list, each once: from numbers, or from a text such as "0-4" or "0,3,7".

    Raises:
        ConfigError: anything else, or no seed at all.
    """
    refused = ConfigError(f"seeds={seeds!r}: allowed: whole numbers from 0, like 0-4 or 0,3,7")
    found: list[int] = []
    listed = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    texts = [str(seed) for seed in seeds] if listed else str(seeds).split(",")  # type: ignore[union-attr]
    for text in texts:
        if not (match := re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", text)):
            raise refused
        some = range(int(match[1]), int(match[2] or match[1]) + 1)
        if not some:  # 3-1
            raise refused
        found += some
    if not found:
        raise refused
    return list(dict.fromkeys(found))
