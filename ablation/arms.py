"""Arms: what one configuration of an ablation is called, grids of them, and the width that makes two equally large."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from ablation.config import RunConfig, translated
from ablation.errors import Checked, ConfigError, unknown_name
from ablation.mechanisms import fields_of
from gamlib.names import OPTIONS
from gamlib.sources import without_folder

WIDTHS = [thousandths / 1000 for thousandths in range(1, 16_001)]  # about as many different networks as a ResNet has
Values = Annotated[dict[str, Any], AfterValidator(translated)]  # of RunConfig
AT_A_POINT = ("label", "parameters_of")  # fields of an arm that say other things at each point of a grid
Text = Annotated[str, BeforeValidator(lambda text: None if text is None else str(text))] | None  # YAML has numbers too

Seeds = Annotated[str, BeforeValidator(lambda of: ",".join(map(str, of)) if isinstance(of, list) else str(of))]


class PaperRow(Checked):
    """The printed row that an arm repeats, where there is one of its backbone; on CIFAR-100 that is one of Table 1."""

    table: int
    attention: str
    variant: str = ""


class Arm(Checked):
    """One configuration of an ablation, all seeds of it.

    In a study it may be given by its values alone, beside which the other fields may stand.
    """

    values: Values = Field({}, description="values of RunConfig that make this arm")
    paper: PaperRow | None = Field(None, description="the row of the paper: table, attention, variant")
    parameters_of: str | None = Field(None, description="an arm: `width` is then as many parameters ask for")
    label: Text = Field(None, description="what figures and tables call it", exclude_if=lambda label: label is None)
    colour: Text = Field(None, description="its colour in figures", exclude_if=lambda colour: colour is None)

    @model_validator(mode="before")
    @classmethod
    def _long(cls, given: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(given, Mapping) or "values" in given:
            return given
        own = {key: given[key] for key in cls.model_fields if key in given}
        return own | {"values": {key: value for key, value in given.items() if key not in own}}


def check_looks(arms: Mapping[str, Arm]) -> None:
    """Refuse two arms with one label, and a colour that matplotlib does not know.

    Raises:
        ValueError: there is one; the message names it.
    """
    for label, number in Counter(arm.label or name for name, arm in arms.items()).items():
        if number > 1:
            raise ValueError(f"label={label!r}: figures would call {number} arms so; allowed: another for each")
    for name, colour in ((name, arm.colour) for name, arm in arms.items() if arm.colour is not None):
        from matplotlib.colors import is_color_like  # late: most studies have no colours

        if not is_color_like(colour):
            allowed = "a colour that matplotlib knows, such as tab:blue or, in quotes, '#0072B2'"
            raise ValueError(f"arm {name!r}: colour={colour!r}: allowed: {allowed}")


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a study, in full: names are texts, and by default every arm is compared with the first.

    An arm may have no values, a grid makes arms, and a data set may be given by its path and its name.

    Raises:
        ValueError: a data set or a grid that is neither.
    """
    found = dict(given)
    if isinstance(dataset := found.get("dataset"), Mapping):
        if {*dataset} != {"path", "name"}:
            raise ValueError(f"dataset={dataset!r}: allowed: a name, or {{path: imagefolder:cells, name: Cells}}")
        found |= {"dataset": dataset["path"], "dataset_title": str(dataset["name"])}
    grid = found.pop("grid", None)
    if not isinstance(found.get("arms", {}), Mapping) or (grid is None and "arms" not in found):
        return found
    named = found.get("arms", {}).items()
    arms: Mapping[str, Any] = {str(name): {} if arm is None else arm for name, arm in named}
    compare = found.get("compare")
    if grid is not None:
        if "equivalence" in found:
            found["equivalence"] = crossed(arms, found["equivalence"], grid)[1]
        arms, compare = crossed(arms, compare, grid)
    every = [(name, next(iter(arms))) for name in list(arms)[1:]]
    return {**found, "arms": arms, "compare": every if compare is None else compare}


