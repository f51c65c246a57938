"""What seeds say, against scipy by another route, published examples, and simulated studies whose truth is known."""

import gc
import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from ablation.results.statistics import (
    Comparison,
    McNemar,
    combination,
    compare,
    holm,
    judge,
    listed,
    mcnemar,
    mean_interval,
    reading,
)

# Hours of sleep gained by ten patients, one drug less the other: Student (1908), the data set `sleep` of R.
SLEEP = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]


@pytest.fixture(autouse=True)
def _uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage before each correction, which takes longer than all of a simulated study."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def frame(**errors: list[float]) -> pd.DataFrame:
    rows = [(arm, seed, error) for arm, values in errors.items() for seed, error in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])


def of(gaps: list[float] | NDArray[np.float64]) -> Comparison:
    return judge([("arm", "base")], [np.array(gaps)])[0]


def test_the_interval_is_scipys() -> None:
    values = pd.Series([4.1, 5.3, 4.7, 6.0])
    mean, half = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    mean, half = mean_interval(pd.Series([4.0, math.nan]))
    assert mean == 4.0 and math.isnan(half)


def test_a_comparison_is_what_r_prints_for_students_sleep() -> None:
    """`t.test(extra ~ group, data = sleep, paired = TRUE)`."""
    first = [10 + 0.7 * seed for seed in range(10)]
    second = [hours + gap for hours, gap in zip(first, SLEEP, strict=True)]
    (found,) = compare(frame(second=second, first=first), [("second", "first")])
    assert (found.arm, found.reference, found.seeds) == ("second", "first", 10)
    assert found.mean == pytest.approx(-1.58)
    assert found.ci95 == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert found.p == pytest.approx(0.002833, abs=5e-7) and found.p_holm == found.p
    assert found.verdict == "better"


def test_comparisons_are_scipys_paired_tests() -> None:
    generator = np.random.default_rng(0)
    base, other = generator.normal(8, 2, 5), generator.normal(8, 2, 5)
    near = base - 1 + generator.normal(0, 0.2, 5)
    runs = frame(base=list(base), other=list(other), near=list(near))
    found = compare(runs, [("other", "base"), ("near", "base"), ("base", "near")])
    assert [comparison.verdict for comparison in found] == ["not told apart by 5 seeds", "better", "worse"]
    for comparison, (arm, reference) in zip(found, [(other, base), (near, base), (base, near)], strict=True):
        test = stats.ttest_rel(arm, reference)
        assert comparison.p == pytest.approx(test.pvalue)
        assert comparison.ci95 == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found[1].p_holm == pytest.approx(3 * found[1].p)


