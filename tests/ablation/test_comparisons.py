"""Welch's test, equality, the correction and looks of a study, against scipy, statsmodels and worked examples."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from ablation.hypotheses import Hypotheses
from ablation.results.sequential import nominal_levels
from ablation.results.statistics import compare, estimate, holm, overall_ps, probability_better

PAIRS = [("low", "base"), ("near", "base"), ("base", "low")]


@pytest.fixture
def errors() -> dict[str, NDArray[Any]]:
    """Arms whose spreads differ, and one that is close to the baseline."""
    generator = np.random.default_rng(1)
    base = generator.normal(8, 0.5, 6)
    return {"base": base, "low": generator.normal(6, 1.5, 6), "near": base + generator.normal(0, 0.1, 6)}


def frame(errors: dict[str, NDArray[Any]]) -> pd.DataFrame:
    rows = [(arm, seed, error) for arm, values in errors.items() for seed, error in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])


def rows(errors: dict[str, NDArray[Any]], **hypotheses: Any) -> list[Any]:
    return list(compare(frame(errors), Hypotheses(**hypotheses)).itertuples())


def test_comparisons_are_scipys_tests_of_unequal_variances(errors: dict[str, NDArray[Any]]) -> None:
    for number in (6, 2):
        of = {arm: values[:number] for arm, values in errors.items()}
        for row in rows(of, compare=PAIRS):
            wanted = stats.ttest_ind(of[row.arm], of[row.reference], equal_var=False)
            assert row.p == pytest.approx(wanted.pvalue)
            assert (row.low, row.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
            assert row.difference == pytest.approx(np.mean(of[row.arm]) - np.mean(of[row.reference]))


def test_welchs_test_takes_all_seeds_of_both_arms_and_the_paired_one_those_they_share(
    errors: dict[str, NDArray[Any]],
) -> None:
    short = errors | {"low": errors["low"][:4]}
    (welch,) = rows(short, compare=PAIRS[:1])
    (paired,) = rows(short, compare=PAIRS[:1], test="paired")
    assert welch.p == pytest.approx(stats.ttest_ind(short["low"], short["base"], equal_var=False).pvalue)
    assert paired.p == pytest.approx(stats.ttest_rel(short["low"], short["base"][:4]).pvalue)
    assert (welch.seeds, paired.seeds, len(welch.gaps)) == (4, 4, 4)


@pytest.mark.parametrize("margin", [0.1, 0.5, 3.0])
def test_equality_is_statsmodels_two_one_sided_tests(errors: dict[str, NDArray[Any]], margin: float) -> None:
    for test in ("welch", "paired"):
        for row in rows(errors, compare=PAIRS, test=test, margin=margin):
            arm, reference = errors[row.arm], errors[row.reference]
            if test == "welch":
                wanted, *_ = ttost_ind(arm, reference, -margin, margin, usevar="unequal")
            else:
                wanted, *_ = ttost_paired(arm, reference, -margin, margin)
            assert row.p_equal == pytest.approx(wanted)


def test_what_is_equal_within_the_margin_is_said_to_be() -> None:
    base = np.array([8.0, 8.1, 7.9, 8.05])
    errors = {"base": base, "same": base[::-1] + 0.02, "far": base + 2, "wide": np.array([5.0, 11.0, 8.0, 9.0])}
    pairs = [(arm, "base") for arm in ("same", "far", "wide")]
    found = rows(errors, compare=pairs, margin=0.5)
    assert [row.verdict for row in found] == ["equal within 0.5 points", "worse", "not told apart by 4 seeds"]
    some = rows(errors, compare=pairs, margin=0.5, equivalence=[("wide", "base")])
    assert [math.isnan(row.p_equal) for row in some] == [True, True, False]
    assert some[0].verdict == "not told apart by 4 seeds"
    assert rows(errors, compare=pairs, margin=0.5, alpha=0.0001)[0].verdict == "not told apart by 4 seeds"


def test_without_any_spread_nothing_is_proved_equal() -> None:
    """Errors go in steps of an image: seeds may well differ by the same."""
    (row,) = rows({"base": np.array([8.0, 8.0]), "arm": np.array([8.1, 8.1])}, compare=[("arm", "base")], margin=1)
    assert math.isnan(row.p) and math.isnan(row.p_equal) and row.verdict == "equal in all 2 seeds, not tested"


def test_the_probability_to_be_better_is_mann_and_whitneys_share(errors: dict[str, NDArray[Any]]) -> None:
    low, base = errors["low"], errors["base"]
    of_pairs = stats.mannwhitneyu(base, low).statistic / 36
    assert probability_better("welch", low, base) == pytest.approx(of_pairs)
    assert probability_better("paired", low, base) == np.mean(low < base)
    assert probability_better("welch", np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert math.isnan(probability_better("welch", np.array([]), base))


def test_holm_is_statsmodels() -> None:
    generator = np.random.default_rng(0)
    for number in (1, 2, 7, 20):
        for _ in range(20):
            ps = generator.beta(0.3, 2, number)
            assert holm(list(ps)) == pytest.approx(multipletests(ps, method="holm")[1])


def test_what_is_not_known_yet_may_come_with_any_p() -> None:
    """A NaN counts as a test that is not rejected: a p of 1 in its place corrects the others alike."""
    ps = [0.004, math.nan, 0.02, math.nan, 0.03]
    found, instead = holm(ps), holm([1.0 if math.isnan(p) else p for p in ps])
    assert [found[number] for number in (0, 2, 4)] == [instead[number] for number in (0, 2, 4)]
    assert math.isnan(found[1]) and math.isnan(found[3])


def test_a_difference_and_equality_of_one_comparison_are_not_both_right() -> None:
    """Shaffer's count: of two comparisons with two hypotheses each at most two are true, until both of one have gone.

    In order: 0.001 times 2 (both comparisons may hold a true one); 0.01 times 2 (the second has lost its difference,
    not its equality); 0.02 times 2 (equality of the second goes, too); 0.9 times 1 (the first alone is left).
    """
    differ, equal = [0.01, 0.001], [0.9, 0.02]
    assert holm([*differ, *equal], [0, 1, 0, 1]) == pytest.approx([0.02, 0.002, 0.9, 0.04])
    assert holm([*differ, *equal]) == pytest.approx([0.03, 0.004, 0.9, 0.04])  # Holm's own counts more
    assert holm([0.01, 0.02], [0, 0]) == [0.01, 0.02]  # a single comparison: nothing to correct


def test_all_hypotheses_of_a_study_are_corrected_together(errors: dict[str, NDArray[Any]]) -> None:
    found = rows(errors, compare=PAIRS, margin=2, equivalence=PAIRS[1:2])
    ps = [*(row.p for row in found), found[1].p_equal]
    adjusted = holm(ps, [0, 1, 2, 1])
    assert [row.p_corrected for row in found] == adjusted[:3] and found[1].p_equal_corrected == adjusted[3]
    assert math.isnan(found[0].p_equal_corrected) and math.isnan(found[2].p_equal_corrected)


LOOKS = [4, 8, 12]


@pytest.mark.parametrize(("look", "number"), [(0, 4), (1, 8), (2, 12)])
def test_a_look_decides_below_its_own_level(look: int, number: int) -> None:
    """A single comparison: p just below what the look may spend decides, and just above it does not."""
    level = 2 * nominal_levels(0.025, LOOKS)[look]
    pattern = np.tile([1.0, -1.0, 2.0, -2.0], 3)[:number]
    of = Hypotheses(compare=[("arm", "base")], looks=LOOKS)
    error = estimate("welch", pattern, pattern[::-1]).error
    for factor, decided in ((0.98, True), (1.02, False)):
        gap = stats.t.isf(factor * level / 2, 2 * number - 2) * error
        (row,) = compare(frame({"base": 50 + pattern, "arm": 50 - gap + pattern[::-1]}), of).itertuples()
        assert row.p == pytest.approx(factor * level)
        undecided = "not told apart by 12 seeds" if number == 12 else f"undecided by {number} of 12 seeds"
        assert row.verdict == ("better" if decided else undecided)


def test_between_two_looks_the_earlier_one_counts() -> None:
    generator = np.random.default_rng(2)
    arm, base = generator.normal(6, 0.5, 12), generator.normal(8, 0.5, 12)
    of: dict[str, Any] = {"compare": [("arm", "base")], "looks": LOOKS}
    (early,) = rows({"base": base[:4], "arm": arm[:4]}, **of)
    assert rows({"base": base, "arm": arm[:4]}, **of)[0].p == early.p  # an arm that got no more seeds
    assert rows({"base": base[:7], "arm": arm[:5]}, **of)[0].p == early.p
    (none,) = rows({"base": base[:3], "arm": arm[:3]}, **of)
    assert math.isnan(none.p_corrected) and none.verdict == "undecided by 3 of 12 seeds"
    (middle,) = rows({"base": base[:9], "arm": arm[:8]}, **of)
    assert middle.p == pytest.approx(stats.ttest_ind(arm[:8], base[:8], equal_var=False).pvalue) and middle.seeds == 8


def test_what_an_earlier_look_has_decided_stays() -> None:
    """The least of the overall p so far: later seeds that speak against it do not take it back."""
    clear, calm = np.array([0.0, 0.01, 0.02, 0.01]), np.array([8.0, 8.01, 8.0, 8.02])
    arm = np.concatenate([clear, 8 + np.array([5.0, -5, 4, -4])])
    base = np.concatenate([calm, 8 + np.array([-6.0, 6, 3, -3])])
    of = Hypotheses(looks=LOOKS)
    early, late = overall_ps(of, arm[:4], base[:4], None)[0], overall_ps(of, arm, base, None)[0]
    assert early < 1e-4 and late == early
    assert estimate("welch", arm, base).p() > 0.02


def test_many_studies_at_once_are_the_studies_one_by_one() -> None:
    generator = np.random.default_rng(3)
    arm, base = generator.normal(size=(5, 3, 8)), generator.normal(size=(5, 1, 8))
    for of in (Hypotheses(), Hypotheses(looks=LOOKS), Hypotheses(test="paired", looks=[2, 8])):
        together = np.stack(np.broadcast_arrays(*overall_ps(of, arm, base, 1.0)))
        single = [[overall_ps(of, arm[i, j], base[i, 0], 1.0) for j in range(3)] for i in range(5)]
        np.testing.assert_allclose(np.moveaxis(together, 0, -1), np.array(single, dtype=float))


def test_before_the_first_look_of_both_arms_there_is_no_p() -> None:
    """Else whoever peeks while an arm is behind has looks that were not declared."""
    generator = np.random.default_rng(0)
    rows = [("arm", seed, error) for seed, error in enumerate(generator.normal(4, 1, 12))]
    rows += [("base", seed, error) for seed, error in enumerate(generator.normal(9, 1, 3))]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])
    for pair in (("arm", "base"), ("base", "arm")):
        (found,) = compare(runs, Hypotheses(compare=[pair], looks=[4, 8, 12])).to_dict("records")
        assert np.isnan([found["p"], found["p_corrected"]]).all() and found["verdict"] == "undecided by 3 of 12 seeds"
