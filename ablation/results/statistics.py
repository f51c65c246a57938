"""What so many seeds can say: means with intervals, differences paired by seed, and a reading in words.

Sources: Student, "The probable error of a mean" (1908); Holm, "A simple sequentially rejective multiple test procedure"
(1979); McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8


def ci95(values: "Sequence[float] | pd.Series[float]") -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t; NaN with fewer than two values, which may be NaN themselves.

    seaborn takes it as an `errorbar`.
    """
    known = pd.Series(values, dtype=float).dropna()
    if len(known) < 2:
        return math.nan, math.nan
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of equal values scipy says that they are equal
        interval = stats.ttest_1samp(known, 0).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def mean_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval, which is NaN with fewer than two values."""
    mean = float(values.astype(float).mean())
    return mean, ci95(values)[1] - mean


@dataclass(frozen=True)
class Comparison:
    """Top-1 error of an arm minus that of its reference, in points, paired by seed: below 0 the arm is better.

    Attributes:
        gaps: the difference of every seed that both arms have finished.
        p_holm: p of the paired t-test, corrected by Holm for all comparisons of the study; NaN where p is.
        among: how many those are, this one counted.
    """

    arm: str
    reference: str
    gaps: tuple[float, ...]
    p_holm: float
    among: int

    @property
    def seeds(self) -> int:
        """How many seeds are compared."""
        return len(self.gaps)

    @property
    def mean(self) -> float:
        """The mean difference in points, NaN without a seed."""
        return float(np.mean(self.gaps)) if self.gaps else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95 % interval by Student's t, of this comparison by itself (not corrected); NaN below two seeds."""
        return ci95(self.gaps)

    @property
    def p(self) -> float:
        """p of the two-sided paired t-test, not corrected; see `paired_p` for where it is NaN."""
        return paired_p(self.gaps)

    @property
    def minimum_detectable_effect(self) -> float:
        """The smallest true difference, in points, that a test with so many seeds finds in 80 % of studies.

        For one two-sided test at 5 %, without Holm's correction, which asks for more. It takes the spread that was
        seen for the true one, and with three seeds the true one may be half of it or six times as much. NaN below two
        seeds, and where all differences are equal: then there is no spread to go by.
        """
        if self.seeds < 2 or _equal(self.gaps):
            return math.nan
        from scipy import optimize
        from statsmodels.stats.power import TTestPower

        def missed(effect: float) -> float:
            # A test that finds the difference with the wrong sign has not found it: the larger side alone.
            return POWER - TTestPower().power(effect, self.seeds, ALPHA / 2, alternative="larger")

        effect = optimize.brentq(missed, 0, 50)  # its own solve_power is good to seven digits
        return float(effect * np.std(self.gaps, ddof=1))

    @property
    def verdict(self) -> str:
        """ "better" or "worse" if the corrected p is below 5 %, otherwise why nothing is said."""
        if self.seeds < 2:
            return "nothing can be said of one seed" if self.seeds else "not measured"
        if math.isnan(self.p_holm):
            return f"equal in all {self.seeds} seeds, not tested"
        if self.p_holm < ALPHA:
            return "better" if self.mean < 0 else "worse"
        return f"not told apart by {self.seeds} seeds"

    def __str__(self) -> str:
        text = f"{self.arm} against {self.reference}: "
        if self.seeds:
            text += f"{self.mean:+.2f} points"
        if self.seeds > 1:
            low, high = self.ci95
            tested = "" if math.isnan(self.p) else f", {_p(self.p)}, corrected {_p(self.p_holm)}"
            text += f" (95 % interval {low:+.2f} to {high:+.2f}{tested})"
        text += f"{', ' * bool(self.seeds)}{self.verdict}"
        if self.verdict.startswith("not told apart") and not math.isnan(self.minimum_detectable_effect):
            text += f", which uncorrected could have shown {self.minimum_detectable_effect:.2f} points"
        return text


