import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import code

from ablation.config import RunConfig
from ablation.results import load, tables, typeset
from ablation.results.frames import read_predictions
from ablation.results.report import ANY_STUDY
from ablation.results.tables import by_image
from ablation.runs import Run
from ablation.studies import Plan, Study

Finish = Callable[..., Run]
LABEL = np.arange(40) % 4


@pytest.fixture
def plan() -> Plan:
    return Study(name="two", arms={"plain": {"attention": "none"}, "gam": {}}).plan(seeds="0-1")


def leave(run: Run, wrong: list[int], label: "np.ndarray[tuple[int], np.dtype[np.int64]]" = LABEL) -> None:
    predicted = label.copy()
    predicted[wrong] += 1
    run.write_predictions(predicted, label)


def test_each_seed_is_compared_on_its_images(plan: Plan, finish: Finish) -> None:
    for label, wrong in (("plain", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), ("gam", [9, 10])):
        leave(finish(plan.arms[label][0], 5.0), wrong)
    table = by_image(load(plan))
    (row,) = table.to_dict("records")
    p = row.pop("p")
    assert row == {"arm": "gam", "reference": "plain", "seed": 0, "images": 40, "only_arm": 9, "only_reference": 1}
    assert p == pytest.approx(2 * (1 + 10) / 2**10)


def shown(plan: Plan) -> str:
    """What the cell of the notebook of any study shows."""
    (cell,) = (text for text in code(ANY_STUDY) if "by_image" in text)
    lines = cell.strip().splitlines()
    namespace: dict[str, Any] = {"found": load(plan), "tables": tables, "typeset": typeset}
    exec("\n".join([*lines[:-1], f"shown = {lines[-1]}"]), namespace)
    return str(namespace["shown"].to_html())


@pytest.mark.parametrize(
    ("only_arm", "only_reference", "p"), [(6, 16, 0.0525), (12, 3, 0.0352), (0, 0, 1.0), (5, 5, 1.0)]
)
def test_mcnemar_is_the_textbooks(plan: Plan, finish: Finish, only_arm: int, only_reference: int, p: float) -> None:
    """The second table of Wikipedia's "McNemar's test"; then the example of the University of Amsterdam's phoneticians.

    https://www.fon.hum.uva.nl/Service/Statistics/McNemars_test.html: 12 pairs against 3 have p = 0.0352.
    """
    leave(finish(plan.arms["plain"][0], 5.0), list(range(only_arm)))
    leave(finish(plan.arms["gam"][0], 5.0), list(range(only_arm, only_arm + only_reference)))
    (row,) = by_image(load(plan)).to_dict("records")
    assert (row["images"], row["only_arm"], row["only_reference"]) == (40, only_arm, only_reference)
    total = only_arm + only_reference
    tails = 2 * sum(math.comb(total, k) for k in range(min(only_arm, only_reference) + 1)) / 2**total
    assert row["p"] == pytest.approx(min(1, tails)) == pytest.approx(p, abs=5e-5)


def test_a_notebook_shows_an_arm_once_and_every_seed(plan: Plan, finish: Finish) -> None:
    for seed, wrong in enumerate(([9, 10], list(range(40)))):
        leave(finish(plan.arms["plain"][seed], 5.0), [9])
        leave(finish(plan.arms["gam"][seed], 5.0), wrong)
    html = shown(plan)
    assert html.count(">gam<") == html.count(">plain<") == 1 and html.count(">40<") == 2
    assert ">1.000<" in html and ">&lt; 0.001<" in html and "McNemar" in html
    for run in map(Run, plan.configs):
        (run.folder / "predictions.npz").unlink()
    assert "McNemar" in shown(plan)


def assert_left_out(plan: Plan, problem: str) -> None:
    found = load(plan)
    assert by_image(found).empty and found.problems == (problem,)


def test_what_cannot_be_compared_is_left_out(plan: Plan, finish: Finish) -> None:
    runs = {label: [Run(config) for config in configs] for label, configs in plan.arms.items()}
    finish(runs["plain"][0].config, 5.0)
    leave(runs["plain"][0], [1])
    assert by_image(load(plan)).empty, "the other is not done"
    finish(runs["gam"][0].config, 5.0)
    other = f"digits/{runs['gam'][0].folder.name}/predictions.npz is of other test images"
    for label in (LABEL[:20], LABEL[::-1].copy()):  # fewer, or in another order
        leave(runs["gam"][0], [1], label)
        assert_left_out(plan, f"{other}: is missing in the comparison by image")
    leave(runs["gam"][0], [1])
    assert len(by_image(load(plan))) == 1 and load(plan).problems == ()
    file = runs["gam"][0].folder / "predictions.npz"
    name = f"digits/{file.parent.name}/predictions.npz"
    file.write_bytes(file.read_bytes()[:50])
    assert by_image(load(plan)).empty and list(load(plan).problems) == [
        f"{name} is damaged (BadZipFile): is missing in the comparison by image"
    ]
    file.unlink()
    assert by_image(load(plan)).empty and list(load(plan).problems) == [
        f"{name} is missing: is missing in the comparison by image"
    ]


@pytest.mark.parametrize(("classes", "size"), [(10, 1), (1000, 2)])
def test_predictions_are_compact_and_whole(classes: int, size: int, tmp_path: Path) -> None:
    label = np.arange(5000) % classes
    predicted = (label + (np.arange(5000) % 7 == 0)) % classes
    run = Run(RunConfig())
    run.folder.mkdir(parents=True)
    run.write_predictions(predicted, label)
    with np.load(run.folder / "predictions.npz") as arrays:
        assert arrays["predicted"].dtype.itemsize == size
        assert (arrays["predicted"] == predicted).all() and (arrays["label"] == label).all()
    found, classes_of_images = read_predictions(run)
    assert (found == predicted).all() and (classes_of_images == label).all()