def test_holm_is_the_published_example() -> None:
    """Wikipedia's, in "Holm-Bonferroni method"; then multTesting.R of ETH Zurich's course, where two are below 5 %."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.011, 0.02, 0.005, 0.13, 0.04]) == pytest.approx([0.044, 0.06, 0.025, 0.13, 0.08])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_what_is_not_tested_yet() -> None:
    adjusted = holm([math.nan, 0.03, math.nan, 0.02])
    assert adjusted[1::2] == pytest.approx([0.09, 0.08])
    assert math.isnan(adjusted[0]) and math.isnan(adjusted[2])


def test_the_corrected_p_decides() -> None:
    """One p below 5 % is "better" by itself, and is not among four."""
    gaps = np.array([-1.0, -1.5, -2.1])
    assert 0.025 < of(gaps).p < 0.05 and of(gaps).verdict == "better"
    among = judge([("arm", "base")] * 4, [gaps, *np.random.default_rng(0).normal(size=(3, 3))])[0]
    assert among.p == of(gaps).p and among.verdict == "not told apart by 3 seeds"


@pytest.mark.parametrize(
    ("arm", "verdict"),
    [([4.0, 4.1, 4.0], "better"), ([9.0, 9.1, 9.0], "worse"), ([5.0, 7.0, 6.0], "not told apart by 3 seeds"),
     ([4.0], "nothing can be said of one seed"), ([math.nan] * 3, "not measured")],
)  # fmt: skip
def test_verdicts(arm: list[float], verdict: str) -> None:
    assert compare(frame(base=[6.0, 6.1, 6.2], arm=arm), [("arm", "base")])[0].verdict == verdict


@pytest.mark.parametrize("gaps", [[], [-1.0]])
def test_of_fewer_than_two_seeds_there_are_no_numbers_but_the_mean(gaps: list[float]) -> None:
    found = of(gaps)
    numbers = (*found.ci95, found.p, found.p_holm, found.minimum_detectable_effect)
    assert all(map(math.isnan, numbers)) and len(numbers) == 5
    assert (found.seeds, math.isnan(found.mean)) == (len(gaps), not gaps)


def test_only_seeds_of_both_arms_are_compared() -> None:
    runs = frame(base=[6.0, math.nan, 6.0, 7.0], arm=[5.0, 1.0, 5.25])
    assert compare(runs, [("arm", "base")])[0].gaps == (-1.0, -0.75)


def test_a_missing_reference_is_not_measured_and_counts_as_a_comparison() -> None:
    runs = frame(base=[6.0, 6.1, 6.2], arm=[5.0, 5.3, 5.1], late=[math.nan] * 3)
    found = compare(runs, [("arm", "gone"), ("arm", "late"), ("arm", "base")])
    assert [comparison.verdict for comparison in found] == ["not measured", "not measured", "better"]
    assert found[2].p_holm == pytest.approx(3 * found[2].p)
    assert compare(runs, []) == []


def test_two_parts_are_held_against_each_other_and_against_their_sum() -> None:
    runs = frame(base=[9.0, 9.5, 9.1], a=[7.0, 7.6, 7.3], b=[6.0, 6.6, 6.4], ab=[5.0, 5.9, 5.1], other=[1.0, 1.0, 1.0])
    to_b, to_a, together = combination(runs, "ab", ("a", "b"), "base")
    apart = compare(runs, [("ab", "b"), ("ab", "a")])
    assert [(of.reference, of.gaps) for of in (to_b, to_a)] == [(of.reference, of.gaps) for of in apart]
    assert together.gaps == pytest.approx((1.0, 1.2, 0.5)) and together.reference == "a and b added up"
    assert [to_b.p_holm, to_a.p_holm, together.p_holm] == holm([to_b.p, to_a.p, together.p])
    assert listed([together]).startswith("- ab against a and b added up: +0.90 points (95 % interval ")
    missing = combination(frame(base=[9.0, 9.0], a=[7.0, 7.0], ab=[5.0, 5.0]), "ab", ("a", "b"), "base")
    assert [of.verdict for of in missing] == ["not measured"] * 3


@pytest.mark.filterwarnings("error")
def test_equal_differences_are_said_to_be_what_they_are() -> None:
    same = compare(frame(base=[6.0, 7.0, 9.0], arm=[6.0, 7.0, 9.0]), [("arm", "base")])[0]
    assert (same.p, same.ci95, same.verdict) == (1.0, (0.0, 0.0), "not told apart by 3 seeds")
    assert math.isnan(same.minimum_detectable_effect) and "could have shown" not in str(same)
    less = compare(frame(base=[1.2, 6.2, 17.2], arm=[1.1, 6.1, 17.1]), [("arm", "base")])[0]  # equal but for rounding
    assert less.verdict == "equal in all 3 seeds, not tested" and all(
        map(math.isnan, (less.p, less.minimum_detectable_effect))
    )
    assert less.ci95 == pytest.approx((-0.1, -0.1))
    assert str(less).endswith("-0.10 points (95 % interval -0.10 to -0.10), equal in all 3 seeds, not tested")


def test_students_interval_holds_the_true_difference_in_95_percent_of_studies() -> None:
    found = [of(gaps).ci95 for gaps in np.random.default_rng(1).normal(size=(1500, 3))]
    assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_smallest_difference_is_found_in_80_percent_of_simulated_studies(seeds: int) -> None:
    spread = 0.7
    generator = np.random.default_rng(seeds)
    seen = generator.normal(size=seeds)
    smallest = of(seen / seen.std(ddof=1) * spread).minimum_detectable_effect
    critical = stats.t.ppf(0.975, seeds - 1)
    assert smallest == pytest.approx(special.nctdtrinc(seeds - 1, 0.2, critical) * spread / math.sqrt(seeds), rel=1e-6)
    studies = [of(gaps) for gaps in generator.normal(smallest, spread, size=(2000, seeds))]
    assert np.mean([study.verdict == "worse" for study in studies]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_a_true_difference_five_percent_of_studies_claim_one(seeds: int) -> None:
    """Three arms and their baseline, all alike; seeds differ, as the same images in the same order make them do."""
    generator = np.random.default_rng(seeds)
    claims = 0
    for _ in range(2000):
        errors = 8 + generator.normal(size=(1, seeds)) + generator.normal(size=(4, seeds))
        found = judge([(arm, "base") for arm in "abc"], list(errors[1:] - errors[0]))
        claims += any(comparison.verdict in ("better", "worse") for comparison in found)
    assert claims / 2000 == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("seeds", "images"), [(2, 898), (2, 200), (3, 898), (5, 200)])
def test_errors_that_go_in_steps_of_an_image_claim_no_more(seeds: int, images: int) -> None:
    """Seven comparisons with a baseline, all alike: differences of two seeds are often equal, which proves nothing."""
    errors = 100 * np.random.default_rng(seeds).binomial(images, 0.05, size=(2000, 8, seeds)) / images
    studies = [judge([(arm, "base") for arm in "abcdefg"], list(study[1:] - study[0])) for study in errors]
    claims = [any(comparison.verdict in ("better", "worse") for comparison in study) for study in studies]
    assert np.mean(claims) < 0.065


def test_the_reading_says_how_much_is_done() -> None:
    runs = frame(base=[6.0, 6.2, 6.1], arm=[4.0, math.nan, 4.2])
    text = reading(runs, compare(runs, [("arm", "base")]))
    assert text.startswith(
        "5 of 6 runs are done. The lowest mean top-1 error is that of arm, 4.10 %.\n\n- arm against base: -1.95 points "
        "(95 % interval -2.59 to -1.31, p = 0.016, corrected p = 0.016), better.\n\n"
        "Better or worse is what the t-test paired by seed calls so, p below 0.05."
    )
    assert reading(frame(base=[math.nan]), []) == "0 of 1 runs are done."


def test_the_reading_gives_corrected_p_and_what_could_have_been_shown() -> None:
    runs = frame(base=[6.0, 6.1, 6.2], arm=[5.0, 7.0, 6.0], low=[4.0, 4.3, 4.0], one=[5.0])
    text = reading(runs, compare(runs, [("arm", "base"), ("low", "base"), ("one", "base")]))
    arm, low, _ = compare(runs, [("arm", "base"), ("low", "base"), ("one", "base")])
    assert f", p = {arm.p:.3f}, corrected p = {arm.p_holm:.3f}), not told apart by 3 seeds, " in text
    assert f"3 seeds, which uncorrected could have shown {arm.minimum_detectable_effect:.2f} points." in text
    assert f"p = {low.p:.3f}, corrected p = {low.p_holm:.3f}), better." in text
    assert "one against base: -1.00 points, nothing can be said of one seed." in text
    assert "corrected by Holm for 3 comparisons below 0.05" in text and "in 80 % of studies" in text
    runs = frame(base=[6.0], one=[5.0])
    assert "Better or worse" not in reading(runs, compare(runs, [("one", "base")]))


def outcome(both: int, first: int, second: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_is_the_textbooks() -> None:
    """The second table of Wikipedia's "McNemar's test"; then the example of the University of Amsterdam's phoneticians.

    https://www.fon.hum.uva.nl/Service/Statistics/McNemars_test.html: 12 pairs against 3 have p = 0.0352.
    """
    found = mcnemar(*outcome(59, 6, 16, 80))
    tails = 2 * sum(math.comb(22, k) for k in range(7)) / 2**22
    assert (found.images, found.only_arm, found.only_reference) == (161, 6, 16)
    assert found.p == pytest.approx(tails) == pytest.approx(0.0525, abs=5e-5)
    assert str(found) == (
        "Of 161 test images 6 are right with the arm only, 16 with the reference only (p = 0.052): "
        "not told apart by these two runs."
    )
    assert mcnemar(*outcome(0, 12, 3, 0)).p == pytest.approx(0.0352, abs=5e-5)


def test_mcnemar_says_which_is_better() -> None:
    assert "(p < 0.001): better" in str(mcnemar(*outcome(5, 20, 1, 0)))
    assert "(p < 0.001): worse" in str(mcnemar(*outcome(5, 1, 20, 0)))


def test_mcnemar_of_equal_runs_tells_nothing_apart() -> None:
    assert mcnemar(*outcome(5, 0, 0, 3)) == McNemar(8, 0, 0, 1.0)


def test_mcnemar_refuses_what_cannot_be_paired() -> None:
    right = np.array([True, False])
    with pytest.raises(ValueError, match="correct has 2 images, reference_correct 3: "):
        mcnemar(right, np.array([True, False, True]))
    with pytest.raises(ValueError, match=r"reference_correct is int64 \[2\]: allowed: bool"):
        mcnemar(right, np.array([3, 1]))
