"""Looks at a study before all its seeds are done: what each may spend of the error that the whole study is allowed.

A test that is repeated at looks and stops at the first p below 5 % finds differences where there are none in far more
than 5 % of studies. Each look therefore has a lower level of its own, so that all together make no more errors than one
test at the end. `overall_p` turns the p of a look into one that is compared with the level of the whole study, so that
Holm's correction takes it as any other.

The levels are those of a normal statistic; a test by Student's t compares its p with them. What that makes of their
error rates is simulated in `benchmarks/error_rates.py`.

Sources: Lan and DeMets, "Discrete sequential boundaries for clinical trials" (1983), with the spending function that
they give for the boundaries of O'Brien and Fleming (1979); Liu and Anderson, "On adaptive extensions of group
sequential trials for clinical investigations" (2008), for the overall p; Maurer and Bretz, "Multiple testing in group
sequential trials using graphical approaches" (2013), for Holm over such tests.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

NODES, WEIGHTS = np.polynomial.legendre.leggauss(160)
LEVELS = stats.norm.sf(np.linspace(0, 7.5, 151))  # of a whole study, one-sided, for which the looks' are computed
FARTHEST = 8.5  # standard deviations: nothing is beyond


def spent(level: float, fraction: float) -> float:
    """What a one-sided test of some level may have spent when a fraction of its seeds is done: `level` in the end."""
    return float(2 * stats.norm.sf(stats.norm.isf(level / 2) / np.sqrt(fraction)))


def nominal_levels(level: float, looks: Sequence[int]) -> list[float]:
    """One-sided level of each look, so that all together reject in `level` of the studies in which nothing differs.

    Args:
        level: of all looks together, one-sided, at most 0.5.
        looks: numbers of seeds, ascending; the last is that of all.
    """
    times = np.array(looks) / looks[-1]
    found: list[float] = []
    places, density = np.zeros(1), np.ones(1)  # of the sum so far in the studies that go on, with quadrature's weights
    before = 0.0
    for time, step in zip(times, np.diff(times, prepend=0.0), strict=True):
        now, farthest = spent(level, time), FARTHEST * np.sqrt(time)
        bound = _bound(now - before, places, density, step, farthest)
        found.append(float(stats.norm.sf(bound / np.sqrt(time))))
        half = (bound + farthest) / 2
        new = half * NODES + (bound - farthest) / 2
        spread = stats.norm.pdf((new[:, None] - places) / np.sqrt(step)) / np.sqrt(step)
        places, density, before = new, half * WEIGHTS * (spread @ density), now
    return found


def _bound(wanted: float, places: NDArray[Any], density: NDArray[Any], step: float, farthest: float) -> float:
    """Beyond which of its values the sum comes with a probability after one more step."""
    if wanted < 1e-16:
        return farthest

    def too_often(bound: float) -> float:
        return float(np.log(density @ stats.norm.sf((bound - places) / np.sqrt(step)) / wanted))

    return float(optimize.brentq(too_often, -farthest, farthest, xtol=1e-10))


@cache
def _quantiles(looks: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Normal quantiles of `LEVELS`, and of the levels of the looks for each of them [levels, looks]."""
    nominal = np.array([nominal_levels(float(level), looks) for level in LEVELS])
    return np.asarray(stats.norm.isf(LEVELS)), np.asarray(stats.norm.isf(nominal))


def overall_p(p: Any, look: int, looks: Sequence[int]) -> Any:
    """The level of the whole study at which this look would just reject: its p, one-sided, made comparable.

    Args:
        p: one-sided, a number or an array; NaN stays NaN.
        look: its index among the looks.
        looks: numbers of seeds, ascending; the last is that of all.
    """
    levels, nominal = _quantiles(tuple(looks))
    quantile = np.interp(stats.norm.isf(p), nominal[:, look], levels, left=-np.inf)
    return np.where(np.isnan(p), np.nan, stats.norm.sf(quantile))
