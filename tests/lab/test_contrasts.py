"""Figures of differences, costs and data sets: what is drawn, in which order, with which words."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from gamlib.lab import contrasts, figures, frontier, tables
from gamlib.lab.statistics import mean_interval
from gamlib.lab.studies import STUDIES, Plan, Study

FinishAll = Callable[..., None]
ERRORS = {"baseline": [6.0, 7.0, 8.0], "ch": [7.1, 8.0, 9.05], "sp": [4.0, 5.1, 6.0], "ch+sp": [6.5, 6.0, 8.5]}


@pytest.fixture
def plan() -> Plan:
    return STUDIES["submodules"].plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])


def differences(plan: Plan) -> Figure | None:
    frame = tables.outcomes(plan)
    return contrasts.paired_differences(tables.comparisons(plan, frame), tables.label(plan, frame))


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


def test_every_difference_its_interval_and_its_verdict_are_drawn(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    figure = differences(plan)
    assert figure is not None
    (axes,) = figure.axes
    compared = tables.comparisons(plan, tables.outcomes(plan))
    assert points(axes, "o") == [list(of.gaps) for of in compared]
    assert points(axes, "D") == [[round(of.mean, 6)] for of in compared]
    for drawn, of in zip(intervals(axes, 0), compared, strict=False):
        assert drawn == pytest.approx(of.interval)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ch", "sp", "ch+sp"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first comparison is on top
    said = [(text.get_text().replace("\n", " "), text.get_fontweight()) for text in axes.texts]
    assert said == [("worse", "bold"), ("better", "bold"), ("not told apart by 3 seeds", "normal")]
    assert figure.get_supxlabel().replace("\n", " ") == (
        "Top-1 error minus that of baseline (points; left of 0 is better) digits, test images, 3 seeds"
    )
    assert legend(figure) == ["one seed", "mean, its own 95 % interval"]
    assert figure.legends[0].get_title().get_text() == "Verdicts: paired t-test, corrected for 7 by Holm"
    assert figure.get_figwidth() == figures.ONE_COLUMN


def test_a_comparison_that_no_seed_has_finished_is_not_drawn(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3, "ch+sp": [6.5, None, None]})
    figure = differences(plan)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["sp", "ch+sp"]
    assert [text.get_text().replace("\n", " ") for text in axes.texts] == ["better", "nothing can be said of one seed"]
    assert [len(gaps) for gaps in points(axes, "o")] == [3, 1]
    assert "digits, test images, 3 seeds, 7 of 12 runs" in figure.get_supxlabel().replace("\n", " ")


def test_several_references_are_named_row_by_row(finish_all: FinishAll) -> None:
    plan = STUDIES["max_pooling"].plan(seeds="0-1")
    finish_all(plan, {arm: [5.0 + number, 6.0 + number**2] for number, arm in enumerate(plan.arms)})
    figure = differences(plan)
    assert figure is not None
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [f"{arm}\nminus {reference}" for arm, reference in plan.compare]
    assert figure.get_figwidth() == figures.TWO_COLUMNS
    assert (
        figure.get_supxlabel().replace("\n", " ").startswith("Difference in top-1 error (points; left of 0 is better)")
    )


def test_the_frontier_has_every_arm_at_its_costs(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3})
    frame = tables.outcomes(plan)
    table = tables.summary(plan, frame).set_index("arm", drop=False)
    table["parameters"] = [1e6, math.nan, 2e6, 4e6]
    table["flops"] = [3e9, math.nan, 2e9, 1e9]
    table["images_per_second"] = [1000.0, math.nan, 500.0, 250.0]
    figure = frontier.frontier(table, tables.label(plan, frame))
    assert figure is not None
    names = [axes.get_xlabel() for axes in figure.axes]
    assert names == ["Parameters (10⁶)", "FLOPs (10⁹)", "Training time (ms per image)"]
    done = table.loc[["baseline", "sp", "ch+sp"]]
    styles = figures.arm_styles(plan.arms)
    for axes, costs in zip(figure.axes, ([1, 2, 4], [3, 2, 1], [1, 2, 4]), strict=True):
        assert [points(axes, styles[arm].marker) for arm in done["arm"]] == [[[cost]] for cost in costs]
        assert [points(axes, styles[arm].marker, "y") for arm in done["arm"]] == [
            [[round(float(error), 6)]] for error in done["top1_error"]
        ]
        ends = zip(done["top1_error"] - done["top1_half"], done["top1_error"] + done["top1_half"], strict=True)
        assert np.array(intervals(axes, 1)) == pytest.approx(np.array(list(ends)))
        assert axes.get_xscale() == "log"
    assert legend(figure) == ["baseline", "sp", "ch+sp"]
    assert "9 of 12 runs" in figure.get_supxlabel()
    best = [points(axes, "None") for axes in figure.axes]
    assert best[:2] == [[[1, 2]], [[1, 2]]]  # ch+sp costs most parameters and gains nothing; by FLOPs it is cheapest


def test_arms_of_nearly_equal_cost_are_moved_apart_and_others_stay() -> None:
    costs = np.array([2.80, 2.81, 3.9, 2.805, 2.85, 2.9])
    places = frontier._aside(pd.Series(costs))
    assert places[[2, 4, 5]].tolist() == pytest.approx([3.9, 2.85, 2.9])  # near, and not equal within 1 %
    assert places[0] < places[3] < places[1] and places[3] == pytest.approx(2.805, rel=1e-4)
    assert all(after / before > 1.005 for before, after in pairwise(sorted(places[[0, 1, 3]])))


@pytest.mark.parametrize(("errors", "from_zero"), [([4.0, 9.0, 6.0], True), ([29.0, 30.0, 30.5], False)])
def test_errors_begin_at_zero_unless_that_wastes_the_figure(
    plan: Plan, finish_all: FinishAll, errors: list[float], from_zero: bool
) -> None:
    finish_all(plan, dict.fromkeys(plan.arms, errors))
    frame = tables.outcomes(plan)
    for figure in (figures.error_by_arm(frame, ""), frontier.frontier(tables.summary(plan, frame), "")):
        assert figure is not None
        low, high = figure.axes[0].get_ylim()
        assert (low == 0) == from_zero and high > max(errors)
        assert from_zero or 10 < low < min(errors)


def test_arms_that_cost_the_same_have_no_frontier(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    table = tables.summary(plan, tables.outcomes(plan))
    assert frontier.frontier(table, "") is not None
    assert frontier.frontier(table.assign(flops=1e9), "") is None


def test_a_panel_without_a_known_cost_is_left_out(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    table = tables.summary(plan, tables.outcomes(plan)).assign(images_per_second=math.nan)
    figure = frontier.frontier(table, "")
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["Parameters (10⁶)", "FLOPs (10⁶)"]


def test_data_sets_stand_side_by_side_with_the_arms_that_they_have(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    other = plan.study.plan("cifar10", "0-2", list(plan.arms), epochs=2, width=0.25)
    assert contrasts.across_datasets([plan, other]) is None
    finish_all(other, {"baseline": [30.0, 31.0, 33.0], "ch": [None] * 3, "sp": [20.0, None, None], "ch+sp": [None] * 3})
    figure = contrasts.across_datasets([other, plan])
    assert figure is not None
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["cifar10", "digits"]
    assert (
        left.get_xlabel().replace("\n", " ")
        == "Top-1 error (%) test images, 3 seeds, epochs=2, width=0.25, 4 of 12 runs"
    )
    assert [text.get_text() for text in left.get_yticklabels()] == list(ERRORS)
    for axes, errors in ((left, [[30, 31, 33], [20]]), (right, list(ERRORS.values()))):
        grey = [line for line in axes.get_lines() if line.get_color() == "0.55"]
        assert [np.asarray(line.get_xdata()).tolist() for line in grey] == errors
    mean, half = mean_interval(tables.outcomes(other).query("arm == 'baseline'")["top1_error"])
    assert intervals(left, 0)[0] == pytest.approx((mean - half, mean + half))


def test_learning_curves_are_means_in_the_style_of_their_arms(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [None] * 3})
    frame = tables.outcomes(plan)
    figure = figures.learning_curves(tables.histories(plan), list(plan.arms), tables.label(plan, frame))
    assert figure is not None
    (axes,) = figure.axes
    styles = figures.arm_styles(plan.arms)
    assert legend(figure) == ["baseline", "sp", "ch+sp"]
    for line, arm in zip(axes.get_lines(), legend(figure), strict=False):
        assert np.asarray(line.get_ydata()) == pytest.approx([np.mean(ERRORS[arm]) + 20, np.mean(ERRORS[arm]) + 10])
        assert line.get_marker() == styles[arm].marker
    assert axes.get_xlabel() == "Epoch" and figure.get_supxlabel() == "digits, test images, 3 seeds, 9 of 12 runs"


def test_the_curves_of_a_run_name_the_images_it_was_evaluated_on() -> None:
    metrics = pd.DataFrame({"epoch": [1, 2], "train_loss": [2, 1], "test_loss": [3, 2]})
    metrics = metrics.assign(train_top1_error=[50, 40], top1_error=[60, 50])
    _, right = figures.learning_curve(metrics, "validation").axes
    assert [line.get_label() for line in right.get_lines()] == ["training", "validation"]


def test_arms_differ_in_grey_and_keep_their_looks_when_others_are_missing() -> None:
    arms = [str(number) for number in range(60)]
    styles = figures.arm_styles(arms)
    assert len({(style.colour, style.marker) for style in styles.values()}) == 60
    few = [styles[arm] for arm in arms[:8]]
    assert len({style.marker for style in few}) == len({style.dashes for style in few}) == 8


def outside(figure: Figure) -> list[str]:
    """The texts of a figure that do not lie inside it whole."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    edge = figure.bbox.padded(0.5)
    axis_of_ticks = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    hidden = [
        tick.label1
        for axis in axis_of_ticks
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    found = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent(renderer)
        if (
            text not in hidden
            and text.get_visible()
            and text.get_text()
            and not (edge.contains(*box.min) and edge.contains(*box.max))
        ):
            found.append(text.get_text())
    return found


@pytest.mark.parametrize("number", [2, 20])
@pytest.mark.parametrize("name", ["a{}", "an arm of twenty-five {}"])
@pytest.mark.parametrize("overrides", [{}, {"epochs": 2, "train_fraction": 0.25, "label_smoothing": 0.1}])
def test_every_text_of_a_figure_lies_inside_it(
    number: int, name: str, overrides: dict[str, Any], finish_all: FinishAll
) -> None:
    study = Study(name="own", arms={name.format(index): {"lr": 0.01 + 0.01 * index} for index in range(number)})
    plan = study.plan(seeds="0-2", **overrides)
    finish_all(plan, {arm: [6.0 + index, 7.0, 8.0] for index, arm in enumerate(plan.arms)})
    frame = tables.outcomes(plan)
    about = tables.label(plan, frame)
    costs = tables.summary(plan, frame).assign(parameters=np.arange(2, number + 2) * 10**6)
    for figure in (
        differences(plan),
        figures.error_by_arm(frame, about),
        figures.learning_curves(tables.histories(plan), list(plan.arms), about),
        frontier.frontier(costs, about),
    ):
        assert figure is not None and outside(figure) == []


def test_the_verdicts_of_a_part_of_a_study_are_headed_by_the_test_that_they_are_of(
    plan: Plan, finish_all: FinishAll
) -> None:
    finish_all(plan, ERRORS)
    part = STUDIES["submodules"].plan(seeds="0-2", arms=["baseline", "ch"])
    figure = differences(part)
    assert figure is not None
    assert figure.legends[0].get_title().get_text() == "Verdicts: paired t-test, corrected for 7 by Holm"


def test_an_arm_has_its_colour_when_the_style_is_over() -> None:
    """A notebook draws a figure after its cell has made it."""
    with plt.style.context(figures.STYLE):
        styled = [to_hex(f"C{number}") for number in range(8)]
    assert [look.colour.lower() for look in figures.arm_styles(map(str, range(8))).values()] == styled
    assert styled[1] != to_hex("C1")
