import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gamlib.lab.statistics import difference, mean_interval, reading


def frame(**errors: list[float]) -> pd.DataFrame:
    rows = [(arm, seed, error) for arm, values in errors.items() for seed, error in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])


def test_the_interval_is_scipys() -> None:
    values = pd.Series([4.1, 5.3, 4.7, 6.0])
    mean, half = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    mean, half = mean_interval(pd.Series([4.0, math.nan]))
    assert mean == 4.0 and math.isnan(half)


def test_a_difference_is_scipys_paired_one() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(8, 2, 5)
    arm = base - 1 + generator.normal(0, 0.2, 5)
    found = difference(frame(base=list(base), arm=list(arm)), "arm", "base")
    low, high = stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert (found.low, found.high, found.seeds) == pytest.approx((low, high, 5))
    assert found.verdict == "better"


@pytest.mark.parametrize(
    ("arm", "verdict"),
    [([4.0, 4.1, 4.0], "better"), ([9.0, 9.1, 9.0], "worse"), ([5.0, 7.0, 6.0], "not told apart by 3 seeds"),
     ([4.0], "nothing can be said of one seed"), ([math.nan] * 3, "not measured")],
)  # fmt: skip
def test_verdicts(arm: list[float], verdict: str) -> None:
    assert difference(frame(base=[6.0, 6.1, 6.2], arm=arm), "arm", "base").verdict == verdict


def test_only_seeds_of_both_arms_are_compared() -> None:
    assert difference(frame(base=[6.0, math.nan, 6.0], arm=[5.0, 1.0, 5.1]), "arm", "base").seeds == 2


def test_the_reading_says_how_much_is_done() -> None:
    text = reading(frame(base=[6.0, 6.2, 6.1], arm=[4.0, math.nan, 4.2]), [("arm", "base")])
    assert text.startswith(
        "5 of 6 runs are done. The lowest mean top-1 error is that of arm, 4.10 %. arm against base: -1.95"
    )
    assert reading(frame(base=[math.nan]), []) == "0 of 1 runs are done."
