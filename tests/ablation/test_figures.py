"""Figures as the notebooks draw them: what is drawn, in which order, with which words."""

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from cells import code, drawn, outside
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ablation import results
from ablation.config import RunConfig
from ablation.results import figures, tables
from ablation.results.statistics import ci95
from ablation.runs import Run
from ablation.studies import Plan, Study
from ablation.study_files import find_study

pytestmark = pytest.mark.slow

FinishAll = Callable[..., None]
ERRORS = {"baseline": [6.0, 7.0, 8.0], "ch": [7.1, 8.0, 9.05], "sp": [4.0, 5.1, 6.0], "ch+sp": [6.5, 6.0, 8.5]}


@pytest.fixture
def plan() -> Plan:
    return find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])


def dots(axes: Axes, along: int) -> list[list[float]]:
    """The dots of the seeds, row by row or column by column, along x (0) or y (1)."""
    swarms = [np.asarray(swarm.get_offsets()) for swarm in axes.collections if isinstance(swarm, PathCollection)]
    return [sorted(swarm[:, along].round(6).tolist()) for swarm in swarms if swarm.size]


def diamonds(axes: Axes, along: int) -> list[float]:
    """The means, in the order drawn."""
    means = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "D"]
    return [round(float(point[along]), 6) for points in means for point in np.asarray(points)]


def bars(axes: Axes, along: int) -> list[tuple[float, float]]:
    """The ends of seaborn's intervals, in the order drawn."""
    lines = [np.asarray(line.get_xydata()) for line in axes.get_lines() if line.get_marker() in ("None", "", None)]
    return [(float(np.nanmin(line[:, along])), float(np.nanmax(line[:, along]))) for line in lines if len(line) > 2]


def points(axes: Axes, marker: str, of: str = "x") -> list[list[float]]:
    """Of every line with that marker what it draws, those of the legend and of an axis left out."""
    found = [np.atleast_1d(line.get_data()["xy".index(of)]) for line in axes.get_lines() if line.get_marker() == marker]
    return [data.astype(float).round(6).tolist() for data in found if len(data)]


def intervals(axes: Axes, along: int) -> list[tuple[float, float]]:
    """The ends of all error bars along x (0) or y (1), in the order drawn; those of the legend are left out."""
    collections = [collection for container in axes.containers for collection in container.lines[2]]  # type: ignore[attr-defined]
    segments = [segment for collection in collections for segment in collection.get_segments() if len(segment)]
    return [(float(segment[0, along]), float(segment[1, along])) for segment in segments]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_seed_and_the_interval_of_its_arm_are_drawn(plan: Plan, finish_all: FinishAll) -> None:
    errors = ERRORS | {"ch": [7.0, 7.0]}
    finish_all(plan, ERRORS | {"ch": [7.0, 7.0, None]})
    figure = drawn(plan)[""]
    (axes,) = figure.axes
    assert dots(axes, 1) == list(map(sorted, errors.values()))
    assert len({point for swarm in dots(axes, 0) for point in swarm}) > 4, "equal ones side by side"
    assert diamonds(axes, 1) == [7.0, 7.0, round(15.1 / 3, 6), 7.0]
    assert bars(axes, 1) == [pytest.approx(ci95(of_arm)) for of_arm in errors.values()]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(ERRORS)
    assert legend(figure) == ["one seed", "mean, 95 % interval"]


def test_every_difference_its_interval_and_its_verdict_are_drawn(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    figure = drawn(plan)["-differences"]
    (axes,) = figure.axes
    compared = tables.differences(results.load(plan))
    assert dots(axes, 0) == [sorted(round(gap, 6) for gap in gaps) for gaps in compared["gaps"]]
    assert diamonds(axes, 0) == compared["difference"].round(6).tolist()
    ends = [pytest.approx(of) for of in zip(compared["low"], compared["high"], strict=True)]
    assert intervals(axes, 0) == ends
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ch", "sp", "ch+sp"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first comparison is on top
    said = [(text.get_text().replace("\n", " "), text.get_fontweight()) for text in axes.texts]
    assert said == [("worse", "bold"), ("better", "bold"), ("not told apart by 3 seeds", "normal")]
    assert re.sub(r"\s", " ", figure.get_supxlabel()) == (
        "Top-1 error minus that of baseline (points; left of 0 is better) digits, test images, 3 seeds"
    )
    assert legend(figure) == ["one seed", "mean, its own 95 % interval"]
    assert figure.legends[0].get_title().get_text() == "Verdicts: paired t-test, corrected for 7 by Holm"
    assert figure.get_figwidth() == figures.ONE_COLUMN


def test_a_comparison_that_no_seed_has_finished_is_not_drawn(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3, "ch+sp": [6.5, None, None]})
    figure = drawn(plan)["-differences"]
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["sp", "ch+sp"]
    assert [text.get_text().replace("\n", " ") for text in axes.texts] == ["better", "nothing can be said of one seed"]
    assert [len(gaps) for gaps in dots(axes, 0)] == [3, 1]
    assert "digits, test images, 3 seeds, 7 of 12 runs" in figure.get_supxlabel().replace("\n", " ")


