"""What so many seeds can say: means with intervals, differences paired by seed, and a reading in words.

Comparisons are a frame, a row each, of these columns:
    arm, reference: the two that are compared, on the seeds that both have finished
    gaps: top-1 error of the arm minus that of its reference, in points, seed by seed: below 0 the arm is better
    seeds, difference: the number of gaps, and their mean
    low, high: the 95 % interval of the difference by Student's t, of this comparison by itself
    p, p_corrected: of the two-sided paired t-test, see `paired_p`, and corrected by Holm for all comparisons
    smallest: the minimum detectable effect of so many seeds, in points
    verdict: "better" or "worse" if the corrected p is below 5 %, otherwise why nothing is said
A number is NaN where there are too few seeds for it.

Sources: Student, "The probable error of a mean" (1908); Holm, "A simple sequentially rejective multiple test procedure"
(1979); of the prediction interval Hahn and Meeker, "Statistical Intervals" (1991), 4.3.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

ALPHA = 0.05
POWER = 0.8
COLUMNS = ["arm", "reference", "gaps", "seeds", "difference", "low", "high", "p", "p_corrected", "smallest", "verdict"]


def ci95(values: "Iterable[float] | pd.Series[float]") -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; NaN with fewer than two values, which may be NaN themselves.

    seaborn takes it as an `errorbar`.
    """
    known = pd.Series(values, dtype=float).dropna()
    low, high = DescrStatsW(known).tconfint_mean(ALPHA) if len(known) > 1 else (math.nan, math.nan)
    return float(low), float(high)


def prediction95(values: "Iterable[float] | pd.Series[float]") -> tuple[float, float]:
    """The 95 % prediction interval for one more value, mean ± t·s·√(1 + 1/n); NaN with fewer than two different values.

    It is wider than `ci95`, that of the mean: one more value spreads around the mean as every one does.
    """
    known = pd.Series(values, dtype=float).dropna()
    if known.nunique() < 2:
        return math.nan, math.nan
    scale = known.std() * math.sqrt(1 + 1 / len(known))
    low, high = stats.t.interval(1 - ALPHA, len(known) - 1, known.mean(), scale)
    return float(low), float(high)


def compare(runs: pd.DataFrame, comparisons: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Compare the arms of a study, each on the seeds that both arms of a pair have finished.

    Args:
        runs: of `frames.Results`; an arm that it lacks is not measured.
        comparisons: all (arm, reference) pairs of the study, since Holm's correction is for their number, whether all
            of them are measured yet or not.
    """
    errors = runs.pivot(index="seed", columns="arm", values="top1_error").astype(float)
    errors = errors.reindex(columns=list(dict.fromkeys(arm for pair in comparisons for arm in pair)))
    return judge(comparisons, [(errors[arm] - errors[reference]).dropna() for arm, reference in comparisons])


def judge(comparisons: Iterable[tuple[str, str]], gaps: Iterable[Any]) -> pd.DataFrame:
    """`compare` on differences [seeds] in points, one array a comparison; equal to 1e-9 points is equal."""
    rows = []
    for (arm, reference), gap in zip(comparisons, gaps, strict=True):
        rounded = tuple(np.round(gap, 9).tolist())
        mean = float(np.mean(rounded)) if rounded else math.nan
        row = {"arm": arm, "reference": reference, "gaps": rounded, "seeds": len(rounded), "difference": mean}
        row |= dict(zip(("low", "high"), ci95(rounded), strict=True))
        rows.append(row | {"p": paired_p(rounded), "smallest": minimum_detectable_effect(rounded)})
    found = pd.DataFrame(rows, columns=COLUMNS)
    found["p_corrected"] = holm(found["p"])
    found["verdict"] = [_verdict(row) for row in found.itertuples()]
    return found


def paired_p(gaps: Sequence[float]) -> float:
    """p of the two-sided paired t-test of differences, NaN below two of them; 1 if they are all 0.

    NaN too where they are equal otherwise. Errors go in steps of one test image, so that two seeds may well differ by
    the same, and the test, for which a spread of 0 is certainty, would take that for proof.
    """
    if len(gaps) < 2:
        return math.nan
    if len(set(gaps)) == 1:
        return math.nan if gaps[0] else 1.0
    return float(stats.ttest_1samp(gaps, 0).pvalue)


def holm(ps: "Sequence[float] | pd.Series[float]") -> list[float]:
    """Holm's adjusted p values, in the order given; NaN stays NaN, and counts as a test that is still to come."""
    values = np.array(ps, dtype=float)
    if not len(values):
        return []
    adjusted = multipletests(np.nan_to_num(values, nan=1.0), method="holm")[1]
    return np.where(np.isnan(values), np.nan, adjusted).tolist()


def minimum_detectable_effect(gaps: Sequence[float]) -> float:
    """The smallest true difference, in points, that a test with so many seeds finds in 80 % of studies.

    For one two-sided test at 5 %, without Holm's correction, which asks for more. It takes the spread that was seen for
    the true one, and with three seeds the true one may be half of it or six times as much. NaN below two seeds, and
    where all differences are equal: then there is no spread to go by.
    """
    return math.nan if len(set(gaps)) < 2 else float(_detectable(len(gaps)) * np.std(gaps, ddof=1))


@cache
def _detectable(seeds: int) -> float:
    """It in standard deviations, of the larger side alone: a test that finds the wrong sign has not found it."""
    power = partial(TTestPower().power, nobs=seeds, alpha=ALPHA / 2, alternative="larger")
    # statsmodels' solve_power is good to seven digits
    return float(optimize.brentq(lambda effect: power(effect) - POWER, 0, 50))


def _verdict(of: Any) -> str:
    if of.seeds < 2:
        return "nothing can be said of one seed" if of.seeds else "not measured"
    if math.isnan(of.p_corrected):
        return f"equal in all {of.seeds} seeds, not tested"
    if of.p_corrected < ALPHA:
        return "better" if of.difference < 0 else "worse"
    return f"not told apart by {of.seeds} seeds"


def _sentence(of: Any) -> str:
    """A comparison in words."""
    parts = []
    if of.seeds:
        parts = [f"{of.difference:+.2f} points"]
    if of.seeds > 1:
        tested = "" if math.isnan(of.p) else f", {_p(of.p)}, corrected {_p(of.p_corrected)}"
        parts[0] += f" (95 % interval {of.low:+.2f} to {of.high:+.2f}{tested})"
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
