"""How values come in: as texts of a command line, or from the parameters cell of a notebook."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from ablation.config import OLD_NAMES, RunConfig, translated
from ablation.errors import ConfigError, unknown_name


def key_values(texts: Iterable[str]) -> dict[str, str]:
    """`key=value` texts of a command line as a dictionary.

    Raises:
        ConfigError: a text without "=", or one key twice, if by its old and its new name.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key or not value:
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
        ConfigError: an unknown name, or no such cell. A field of `RunConfig`, given to the notebook of a study, is
            refused with how to write it as one of its `overrides`.
    """
    names = list(RunConfig.model_fields if known is None else known)
    allowed = [*names, *(OLD_NAMES.values() if known is None else ())]
    headed = [(source.strip().partition("\n")[0].strip(), source) for source in namespace.get("In", ())]
    # A cell that was corrected and run again stands in `In` twice; the latest counts.
    cells = {heading: source for heading, source in headed if heading.lower() == "# parameters"}
    if not cells:
        raise ConfigError("no cell headed `# parameters` was run in this notebook")
    assigned = list(chain.from_iterable(map(_assigned, cells.values())))
    unknown = [name for name in assigned if name not in allowed]
    of_runs = {name: namespace.get(name) for name in unknown if name in RunConfig.model_fields and name != "seed"}
    if of_runs and "overrides" in names:
        values = ", ".join(f"{name}: {json.dumps(value, default=str)}" for name, value in of_runs.items())
        raise ConfigError(
            f"{', '.join(of_runs)}: no parameter of this notebook, but of its runs: give overrides, which is written "
            f"-y 'overrides: {{{values}}}'"
        )
    if unknown:
        raise ConfigError(unknown_name(unknown[0], names))
    return translated({name: namespace[name] for name in assigned if name in namespace})  # an `if` may have been false


def _assigned(source: str) -> list[str]:
    """The names that a cell assigns, in a tuple or under an `if` too; comprehensions and functions keep theirs."""
    cell = ast.parse(source)
    scopes = [node for node in ast.walk(cell) if isinstance(node, ast.comprehension | ast.FunctionDef | ast.ClassDef)]
    own = set(chain.from_iterable(map(ast.walk, scopes)))
    names = [node for node in ast.walk(cell) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [name.id for name in names if name not in own]


def parse_seeds(seeds: Iterable[int] | int | str) -> list[int]:
    """Seeds as a list, each once: from numbers, or from a text such as "0-4" or "0,3,7".

    Raises:
        ConfigError: anything else, or no seed at all.
    """
    listed = seeds if isinstance(seeds, Iterable) else [seeds]
    texts: Iterable[Any] = seeds.split(",") if isinstance(seeds, str) else listed
    matches = [re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(text)) for text in texts]
    parts = [range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0) for match in matches]
    if not parts or not all(parts):  # 3-1 is none
        raise ConfigError(f"seeds={seeds!r}: allowed: whole numbers from 0, like 0-4 or 0,3,7")
    return list(dict.fromkeys(chain.from_iterable(parts)))
