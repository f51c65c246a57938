"""What so many seeds can decide, before they are run: power by simulation, and how many seeds an effect asks for.

Sources: Cohen, "Statistical power analysis for the behavioral sciences" (1988); Colas et al., "How many random seeds?"
(arXiv 1806.08295).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.hypotheses import in_words
from ablation.results import publication
from ablation.results.frames import load
from ablation.results.sequential import nominal_levels
from ablation.results.statistics import POWER, estimate
from ablation.runs import all_runs
from ablation.studies import Plan

SIMULATED = 10_000
MOST_SEEDS = 200


class Design:
    """The test of one comparison, corrected as Holm's first step is, which asks for the most."""

    def __init__(self, plan: Plan, spread: float) -> None:
        """`spread`: standard deviation over seeds of the error of each arm, in points."""
        of = plan.study
        self.test, self.looks, self.spread = of.test, of.looks, spread
        self.level = of.alpha / max(1, len(of.compare))
        self._noise = np.random.default_rng(0).normal(size=(2, SIMULATED, MOST_SEEDS))  # the same for every question

    def _looks(self, seeds: int) -> list[int]:
        """Those of the study, moved along where there are more or fewer seeds."""
        looks = [round(look * seeds / self.looks[-1]) for look in self.looks] or [seeds]
        return list(dict.fromkeys(max(2, look) for look in looks))

    def _found(self, seeds: int, shift: float, sides: int, decided: Callable[[Any, float], NDArray[np.bool_]]) -> float:
        looks, levels = self._looks(seeds), [self.level]
        if len(looks) > 1:
            levels = [sides * level for level in nominal_levels(self.level / sides, looks)]
        arm, reference = self.spread * self._noise[..., :seeds]
        found = np.zeros(SIMULATED, bool)
        for look, level in zip(looks, levels, strict=True):
            found |= decided(estimate(self.test, arm[:, :look] + shift, reference[:, :look]), level)
        return float(found.mean())

    def power(self, effect: float, seeds: int) -> float:
        """The share of studies that find an arm better which errs less by so many points; or worse, by symmetry."""
        return self._found(seeds, -effect, 2, lambda of, level: (of.p() < level) & (of.difference < 0))

    def power_equal(self, margin: float, seeds: int) -> float:
        """The share of studies that find two arms equal within the margin which are equal."""
        return self._found(seeds, 0.0, 1, lambda of, level: of.p_equal(margin) < level)

    def smallest(self, seeds: int) -> float:
        """The smallest effect, in points, that is found in 80 % of studies."""
        highest = 1000 * self.spread
        if self.power(highest, seeds) < POWER:
            return math.nan
        return float(optimize.brentq(lambda effect: self.power(effect, seeds) - POWER, 0, highest, xtol=1e-3))


def seeds_for(power: Callable[[int], float]) -> int | None:
    """The fewest seeds at which a power reaches 80 %; None if more than `MOST_SEEDS` were needed."""
    return None if power(MOST_SEEDS) < POWER else bisect_left(range(MOST_SEEDS), POWER, lo=2, key=power)


def seen(plan: Plan) -> pd.DataFrame:
    """The finished runs of the arms of a plan, of whatever seed: those in the folder of runs, and published ones.

    Columns: arm, seed, top1_error in percent, seconds.

    Raises:
        ConfigError: a published file is damaged.
    """
    columns = ["arm", "seed", "top1_error", "seconds"]
    wanted = {_key(configs[0]): arm for arm, configs in plan.arms.items()}
    rows: list[tuple[Any, ...]] = []
    for run in all_runs(plan.configs[0].dataset_name)[0]:
        if (arm := wanted.get(_key(run.config))) is not None and (result := run.result()) is not None:
            rows.append((arm, run.config.seed, result.top1_error, run.took(result)))
    folder = publication.data_folder()
    for other in publication.published(folder=folder) if [*folder.glob("*.json")] else ():
        arms = {name: wanted[key] for name, of in other.arms.items() if (key := _key(of[0])) in wanted}
        if arms:
            done = load(other, folder).done
            done = done[columns].assign(arm=done["arm"].map(arms)).dropna(subset="arm")
            rows += done.itertuples(index=False, name=None)
    return pd.DataFrame(rows, columns=columns).drop_duplicates(["arm", "seed"], ignore_index=True)


def _key(config: RunConfig) -> str:
    """What runs of one arm share: all that makes them other runs but for the seed."""
    return config.model_copy(update={"seed": 0}).signature


def spread_of(errors: pd.DataFrame) -> tuple[float, int]:
    """The standard deviation over seeds of all arms together, in points, and its degrees of freedom."""
    groups = errors.groupby("arm")["top1_error"]
    df = int((groups.size() - 1).sum())
    squares = float(((errors["top1_error"] - groups.transform("mean")) ** 2).sum())
    return (squares / df) ** 0.5 if df else float("nan"), df


