"""Tables, figures and their export, from runs whose outcomes are known."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from gamlib.lab import figures, report, tables
from gamlib.lab.runs import Run, RunFailed
from gamlib.lab.studies import STUDIES, Plan, Study

Finish = Callable[..., Run]
ERRORS = {
    "baseline": [6.0, 7.0, 8.0],
    "ch": [5.0, 5.5, 6.0],
    "sp": [4.0, 4.5, 5.0],
    "ch+sp": [3.0, 3.5, 4.0],
    "no gate": [4.0, 5.0, 6.0],
    "wider": [6.0, 6.5, 7.0],
}


@pytest.fixture
def plan() -> Plan:
    return STUDIES["submodules"].plan(seeds="0-2")


def finish_all(plan: Plan, finish: Finish) -> None:
    for arm, configs in plan.arms.items():
        for config, error in zip(configs, ERRORS[arm], strict=True):
            finish(config, error)


def test_the_summary_is_mean_interval_and_the_papers_row(plan: Plan, finish: Finish) -> None:
    finish_all(plan, finish)
    table = tables.summary(plan, tables.outcomes(plan)).set_index("arm")
    assert table["top1_error"].tolist() == [7.0, 5.5, 4.5, 3.5, 5.0, 6.5]
    assert table.loc["baseline", "top1_half"] == pytest.approx(4.302652729911275 / math.sqrt(3))
    printed = table["paper_imagenet_top1_error"]
    assert printed.dropna().to_dict() == {"baseline": 30.91, "ch": 30.25, "sp": 29.61, "ch+sp": 29.34}
    assert table["done"].tolist() == [3] * 6


def test_an_arm_that_the_paper_lacks_has_no_number_of_it(finish: Finish) -> None:
    pooling = STUDIES["max_pooling"].plan(seeds="0")
    table = tables.summary(pooling, tables.outcomes(pooling)).set_index("arm")
    assert table["paper_imagenet_top1_error"].isna().tolist() == [False, True, False, False, False, False, True, True]
    assert table.loc["GAM wmp", "paper_imagenet_top1_error"] == 28.57


def test_the_papers_numbers_stand_beside_the_papers_backbone_only(finish: Finish) -> None:
    for backbone, printed in (("resnet18", 30.91), ("resnet50", 24.81), ("resnet34", None)):
        pooling = STUDIES["max_pooling"].plan(seeds="0", backbone=backbone)
        table = tables.summary(pooling, frame := tables.outcomes(pooling)).set_index("arm")["paper_imagenet_top1_error"]
        assert table.dropna().get("baseline") == printed
        assert ("Paper: full width" in tables.note(pooling, frame)) == (printed is not None)
        assert (len(table.dropna()) == 5) == (backbone == "resnet18")
    assert "resnet34 at width 0.5, 20 epochs; errors" in tables.note(pooling, frame)
    assert tables.note(pooling, frame).endswith(pooling.study.note)


def test_a_study_of_several_backbones_names_them_all() -> None:
    arms = {backbone: {"backbone": backbone, "attention": "se"} for backbone in ("resnet18", "mobilenet_v2")}
    plan = Study(name="two", arms=arms).plan(seeds="0")
    assert "digits, resnet18, mobilenet_v2 at width 0.5" in tables.note(plan, tables.outcomes(plan))


def test_a_width_that_was_found_is_named_beside_the_usual_one(plan: Plan) -> None:
    assert "resnet18 at width 0.5 (wider: 0.589), 20 epochs; errors" in tables.note(plan, tables.outcomes(plan))


@pytest.mark.parametrize(
    ("dataset", "source", "printed"),
    [("digits", "imagenet", [30.91, 24.81, 23.01]), ("cifar100", "cifar100", [None, 22.74, 18.99])],
)
def test_the_benchmark_stands_beside_the_table_of_its_data_set(
    dataset: str, source: str, printed: list[float | None]
) -> None:
    plan = STUDIES["benchmark"].only(["ResNet-18", "ResNet-50", "* (gc)"]).plan(dataset, seeds="0")
    table = tables.summary(plan, frame := tables.outcomes(plan))
    column = table[f"paper_{source}_top1_error"]
    assert [None if math.isnan(value) else value for value in column] == printed
    name = {"imagenet": "ImageNet-1K", "cifar100": "CIFAR-100"}[source]
    assert f"Paper: full width, {name}, one run each." in tables.note(plan, frame)
    texts = tables.for_reading(table)
    assert texts["Paper top-1"].tolist() == ["–" if value is None else f"{value:.2f}" for value in printed]
    assert texts["Paper top-5"].tolist()[1] == {"imagenet": "7.69", "cifar100": "6.37"}[source]
    assert set(texts["Runs"]) == {"0 of 1"} and set(texts["Top-1 error"]) == {"–"}


def test_on_cifar_arms_that_table_1_lacks_have_the_numbers_of_imagenet() -> None:
    plan = STUDIES["submodules"].plan("cifar100", seeds="0")
    table = tables.summary(plan, frame := tables.outcomes(plan))
    assert table["paper_imagenet_top1_error"].tolist()[:2] == [30.91, 30.25]
    assert "Paper: full width, ImageNet-1K" in tables.note(plan, frame)


def test_failed_and_partial_runs_stay_out(plan: Plan, finish: Finish) -> None:
    finish_all(plan, finish)
    failed = Run(plan.arms["sp"][1])
    (failed.folder / "result.json").unlink()
    failed.write_status(state="failed", error="lost power")
    frame = tables.outcomes(plan)
    assert frame.set_index(["arm", "seed"]).loc[("sp", 1), "state"] == "failed"
    table = tables.summary(plan, frame).set_index("arm")
    assert (table.loc["sp", "done"], table.loc["sp", "top1_error"]) == (2, 4.5)
    assert len(tables.histories(plan)) == 17 * 2
    assert tables.label(plan, frame) == "digits, test images, 3 seeds, 17 of 18 runs"


def test_the_same_data_give_the_same_bytes(plan: Plan, finish: Finish) -> None:
    finish_all(plan, finish)
    paths = report.export(plan)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in report.export(plan)] == first
    assert sorted(path.suffix for path in paths) == [".csv", ".pdf", ".pdf", ".png", ".png", ".tex"]


def test_figures_have_the_width_of_a_column_and_embedded_fonts(plan: Plan, finish: Finish) -> None:
    finish_all(plan, finish)
    for path in report.export(plan):
        if path.suffix == ".png":
            assert imread(path).shape[1] == 1005  # 85 mm at 300 dots an inch
        if path.suffix == ".pdf":
            assert b"FontFile2" in path.read_bytes()


def test_as_many_arms_as_the_benchmark_has_are_all_named(finish: Finish) -> None:
    plan = STUDIES["benchmark"].plan(seeds="0")
    for config in plan.configs:
        finish(config, 5.0)
    figure = figures.error_by_arm(tables.outcomes(plan), "")
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 20 and not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    figure = figures.learning_curves(tables.histories(plan), list(plan.arms))
    FigureCanvasAgg(figure).draw()
    names = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(names) == 20 and all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in names)


def test_tables_are_read_back_as_they_were(plan: Plan, finish: Finish, places: Path) -> None:
    finish_all(plan, finish)
    report.export(plan)
    read = pd.read_csv(places / "figures" / "submodules-digits.csv")
    pd.testing.assert_frame_equal(read, tables.summary(plan, tables.outcomes(plan)), check_dtype=False)
    tex = (places / "figures" / "submodules-digits.tex").read_text()
    assert r"\toprule" in tex and r"3.50 $\pm$ 1.24" in tex and "ch+sp" in tex
    assert "%" not in tex.replace(r"\%", "")


def test_nothing_done_is_nothing_to_report(plan: Plan) -> None:
    with pytest.raises(RunFailed, match="no run of submodules-digits is done"):
        report.report(plan)


def test_a_study_without_a_notebook_is_exported(plan: Plan, finish: Finish, places: Path) -> None:
    finish_all(plan, finish)
    own = plan.model_copy(update={"study": plan.study.model_copy(update={"name": "own", "notebook": ""})})
    assert {path.name for path in report.report(own)} >= {"own-digits.png", "own-digits-curves.pdf", "own-digits.tex"}


def test_nothing_done_is_nothing_to_draw(plan: Plan) -> None:
    with pytest.raises(ValueError, match="no run of this study is done"):
        figures.error_by_arm(tables.outcomes(plan), "")
    with pytest.raises(ValueError, match="no run of this study is done"):
        figures.learning_curves(tables.histories(plan), list(plan.arms))
