from dataclasses import replace
from fractions import Fraction

import pytest

from gamlib.training.recipes import RECIPES

MILESTONES = {  # of the epochs, as exact fractions
    "cifar": (Fraction(60, 200), Fraction(120, 200), Fraction(160, 200)),
    "imagenet": (Fraction(30, 90), Fraction(60, 90)),
    "mobilenet": (Fraction(30, 90), Fraction(60, 90)),
    "digits": (Fraction(1, 2), Fraction(4, 5)),
}


def test_there_is_an_exact_schedule_here_for_every_recipe() -> None:
    assert MILESTONES.keys() == RECIPES.keys()
    for name, milestones in MILESTONES.items():
        assert RECIPES[name].milestones == tuple(map(float, milestones))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cifar", {"epochs": 200, "lr": 0.1}),
        ("imagenet", {"epochs": 90, "lr": 0.1}),
        ("mobilenet", {"epochs": 90, "lr": 0.045, "weight_decay": 4e-5}),
    ],
)
def test_the_papers_recipes_have_its_printed_values(name: str, values: dict[str, float]) -> None:
    assert {key: getattr(RECIPES[name], key) for key in values} == values


def test_mobilenets_recipe_is_the_resnets_but_for_rate_and_decay() -> None:
    own = {key: getattr(RECIPES["mobilenet"], key) for key in ("lr", "weight_decay")}
    assert RECIPES["mobilenet"] == replace(RECIPES["imagenet"], **own)
    assert RECIPES["mobilenet"].lr != RECIPES["imagenet"].lr


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("cifar", {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008}),
        ("imagenet", {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}),
        ("mobilenet", {0: 0.045, 29: 0.045, 30: 0.0045, 59: 0.0045, 60: 0.00045, 89: 0.00045}),
        ("digits", {0: 0.01, 9: 0.01, 10: 0.001, 15: 0.001, 16: 0.0001, 19: 0.0001}),
    ],
)
def test_the_rate_drops_at_the_epoch_and_not_the_one_before(name: str, rates: dict[int, float]) -> None:
    assert {epoch: RECIPES[name].lr_at(epoch) for epoch in rates} == pytest.approx(rates)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_any_length_drops_at_the_first_epoch_past_the_exact_fraction(name: str) -> None:
    recipe = RECIPES[name]
    for epochs in range(1, 401):
        other = replace(recipe, epochs=epochs)
        first = [-(-drop.numerator * epochs // drop.denominator) for drop in MILESTONES[name]]  # rounded up
        found = [other.lr_at(epoch) for epoch in range(epochs)]
        assert found == [recipe.lr * recipe.gamma ** sum(epoch >= at for at in first) for epoch in range(epochs)]


def test_a_drop_of_ones_own_in_hundredths_comes_at_its_epoch_without_a_slip_of_floats() -> None:
    """0.55 * 100 is more than 55, and 0.29 * 100 less than 29."""
    for hundredths in range(1, 100):
        recipe = replace(RECIPES["digits"], lr=1.0, milestones=(hundredths / 100,), gamma=0.5)
        for epochs in range(1, 401):
            other, first = replace(recipe, epochs=epochs), -(-hundredths * epochs // 100)  # rounded up
            assert (other.lr_at(first - 1), other.lr_at(first)) == (1.0, 0.5), (hundredths, epochs)