def test_several_references_are_named_row_by_row(finish_all: FinishAll) -> None:
    plan = find_study("max_pooling").plan(seeds="0-1")
    finish_all(plan, {arm: [5.0 + number, 6.0 + number**2] for number, arm in enumerate(plan.arms)})
    figure = drawn(plan)["-differences"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [f"{arm}\nminus {reference}" for arm, reference in plan.compare]
    assert figure.get_figwidth() == figures.TWO_COLUMNS
    said = re.sub(r"\s", " ", figure.get_supxlabel())
    assert said.startswith("Difference in top-1 error (points; left of 0 is better)")


def costing(monkeypatch: pytest.MonkeyPatch, **columns: list[float] | float) -> None:
    """Arms of known costs."""
    found = tables.summary
    monkeypatch.setattr(tables, "summary", lambda results: found(results).assign(**columns))


def test_the_frontier_has_every_arm_at_its_costs(
    plan: Plan, finish_all: FinishAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3})
    costs = {"parameters": [1e6, math.nan, 2e6, 4e6], "flops": [3e9, math.nan, 2e9, 1e9]}
    costing(monkeypatch, **costs, images_per_second=[1000.0, math.nan, 500.0, 250.0])
    figure = drawn(plan)["-frontier"]
    names = [axes.get_xlabel() for axes in figure.axes]
    assert names == ["Parameters (10⁶)", "FLOPs (10⁹)", "Training time (ms per image)"]
    done = tables.summary(results.load(plan)).set_index("arm", drop=False).loc[["baseline", "sp", "ch+sp"]]
    markers = figures.looks(plan.arms)["markers"]
    for axes, costs_of in zip(figure.axes, ([1, 2, 4], [3, 2, 1], [1, 2, 4]), strict=True):
        assert [points(axes, markers[arm]) for arm in done["arm"]] == [[[cost]] for cost in costs_of]
        assert [points(axes, markers[arm], "y") for arm in done["arm"]] == [
            [[round(float(error), 6)]] for error in done["top1_error"]
        ]
        ends = zip(done["top1_error"] - done["top1_half"], done["top1_error"] + done["top1_half"], strict=True)
        assert np.array(intervals(axes, 1)) == pytest.approx(np.array(list(ends)))
        assert axes.get_xscale() == "log"
    assert legend(figure) == ["baseline", "sp", "ch+sp"]
    assert "9 of 12 runs" in figure.get_supxlabel()
    best = [points(axes, "None") for axes in figure.axes]
    assert best == [[[1, 2]]] * 3  # ch+sp costs most parameters and gains nothing; by FLOPs it is cheapest


@pytest.mark.parametrize(("errors", "from_zero"), [([4.0, 9.0, 6.0], True), ([29.0, 30.0, 30.5], False)])
def test_errors_begin_at_zero_unless_that_wastes_the_figure(
    plan: Plan, finish_all: FinishAll, errors: list[float], from_zero: bool
) -> None:
    finish_all(plan, dict.fromkeys(plan.arms, errors))
    found = drawn(plan)
    for figure in (found[""], found["-frontier"]):
        low, high = figure.axes[0].get_ylim()
        assert (low == 0) == from_zero and high > max(errors)
        assert from_zero or 10 < low < min(errors)