def compare(runs: pd.DataFrame, comparisons: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Compare the arms of a study, each on the seeds that both arms of a pair have finished.

    Args:
        runs: of `frames.Results`; an arm that it lacks is not measured.
        comparisons: all (arm, reference) pairs of the study, since Holm's correction is for their number, whether all
            of them are measured yet or not.
    """
    errors = _errors(runs, *(arm for pair in comparisons for arm in pair))
    return judge(comparisons, [(errors[arm] - errors[reference]).dropna().to_numpy() for arm, reference in comparisons])


def combination(runs: pd.DataFrame, both: str, parts: tuple[str, str], neither: str) -> list[Comparison]:
    """What each of two parts adds to the other, and both against their gains added up.

    The last is the interaction of a 2x2 design: above 0, the parts share what they gain. Corrected for these three, on
    the seeds that all four arms have finished.

    Args:
        runs: of `frames.Results`; where it lacks an arm nothing is measured.
        both, parts, neither: arms.
    """
    errors, (first, second) = _errors(runs, both, *parts, neither).dropna(), parts
    added_up = errors[first] + errors[second] - errors[neither]
    references = {second: errors[second], first: errors[first], f"{first} and {second} added up": added_up}
    gaps = [(errors[both] - reference).to_numpy() for reference in references.values()]
    return judge([(both, name) for name in references], gaps)


def _errors(runs: pd.DataFrame, *arms: str) -> pd.DataFrame:
    """Top-1 errors in percent, [seeds, arms]; NaN where a run is not done."""
    errors = runs.dropna(subset="top1_error").pivot(index="seed", columns="arm", values="top1_error").astype(float)
    return errors.reindex(columns=list(dict.fromkeys(arms)))


def judge(comparisons: Sequence[tuple[str, str]], gaps: Sequence[NDArray[Any]]) -> list[Comparison]:
    """`compare` on differences [seeds] in points, one array a comparison; equal to 1e-9 points is equal."""
    rounded = [tuple(np.round(gap, 9).tolist()) for gap in gaps]
    corrected = holm([paired_p(gap) for gap in rounded])
    judged = zip(comparisons, rounded, corrected, strict=True)
    return [Comparison(*pair, gap, p, among=len(comparisons)) for pair, gap, p in judged]


def paired_p(gaps: Sequence[float]) -> float:
    """p of the two-sided paired t-test of differences, NaN below two of them; 1 if they are all 0.

    NaN too where they are equal otherwise. Errors go in steps of one test image, so that two seeds may well differ by
    the same, and the test, for which a spread of 0 is certainty, would take that for proof.
    """
    if len(gaps) < 2:
        return math.nan
    if _equal(gaps):
        return math.nan if gaps[0] else 1.0
    from scipy import stats

    return float(stats.ttest_1samp(gaps, 0).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given; NaN stays NaN, and counts as a test that is still to come."""
    if not ps:
        return []
    from statsmodels.stats.multitest import multipletests

    values = np.array(ps, dtype=float)
    adjusted = multipletests(np.nan_to_num(values, nan=1.0), method="holm")[1]
    return np.where(np.isnan(values), np.nan, adjusted).tolist()


def _equal(gaps: Sequence[float]) -> bool:
    return max(gaps) == min(gaps)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def table(compared: Sequence[Comparison]) -> pd.DataFrame:
    """One row a comparison.

    Columns: arm, reference, seeds (that both have finished), difference (of top-1 errors, in points), low and high
    (its 95 % interval, not corrected), p, p_corrected (by Holm, over the study's comparisons), smallest (the minimum
    detectable effect of so many seeds), verdict.
    """
    columns = ["arm", "reference", "seeds", "difference", "low", "high", "p", "p_corrected", "smallest"]
    columns += ["verdict"]
    rows = []
    for of in compared:
        measured = [of.seeds, of.mean, *of.ci95, of.p, of.p_holm, of.minimum_detectable_effect]
        rows.append([of.arm, of.reference, *measured, of.verdict])
    return pd.DataFrame(rows, columns=columns)


def heading(compared: Sequence[Comparison]) -> str:
    """By which test the verdicts of some comparisons are."""
    among = compared[0].among
    corrected = f"Verdicts: paired t-test, corrected for {among} by Holm"
    return corrected if among > 1 else "Verdict: paired t-test"


def listed(compared: Sequence[Comparison]) -> str:
    """Comparisons as a list in Markdown."""
    return "\n".join(f"- {comparison}." for comparison in compared)


def reading(runs: pd.DataFrame, compared: Sequence[Comparison]) -> str:
    """The best arm, every comparison, and what the numbers cannot bear, in Markdown. Computed, never typed."""
    done = runs.dropna(subset="top1_error")
    parts = [f"{len(done)} of {len(runs)} runs are done."]
    if len(done):
        means = done.groupby("arm")["top1_error"].mean()
        parts[0] += f" The lowest mean top-1 error is that of {means.idxmin()}, {means.min():.2f} %."
        parts.append(listed(compared))
        if any(comparison.seeds > 1 for comparison in compared):
            among = compared[0].among
            tests = f"p corrected by Holm for {among} comparisons" if among > 1 else "p"
            parts.append(
                f"Better or worse is what the t-test paired by seed calls so, {tests} below {ALPHA}. Intervals are by "
                "Student's t, each by itself; what seeds uncorrected could have shown is the smallest difference that "
                f"one such test alone finds in {100 * POWER:.0f} % of studies, if their spread is the one seen here. "
                "All of it is about chance in the initial weights and in the order of the images, not in the choice "
                "of test images."
            )
    return "\n\n".join(filter(None, parts))


@dataclass(frozen=True)
class McNemar:
    """Two trained networks on the same test images: how many only one of them has right, and the exact two-sided p.

    It is about chance in the choice of test images, for these two runs: it says nothing of other seeds of their arms.
    """

    images: int
    only_arm: int
    only_reference: int
    p: float

    def __str__(self) -> str:
        said = "better" if self.only_arm > self.only_reference else "worse"
        return (
            f"Of {self.images} test images {self.only_arm} are right with the arm only, {self.only_reference} with the "
            f"reference only ({_p(self.p)}): {said if self.p < ALPHA else 'not told apart'} by these two runs."
        )


def mcnemar(correct: NDArray[np.bool_], reference_correct: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of two runs on the same test images.

    Args:
        correct, reference_correct: [N] of bool, whether an image was classified correctly, images in the same order.

    Raises:
        ValueError: the lengths differ, or something else than bool was given.
    """
    for name, given in (("correct", correct), ("reference_correct", reference_correct)):
        if given.dtype != bool or given.ndim != 1:
            raise ValueError(f"{name} is {given.dtype} {list(given.shape)}: allowed: bool [N]")
    if len(correct) != len(reference_correct):
        raise ValueError(
            f"correct has {len(correct)} images, reference_correct {len(reference_correct)}: allowed: the same ones"
        )
    from scipy import stats

    only_arm = int(np.count_nonzero(correct & ~reference_correct))
    only_reference = int(np.count_nonzero(reference_correct & ~correct))
    differing = only_arm + only_reference
    p = float(stats.binomtest(only_arm, differing).pvalue) if differing else 1.0
    return McNemar(len(correct), only_arm, only_reference, p)
