"""Looks: the levels of published tables, and what they come to in simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from ablation.results.sequential import nominal_levels, overall_p, spent

# R's gsDesign: gsDesign(k, test.type = 1, alpha = 0.025, sfu = sfLDOF)$upper$bound
PUBLISHED = {3: [3.710, 2.511, 1.993], 5: [4.877, 3.357, 2.680, 2.290, 2.031]}


@pytest.mark.parametrize("looks", PUBLISHED)
def test_the_levels_are_those_of_published_boundaries(looks: int) -> None:
    bounds = stats.norm.isf(nominal_levels(0.025, range(1, looks + 1)))
    assert bounds == pytest.approx(PUBLISHED[looks], abs=6e-4)
    assert nominal_levels(0.025, [4 * look for look in range(1, looks + 1)]) == pytest.approx(stats.norm.sf(bounds))


def test_one_look_at_the_end_has_all_of_the_level() -> None:
    assert nominal_levels(0.025, [12]) == pytest.approx([0.025])
    assert spent(0.025, 1) == pytest.approx(0.025) and spent(0.025, 0.25) < 1e-4


@pytest.mark.parametrize("looks", [[4, 8, 12], [2, 3, 20], [10, 11, 12]])
def test_all_looks_together_reject_in_as_many_studies_as_one_test(looks: list[int]) -> None:
    """Of normal statistics, whose levels they are; 100,000 studies, four standard errors."""
    steps = np.diff(looks, prepend=0)
    sums = np.cumsum(np.random.default_rng(0).normal(size=(100_000, len(looks))) * np.sqrt(steps), -1)
    rejected = stats.norm.sf(sums / np.sqrt(looks)) < nominal_levels(0.05, looks)
    assert rejected.any(-1).mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 100_000))


@pytest.mark.parametrize("level", [0.0001, 0.05 / 14, 0.025, 0.2])
def test_the_overall_p_is_the_level_at_which_a_look_just_rejects(level: float) -> None:
    looks = [4, 8, 12]
    for look, nominal in enumerate(nominal_levels(level, looks)):
        assert overall_p(nominal, look, looks) == pytest.approx(level, rel=2e-3)
        assert overall_p(0.9 * nominal, look, looks) < level < overall_p(1.1 * nominal, look, looks)


def test_the_overall_p_grows_with_p_and_nan_stays_nan() -> None:
    ps = np.array([1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.99, math.nan])
    found = overall_p(ps, 0, [4, 8, 12])
    assert (np.diff(found[:-1]) >= 0).all() and found[0] < found[3]
    assert math.isnan(found[-1]) and found[5] == 1
    assert (found[:-1] >= ps[:-1]).all()  # an early look asks for more than the level of the study
