"""What seeds say, against scipy by another route, published examples, and simulated studies whose truth is known."""

import gc
import math
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cells import code
from numpy.typing import NDArray
from scipy import special, stats

from ablation.hypotheses import Hypotheses
from ablation.results import statistics
from ablation.results.statistics import ci95, holm, judge, reading

# Hours of sleep gained by ten patients, one drug less the other: Student (1908), the data set `sleep` of R.
SLEEP = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]


@pytest.fixture(autouse=True)
def _uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage before each correction, which takes longer than all of a simulated study."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def frame(**errors: list[float]) -> pd.DataFrame:
    rows = [(arm, seed, error) for arm, values in errors.items() for seed, error in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])


def rows(compared: pd.DataFrame) -> list[Any]:
    return list(compared.itertuples())


def compare(runs: pd.DataFrame, comparisons: Sequence[tuple[str, str]]) -> list[Any]:
    return rows(statistics.compare(runs, paired(comparisons)))


def paired(comparisons: Sequence[tuple[str, str]]) -> Hypotheses:
    return Hypotheses(compare=list(comparisons), test="paired")


def of(gaps: list[float] | NDArray[np.float64]) -> Any:
    (found,) = rows(judge([("arm", "base")], [gaps]))
    return found


def test_the_interval_is_scipys() -> None:
    values = [4.1, 5.3, 4.7, math.nan, 6.0]
    known = [4.1, 5.3, 4.7, 6.0]
    ends = stats.t.interval(0.95, 3, np.mean(known), stats.sem(known))
    assert ci95(values) == ci95(pd.Series(values)) == pytest.approx(ends)


@pytest.mark.parametrize("values", [[], [4.0], [4.0, math.nan]])
def test_one_value_has_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, ci95(values)))


