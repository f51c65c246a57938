"""The interval over seeds and test images together: against closed forms, and the coverage of simulated studies."""

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from ablation.hypotheses import Hypotheses
from ablation.results import two_way
from ablation.results.frames import Results, predicted_by
from ablation.results.statistics import compare
from ablation.studies import Study

IMAGES = 2000


def results(wrong: dict[str, NDArray[np.bool_]], test: str = "welch", looks: tuple[int, ...] = ()) -> Results:
    """Of networks that are wrong [seeds, images] on images of class 0."""
    number = max(len(of) for of in wrong.values())
    study = Study(name="s", arms={arm: {"lr": 0.1 + n} for n, arm in enumerate(wrong)}, test=test, looks=list(looks))
    plan = study.plan(seeds=range(number))
    runs = [
        {"arm": arm, "seed": seed, "state": "done", "top1_error": 100 * float(of[seed].mean())}
        for arm, of in wrong.items()
        for seed in range(len(of))
    ]
    predicted = {predicted_by(arm, seed): of[seed].astype(int) for arm, of in wrong.items() for seed in range(len(of))}
    predictions = pd.DataFrame({"label": np.zeros(IMAGES, int), **predicted})
    return Results(plan, pd.DataFrame(runs), pd.DataFrame(), pd.DataFrame(), predictions)


def half(found: Results) -> float:
    (value,) = two_way.halves(found, compare(found.runs, found.plan.study))
    return value


def of_seeds(found: Results) -> float:
    row = compare(found.runs, found.plan.study).iloc[0]
    return float(row["high"] - row["difference"])


def networks(
    generator: np.random.Generator, seeds: int, spread: float, hardness: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Networks that differ in skill, on images that differ in hardness."""
    skill = generator.normal(0, spread, size=(seeds, 1))
    return generator.normal(size=(seeds, len(hardness))) + skill + hardness > 1


@pytest.mark.parametrize("test", ["welch", "paired"])
def test_without_any_spread_of_seeds_it_is_the_normal_interval_over_images(test: str) -> None:
    generator = np.random.default_rng(0)
    base, arm = (np.repeat(generator.random((1, IMAGES)) < share, 3, axis=0) for share in (0.3, 0.25))
    expected = stats.norm.ppf(0.975) * 100 * (arm[0].astype(float) - base[0]).std(ddof=1) / math.sqrt(IMAGES)
    assert half(results({"base": base, "arm": arm}, test)) == pytest.approx(expected, rel=0.06)


def test_where_all_images_are_alike_it_is_the_interval_over_seeds() -> None:
    """Each network is wrong on all images or on none, so that other images of these give the same errors."""
    base, arm = (np.repeat(np.array([[of] for of in kind]), IMAGES, axis=1) for kind in ([1, 0, 1, 1], [0, 0, 1, 0]))
    found = results({"base": base.astype(bool), "arm": arm.astype(bool)})
    assert half(found) == pytest.approx(of_seeds(found), rel=0.15) and half(found) >= of_seeds(found)


def test_it_is_never_narrower_than_the_interval_over_seeds() -> None:
    generator = np.random.default_rng(1)
    for number in range(20):
        hardness = generator.normal(size=IMAGES)
        wrong = {arm: networks(generator, 2 + number % 4, 0.1, hardness) for arm in ("base", "arm")}
        found = results(wrong, ("welch", "paired")[number % 2])
        assert half(found) >= of_seeds(found)


def test_it_holds_the_true_difference_in_95_percent_of_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and images are drawn anew for each; the arms have the same distribution. Over seeds alone it does not."""
    monkeypatch.setattr(two_way, "RESAMPLES", 200)
    generator = np.random.default_rng(2)
    both, seeds = [], []
    for _ in range(200):
        hardness = {arm: generator.normal(size=IMAGES) for arm in ("base", "arm")}  # each its own taste in images
        found = results({arm: networks(generator, 8, 0.02, of) for arm, of in hardness.items()})
        difference = abs(float(compare(found.runs, found.plan.study)["difference"].iloc[0]))
        both.append(difference <= half(found))
        seeds.append(difference <= of_seeds(found))
    assert 0.92 <= np.mean(both) <= 0.99 and np.mean(seeds) < 0.85


def test_it_is_of_the_seeds_of_the_last_look() -> None:
    generator = np.random.default_rng(3)
    wrong = {arm: networks(generator, 5, 0.1, generator.normal(size=IMAGES)) for arm in ("base", "arm")}
    first = results({arm: of[:4] for arm, of in wrong.items()}, looks=(2, 4, 8))
    assert half(results(wrong, looks=(2, 4, 8))) == half(first) != half(results(wrong))


def test_without_predictions_or_with_one_seed_it_is_not_known() -> None:
    generator = np.random.default_rng(4)
    wrong = {arm: networks(generator, 2, 0.1, generator.normal(size=IMAGES)) for arm in ("base", "arm")}
    assert math.isnan(half(results({arm: of[:1] for arm, of in wrong.items()})))
    found = results(wrong)
    lacking = found.predictions.drop(columns=predicted_by("arm", 1))
    assert math.isnan(half(Results(found.plan, found.runs, found.epochs, found.origins, lacking)))
    nothing = pd.DataFrame(columns=["label"])
    assert math.isnan(half(Results(found.plan, found.runs, found.epochs, found.origins, nothing)))
    assert two_way.halves(found, compare(found.runs, Hypotheses())) == []
