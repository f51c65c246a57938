"""What so many seeds can say: means with intervals, differences tested as the study declares, a reading in words.

Comparisons are a frame, a row each, of these columns:
    arm, reference: the two that are compared
    gaps: top-1 error of the arm minus that of its reference, in points, on each seed that both have finished
    seeds, difference: of the arm that has finished the fewer seeds their number; the difference of the means in points:
        below 0 the arm is better
    low, high: its 95 % interval by Student's t, of this comparison by itself
    probability_better: that a run of the arm errs less than one of its reference, see `probability_better`
    p, p_corrected: that the two do not differ, two-sided, and corrected for all that the study tests, see `holm`
    p_equal, p_equal_corrected: that they differ by the margin or more, where the study declares one
    smallest: the minimum detectable effect of so many seeds, in points
    verdict: "better" or "worse", or "equal within" the margin, if a corrected p is below the study's alpha; otherwise
        why nothing is said
A number is NaN where there are too few seeds for it. The test is the one of `Hypotheses.test`: of two means with a
variance each (Welch), or of differences paired by seed. docs/statistics.md says why, and what each choice costs.

Sources: Student, "The probable error of a mean" (1908); Welch, "The generalization of 'Student's' problem when several
different population variances are involved" (1947); Holm, "A simple sequentially rejective multiple test procedure"
(1979); Shaffer, "Modified sequentially rejective multiple test procedures" (1986); Schuirmann, "A comparison of the two
one-sided tests procedure and the power approach" (1987); Mann and Whitney (1947) for the probability; of the
prediction interval Hahn and Meeker, "Statistical Intervals" (1991), 4.3.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.weightstats import DescrStatsW

from ablation.hypotheses import Hypotheses
from ablation.results.sequential import overall_p

POWER = 0.8
EQUAL = 1e-9  # points: what differs by less is equal but for rounding
COLUMNS = ["arm", "reference", "gaps", "seeds", "difference", "low", "high", "probability_better", "p", "p_corrected"]
COLUMNS += ["p_equal", "p_equal_corrected", "smallest", "verdict"]
NUMBERS = [*COLUMNS[4:-1], "overall", "overall_equal"]
DECIDED = ("better", "worse", "equal within")  # how a verdict begins that a test has given


def ci95(values: "Iterable[float] | pd.Series[float]") -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; NaN with fewer than two values, which may be NaN themselves.

    seaborn takes it as an `errorbar`.
    """
    known = pd.Series(values, dtype=float).dropna()
    low, high = DescrStatsW(known).tconfint_mean(0.05) if len(known) > 1 else (math.nan, math.nan)
    return float(low), float(high)


def prediction95(values: "Iterable[float] | pd.Series[float]") -> tuple[float, float]:
    """The 95 % prediction interval for one more value, mean ± t·s·√(1 + 1/n); NaN with fewer than two different values.

    It is wider than `ci95`, that of the mean: one more value spreads around the mean as every one does.
    """
    known = pd.Series(values, dtype=float).dropna()
    if known.nunique() < 2:
        return math.nan, math.nan
    scale = known.std() * math.sqrt(1 + 1 / len(known))
    low, high = stats.t.interval(0.95, len(known) - 1, known.mean(), scale)
    return float(low), float(high)


class Estimate(NamedTuple):
    """A difference of means with its standard error, in points, and that one's degrees of freedom; or arrays."""

    difference: Any
    error: Any
    df: Any

    def interval(self) -> tuple[Any, Any]:
        """The 95 % interval."""
        half = stats.t.ppf(0.975, self.df) * self.error
        return self.difference - half, self.difference + half

    def p(self) -> Any:
        """Of the two-sided test that there is no difference; without any spread 1 if there is none, else NaN.

        Errors go in steps of one test image, so that seeds may well differ by the same, and the test, for which a
        spread of 0 is certainty, would take that for proof.
        """
        return self._where_spread(2 * stats.t.sf(np.abs(self._ratio()), self.df), 0.0)

    def p_equal(self, margin: float) -> Any:
        """Of the two one-sided tests that the difference is as large as the margin: that of the larger p."""
        low, high = (self._ratio(shift) for shift in (margin, -margin))
        return self._where_spread(np.maximum(stats.t.sf(low, self.df), stats.t.cdf(high, self.df)), math.nan)

    def smallest(self) -> Any:
        """The smallest true difference, in points, that a test with so many seeds finds in 80 % of studies.

        For one two-sided test at 5 %, without the correction for several and for looks, which ask for more. It takes
        the spread that was seen for the true one, and with three seeds the true one may be half of it or six times as
        much. NaN without any spread.
        """
        return self._where_spread(self.error * _detectable(float(self.df)), math.nan)

    def _ratio(self, shift: float = 0.0) -> Any:
        return (self.difference + shift) / np.where(self.error > EQUAL, self.error, 1)

    def _where_spread(self, value: Any, if_none: float) -> Any:
        none = math.nan if math.isnan(if_none) else np.where(np.abs(self.difference) < EQUAL, 1.0, math.nan)
        return np.where(self.error > EQUAL, value, none)