def test_a_comparison_is_what_r_prints_for_students_sleep() -> None:
    """`t.test(extra ~ group, data = sleep, paired = TRUE)`."""
    first = [10 + 0.7 * seed for seed in range(10)]
    second = [hours + gap for hours, gap in zip(first, SLEEP, strict=True)]
    (found,) = compare(frame(second=second, first=first), [("second", "first")])
    assert (found.arm, found.reference, found.seeds) == ("second", "first", 10)
    assert found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert found.p == pytest.approx(0.002833, abs=5e-7) and found.p_corrected == found.p
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
        assert (comparison.low, comparison.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found[1].p_corrected == pytest.approx(3 * found[1].p)


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
    among = rows(judge([("arm", "base")] * 4, [gaps, *np.random.default_rng(0).normal(size=(3, 3))]))[0]
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
    assert all(map(math.isnan, (found.low, found.high, found.p, found.p_corrected, found.smallest)))
    assert (found.seeds, math.isnan(found.difference)) == (len(gaps), not gaps)


def test_only_seeds_of_both_arms_are_compared() -> None:
    runs = frame(base=[6.0, math.nan, 6.0, 7.0], arm=[5.0, 1.0, 5.25])
    assert compare(runs, [("arm", "base")])[0].gaps == (-1.0, -0.75)


def test_a_missing_reference_is_not_measured_and_counts_as_a_comparison() -> None:
    runs = frame(base=[6.0, 6.1, 6.2], arm=[5.0, 5.3, 5.1], late=[math.nan] * 3)
    found = compare(runs, [("arm", "gone"), ("arm", "late"), ("arm", "base")])
    assert [comparison.verdict for comparison in found] == ["not measured", "not measured", "better"]
    assert found[2].p_corrected == pytest.approx(3 * found[2].p)
    assert compare(runs, []) == []


def combination(runs: pd.DataFrame) -> tuple[list[Any], str]:
    """What the cell of 2_submodules.ipynb finds."""
    namespace: dict[str, Any] = {"found": SimpleNamespace(runs=runs), "statistics": statistics, "Markdown": str}
    (cell,) = (cell for cell in code("2_submodules.ipynb") if "added_up" in cell)
    exec(cell.replace("Markdown(", "said = Markdown("), namespace)
    return rows(namespace["compared"]), namespace["said"]


def test_two_parts_are_held_against_each_other_and_against_their_sum() -> None:
    errors = {"baseline": [9.0, 9.5, 9.1], "ch": [7.0, 7.6, 7.3], "sp": [6.0, 6.6, 6.4], "ch+sp": [5.0, 5.9, 5.1]}
    (to_sp, to_ch, together), said = combination(frame(**errors, other=[1.0, 1.0, 1.0]))
    apart = compare(frame(**errors), [("ch+sp", "sp"), ("ch+sp", "ch")])
    assert [(of.reference, of.gaps) for of in (to_sp, to_ch)] == [(of.reference, of.gaps) for of in apart]
    assert together.gaps == pytest.approx((1.0, 1.2, 0.5)) and together.reference == "ch and sp added up"
    assert [to_sp.p_corrected, to_ch.p_corrected, together.p_corrected] == holm([to_sp.p, to_ch.p, together.p])
    assert said.splitlines()[2].startswith("- ch+sp against ch and sp added up: +0.90 points (95 % interval ")
    missing, _ = combination(frame(**{arm: values for arm, values in errors.items() if arm != "sp"}))
    assert [of.verdict for of in missing] == ["not measured"] * 3


@pytest.mark.filterwarnings("error")
def test_equal_differences_are_said_to_be_what_they_are() -> None:
    same = compare(frame(base=[6.0, 7.0, 9.0], arm=[6.0, 7.0, 9.0]), [("arm", "base")])[0]
    assert (same.p, same.low, same.high, same.verdict) == (1.0, 0.0, 0.0, "not told apart by 3 seeds")
    assert math.isnan(same.smallest)
    runs = frame(base=[1.2, 6.2, 17.2], arm=[1.1, 6.1, 17.1], same=[1.2, 6.2, 17.2])  # equal but for rounding
    less = compare(runs, [("arm", "base")])[0]
    assert less.verdict == "equal in all 3 seeds, not tested" and all(map(math.isnan, (less.p, less.smallest)))
    assert (less.low, less.high) == pytest.approx((-0.1, -0.1))
    said = statistics.listed(statistics.compare(runs, paired([("arm", "base"), ("same", "base")])))
    assert "-0.10 points (95 % interval -0.10 to -0.10, P(better) 1.00), equal in all 3 seeds, not tested.\n" in said
    assert said.endswith(
        "(95 % interval +0.00 to +0.00, p = 1.000, corrected p = 1.000, P(better) 0.50), not told apart by 3 seeds."
    )


def test_students_interval_holds_the_true_difference_in_95_percent_of_studies() -> None:
    found = [ci95(gaps) for gaps in np.random.default_rng(1).normal(size=(1500, 3))]
    assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_smallest_difference_is_found_in_80_percent_of_simulated_studies(seeds: int) -> None:
    spread = 0.7
    generator = np.random.default_rng(seeds)
    seen = generator.normal(size=seeds)
    smallest = of(seen / seen.std(ddof=1) * spread).smallest
    critical = stats.t.ppf(0.975, seeds - 1)
    assert smallest == pytest.approx(special.nctdtrinc(seeds - 1, 0.2, critical) * spread / math.sqrt(seeds), rel=1e-6)
    studies = generator.normal(smallest, spread, size=(2000, seeds))
    worse = (paired_ps(studies) < 0.05) & (studies.mean(axis=-1) > 0)
    assert np.mean(worse) == pytest.approx(0.8, abs=0.03)


def paired_ps(gaps: NDArray[Any]) -> NDArray[np.float64]:
    """`paired_p` along the last axis of many differences at once."""
    gaps = np.round(gaps, 9)
    first, equal = gaps[..., 0], (gaps == gaps[..., :1]).all(axis=-1)
    with warnings.catch_warnings(action="ignore"):  # a spread of 0
        ps = stats.ttest_1samp(gaps, 0, axis=-1).pvalue
    return np.where(equal, np.where(first == 0, 1.0, np.nan), ps)


def claims(gaps: NDArray[Any]) -> NDArray[np.bool_]:
    """Which studies with such gaps [studies, comparisons, seeds] call any arm better or worse, as `judge` does."""
    return np.array([any(p < 0.05 for p in holm(ps)) for ps in paired_ps(gaps)])


def test_a_study_claims_what_its_verdicts_do() -> None:
    """Of any gaps, and of such as go in steps of an image, of which many are equal."""
    generator = np.random.default_rng(0)
    clear = generator.normal(generator.uniform(0, 3, size=(40, 1, 1)), 1, size=(40, 4, 3))
    steps = 0.5 * generator.integers(-2, 3, size=(60, 4, 2))
    for studies in (clear, steps):
        verdicts = [judge([(arm, "base") for arm in "abcd"], study) for study in studies]
        for study, verdict in zip(studies, verdicts, strict=True):
            np.testing.assert_allclose(paired_ps(study), verdict["p"], rtol=1e-7)
        said = [bool(of_study["verdict"].isin(["better", "worse"]).any()) for of_study in verdicts]
        assert claims(studies).tolist() == said
    assert 5 < claims(clear).sum() < 35 and np.isnan(paired_ps(steps)).sum() > 20


@pytest.mark.parametrize("seeds", [3, 5])
def test_without_a_true_difference_five_percent_of_studies_claim_one(seeds: int) -> None:
    """Three arms and their baseline, all alike; seeds differ, as the same images in the same order make them do."""
    generator = np.random.default_rng(seeds)
    errors = 8 + generator.normal(size=(2000, 1, seeds)) + generator.normal(size=(2000, 4, seeds))
    assert np.mean(claims(errors[:, 1:] - errors[:, :1])) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("seeds", "images"), [(2, 898), (2, 200), (3, 898), (5, 200)])
