"""Power: simulated against closed forms, runs that tell the spread, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from ablation.errors import ConfigError
from ablation.paths import ROOT
from ablation.results import power, publication
from ablation.results.power import Design, power_of_plan, seeds_for, seen, spread_of
from ablation.runs import Run
from ablation.studies import Plan, Study
from gamlib.files import write_whole

ARMS: dict[str, Any] = {"plain": {"attention": "none"}, "gam": {}, "se": {"attention": "se"}}
FinishAll = Callable[..., None]


def plan(seeds: str = "0-3", **hypotheses: Any) -> Plan:
    return Study(name="own", arms=ARMS, base={"epochs": 1}, **hypotheses).plan(seeds=seeds)


def close(found: float, wanted: float) -> bool:
    """Within four standard errors of a simulation."""
    return abs(found - wanted) < 4 * math.sqrt(max(wanted * (1 - wanted), 1e-4) / power.SIMULATED)


@pytest.mark.parametrize(("effect", "seeds"), [(1, 12), (2, 6), (3, 4), (0.5, 20)])
def test_paired_power_is_statsmodels(effect: float, seeds: int) -> None:
    """Of differences, whose spread is that of two runs; the wrong sign counts for nothing in ours."""
    design = Design(plan(test="paired"), spread=0.7)
    wanted = TTestPower().power(effect / math.sqrt(2), seeds, 0.025, alternative="two-sided")
    assert close(design.power(0.7 * effect, seeds), wanted)


@pytest.mark.parametrize(("effect", "seeds"), [(1, 12), (2, 8), (1.5, 10)])
def test_welchs_power_is_near_that_of_one_variance(effect: float, seeds: int) -> None:
    """Of equal spreads Welch's test takes a few degrees of freedom less, so its power is a little lower."""
    found = Design(plan(), spread=0.7).power(0.7 * effect, seeds)
    wanted = TTestIndPower().power(effect, seeds, 0.025, alternative="two-sided")
    assert wanted - 0.02 < found < wanted + 0.01


def test_looks_cost_some_power_and_a_margin_asks_for_seeds() -> None:
    once, thrice = Design(plan(), 1), Design(plan("0-11", looks=[4, 8, 12]), 1)
    assert once.power(1.5, 12) - 0.05 < thrice.power(1.5, 12) < once.power(1.5, 12)
    assert once.power_equal(1, 8) < once.power_equal(1, 16) < once.power_equal(2, 16)
    assert once.power(0.0, 8) < 0.03 and once.power_equal(1e-3, 8) < 0.01


def test_the_seeds_for_an_effect_are_the_fewest_that_find_it() -> None:
    design = Design(plan(), spread=1)
    number = seeds_for(lambda seeds: design.power(2, seeds))
    assert number is not None and design.power(2, number) >= 0.8 > design.power(2, number - 1)
    assert number == pytest.approx(TTestIndPower().solve_power(2, alpha=0.025, power=0.8), abs=1)
    assert seeds_for(lambda seeds: design.power(0.01, seeds)) is None
    assert seeds_for(lambda seeds: 1.0) == 2
    smallest = design.smallest(6)
    assert design.power(smallest, 6) == pytest.approx(0.8, abs=0.01)


def test_looks_move_along_with_the_number_of_seeds() -> None:
    design = Design(plan("0-11", looks=[4, 8, 12]), 1)
    assert [design._looks(seeds) for seeds in (12, 24, 6, 2)] == [[4, 8, 12], [8, 16, 24], [2, 4, 6], [2]]