def crossed(arms: Mapping[str, Any], compare: Any, grid: Any) -> tuple[Mapping[str, Any], Any]:
    """Every arm at every point of a grid, "ch, lr=0.05", and the comparisons of two arms at each of these points.

    Args:
        arms: of a study, by name; without any there is one arm for each point, "lr=0.05".
        compare: pairs of names; None stays None, and a pair of other names stays as it is.
        grid: values of RunConfig by name, each with a list of what it takes.

    Raises:
        ValueError: the grid is none, an arm sets one of its values, or two arms would have one name.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid={grid!r}: allowed: names of values, each with a list, such as lr: [0.05, 0.1]")
    try:
        every = TypeAdapter(dict[str, Arm]).validate_python(arms or {"": {}})
    except ValidationError:
        return arms, compare  # the study refuses them
    for key, values in grid.items():
        if key not in RunConfig.model_fields:
            raise ValueError(f"grid: {unknown_name(str(key), RunConfig.model_fields)}")
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"grid: {key}={values!r}: allowed: a list of at least one value")
        for name, arm in every.items():
            if key in arm.values:
                raise ValueError(f"grid: {key}={values!r}: arm {name!r} sets {key} itself")
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    texts = [", ".join(f"{key}={without_folder(str(value))}" for key, value in point.items()) for point in points]
    found: dict[str, Arm] = {}
    for (name, arm), (text, point) in product(every.items(), zip(texts, points, strict=True)):
        if (own := _joined(name, text)) in found:
            raise ValueError(f"grid: two arms would be called {own!r}; allowed: every value once")
        names = {key: value and _joined(value, text) for key in AT_A_POINT for value in [getattr(arm, key)]}
        found[own] = arm.model_copy(update={"values": translated({**arm.values, **point}), **names})
    if not isinstance(compare, list | tuple):
        return found, compare
    pairs: list[Any] = []
    for pair in compare:
        of_arms = isinstance(pair, list | tuple) and every.keys() >= set(map(str, pair))
        pairs += [[_joined(str(name), text) for name in pair] for text in texts] if of_arms else [pair]
    return found, pairs


def _joined(name: str, text: str) -> str:
    return ", ".join(filter(None, (name, text)))


def configurations(
    arms: Mapping[str, Arm], chosen: Sequence[str], shared: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[dict[str, list[RunConfig]], set[str]]:
    """The runs of some arms of a study by arm, a seed each, those first that others take their parameters from.

    Args:
        arms: all of the study, by name.
        chosen: those to resolve; what they take their parameters from is resolved along.
        shared: values that hold for every arm; an arm's own come before them, and of options of mechanisms only those
            are taken that its mechanism has.
        seeds: of the runs.

    Returns:
        the runs, and the names of the values that any arm has taken.

    Raises:
        ConfigError: a value is refused, or no width has as many parameters as an arm asks for.
    """
    references = [label for label in arms if label in {arms[other].parameters_of for other in chosen}]
    taken, runs = set[str](), dict[str, list[RunConfig]]()
    for label in dict.fromkeys([*references, *chosen]):
        arm = arms[label]
        values = {**shared, **arm.values}
        lacking = {*OPTIONS, "stages"} - {*fields_of(str(values.get("attention", "gam"))), *arm.values}
        fitting = {key: value for key, value in values.items() if key not in lacking}
        taken |= fitting.keys()
        runs[label] = [RunConfig(**{**fitting, "seed": seed}) for seed in seeds]
        if arm.parameters_of is not None:
            try:
                runs[label] = [widened(config, runs[arm.parameters_of][0]) for config in runs[label]]
            except ValueError as error:
                which = f"arm {label!r}, parameters_of={arm.parameters_of!r}"
                raise ConfigError(f"{which}: {error}; --arms can leave it out") from None
    return runs, taken


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
