"""Tables, figures and their export, from runs whose outcomes are known."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from gamlib.files import write_whole
from gamlib.lab import contrasts, figures, frontier, report, screen, tables, typeset
from gamlib.lab.places import figures_root
from gamlib.lab.runs import Run, RunFailed
from gamlib.lab.studies import STUDIES, Plan, Study

FinishAll = Callable[..., None]
ERRORS = {"baseline": [6.0, 7.0, 8.0], "ch": [5.0, 5.5, 6.0], "sp": [4.0, 4.5, 5.0], "ch+sp": [3.0, 3.5, 4.0]}


@pytest.fixture
def plan() -> Plan:
    return STUDIES["submodules"].plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])


def test_the_summary_is_mean_interval_and_the_papers_row(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    table = tables.summary(plan, tables.outcomes(plan)).set_index("arm")
    assert table["top1_error"].tolist() == [7.0, 5.5, 4.5, 3.5]
    assert table.loc["baseline", "top1_half"] == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert table["paper_imagenet_top1_error"].tolist() == [30.91, 30.25, 29.61, 29.34]
    assert table["done"].tolist() == [3, 3, 3, 3]


def test_an_arm_that_the_paper_lacks_has_no_number_of_it() -> None:
    pooling = STUDIES["max_pooling"].plan(seeds="0")
    table = tables.summary(pooling, tables.outcomes(pooling)).set_index("arm")
    assert table["paper_imagenet_top1_error"].isna().tolist() == [False, True, False, False, False, False, True, True]
    assert table.loc["GAM wmp", "paper_imagenet_top1_error"] == 28.57


def test_the_papers_numbers_stand_beside_the_papers_backbone_only() -> None:
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


def test_failed_and_partial_runs_stay_out(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    failed = Run(plan.arms["sp"][1])
    (failed.folder / "result.json").unlink()
    failed.write_status(state="failed", error="lost power")
    frame = tables.outcomes(plan)
    assert frame.set_index(["arm", "seed"]).loc[("sp", 1), "state"] == "failed"
    table = tables.summary(plan, frame).set_index("arm")
    assert (table.loc["sp", "done"], table.loc["sp", "top1_error"]) == (2, 4.5)
    assert len(tables.histories(plan)) == 11 * 2
    assert tables.label(plan, frame) == "digits, test images, 3 seeds, 11 of 12 runs"


def test_the_same_data_give_the_same_bytes(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    finish_all(other := elsewhere(plan), ERRORS)
    other.save()
    paths = report.export(plan)
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in report.export(plan)] == first
    pictures = ["", "-differences", "-curves", "-frontier"]
    assert [path.name for path in paths] == [
        *(f"submodules-digits{part}.{kind}" for part in pictures for kind in ("pdf", "png")),
        *("submodules-datasets.pdf", "submodules-datasets.png"),
        *("submodules-digits.csv", "submodules-digits.tex", "submodules-digits-differences.csv"),
    ]


def elsewhere(plan: Plan) -> Plan:
    return plan.study.plan("cifar10", plan.seeds, list(plan.arms), epochs=2, width=0.25)


def test_figures_have_the_width_of_one_column_or_two_and_embedded_truetype_fonts(
    plan: Plan, finish_all: FinishAll
) -> None:
    finish_all(plan, ERRORS)
    paths = {path.name.removeprefix("submodules-digits"): path for path in report.export(plan)}
    assert {name: imread(path).shape[1] for name, path in paths.items() if path.suffix == ".png"} == {
        ".png": 1005,  # 85 mm at 300 dots an inch
        "-differences.png": 1005,
        "-curves.png": 1005,
        "-frontier.png": 2070,  # 175 mm
    }
    drawings = [path.read_bytes() for path in paths.values() if path.suffix == ".pdf"]
    assert len(drawings) == 4 and all(b"FontFile2" in drawing and b"/Type3" not in drawing for drawing in drawings)


def test_tables_are_read_back_as_they_were(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    report.export(plan)
    read = pd.read_csv(places / "figures" / "submodules-digits.csv")
    frame = tables.outcomes(plan)
    pd.testing.assert_frame_equal(read, tables.summary(plan, frame), check_dtype=False)
    compared = pd.read_csv(places / "figures" / "submodules-digits-differences.csv")
    pd.testing.assert_frame_equal(compared, tables.differences(plan, frame), check_dtype=False)
    tex = (places / "figures" / "submodules-digits.tex").read_text()
    assert r"\toprule" in tex and r"3.50 $\pm$ 1.24" in tex and "ch+sp" in tex
    assert "%" not in tex.replace(r"\%", "")


def test_nothing_done_is_nothing_to_report(plan: Plan) -> None:
    with pytest.raises(RunFailed, match="no run of submodules-digits is done"):
        report.report(plan)


def test_a_study_without_a_notebook_is_exported(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    own = plan.model_copy(update={"study": plan.study.model_copy(update={"name": "own", "notebook": ""})})
    assert {path.name for path in report.report(own)} >= {"own-digits.png", "own-digits-curves.pdf", "own-digits.tex"}


def test_arms_whose_names_are_numbers_are_shown_by_their_names(
    finish_all: FinishAll, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Study(name="own", arms={"16": {"reduction": 16}, "0.10": {"reduction": 4}}).plan(seeds="0-1")
    finish_all(own, {"16": [5.0, 6.0], "0.10": [4.0, 5.5]})
    screen.show_report(own, report.export(own))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in ("16", "0.10")] == [
        ["16", "2"],
        ["0.10", "2"],
        ["0.10", "16"],
    ]


def test_nothing_done_is_nothing_to_draw(plan: Plan) -> None:
    frame = tables.outcomes(plan)
    assert figures.error_by_arm(frame, "") is None
    assert figures.learning_curves(tables.histories(plan), list(plan.arms), "") is None
    assert contrasts.paired_differences(tables.comparisons(plan, frame), "") is None
    assert frontier.frontier(tables.summary(plan, frame), "") is None
    assert contrasts.across_datasets([plan, elsewhere(plan)]) is None


def test_costs_are_those_that_the_runs_have_found(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"sp": [None] * 3})
    table = tables.summary(plan, tables.outcomes(plan)).set_index("arm")
    assert list(table.loc["ch", ["flops", "images_per_second", "peak_memory_mib"]]) == [9_920_000, 500, 640]
    costs = ["parameters", "flops", "images_per_second", "peak_memory_mib", "top1_error"]
    assert table.loc["sp", costs].isna().all() and table.loc["ch", costs].notna().all()


def test_speeds_are_medians_over_the_epochs_of_all_runs(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    for config, speeds in zip(plan.arms["ch"], ((1, 900), (100, 200), (300, 400)), strict=True):
        lines = [{"epoch": e, "top1_error": 5.0, "images_per_second": s} for e, s in zip((1, 2), speeds, strict=True)]
        Run(config).write("metrics.jsonl", "\n".join(map(json.dumps, lines)))
    table = tables.summary(plan, tables.outcomes(plan)).set_index("arm")
    assert table.loc["ch", "images_per_second"] == 250
    assert math.isnan(float(table.loc["ch", "peak_memory_mib"]))  # type: ignore[arg-type]


def test_the_flops_of_results_that_lack_them_are_unknown(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS, flops=None)
    table = tables.summary(plan, tables.outcomes(plan))
    assert table["flops"].isna().all() and table["top1_error"].notna().all()


def test_the_comparisons_of_a_study_are_a_table(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [5.0, 5.75, 7.0], "sp": [4.0, None, None], "ch+sp": [None] * 3})
    frame = tables.outcomes(plan)
    table = tables.differences(plan, frame).set_index("arm")
    first = tables.comparisons(plan, frame)[0]
    assert list(table.loc["ch", ["reference", "seeds", "difference"]]) == ["baseline", 3, first.mean]
    assert list(table.loc["ch", ["low", "high", "p_corrected"]]) == [*first.interval, first.corrected]
    verdicts = ["better", "nothing can be said of one seed", "not measured"]
    assert table["verdict"].tolist() == verdicts


def test_some_arms_of_a_study_are_corrected_for_all_its_comparisons(finish_all: FinishAll) -> None:
    whole = STUDIES["submodules"].plan(seeds="0-2")
    some = STUDIES["submodules"].plan(seeds="0-2", arms=["baseline", "ch"])
    finish_all(some, ERRORS)
    (alone,) = tables.comparisons(some, tables.outcomes(some))
    assert alone == tables.comparisons(whole, tables.outcomes(whole))[0]
    assert alone.corrected == pytest.approx(7 * alone.p)
    assert "corrected by Holm for all 7 comparisons" in tables.note(some, tables.outcomes(some))


def test_the_note_says_what_is_done_and_what_made_it(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"sp": [4.0, 5.0, None]})
    changed = {"commit": "1234567890", "clean": False, "device": "NVIDIA H200", "earlier": []}
    Run(plan.arms["ch"][0]).write("provenance.json", json.dumps(changed))
    note = tables.note(plan, tables.outcomes(plan))
    assert (
        "digits, resnet18 at width 0.5, 20 epochs" in note
        and "over seeds 0–2; 11 of 12 runs are done (1 missing);" in note
    )
    assert "gamlib at commit 1234567 with changes, 8fbcf0f, code 0123456789abcdef" in note
    assert "medians over epochs, on NVIDIA H200, cpu." in note and "minus that of baseline in points" in note
    finish_all(plan, ERRORS)
    assert "runs are done" not in tables.note(plan, tables.outcomes(plan))
    wider = STUDIES["submodules"].plan(seeds="0", arms="wider")
    assert "digits, resnet18 at width 0.589 (wider: 0.589), 20 epochs" in tables.note(wider, tables.outcomes(wider))
    alone = STUDIES["submodules"].plan(seeds="0")
    assert "Holm" not in tables.note(alone, tables.outcomes(alone))


def executed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-in for papermill: it exports as the notebook does, pictures without paint; the list tells how often."""
    calls: list[str] = []

    def paint(figure: object, name: str) -> list[Path]:
        path = figures_root() / f"{name}.pdf"
        write_whole(path, name)
        return [path]

    def execute(notebook: str, output: Path, parameters: dict[str, object]) -> None:
        report.export(plan)
        calls.append(notebook)
        nbformat.write(nbformat.v4.new_notebook(), output)

    monkeypatch.setattr(report, "_execute", execute)
    monkeypatch.setattr(figures, "export", paint)
    return calls