def estimate(test: str, arm: NDArray[Any], reference: NDArray[Any]) -> Estimate:
    """The difference of two arms by the declared test.

    Args:
        test: "welch", or "paired", for which both have the same seeds in the same order.
        arm, reference: errors [..., seeds] in percent, of at least two seeds.
    """
    if test == "paired":
        gaps = arm - reference
        number = gaps.shape[-1]
        return Estimate(gaps.mean(-1), gaps.std(-1, ddof=1) / math.sqrt(number), number - 1)
    first, second = (values.var(-1, ddof=1) / values.shape[-1] for values in (arm, reference))
    both, parts = first + second, first**2 / (arm.shape[-1] - 1) + second**2 / (reference.shape[-1] - 1)
    df = both**2 / np.where(parts > 0, parts, 1)  # Welch and Satterthwaite
    return Estimate(arm.mean(-1) - reference.mean(-1), np.sqrt(both), np.where(parts > 0, df, 1))


def probability_better(test: str, arm: NDArray[Any], reference: NDArray[Any]) -> float:
    """The share of pairs of runs of which that of the arm errs less; ties count half.

    Of all pairs, the statistic of Mann and Whitney; paired, of those of one seed. NaN without a pair.
    """
    gaps = arm - reference if test == "paired" else np.subtract.outer(arm, reference)
    return float(np.mean(np.where(np.abs(gaps) < EQUAL, 0.5, gaps < 0))) if gaps.size else math.nan


def compare(runs: pd.DataFrame, hypotheses: Hypotheses) -> pd.DataFrame:
    """Compare the arms of a study by the test that it declares.

    Where it declares looks, a comparison is of the seeds of the last look that both of its arms have come to.

    Args:
        runs: of `frames.Results`, its seeds in the order of the plan; an arm that it lacks is not measured.
        hypotheses: of the study. The correction is for all of its comparisons, whether they are measured yet or not.
    """
    errors = runs.pivot(index="seed", columns="arm", values="top1_error").astype(float)
    errors = errors.reindex(runs["seed"].unique()).reindex(columns=list(dict.fromkeys(sum(hypotheses.compare, ()))))
    arrays = {arm: errors[arm].to_numpy() for arm in errors}
    return _compared([(arrays[arm], arrays[reference]) for arm, reference in hypotheses.compare], hypotheses)


def judge(comparisons: Iterable[tuple[str, str]], gaps: Iterable[Any]) -> pd.DataFrame:
    """`compare` by the paired test on differences [seeds] in points, one array a comparison."""
    pairs = [(np.array(gap, dtype=float), np.zeros(len(gap))) for gap in gaps]
    return _compared(pairs, Hypotheses(test="paired").model_copy(update={"compare": list(comparisons)}))


def _compared(errors: Sequence[tuple[NDArray[Any], NDArray[Any]]], of: Hypotheses) -> pd.DataFrame:
    rows = []
    for pair, (arm, reference) in zip(of.compare, errors, strict=True):
        rows.append({"arm": pair[0], "reference": pair[1], **_tested(arm, reference, of, of.margin_of(pair))})
    found = pd.DataFrame(rows, columns=[*COLUMNS, "overall", "overall_equal"])
    found = found.astype(dict.fromkeys(NUMBERS, float))
    equality = [number for number, pair in enumerate(of.compare) if of.margin_of(pair) is not None]
    ps = [*found["overall"], *found["overall_equal"].iloc[equality]]
    corrected = holm(ps, [*range(len(found)), *equality])
    found["p_corrected"] = corrected[: len(found)]
    found.loc[equality, "p_equal_corrected"] = corrected[len(found) :]
    found["verdict"] = [_verdict(row, of) for row in found.itertuples()]
    return found[COLUMNS]


def _tested(arm: NDArray[Any], reference: NDArray[Any], of: Hypotheses, margin: float | None) -> dict[str, Any]:
    """A comparison, but for what is corrected; `overall` and `overall_equal` are its p values for the whole study."""
    both = ~np.isnan(arm) & ~np.isnan(reference)
    looks = [number for number in of.looks if both[:number].sum() == number]
    if looks:
        arm, reference, both = (values[: looks[-1]] for values in (arm, reference, both))
    row: dict[str, Any] = dict.fromkeys(NUMBERS, math.nan)
    row["gaps"] = tuple(np.round((arm - reference)[both], 9).tolist())
    arm, reference = (values[both if of.test == "paired" else ~np.isnan(values)] for values in (arm, reference))
    row["seeds"] = min(len(arm), len(reference))
    if row["seeds"]:
        row["difference"] = float(np.round(arm.mean() - reference.mean(), 9))
    if row["seeds"] < 2:
        return row
    row["probability_better"] = probability_better(of.test, arm, reference)
    found = estimate(of.test, arm, reference)
    row |= dict(zip(("low", "high"), found.interval(), strict=True)) | {"smallest": found.smallest(), "p": found.p()}
    row |= {} if margin is None else {"p_equal": found.p_equal(margin)}
    if of.looks and not looks:
        return row | {"p": math.nan, "p_equal": math.nan}  # a look that was not declared
    return row | dict(zip(("overall", "overall_equal"), overall_ps(of, arm, reference, margin), strict=True))


