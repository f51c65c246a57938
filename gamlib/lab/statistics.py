"""What so many seeds can say: means with intervals, differences paired by seed, and a reading in words."""

import math
from dataclasses import dataclass

import pandas as pd

CONFIDENCE = 0.95


def mean_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t, which is NaN with fewer than two values."""
    clean = values.dropna().to_numpy(dtype=float)
    if len(clean) < 2:
        return (float(clean[0]) if len(clean) else math.nan), math.nan
    from scipy import stats  # late: a report that is current is shown without

    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(clean) - 1) * stats.sem(clean)
    return float(clean.mean()), float(half)


@dataclass(frozen=True)
class Difference:
    """Top-1 error of an arm less that of its reference, in points, paired by seed; its 95 % interval is Student's t."""

    arm: str
    reference: str
    seeds: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not told apart by n seeds"; with fewer than two seeds nothing is said."""
        if self.seeds < 2:
            return "nothing can be said of one seed" if self.seeds else "not measured"
        if self.low <= 0 <= self.high:
            return f"not told apart by {self.seeds} seeds"
        return "better" if self.mean < 0 else "worse"

    def __str__(self) -> str:
        interval = f" (95 % interval {self.low:+.2f} to {self.high:+.2f})" if self.seeds > 1 else ""
        amount = f"{self.mean:+.2f} points{interval}, " if self.seeds else ""
        return f"{self.arm} against {self.reference}: {amount}{self.verdict}"


def difference(frame: pd.DataFrame, arm: str, reference: str) -> Difference:
    """Compare two arms on the seeds that both have finished; `frame` is of `tables.outcomes`."""
    errors = frame.dropna(subset="top1_error").pivot(index="seed", columns="arm", values="top1_error")
    pairs = errors.reindex(columns=[arm, reference]).dropna()
    gaps = (pairs[arm] - pairs[reference]).to_numpy(dtype=float)
    if len(gaps) == 0:
        return Difference(arm, reference, 0, math.nan, math.nan, math.nan)
    mean, half = mean_interval(pd.Series(gaps))
    return Difference(arm, reference, len(gaps), mean, mean - half, mean + half)


def reading(frame: pd.DataFrame, comparisons: list[tuple[str, str]]) -> str:
    """One paragraph: the best arm, every comparison, and what the numbers cannot bear. Computed, never typed."""
    done = frame.dropna(subset="top1_error")
    sentences = [f"{len(done)} of {len(frame)} runs are done."]
    if len(done):
        means = done.groupby("arm")["top1_error"].mean()
        sentences.append(f"The lowest mean top-1 error is that of {means.idxmin()}, {means.min():.2f} %.")
        sentences += [f"{difference(frame, arm, reference)}." for arm, reference in comparisons]
        sentences.append(
            "Intervals are by Student's t over seeds, each comparison by itself (not corrected for their number); they "
            "cover chance in the initial weights and in the order of the images, not the choice of test images."
        )
    return " ".join(sentences)