def planned(plan: Plan, design: Design, effects: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """What the seeds of a plan can decide of each comparison, a row each.

    Columns: arm, reference; effect: the true difference in points that is asked about, without its sign; power: the
    chance to find it; seeds_needed: for a power of 80 %, NaN if more than 200; smallest: the effect that the seeds of
    the plan find with that power; margin, power_equal, seeds_needed_equal: the same of finding equal what is equal.
    """
    number = len(plan.seeds)
    smallest, rows = design.smallest(number), []
    for pair in plan.compare:
        effect, margin = effects.get(pair), plan.study.margin_of(pair)
        row: dict[str, Any] = {"arm": pair[0], "reference": pair[1], "effect": effect, "smallest": smallest}
        if effect is not None:
            row["power"] = design.power(effect, number)
            row["seeds_needed"] = seeds_for(partial(design.power, effect))
        row["margin"] = margin
        if margin is not None:
            row["power_equal"] = design.power_equal(margin, number)
            row["seeds_needed_equal"] = seeds_for(partial(design.power_equal, margin))
        rows.append(row)
    columns = ["arm", "reference", "effect", "power", "seeds_needed", "smallest"]
    columns += ["margin", "power_equal", "seeds_needed_equal"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """`planned` as texts."""

    def texts(key: str, form: str, nothing: str = "–") -> pd.Series:
        return table[key].map(lambda value: nothing if pd.isna(value) else form.format(value))

    more = f"over {MOST_SEEDS}"
    found = {"Arm": table["arm"], "Reference": table["reference"]}
    if table["effect"].notna().any():
        found |= {"Effect": texts("effect", "{:.2f}"), "Power": texts("power", "{:.0%}")}
        found["Seeds for 80 %"] = texts("seeds_needed", "{:.0f}", more).where(table["effect"].notna(), "–")
    found["Smallest at 80 %"] = texts("smallest", "{:.2f}")
    if table["margin"].notna().any():
        found |= {"Margin": texts("margin", "{:g}"), "Power, if equal": texts("power_equal", "{:.0%}")}
        needed = texts("seeds_needed_equal", "{:.0f}", more).where(table["margin"].notna(), "–")
        found["Seeds for 80 %, if equal"] = needed
    return pd.DataFrame(found)


def power_of_plan(plan: Plan, effect: float | None = None, sd: float | None = None) -> tuple[pd.DataFrame, list[str]]:
    """`planned` for a plan, and in words what it rests on and what the runs cost.

    Args:
        plan: none of its runs need be there.
        effect: a difference in points to ask about; None is the one that other runs of the same arms have shown.
        sd: standard deviation over seeds, in points; None is that of finished runs of the same arms, of any seed.

    Raises:
        ConfigError: there are no such runs and no `sd`, or a value that is not above 0.
    """
    for name, value in (("effect", effect), ("sd", sd)):
        if value is not None and not 1e-6 < value < math.inf:
            raise ConfigError(f"{name}={value}: allowed: points above 0")
    if not plan.compare:
        raise ConfigError(f"compare=[]: {plan.study.name} compares none of these arms; allowed: a study that does")
    if not 2 <= len(plan.seeds) <= MOST_SEEDS:
        raise ConfigError(f"seeds: {len(plan.seeds)} of them: allowed: 2 to {MOST_SEEDS}")
    if plan.study.looks and plan.study.looks[-1] != len(plan.seeds):
        raise ConfigError(
            f"seeds: {len(plan.seeds)} of them: allowed with looks={plan.study.looks}: {plan.study.looks[-1]}"
        )
    runs = seen(plan)
    found, df = spread_of(runs)
    if sd is None and not found > 0:
        raise ConfigError("no arm of this study has two finished runs that differ; give --sd, in points")
    means = runs.groupby("arm")["top1_error"].mean()
    known = [pair for pair in plan.compare if {*pair} <= {*means.index}]
    effects = {pair: abs(means[pair[0]] - means[pair[1]]) for pair in known}
    effects = effects if effect is None else dict.fromkeys(plan.compare, effect)
    design = Design(plan, sd or found)
    whose = f"{len(runs)} finished runs of {len(means)} of the arms"
    if df:  # by the chi-squared distribution of a variance
        low, high = (found * (df / stats.chi2.ppf(chance, df)) ** 0.5 for chance in (0.975, 0.025))
        whose += f", {df} degrees of freedom, 95 % interval {low:.2f} to {high:.2f}"
    lines = [
        f"{len(plan.seeds)} seeds; {in_words(plan.study)}",
        f"Power is that at Holm's first step, below {design.level:.2g}; with what else is decided it only grows.",
        f"Spread over seeds: {design.spread:.2f} points ({whose if sd is None else 'as given'}).",
    ]
    if plan.study.looks:
        lines.append("With other numbers of seeds the looks are at the same fractions of them.")
    if effect is None and effects:
        lines.append("Effect: the difference that these runs show; the true one may be another.")
    return planned(plan, design, effects), [*lines, _hours(plan, runs)]


def _hours(plan: Plan, runs: pd.DataFrame) -> str:
    """What the seeds of a plan cost, by the mean time of finished runs of its arms."""
    if runs.empty:
        return "No arm has a finished run: what the seeds cost is not known."
    seconds = runs.groupby("arm")["seconds"].mean()
    total = sum(len(configs) * seconds.get(arm, seconds.mean()) for arm, configs in plan.arms.items()) / 3600
    return f"All {len(plan.configs)} runs: {total:.1f} hours of training, one after the other, as fast as those were."
