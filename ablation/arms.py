"""Arms: what one configuration of an ablation is called, and the width at which two have equally many parameters."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ablation.config import RunConfig, translated
from ablation.errors import Checked, ConfigError

WIDTHS = [thousandths / 1000 for thousandths in range(1, 16_001)]  # about as many different networks as a ResNet has
Values = Annotated[dict[str, Any], AfterValidator(translated)]  # of RunConfig


class PaperRow(Checked):
    """The printed row that an arm repeats, where there is one of its backbone; on CIFAR-100 that is one of Table 1."""

    table: int
    attention: str
    variant: str = ""


class Arm(Checked):
    """One configuration of an ablation, all seeds of it.

    In a study it may be given by its values alone, beside which `paper` and `parameters_of` may stand.
    """

    values: Values = Field({}, description="values of RunConfig that make this arm")
    paper: PaperRow | None = Field(None, description="the row of the paper: table, attention, variant")
    parameters_of: str | None = Field(None, description="an arm: `width` is then as many parameters ask for")

    @model_validator(mode="before")
    @classmethod
    def _long(cls, given: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping) or "values" in given:
            return given
        own = {key: given[key] for key in cls.model_fields if key in given}
        return own | {"values": {key: value for key, value in given.items() if key not in own}}


def widened(config: RunConfig, reference: RunConfig) -> RunConfig:
    """A configuration at the width, in thousandths, at which its parameters are the nearest to those of another.

    The width is found by bisection: parameters never fall where it grows. ResNets come within 1 % at any usual width,
    MobileNetV2, whose channels go in eights, from about a half. What is further off is refused, and so are weights.
    """
    wanted = reference.parameters()
    place = bisect_left(WIDTHS, wanted, key=config.parameters)
    width = min(WIDTHS[max(place - 1, 0) : place + 1], key=lambda width: abs(config.parameters(width) - wanted))
    if abs((ratio := config.parameters(width) / wanted) - 1) > 0.01:
        nearest = f"the nearest, {width:g}, has {ratio:.3f} times as many"
        raise ConfigError(f"no width comes within 1 % of {wanted}; {nearest}")
    return RunConfig(**config.model_dump() | {"width": width})
