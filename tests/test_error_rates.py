"""The simulation of the statistics: it decides as studies do, and the page shows its tables."""

import importlib
import math
import re
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_benchmarks import refusal

from ablation import until_decided
from ablation.config import RunConfig
from ablation.hypotheses import Hypotheses
from ablation.paths import ROOT
from ablation.results.statistics import compare, holm
from ablation.studies import Study

sys.path.insert(0, str(ROOT / "benchmarks"))
rates = importlib.import_module("error_rates")

REDUCTIONS = (2, 4, 8)


@pytest.mark.parametrize("comparisons", [(), [0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 2, 2]])
def test_many_studies_are_corrected_as_each_is(comparisons: list[int]) -> None:
    ps = np.random.default_rng(0).beta(0.3, 2, size=(200, 6))
    ps[np.random.default_rng(1).random(ps.shape) < 0.2] = np.nan
    np.testing.assert_allclose(rates.corrected(ps, comparisons), [holm(list(row), comparisons) for row in ps])


@pytest.mark.parametrize(("test", "margin"), [("welch", 4.0), ("paired", None)])
def test_it_decides_as_a_study_that_goes_on_does(test: Any, margin: float | None, monkeypatch: Any) -> None:
    """Twelve studies of three arms, look by look, by `until_decided`: the same verdicts, the same seeds for each."""
    arms = {"base": {"attention": "none"}} | {f"r{number}": {"reduction": number} for number in REDUCTIONS}
    hypotheses: dict[str, Any] = {"test": test, "margin": margin, "looks": [3, 5, 8]}
    plan = Study(name="own", arms=arms, **hypotheses).plan(seeds="0-7")
    generator = np.random.default_rng(4)
    shifts = generator.choice([0.0, 1.5, -9], size=(12, 3, 1))
    of_arms, base = generator.normal(size=(12, 3, 8)) + shifts, generator.normal(size=(12, 1, 8))
    found = rates.decide(Hypotheses(**hypotheses), of_arms, base)
    seen = set()
    for study in range(12):
        errors = dict(zip([None, *REDUCTIONS], [base[study, 0], *of_arms[study]], strict=True))
        part, compared = last_look(plan, errors, monkeypatch)
        numbers = [len(part.arms[f"r{number}"]) for number in REDUCTIONS]
        assert numbers == found.seeds[study].tolist()
        rows: list[Any] = list(compared.itertuples())
        for number, row in enumerate(rows):
            kinds = {"better": found.better, "worse": found.worse, "equal": found.equal & ~found.different}
            said = [kind for kind, of in kinds.items() if of[study, number]]
            assert (
                said == [row.verdict.replace(",", "").split()[0]]
                if said
                else row.verdict == "not told apart by 8 seeds"
            )
            seen |= {(kind, row.seeds) for kind in said}
    assert ("better", 5) in seen and (("equal", 5) in seen) == (margin is not None)  # before the last look


def last_look(plan: Any, errors: dict[Any, NDArray[Any]], monkeypatch: Any) -> tuple[Any, pd.DataFrame]:
    class Done:
        def __init__(self, config: RunConfig) -> None:
            self.top1_error = errors[config.reduction][config.seed]

        def result(self) -> "Done":
            return self

    monkeypatch.setattr(until_decided, "Run", Done)
    part, compared, over = until_decided.next_look(plan)
    assert over
    return part, compared


def test_wrong_is_what_contradicts_the_truth() -> None:
    """Three arms: equal, 1 worse, 5 worse than the baseline, with a margin of 1 point and hardly any spread."""
    noise = np.random.default_rng(0).normal(size=(1, 4, 6)) * 1e-3
    arms = noise[:, 1:] + np.array([0.0, 1.5, 5.0])[:, None]
    of = Hypotheses(margin=1)
    assert not rates.wrong(of, [0.0, 1.5, 5.0], arms, noise[:, :1]).any()
    for truth in ([1.0, 1.5, 5.0], [0.0, 0.0, 5.0]):  # equality of what is apart, a difference of what is equal
        assert rates.wrong(of, truth, arms, noise[:, :1]).all()
    assert rates.wrong(of, [0.0, 1.5, 5.0], -arms, noise[:, :1]).all()  # and the wrong direction