def test_finished_runs_of_any_seed_are_found_here_and_among_what_is_published(
    finish_all: FinishAll, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plan("20-21")
    finish_all(other, {"plain": [6.0, 6.2], "gam": [5.0, None], "se": [None, None]})
    expected = [["gam", 20, 5.0], ["plain", 20, 6.0], ["plain", 21, 6.2]]
    assert sorted(seen(plan())[["arm", "seed", "top1_error"]].to_numpy().tolist()) == expected
    assert (seen(plan())["seconds"] >= 3).all()
    assert seen(plan().study.plan(seeds=0, epochs=2)).empty  # of other epochs: other runs
    other.save()
    publication.publish(other)
    monkeypatch.setenv("GAM_RUNS", str(places / "elsewhere"))
    renamed = Study(name="renamed", arms={"GAM": {}, "none": {"attention": "none"}}, base={"epochs": 1})
    found = seen(renamed.plan(seeds="0-3"))
    assert sorted(found[["arm", "seed", "top1_error"]].to_numpy().tolist()) == [
        ["GAM", 20, 5.0],
        ["none", 20, 6.0],
        ["none", 21, 6.2],
    ]


def test_runs_are_those_of_an_arm_wherever_its_mechanism_lies_and_whether_it_wrote_events_or_not(
    finish_all: FinishAll, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published names the file of a mechanism of one's own without its folder."""
    file = places / "my_eca.py"
    file.write_text((ROOT / "examples" / "eca.py").read_text())
    own = Study(name="own", arms={"eca": {"attention": f"{file}:ECA"}}, base={"epochs": 1, "width": 0.25})
    there = own.plan(seeds="20-21")
    finish_all(there, {"eca": [6.0, 6.2]})
    there.save()
    publication.publish(there)
    quiet = own.plan(seeds="0-3")
    events = quiet.arms["eca"][0].model_copy(update={"tensorboard": True})
    assert len(seen(quiet.model_copy(update={"arms": {"eca": [events]}}))) == 2
    monkeypatch.setenv("GAM_RUNS", str(places / "elsewhere"))
    assert seen(quiet)["top1_error"].tolist() == [6.0, 6.2]


def test_a_damaged_publication_is_named_and_not_left_out(finish_all: FinishAll) -> None:
    assert seen(plan()).empty  # nothing is published
    write_whole(publication.data_folder() / "own-digits.json", "{")
    with pytest.raises(ConfigError, match=r"own-digits\.json is not a published study"):
        seen(plan())


def test_the_spread_is_that_of_all_arms_around_their_means() -> None:
    errors = pd.DataFrame({"arm": ["a", "a", "b", "b", "b", "c"], "top1_error": [1.0, 3.0, 5.0, 6.0, 7.0, 9.0]})
    spread, df = spread_of(errors)
    assert spread == pytest.approx(math.sqrt((2 + 2) / 3)) and df == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"effect": 0}, "effect=0: allowed: points above 0"),
        ({"effect": math.inf}, "effect=inf: allowed: points above 0"),
        ({"sd": -1}, "sd=-1: allowed: points above 0"),
        ({"sd": math.nan}, "sd=nan: allowed: points above 0"),
        ({}, "no arm of this study has two finished runs that differ; give --sd, in points"),
    ],
)
def test_what_no_power_is_known_of_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        power_of_plan(plan(), **values)
    assert str(refusal.value) == message


def test_a_study_without_comparisons_and_one_of_too_many_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^compare=\[\]: own compares none of these arms"):
        power_of_plan(plan(compare=[]), sd=1)
    with pytest.raises(ConfigError, match=r"^seeds: 201 of them: allowed: 2 to 200"):
        power_of_plan(plan("0-200"), sd=1)


def test_runs_that_are_all_alike_tell_no_spread(finish_all: FinishAll) -> None:
    finish_all(plan("20-21"), {"plain": [6.0, 6.0], "gam": [5.0, 5.0], "se": [None, None]})
    with pytest.raises(ConfigError, match=r"^no arm of this study has two finished runs that differ"):
        power_of_plan(plan())


def test_a_plan_is_told_what_its_seeds_can_decide_and_cost(finish_all: FinishAll) -> None:
    finish_all(
        plan("20-21"), {"plain": [6.0, 6.2], "gam": [5.0, 5.4], "se": [None, None]}, seconds=7200.0, parameters=1
    )
    found, lines = power_of_plan(plan(margin=0.5, equivalence=[("gam", "plain")]))
    rows: list[Any] = list(found.itertuples())
    gam, se = rows
    assert gam.effect == pytest.approx(0.9) and gam.power > 0.9 and gam.margin == 0.5 and 0 < gam.power_equal < 1
    assert all(map(math.isnan, (se.effect, se.power, se.margin, se.power_equal)))
    assert se.smallest == gam.smallest
    assert "4 finished runs of 2 of the arms, 2 degrees of freedom" in lines[2]
    assert lines[0].startswith("4 seeds; p of Welch's t-test, two-sided, corrected by Holm for all 2 comparisons")
    assert lines[-1] == "All 12 runs: 24.0 hours of training, one after the other, as fast as those were."
    asked, _ = power_of_plan(plan(), effect=0.9, sd=5)
    assert (asked["effect"] == 0.9).all() and (asked["power"] < 0.1).all() and (asked["seeds_needed"].isna()).all()
    assert "over 200" in power.for_reading(asked)["Seeds for 80 %"].tolist()


def test_without_any_run_the_cost_is_not_known(finish: Callable[..., Run]) -> None:
    found, lines = power_of_plan(plan(), sd=1)
    assert "Effect" not in power.for_reading(found) and lines[-1].startswith("No arm has a finished run")
    assert "as given" in lines[2]