def overall_ps(of: Hypotheses, arm: NDArray[Any], reference: NDArray[Any], margin: float | None) -> tuple[Any, Any]:
    """p of no difference and of one as large as the margin, both for the study as a whole, whatever looks it declares.

    Args:
        arm, reference: errors [..., seeds] in percent, at least two; where there are looks, as many of both.
    """
    if not of.looks:
        found = estimate(of.test, arm, reference)
        return found.p(), math.nan if margin is None else found.p_equal(margin)
    p, p_equal = math.nan, math.nan
    for look, number in enumerate(number for number in of.looks if number <= arm.shape[-1]):
        found = estimate(of.test, arm[..., :number], reference[..., :number])
        p = np.fmin(p, np.minimum(1, 2 * overall_p(found.p() / 2, look, of.looks)))
        if margin is not None:
            p_equal = np.fmin(p_equal, overall_p(found.p_equal(margin), look, of.looks))
    return p, p_equal


def holm(ps: Sequence[float], comparisons: Sequence[Hashable] = ()) -> list[float]:
    """Holm's adjusted p values, in the order given; NaN stays NaN, and counts as a test that is still to come.

    Where a comparison is tested for a difference and for equality, one of the two hypotheses is wrong whatever is true.
    So the number of those that may be right, by which a p is multiplied, is that of the comparisons with a hypothesis
    that is not rejected (Shaffer, 1986).

    Args:
        ps: of the hypotheses.
        comparisons: which each is of; by default every one has its own, and the method is Holm's.
    """
    of = list(comparisons) or list(range(len(ps)))
    left, least, adjusted = Counter(of), 0.0, [math.nan] * len(ps)
    for number in sorted(range(len(ps)), key=lambda number: math.inf if math.isnan(ps[number]) else ps[number]):
        if not math.isnan(ps[number]):
            adjusted[number] = least = max(least, min(1.0, len(left) * ps[number]))
            left -= Counter([of[number]])
    return adjusted


@cache
def _detectable(df: float) -> float:
    """`Estimate.smallest` in standard errors, of the larger side alone: who finds the wrong sign has found nothing."""
    critical = stats.t.ppf(0.975, df)
    return float(optimize.brentq(lambda effect: stats.nct.sf(critical, df, effect) - POWER, 0, 100))


def _verdict(of: Any, hypotheses: Hypotheses) -> str:
    if of.seeds < 2:
        return "nothing can be said of one seed" if of.seeds else "not measured"
    small = of.p_equal_corrected < hypotheses.alpha
    if of.p_corrected < hypotheses.alpha:
        sign = "better" if of.difference < 0 else "worse"
        return f"{sign}, by less than {hypotheses.margin:g} points" if small else sign
    if small:
        return f"equal within {hypotheses.margin:g} points"
    if hypotheses.looks and of.seeds < hypotheses.looks[-1]:
        return f"undecided by {of.seeds} of {hypotheses.looks[-1]} seeds"
    if math.isnan(of.p_corrected):
        return f"equal in all {of.seeds} seeds, not tested"
    return f"not told apart by {of.seeds} seeds"


def _sentence(of: Any) -> str:
    """A comparison in words."""
    parts = []
    if of.seeds:
        parts = [f"{of.difference:+.2f} points"]
    if of.seeds > 1:
        tested = "" if math.isnan(of.p_corrected) else f", {_p(of.p)}, corrected {_p(of.p_corrected)}"
        tested += "" if math.isnan(of.p_equal_corrected) else f", of equality corrected {_p(of.p_equal_corrected)}"
        chance = f", P(better) {of.probability_better:.2f}"
        parts[0] += f" (95 % interval {of.low:+.2f} to {of.high:+.2f}{tested}{chance})"
    parts.append(of.verdict)
    if of.verdict.startswith("not told apart") and not math.isnan(of.smallest):
        parts.append(f"which uncorrected could have shown {of.smallest:.2f} points")
    return f"{of.arm} against {of.reference}: {', '.join(parts)}."


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def listed(compared: pd.DataFrame) -> str:
    """Comparisons as a list in Markdown."""
    return "\n".join(f"- {_sentence(of)}" for of in compared.itertuples())


def reading(runs: pd.DataFrame, compared: pd.DataFrame) -> str:
    """How much is done, the best arm, and every comparison, in Markdown. Computed, never typed."""
    done = runs.dropna(subset="top1_error")
    said = f"{len(done)} of {len(runs)} runs are done."
    if done.empty:
        return said
    means = done.groupby("arm")["top1_error"].mean()
    said += f" The lowest mean top-1 error is that of {means.idxmin()}, {means.min():.2f} %."
    return f"{said}\n\n{listed(compared)}"
