"""What a study tests and how: declared before its runs, written into its plan, and shown with every table."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from ablation.errors import Checked

Pairs = list[tuple[str, str]]


class Hypotheses(Checked):
    """The comparisons of a study and the test that decides each; what that computes is `results.statistics`.

    Every comparison asks whether an arm errs less or more than its reference. With a margin it asks, too, whether the
    two are equal within that many points.
    """

    compare: Pairs = Field([], description="pairs of an arm and its reference; by default the first")
    test: Literal["welch", "paired"] = Field("welch", description="welch, paired")
    alpha: float = Field(0.05, ge=0.0001, le=0.2, description="from 0.0001 to 0.2, of all comparisons together")
    margin: float | None = Field(None, gt=0, description="points of top-1 error above 0 that make no difference")
    equivalence: Pairs | None = Field(None, description="pairs of compare that margin is for; by default all")
    looks: list[int] = Field([], description="ascending numbers of seeds from 2, such as [4, 8, 12]")

    def __init__(self, **values: Any) -> None:  # of any type: they are coerced or refused
        super().__init__(**values)

    @model_validator(mode="after")
    def _is_decidable(self) -> Self:
        if any(first >= second for first, second in zip([1, *self.looks], self.looks, strict=False)):
            raise ValueError(f"looks={self.looks}: allowed: ascending numbers of seeds from 2, such as [4, 8, 12]")
        if self.equivalence is not None:
            if self.margin is None:
                raise ValueError("equivalence: allowed with a margin, the points that make no difference")
            for pair in self.equivalence:
                if pair not in self.compare:
                    allowed = ", ".join(f"[{arm}, {reference}]" for arm, reference in self.compare)
                    raise ValueError(f"equivalence=[{', '.join(pair)}]: allowed: pairs of compare, {allowed}")
        return self

    def hypotheses(self) -> dict[str, Any]:
        """They alone, as plain values."""
        return self.model_dump(mode="json", include={*Hypotheses.model_fields})

    def margin_of(self, pair: tuple[str, str]) -> float | None:
        """The points within which the two of a comparison are called equal, if that is asked."""
        return self.margin if self.equivalence is None or pair in self.equivalence else None

    def renamed(self, names: dict[str, str]) -> dict[str, Pairs | None]:
        """Its pairs with other names for the arms."""
        pairs = {"compare": self.compare, "equivalence": self.equivalence}
        return {key: of and [(names[arm], names[reference]) for arm, reference in of] for key, of in pairs.items()}


class Declared(BaseModel):
    """When the hypotheses of a plan were declared: before its first run, or how late.

    Attributes:
        at: when, in UTC.
        begun: how many of its runs had begun by then.
        seeds: for how many seeds; 0 if that is not known. More of them are counted as declared if there are looks.
        before: other hypotheses that it had, and that were changed when runs of it had begun, the first first.
    """

    at: str
    begun: int
    seeds: int = 0
    before: list[dict[str, Any]] = []


TESTS = {"welch": "Welch's t-test", "paired": "the paired t-test"}


def in_short(of: Hypotheses) -> str:
    """The test of a study in a line for a figure."""
    number = len(of.compare)
    test = TESTS[of.test].removeprefix("the ")
    return f"Verdicts: {test}, corrected for {number} by Holm" if number > 1 else f"Verdict: {test}"


def timestamp() -> str:
    """Now, in UTC, to a second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def in_words(of: Hypotheses, declared: Declared | None, seeds: int = 0) -> str:
    """The test of a study, when it was declared, and if some of its seeds were not, in a few sentences."""
    number = len(of.compare)
    whom = "its one comparison" if number == 1 else f"all {number} comparisons"
    said = f"p of {TESTS[of.test]}, two-sided, corrected by Holm for {whom}"
    if of.margin is not None:
        said += f"; equal: within {of.margin:g} points, by two one-sided tests, corrected along"
    if of.looks:
        said += f"; looks at {_listed(of.looks)} seeds, alpha spent as by O'Brien and Fleming"
    added = ""
    if declared is not None and not of.looks and 0 < declared.seeds < seeds:
        added = f" It was declared for {declared.seeds} seeds; {seeds} are counted, and p takes no account of that."
    return f"{said}; decided below {of.alpha:g}. {_when(declared)}{added}"


def _when(declared: Declared | None) -> str:
    if declared is None:
        return "This test was not declared before the runs."
    if declared.before:
        first = declared.before[0]
        return f"This test was changed after its first run: declared was {first}."
    if declared.begun:
        return f"This test was declared when {declared.begun} of the runs had begun."
    return "This test was declared before the first run."


def _listed(numbers: Iterable[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
