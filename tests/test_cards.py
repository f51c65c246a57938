"""The method cards: one for each mechanism, with no number that is not computed."""

import re
from collections.abc import Callable
from typing import Any

import cards
import pytest

from ablation.paths import ROOT
from ablation.results import publication
from ablation.studies import Study
from gamlib.names import ATTENTIONS

QUICK = ("options", "measured")
EQUATION = re.compile(r"^```math\n(.*?)\n```$", re.M | re.S)


def blocks(text: str) -> dict[str, str]:
    """What stands below each comment of a card."""
    return {block[1]: block[0] for block in cards.BLOCK.finditer(text)}


def test_every_mechanism_has_a_card_and_the_site_shows_it() -> None:
    assert {path.stem for path in cards.CARDS.glob("*.md")} == ATTENTIONS.keys() - {"none"} == {*cards.NAMES}
    shown = re.findall(r"docs/mechanisms/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(shown) == sorted(cards.NAMES)


@pytest.mark.parametrize("name", cards.NAMES)
def test_the_prose_of_a_card_has_no_number(name: str) -> None:
    """Sizes of windows are named, such as 7×7; code and addresses may have digits."""
    prose = EQUATION.sub("", cards.BLOCK.sub("", (cards.CARDS / f"{name}.md").read_text()))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|\d×\d|^# .*", "", prose)
    assert not re.findall(r".*\d.*", prose)


@pytest.mark.parametrize("name", cards.NAMES)
def test_the_equations_of_a_card_define_what_they_use(name: str) -> None:
    """Each attention map, gate or branch that one equation has is the left side of another, or of a card linked to."""
    text = (cards.CARDS / f"{name}.md").read_text()
    if "gam.md#what-it-computes" in text:
        text += (cards.CARDS / "gam.md").read_text()
    maps = {one for equation in EQUATION.findall(text) for one in re.findall(r"\b[MG](?:_\w)?(?=\(|_\{)", equation)}
    defined = re.findall(r"^(\w+)\([^()]*\) = ", "\n".join(EQUATION.findall(text)), re.M)
    assert EQUATION.findall(text) and maps <= {*defined}


@pytest.mark.parametrize("name", cards.NAMES)
def test_every_option_of_a_card_has_a_word_on_its_value(name: str) -> None:
    values = (cards.CARDS / f"{name}.md").read_text().partition("## Values")[2].partition("\n## ")[0]
    prose = cards.BLOCK.sub("", values)
    assert "All as" in prose or all(f"`{key}`" in prose for key in re.findall(r"^\| `(\w+)`", values, re.M))


@pytest.mark.parametrize("name", cards.NAMES)
def test_options_and_measurements_of_a_card_are_as_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = blocks((cards.CARDS / f"{name}.md").read_text())
    assert there.keys() == {*QUICK, "cost"}
    monkeypatch.setattr(cards, "cost", lambda name: "it takes seconds")
    made = blocks(cards.filled(name))
    assert {key: there[key] for key in QUICK} == {key: made[key] for key in QUICK}


def test_studies_that_test_differently_share_a_table(
    finish_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a margin, and ran some of its arms only; nothing of it stands in a table of the other alone."""
    arms: dict[str, Any] = {"plain": {"attention": "none"}, "GAM": {}, "SE": {"attention": "se"}}
    errors = {"plain": [6.0, 6.1, 6.3], "GAM": [5.0, 5.2, 5.1], "SE": [6.0, 5.9, 6.1]}
    plans = [
        Study(name="some", arms=arms, base={"epochs": 1}, margin=0.5).plan(seeds="0-2", arms=["plain", "GAM"]),
        Study(name="usual", arms=arms, base={"epochs": 1}).plan(seeds="0-2"),
    ]
    for plan in plans:
        finish_all(plan, errors)
        publication.publish(plan)
    monkeypatch.setattr(cards, "DATA", publication.data_folder())
    monkeypatch.setattr(cards, "comparisons", cards.comparisons.__wrapped__)
    head, _, first, second = cards.measured("gam").splitlines()
    assert "| p, equal (Holm) | Verdict |" in head and "| – | better |" in second and "nan" not in first + second
    head, _, only = cards.measured("se").splitlines()
    assert "equal" not in head and "| [usual](" in only


@pytest.mark.slow
@pytest.mark.parametrize("name", ["se", "gam_copied"])
def test_the_cost_in_the_smallest_network_is_as_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "BACKBONES", ("resnet18",))
    assert cards.cost(name).splitlines()[-1] in (cards.CARDS / f"{name}.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("name", cards.NAMES)
def test_a_card_is_as_computed(name: str) -> None:
    """`python docs/cards.py` makes it so."""
    assert (cards.CARDS / f"{name}.md").read_text() == cards.filled(name)