def test_arms_that_cost_the_same_have_no_frontier(
    plan: Plan, finish_all: FinishAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(plan, ERRORS)
    assert len(tables.costs(results.load(plan)))
    costing(monkeypatch, flops=1e9)
    assert tables.costs(results.load(plan)).empty and "-frontier" not in drawn(plan)


def test_a_panel_without_a_known_cost_is_left_out(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    found = results.load(plan)
    costs = tables.costs(replace(found, epochs=found.epochs.iloc[:0]))
    assert list(costs["cost"].unique()) == ["Parameters (10⁶)", "FLOPs (10⁶)"]


def test_nothing_done_is_nothing_to_draw(plan: Plan) -> None:
    assert drawn(plan) == {}


def test_data_sets_stand_side_by_side_with_the_arms_that_they_have(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    other = plan.study.plan("cifar10", "0-2", list(plan.arms), epochs=2, width=0.25)
    other.save()
    assert "-datasets" not in drawn(plan), "nothing is done there"
    finish_all(other, {"baseline": [30.0, 31.0, 33.0], "ch": [None] * 3, "sp": [20.0, None, None], "ch+sp": [None] * 3})
    left, right = drawn(plan)["-datasets"].axes
    assert [axes.get_title() for axes in (left, right)] == ["cifar10", "digits"]
    below = left.get_xlabel().replace("\n", " ").replace("\xa0", " ")  # broken at commas only
    assert below == "Top-1 error (%) test images, 3 seeds, epochs=2, width=0.25, 4 of 12 runs"
    assert [text.get_text() for text in left.get_yticklabels()] == list(ERRORS)
    for axes, errors in ((left, [[30, 31, 33], [20]]), (right, list(map(sorted, ERRORS.values())))):
        assert dots(axes, 0) == errors
    assert bars(left, 0)[0] == pytest.approx(ci95([30.0, 31.0, 33.0]))
    colours = figures.looks(plan.study.arms)["palette"]
    means = [line for line in right.get_lines() if line.get_marker() in figures.MARKERS and np.size(line.get_xydata())]
    assert {to_hex(str(line.get_color())).upper() for line in means} == {colours[arm].upper() for arm in plan.arms}


def test_learning_curves_are_means_in_the_style_of_their_arms(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3})
    figure = drawn(plan)["-curves"]
    (axes,) = figure.axes
    looks = figures.looks(plan.study.arms)
    assert legend(figure) == ["baseline", "sp", "ch+sp"]
    for line, arm in zip(axes.get_lines(), legend(figure), strict=False):
        assert np.asarray(line.get_ydata()) == pytest.approx([np.mean(ERRORS[arm]) + 20, np.mean(ERRORS[arm]) + 10])
        assert line.get_marker() == looks["markers"][arm]
        assert to_hex(line.get_color()).upper() == looks["palette"][arm].upper()
    assert axes.get_xlabel() == "Epoch" and figure.get_supxlabel() == "digits, test images, 3 seeds, 9 of 12 runs"


def test_the_curves_of_a_run_name_the_images_it_was_evaluated_on() -> None:
    run = Run(RunConfig(evaluate_on="validation"))
    losses = {"train_loss": 2.0, "test_loss": 3.0, "train_top1_error": 50.0, "top1_error": 60.0}
    run.write("metrics.jsonl", "".join(json.dumps({"epoch": epoch, **losses}) + "\n" for epoch in (1, 2)))
    namespace: dict[str, Any] = {"run": run, "plt": plt, "figures": figures, "MaxNLocator": MaxNLocator}
    (cell,) = (text for text in code("run.ipynb") if "plt.subplots" in text)
    exec(cell, namespace)
    left, right = namespace["figure"].axes
    assert [line.get_label() for line in right.get_lines()] == ["training", "validation"]
    assert [list(line.get_ydata()) for line in (*left.get_lines(), *right.get_lines())] == [
        [value, value] for value in losses.values()
    ]
    plt.close("all")


def test_arms_differ_in_grey_and_keep_their_looks_when_others_are_missing() -> None:
    arms = [str(number) for number in range(60)]
    colours, markers, dashes = figures.looks(arms).values()
    assert len({(colours[arm], markers[arm]) for arm in arms}) == 60
    assert len({markers[arm] for arm in arms[:8]}) == len({dashes[arm] for arm in arms[:8]}) == 8


def test_figures_say_labels_and_the_name_of_the_data_set_and_have_the_colours_of_arms(
    finish_all: FinishAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"a": {"label": "Plain"}, "b": {"reduction": 8, "label": "GAM, r = 8", "colour": "tab:red"}}
    plan = Study(name="own", arms=arms, dataset={"path": "digits", "name": "Digits 32"}).plan(seeds="0-1")
    finish_all(plan, {"a": [6.0, 7.0], "b": [4.0, 4.5]})
    finish_all(other := plan.study.plan("cifar10", "0-1", epochs=2, width=0.25), {"a": [30.0, 31.0], "b": [20.0, 22.0]})
    other.save()
    costing(monkeypatch, parameters=[1e6, 2e6])
    found = drawn(plan, 3.5)
    assert legend(found["-curves"]) == legend(found["-frontier"]) == ["Plain", "GAM, r = 8"]
    assert [text.get_text() for text in found["-differences"].axes[0].get_yticklabels()] == ["GAM, r = 8"]
    assert "minus that of Plain" in found["-differences"].get_supxlabel().replace("\n", " ")
    assert all("Digits 32, test images" in found[name].get_supxlabel() for name in ("", "-curves", "-frontier"))
    assert [axes.get_title() for axes in found["-datasets"].axes] == ["cifar10", "Digits 32"]
    colours = [to_hex(line.get_color()) for line in found["-curves"].axes[0].get_lines()[:2]]
    assert colours == [to_hex("black"), to_hex("tab:red")]
    assert {name: outside(figure) for name, figure in found.items()} == {name: [] for name in found}


NAMES, LONG = ("a{}", "an arm of twenty-five {}"), {"epochs": 2, "train_fraction": 0.25, "label_smoothing": 0.1}
USUAL_WIDTHS = itertools.product([None], [2, 20], NAMES, [{}, LONG])
ASKED_FOR = [(3.0, 20, NAMES[1], LONG), (3.5, 2, NAMES[0], {}), (3.5, 20, NAMES[1], LONG), (7.0, 20, NAMES[1], LONG)]


@pytest.mark.parametrize(("width", "number", "name", "overrides"), [*USUAL_WIDTHS, *ASKED_FOR])
def test_every_text_of_a_figure_lies_inside_it(
    width: float | None,
    number: int,
    name: str,
    overrides: dict[str, Any],
    finish_all: FinishAll,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = Study(name="own", arms={name.format(index): {"lr": 0.01 + 0.01 * index} for index in range(number)})
    plan = study.plan(seeds="0-2", **overrides)
    finish_all(plan, {arm: [6.0 + index, 7.0, 8.0] for index, arm in enumerate(plan.arms)})
    costing(monkeypatch, parameters=[1e6 * index for index in range(2, number + 2)])
    found = drawn(plan, width)
    assert found.keys() == {"", "-differences", "-curves", "-frontier"}
    assert width is None or {figure.get_figwidth() for figure in found.values()} == {width}
    assert {name: outside(figure) for name, figure in found.items()} == {name: [] for name in found}


def test_the_verdicts_of_a_part_of_a_study_are_headed_by_the_test_that_they_are_of(
    plan: Plan, finish_all: FinishAll
) -> None:
    finish_all(plan, ERRORS)
    part = find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch"])
    figure = drawn(part)["-differences"]
    assert figure.legends[0].get_title().get_text() == "Verdicts: paired t-test, corrected for 7 by Holm"


def test_colours_are_named_those_of_the_style() -> None:
    """A notebook may draw in another style, in which "C1" is another colour."""
    with plt.style.context(figures.STYLE):
        styled = [to_hex(f"C{number}") for number in range(8)]
    assert [colour.lower() for colour in figures.looks([*map(str, range(8))])["palette"].values()] == styled
    assert styled[1] != to_hex("C1")


def test_as_many_arms_as_the_benchmark_has_are_all_named(finish_all: FinishAll) -> None:
    plan = find_study("benchmark").plan(seeds="0")
    finish_all(plan, {arm: [5.0] for arm in plan.arms})
    found = drawn(plan)
    FigureCanvasAgg(found[""]).draw()
    boxes = [label.get_window_extent() for label in found[""].axes[0].get_xticklabels()]
    assert len(boxes) == 20 and not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    figure = found["-curves"]
    FigureCanvasAgg(figure).draw()
    names = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(names) == 20 and all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in names)