def test_equal_arms_are_seldom_told_apart_and_adding_seeds_tells_them_often() -> None:
    """Of 4,000 studies, within four standard errors or so of what the page has."""
    equal = [0.0] * 7
    (arms, baseline), *_ = rates.drawn(equal, 1, 12, 0)(4_000)
    for of in (Hypotheses(), Hypotheses(looks=[4, 8, 12]), Hypotheses(test="paired")):
        assert rates.wrong(of, equal, arms, baseline).mean() < 0.065
    added = rates.until_significant("paired", arms[:, :1, :10], baseline[..., :10])
    assert added.mean() == pytest.approx(0.16, abs=0.025)
    (arms, baseline), *_ = rates.drawn([-4.0, *equal[1:]], 1, 4, 0)(4_000)
    assert rates.decide(Hypotheses(), arms, baseline).better[:, 0].mean() > 0.77


def test_what_is_drawn_has_the_ratio_and_the_correlation() -> None:
    (arms, baseline), *_ = rates.drawn([0.0, 3.0], 2, 4, 0, shared=0.5)(5_000)
    assert baseline.std() / arms[:, 0].std() == pytest.approx(2, abs=0.05)
    assert (baseline.var() + arms[:, 0].var()) / 2 == pytest.approx(1, abs=0.05)
    assert arms[:, 1].mean() - arms[:, 0].mean() == pytest.approx(3, abs=0.05)
    assert np.corrcoef(arms[:, 0].ravel(), baseline.ravel())[0, 1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_simulation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their columns and first cells, with few studies; what is measured of published runs to the last digit."""
    monkeypatch.setattr(sys, "argv", ["error_rates.py", "--studies", "40"])
    with pytest.raises(SystemExit) as ended:
        rates.app()
    assert ended.value.code in (0, None)
    page = rates.PAGE.read_text().partition(rates.BEGIN)[2].partition(rates.END)[0]
    named = re.compile(r"^\| ([^|]+) \|", re.M)
    printed = capsys.readouterr().out
    assert named.findall(page) == named.findall(printed)
    heads = re.compile(r"^.*\n(?=\| ---)", re.M)
    assert heads.findall(page) == heads.findall(printed) and len(heads.findall(page)) == 5
    assert rates.markdown(rates.seen()) in page


def test_the_numbers_in_the_words_of_the_page_stand_in_its_tables() -> None:
    """But for what permutations can give, and what is said of `make study`."""
    prose, tables = rates.PAGE.read_text().partition("## The choices")[2].partition(rates.BEGIN)[::2]
    number = r"\d+\.\d+"
    others = {f"{2 / math.comb(8, 4):.3f}", "2.60", "0.023", "1.71"}
    assert {*re.findall(number, prose)} - {*re.findall(number, tables)} == others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--studies", "0"), "studies='0': allowed: a whole number from 1"),
        (("--seed", "x"), "seed='x': allowed: a whole number from 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["error_rates.py", *arguments])
    assert message in refusal(rates.app, capsys)


def test_the_rows_of_comparisons_are_what_is_simulated() -> None:
    """One study of one look, by `compare`."""
    (arms, baseline), *_ = rates.drawn([-2.0, 0.0, 1.0], 2, 4, 5)(1)
    errors = dict(zip(("base", "a", "b", "c"), [baseline[0, 0], *arms[0]], strict=True))
    rows = [(arm, seed, error) for arm, values in errors.items() for seed, error in enumerate(values)]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "top1_error"])
    compared = compare(runs, Hypotheses(compare=[(arm, "base") for arm in "abc"]))
    found = rates.decide(Hypotheses(), arms, baseline)
    assert (compared["p_corrected"] < 0.05).tolist() == found.different[0].tolist()
    low, high = found.estimate.interval()
    np.testing.assert_allclose(compared[["low", "high"]].to_numpy().T, [low[0], high[0]])