def test_errors_that_go_in_steps_of_an_image_claim_no_more(seeds: int, images: int) -> None:
    """Seven comparisons with a baseline, all alike: differences of two seeds are often equal, which proves nothing."""
    errors = 100 * np.random.default_rng(seeds).binomial(images, 0.05, size=(2000, 8, seeds)) / images
    assert np.mean(claims(errors[:, 1:] - errors[:, :1])) < 0.065


def test_the_reading_says_how_much_is_done() -> None:
    runs = frame(base=[6.0, 6.2, 6.1], arm=[4.0, math.nan, 4.2])
    text = reading(runs, statistics.compare(runs, paired([("arm", "base")])))
    assert text == (
        "5 of 6 runs are done. The lowest mean top-1 error is that of arm, 4.10 %.\n\n- arm against base: -1.95 points "
        "(95 % interval -2.59 to -1.31, p = 0.016, corrected p = 0.016, P(better) 1.00), better."
    )
    assert reading(frame(base=[math.nan]), statistics.compare(runs, paired([]))) == "0 of 1 runs are done."


def test_the_reading_gives_corrected_p_and_what_could_have_been_shown() -> None:
    runs = frame(base=[6.0, 6.1, 6.2], arm=[5.0, 7.0, 6.0], low=[4.0, 4.3, 4.0], one=[5.0])
    compared = statistics.compare(runs, paired([("arm", "base"), ("low", "base"), ("one", "base")]))
    text, (arm, low, _) = reading(runs, compared), rows(compared)
    assert (
        f", p = {arm.p:.3f}, corrected p = {arm.p_corrected:.3f}, P(better) 0.67), not told apart by 3 seeds, " in text
    )
    assert f"3 seeds, which uncorrected could have shown {arm.smallest:.2f} points." in text
    assert f"p = {low.p:.3f}, corrected p = {low.p_corrected:.3f}, P(better) 1.00), better." in text
    assert "one against base: -1.00 points, nothing can be said of one seed." in text
