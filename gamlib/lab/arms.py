"""Arms: what one line of an ablation's table is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gamlib.lab.config import ConfigError


class PaperRow(BaseModel):
    """The printed row that an arm repeats, where there is one of its backbone; on CIFAR-100 that is one of Table 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: int
    attention: str
    variant: str = ""


class Arm(BaseModel):
    """One configuration of an ablation, all seeds of it.

    In a study it may be given by its values alone, beside which `paper` and `parameters_of` may stand.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: dict[str, Any] = Field(default={}, description="values of RunConfig that make this arm")
    paper: PaperRow | None = Field(default=None, description="the row of the paper: table, attention, variant")
    parameters_of: str | None = Field(default=None, description="an arm: `width` is then as many parameters ask for")


def of_mechanism(values: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Without the options that the mechanism of these values lacks, but with all that the arm itself sets."""
    from gamlib.backbones import OPTIONS, build_model

    attention = values.get("attention", "gam")
    try:
        lacking = set(OPTIONS) - build_model.options(attention).keys()
    except ValueError:
        lacking = set()  # RunConfig refuses the name
    return {key: value for key, value in values.items() if key in own or key not in lacking}


def of_this_package(attention: str) -> None:
    """Refuse a mechanism that was put into the registry from elsewhere.

    Raises:
        ConfigError: a job could not build it, and nothing would tell its results from those of its code before.
    """
    from gamlib.attention import MECHANISMS

    made = MECHANISMS.get(attention)
    if made is not None and made.__module__.partition(".")[0] != "gamlib":
        raise ConfigError(
            f"attention={attention!r}: {made.__module__}.{made.__qualname__} is none of gamlib's own: no job could "
            "build it, and its results would be kept when its code changes; give it a file in gamlib/attention"
        )
