"""Arms: what one line of an ablation's table is made of."""

import sys
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ablation.config import ConfigError, translated
from gamlib.names import ATTENTIONS, OPTIONS

Values = Annotated[dict[str, Any], AfterValidator(translated)]  # of RunConfig


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

    values: Values = Field(default={}, description="values of RunConfig that make this arm")
    paper: PaperRow | None = Field(default=None, description="the row of the paper: table, attention, variant")
    parameters_of: str | None = Field(default=None, description="an arm: `width` is then as many parameters ask for")


def of_mechanism(values: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Without the options that the mechanism of these values lacks, but with all that the arm itself sets."""
    lacking = set(OPTIONS).difference(ATTENTIONS.get(str(values.get("attention", "gam")), OPTIONS))
    return {key: value for key, value in values.items() if key in own or key not in lacking}


def of_this_package(attention: str) -> None:
    """Refuse a mechanism that was put into the registry from elsewhere.

    Raises:
        ConfigError: a job could not build it, and nothing would tell its results from those of its code before.
    """
    made = getattr(sys.modules.get("gamlib.attention"), "MECHANISMS", {}).get(attention)  # if anybody has imported it
    if made is not None and made.__module__.partition(".")[0] != "gamlib":
        raise ConfigError(
            f"attention={attention!r}: {made.__module__}.{made.__qualname__} is none of gamlib's own: no job could "
            "build it, and its results would be kept when its code changes; give it a file in gamlib/attention"
        )