def test_a_report_is_made_again_only_when_something_has_changed(
    plan: Plan, finish_all: FinishAll, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(plan, ERRORS | {"sp": [4.0, 5.0, None]})
    elsewhere(plan).save()
    calls = executed(plan, monkeypatch)
    paths = report.report(plan)
    assert paths == report.export(plan) and all(path.exists() for path in paths)
    assert report.report(plan) == paths and len(calls) == 1
    run = Run(plan.arms["sp"][0])
    changes: list[Callable[[], object]] = [
        lambda: finish_all(plan, ERRORS),
        lambda: (run.folder / "metrics.jsonl").write_text("half"),
        lambda: (run.folder / "provenance.json").unlink(),
        lambda: paths[-1].write_text("edited"),
        lambda: paths[0].unlink(),
        lambda: (run.folder.parent / "foreign").mkdir(),
        lambda: finish_all(elsewhere(plan), ERRORS),
    ]
    for number, change in enumerate(changes, 2):
        change()
        report.report(plan)
        assert len(calls) == number
        report.report(plan)
        assert len(calls) == number
    assert places / "figures" / "submodules-datasets.pdf" in report.report(plan)


def test_reports_on_two_data_sets_do_not_make_each_other_old(
    plan: Plan, finish_all: FinishAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(plan)
    for each in (plan, other):
        finish_all(each, ERRORS)
        each.save()
    calls = executed(plan, monkeypatch)
    report.report(plan)
    report.export(other)
    assert report.report(plan) and len(calls) == 1


def test_what_has_nothing_to_show_any_more_is_taken_away(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    report.export(plan)
    (mine := places / "figures" / "submodules-digits-mine.pdf").write_text("kept")
    for arm in ("ch", "sp", "ch+sp"):
        for config in plan.arms[arm]:
            (Run(config).folder / "result.json").unlink()
    names = {path.name for path in report.export(plan)}
    assert names == {path.name for path in (places / "figures").iterdir()} - {mine.name}
    assert "submodules-digits-differences.pdf" not in names and "submodules-digits-curves.pdf" in names


def test_a_half_done_study_is_reported_from_its_finished_runs(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS | {"ch": [5.0, None, None], "ch+sp": [None] * 3})
    Run(plan.arms["ch"][1]).write("metrics.jsonl", '{"epoch": 1, "top1_error": 1.0}\n')  # stopped, and partial
    Run(plan.arms["ch"][1]).write_status(state="preempted")
    report.export(plan)
    table = pd.read_csv(places / "figures" / "submodules-digits.csv").set_index("arm")
    assert table["done"].tolist() == [3, 1, 3, 0] and table.loc["ch", "top1_error"] == 5.0
    assert "7 of 12 runs are done" in (places / "figures" / "submodules-digits.tex").read_text()
    assert len(tables.histories(plan)) == 7 * 2


def test_a_width_that_was_found_is_named_beside_the_usual_one() -> None:
    plan = STUDIES["submodules"].plan(seeds="0-2")
    assert "resnet18 at width 0.5 (wider: 0.589), 20 epochs; errors" in tables.note(plan, tables.outcomes(plan))


@pytest.mark.parametrize(
    ("dataset", "source", "printed"),
    [("digits", "imagenet", [30.91, 24.81, 23.01]), ("cifar100", "cifar100", [None, 22.74, 18.99])],
)
def test_the_benchmark_stands_beside_the_table_of_its_data_set(
    dataset: str, source: str, printed: list[float | None]
) -> None:
    plan = STUDIES["benchmark"].plan(dataset, seeds="0", arms=["ResNet-18", "ResNet-50", "* (gc)"])
    table = tables.summary(plan, frame := tables.outcomes(plan))
    column = table[f"paper_{source}_top1_error"]
    assert [None if math.isnan(value) else value for value in column] == printed
    name = {"imagenet": "ImageNet-1K", "cifar100": "CIFAR-100"}[source]
    assert f"Paper: full width, {name}, one run each." in tables.note(plan, frame)
    texts = typeset.for_reading(table)
    assert texts["Paper top-1"].tolist() == ["–" if value is None else f"{value:.2f}" for value in printed]
    assert texts["Paper top-5"].tolist()[1] == {"imagenet": "7.69", "cifar100": "6.37"}[source]
    assert set(texts["Runs"]) == {"0 of 1"} and set(texts["Top-1 error"]) == {"–"}


def test_on_cifar_arms_that_table_1_lacks_have_the_numbers_of_imagenet() -> None:
    plan = STUDIES["submodules"].plan("cifar100", seeds="0")
    table = tables.summary(plan, frame := tables.outcomes(plan))
    assert table["paper_imagenet_top1_error"].tolist()[:2] == [30.91, 30.25]
    assert "Paper: full width, ImageNet-1K" in tables.note(plan, frame)


def test_as_many_arms_as_the_benchmark_has_are_all_named(finish_all: FinishAll) -> None:
    plan = STUDIES["benchmark"].plan(seeds="0")
    finish_all(plan, {arm: [5.0] for arm in plan.arms})
    figure = figures.error_by_arm(tables.outcomes(plan), "")
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 20 and not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    curves = figures.learning_curves(tables.histories(plan), list(plan.arms), "")
    assert curves is not None
    figure = curves
    FigureCanvasAgg(figure).draw()
    names = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(names) == 20 and all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in names)
