"""Mechanisms of a configuration: gamlib's by their names, one's own by where their class is, and their options."""

import json
from collections.abc import Mapping
from contextlib import suppress
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from ablation.errors import ConfigError
from gamlib.names import ATTENTIONS, MORE_OPTIONS, OPTIONS, SLOTS, WITHOUT_BLOCKS
from gamlib.sources import resolve, split_hash


def mechanism(attention: Any) -> str:
    """A mechanism by its name, or where its class is and what its file holds, see `gamlib.sources.resolve`.

    Raises:
        ValueError: there is no such thing.
    """
    return str(attention) if attention in list(ATTENTIONS) else resolve(attention)


def readable(attention: str) -> str:
    """A mechanism as the name of a folder has it: `ECA` of my_eca.py:ECA, `timm_eca` of timm:eca."""
    place, _, name = split_hash(attention)[0].rpartition(":")
    return f"timm_{name}" if place == "timm" else name


def slot_of(attention: str) -> str:
    """Where a mechanism goes, "block" or "stage"; errors are those of `gamlib.attention.slot_of`."""
    if attention not in ATTENTIONS:
        from gamlib.attention import slot_of as slot_of_class  # late: torch

        return slot_of_class(attention)
    return SLOTS.get(attention, "block")


def fields_of(attention: str) -> tuple[str, ...]:
    """Of the options that a configuration has fields for those that a mechanism takes, and `stages` if it has blocks.

    Raises:
        ConfigError: there is no such mechanism.
    """
    try:
        placed = () if attention in WITHOUT_BLOCKS else ("stages",)
        return (*placed, *(key for key in OPTIONS if key in _parameters(attention)))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def chosen_options(attention: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that values of a configuration choose: as fields where gamlib's mechanisms have them, else `options`.

    Values are coerced to the types of their parameters; in `options` remains what is not at its default.

    Raises:
        ValueError: the mechanism has no such option, or the value is none of its type; the message lists its options.
    """
    given = values.get("options") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    if not isinstance(given, Mapping):
        raise ValueError(f'options={values["options"]!r}: allowed: options by name, such as {{"kernel_size": 7}}')
    named = {key: values[key] for key in OPTIONS if key in values}
    for key in named.keys() & given.keys():
        raise ValueError(f"options={key}={given[key]!r}: {key}={named[key]!r} is given too")
    known = _parameters(attention)
    found: dict[str, Any] = dict.fromkeys(named)
    more: dict[str, Any] = {}
    for key, value in sorted((named | dict(given)).items()):
        if key not in known:
            having = [name for name, options in ATTENTIONS.items() if key in {**options, **MORE_OPTIONS.get(name, {})}]
            own = (
                f"its options are {', '.join(known) or 'none'}"
                if attention not in ATTENTIONS
                else f"only {', '.join(having)}"
            )
            raise ValueError(f"{key}={value!r}: attention={split_hash(attention)[0]} has none, {own}")
        if key in ATTENTIONS.get(attention, {}):
            found[key] = value  # the field coerces it
        else:
            value, usual = _coerced(attention, known[key], value), known[key].default
            if value != (list(usual) if isinstance(usual, tuple) else usual):  # as JSON has a tuple
                more[key] = value
    return found | {"options": more or None}


def _parameters(attention: str) -> dict[str, Parameter]:
    if attention not in ATTENTIONS:
        from gamlib.attention import parameters  # late: torch

        return parameters(attention)
    known = {**ATTENTIONS[attention], **MORE_OPTIONS.get(attention, {})}
    return {key: Parameter(key, Parameter.KEYWORD_ONLY, default=value) for key, value in known.items()}


def _coerced(attention: str, parameter: Parameter, value: Any) -> Any:
    """A value as its parameter's annotation, or the type of its default, has it."""
    kind = parameter.annotation
    if kind is Parameter.empty:
        kind = type(parameter.default) if isinstance(parameter.default, bool | int | float | str) else Any
    try:
        if isinstance(value, bool) and kind in (int, float):  # pydantic would count it
            raise ValueError
        with suppress(PydanticSchemaGenerationError):
            value = TypeAdapter(kind).validate_python(value)
        return json.loads(json.dumps(value))  # as it will be written: a tuple is a list there
    except (ValidationError, ValueError, TypeError):
        allowed = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{parameter.name}={value!r}: attention={split_hash(attention)[0]} takes: {allowed}") from None
