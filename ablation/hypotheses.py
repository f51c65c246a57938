"""What a study tests and how: declared before its runs, written into its plan, and shown with every table."""

from collections import Counter
from collections.abc import Iterable, Sequence
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
        for pair, number in Counter(self.compare).items():
            if number > 1 or len({*pair}) == 1:
                raise ValueError(f"compare={list(pair)}: allowed: two different arms, and each two of them once")
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
        """They alone, as plain values, whatever the order of the comparisons."""
        values = self.model_dump(mode="json", include={*Hypotheses.model_fields})
        return {key: sorted(of) if key in ("compare", "equivalence") and of else of for key, of in values.items()}

    def margin_of(self, pair: tuple[str, str]) -> float | None:
        """The points within which the two of a comparison are called equal, if that is asked."""
        return self.margin if self.equivalence is None or pair in self.equivalence else None

    def renamed(self, names: dict[str, str]) -> dict[str, Pairs | None]:
        """Its pairs with other names for the arms."""
        pairs = {"compare": self.compare, "equivalence": self.equivalence}
        return {key: of and [(names[arm], names[reference]) for arm, reference in of] for key, of in pairs.items()}


class Declared(BaseModel):
    """When the test of a plan was declared, and for what.

    Attributes:
        at: when, in UTC.
        seeds: for which seeds.
        before: what was declared of the plan before, and changed when runs of it had begun, the first first.
    """

    at: str
    seeds: list[int]
    before: list[dict[str, Any]] = []


TESTS = {"welch": "Welch's t-test", "paired": "the paired t-test"}


def in_short(of: Hypotheses) -> str:
    """The test of a study in a line for a figure."""
    number = len(of.compare)
    test = TESTS[of.test].removeprefix("the ")
    return f"Verdicts: {test}, corrected for {number} by Holm" if number > 1 else f"Verdict: {test}"


def in_words(of: Hypotheses) -> str:
    """The test of a study."""
    number = len(of.compare)
    whom = "its one comparison" if number == 1 else f"all {number} comparisons"
    said = f"p of {TESTS[of.test]}, two-sided, corrected by Holm for {whom}"
    if of.margin is not None:
        said += f"; equal: within {of.margin:g} points, by two one-sided tests, corrected along"
    if of.looks:
        said += f"; looks at {listed(of.looks)} seeds, alpha spent as by O'Brien and Fleming"
    return f"{said}; decided below {of.alpha:g}."


def declared_in_words(declared: Declared | None, now: dict[str, Any], begun: int, seeds: Sequence[int]) -> str:
    """When the test of a plan was declared, and what has changed since.

    Args:
        declared: the plan's declaration, if it has one.
        now: what the plan declares, see `Plan.declares`.
        begun: how many of its runs had begun when it was declared.
        seeds: of the plan.
    """
    if declared is None:
        return "This test was not declared before the runs."
    said = f"when {begun} of the runs had begun" if begun else "before the first run"
    said = f"This test was declared {said}."
    if declared.before:
        first = declared.before[0]
        changes = [f"{key} was {first[key]}" for key in first if key != "arms" and first[key] != now.get(key)]
        changes += ["an arm was another"] * (first.get("arms") != now.get("arms"))
        said += f" Before, and when runs had begun, {', '.join(changes) or 'it was changed, and changed back'}."
    if list(seeds) != declared.seeds:
        said += f" It was declared for seeds {listed(declared.seeds)}, and these are {listed(seeds)}."
    return said


def listed(numbers: Iterable[int]) -> str:
    """Numbers in words: "4, 8 and 12"."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
