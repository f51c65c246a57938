"""Tables, figures and their export, from runs whose outcomes are known."""

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cells import written
from matplotlib.image import imread
from typer.testing import CliRunner

from ablation.cli import app
from ablation.paths import ROOT
from ablation.provenance import source_hash
from ablation.results import load, report, tables, typeset
from ablation.results.statistics import ci95
from ablation.runs import Run, RunFailed
from ablation.studies import Plan, Study
from ablation.study_files import find_study
from gamlib.files import write_whole

FinishAll = Callable[..., None]
ERRORS = {"baseline": [6.0, 7.0, 8.0], "ch": [5.0, 5.5, 6.0], "sp": [4.0, 4.5, 5.0], "ch+sp": [3.0, 3.5, 4.0]}


@pytest.fixture
def plan() -> Plan:
    return find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])


def test_the_summary_is_mean_interval_and_the_papers_row(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    table = tables.summary(load(plan)).set_index("arm")
    assert table["top1_error"].tolist() == [7.0, 5.5, 4.5, 3.5]
    assert table.loc["baseline", "top1_half"] == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert table["paper_imagenet_top1_error"].tolist() == [30.91, 30.25, 29.61, 29.34]
    assert table["done"].tolist() == [3, 3, 3, 3]


def test_an_arm_that_the_paper_lacks_has_no_number_of_it() -> None:
    pooling = find_study("max_pooling").plan(seeds="0")
    table = tables.summary(load(pooling)).set_index("arm")
    assert table["paper_imagenet_top1_error"].isna().tolist() == [False, True, False, False, False, False, True, True]
    assert table.loc["GAM wmp", "paper_imagenet_top1_error"] == 28.57


def test_the_papers_numbers_stand_beside_the_papers_backbone_only() -> None:
    for backbone, printed in (("resnet18", 30.91), ("resnet50", 24.81), ("resnet34", None)):
        pooling = find_study("max_pooling").plan(seeds="0", backbone=backbone)
        table = tables.summary(found := load(pooling)).set_index("arm")["paper_imagenet_top1_error"]
        assert table.dropna().get("baseline") == printed
        assert ("Paper: full width" in tables.note(found)) == (printed is not None)
        assert (len(table.dropna()) == 5) == (backbone == "resnet18")
    assert "resnet34 at width 0.5, 20 epochs; errors" in tables.note(found)
    assert tables.note(found).endswith(pooling.study.note)


def test_a_study_of_several_backbones_names_them_all() -> None:
    arms = {backbone: {"backbone": backbone, "attention": "se"} for backbone in ("resnet18", "mobilenet_v2")}
    plan = Study(name="two", arms=arms).plan(seeds="0")
    assert "digits, resnet18, mobilenet_v2 at width 0.5" in tables.note(load(plan))


def test_failed_and_partial_runs_stay_out(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    failed = Run(plan.arms["sp"][1])
    (failed.folder / "result.json").unlink()
    failed.write_status(state="failed", error="lost power")
    found = load(plan)
    assert found.runs.set_index(["arm", "seed"]).loc[("sp", 1), "state"] == "failed"
    table = tables.summary(found).set_index("arm")
    assert (table.loc["sp", "done"], table.loc["sp", "top1_error"]) == (2, 4.5)
    assert len(load(plan).epochs) == 11 * 2
    assert tables.about(found) == "digits, test images, 3 seeds, 11 of 12 runs"


@pytest.mark.slow
def test_the_same_data_give_the_same_bytes_and_leave_files_untouched(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    finish_all(other := elsewhere(plan), ERRORS)
    other.save()
    paths = written(plan, formats="pdf,png,svg")
    first = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    svg = [path.rename(path.with_suffix(".first")) for path in paths if path.suffix == ".svg"]  # to be drawn anew
    again = written(plan, formats=["pdf", "png", "svg"])
    assert [path.read_bytes() for path in again] == [data for data, _ in first]
    kept = [(path.suffix, path.stat().st_mtime_ns == at) for path, (_, at) in zip(again, first, strict=True)]
    assert len(svg) == 5 and all(same == (suffix != ".svg") for suffix, same in kept)
    pictures = ["", "-differences", "-curves", "-frontier"]
    assert [path.name for path in paths] == [
        *(f"submodules-digits{part}.{kind}" for part in pictures for kind in ("pdf", "png", "svg")),
        *("submodules-datasets.pdf", "submodules-datasets.png", "submodules-datasets.svg"),
        *("submodules-digits.csv", "submodules-digits.tex", "submodules-digits-differences.csv"),
    ]


def elsewhere(plan: Plan) -> Plan:
    return plan.study.plan("cifar10", plan.seeds, list(plan.arms), epochs=2, width=0.25)


@pytest.mark.slow
def test_figures_have_the_width_of_one_column_or_two_and_embedded_truetype_fonts(
    plan: Plan, finish_all: FinishAll
) -> None:
    finish_all(plan, ERRORS)
    paths = {path.name.removeprefix("submodules-digits"): path for path in written(plan)}
    assert {name: imread(path).shape[1] for name, path in paths.items() if path.suffix == ".png"} == {
        ".png": 1005,  # 85 mm at 300 dots an inch
        "-differences.png": 1005,
        "-curves.png": 1005,
        "-frontier.png": 2070,  # 175 mm
    }
    drawings = [path.read_bytes() for path in paths.values() if path.suffix == ".pdf"]
    assert len(drawings) == 4 and all(b"FontFile2" in drawing and b"/Type3" not in drawing for drawing in drawings)


@pytest.mark.slow
def test_tables_are_read_back_as_they_were(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    written(plan)
    read = pd.read_csv(places / "figures" / "submodules-digits.csv")
    found = load(plan)
    pd.testing.assert_frame_equal(read, tables.summary(found), check_dtype=False)
    compared = pd.read_csv(places / "figures" / "submodules-digits-differences.csv")
    differences = tables.differences(found).drop(columns="gaps")
    pd.testing.assert_frame_equal(compared, differences, check_dtype=False)
    tex = (places / "figures" / "submodules-digits.tex").read_text()
    assert r"\toprule" in tex and r"3.50 $\pm$ 1.24" in tex and "ch+sp" in tex
    assert "%" not in tex.replace(r"\%", "")


def test_nothing_done_is_nothing_to_report(plan: Plan) -> None:
    with pytest.raises(RunFailed, match="no run of submodules-digits is done"):
        report.report(plan)


def test_costs_are_those_that_the_runs_have_found(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"sp": [None] * 3})
    table = tables.summary(load(plan)).set_index("arm")
    assert list(table.loc["ch", ["flops", "images_per_second", "peak_memory_mib"]]) == [9_920_000, 500, 640]
    costs = ["parameters", "flops", "images_per_second", "peak_memory_mib", "top1_error"]
    assert table.loc["sp", costs].isna().all() and table.loc["ch", costs].notna().all()


def test_speeds_are_medians_over_the_epochs_of_all_runs(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    for config, speeds in zip(plan.arms["ch"], ((1, 900), (100, 200), (300, 400)), strict=True):
        lines = [{"epoch": e, "top1_error": 5.0, "images_per_second": s} for e, s in zip((1, 2), speeds, strict=True)]
        Run(config).write("metrics.jsonl", "\n".join(map(json.dumps, lines)))
    table = tables.summary(load(plan)).set_index("arm")
    assert table.loc["ch", "images_per_second"] == 250
    assert math.isnan(float(table.loc["ch", "peak_memory_mib"]))  # type: ignore[arg-type]


def test_speeds_of_several_processors_are_left_out(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS)
    assert {"images_per_second", "peak_memory_mib"} <= {*tables.summary(load(plan))}
    assert "Training time (ms per image)" in {*tables.costs(load(plan))["cost"]}
    path = Run(plan.arms["ch"][0]).folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "NVIDIA H200"}))
    assert not {"images_per_second", "peak_memory_mib"} & {*tables.summary(load(plan))}
    assert {*tables.costs(load(plan))["cost"]} == {"Parameters (10⁶)", "FLOPs (10⁶)"}


def test_the_flops_of_results_that_lack_them_are_unknown(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS, flops=None)
    table = tables.summary(load(plan))
    assert table["flops"].isna().all() and table["top1_error"].notna().all()


def test_the_comparisons_of_a_study_are_a_table(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"ch": [5.0, 5.75, 7.0], "sp": [4.0, None, None], "ch+sp": [None] * 3})
    found = load(plan)
    table = tables.differences(found).set_index("arm")
    mean = (-1 - 1.25 - 1) / 3
    assert list(table.loc["ch", ["reference", "seeds", "difference"]]) == ["baseline", 3, pytest.approx(mean)]
    assert table.loc["ch", "gaps"] == (-1.0, -1.25, -1.0)
    assert list(table.loc["ch", ["low", "high"]]) == [pytest.approx(end) for end in ci95([-1.0, -1.25, -1.0])]
    verdicts = ["better", "nothing can be said of one seed", "not measured"]
    assert table["verdict"].tolist() == verdicts


def test_a_study_of_one_arm_has_no_comparisons_and_tables_all_the_same(finish_all: FinishAll, places: Path) -> None:
    plan = Study(name="solo", arms={"only": {}}).plan(seeds="0-1")
    finish_all(plan, {"only": [5.0, 6.0]})
    found = load(plan)
    assert tables.differences(found).query("seeds > 0").empty
    assert "5.50" in typeset.styled(found).to_html() and len(report.export_tables(found)) == 3


def test_some_arms_of_a_study_are_corrected_for_all_its_comparisons(finish_all: FinishAll) -> None:
    whole = find_study("submodules").plan(seeds="0-2")
    some = find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch"])
    finish_all(some, ERRORS)
    alone = tables.differences(load(some))
    pd.testing.assert_frame_equal(alone, tables.differences(load(whole)).iloc[:1])
    assert alone["p_corrected"][0] == pytest.approx(7 * alone["p"][0])
    assert "corrected by Holm for all 7 comparisons" in tables.note(load(some))


def test_the_note_says_what_is_done_and_what_made_it(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS | {"sp": [4.0, 5.0, None]})
    changed = {"commit": "1234567890", "clean": False, "device": "NVIDIA H200", "earlier": []}
    Run(plan.arms["ch"][0]).write("provenance.json", json.dumps(changed))
    note = tables.note(load(plan))
    assert (
        "digits, resnet18 at width 0.5, 20 epochs" in note
        and "over seeds 0–2; 11 of 12 runs are done (1 missing);" in note
    )
    assert "gamlib at commit 1234567 with changes, 8fbcf0f, code 0123456789abcdef" in note
    assert "No images/s and peak memory: the runs are of several processors, NVIDIA H200, cpu." in note
    assert "minus that of baseline in points" in note
    finish_all(plan, ERRORS)
    assert "runs are done" not in (note := tables.note(load(plan)))
    assert "Images/s and peak memory are those of training, medians over epochs, on cpu." in note
    wider = find_study("submodules").plan(seeds="0", arms="wider")
    assert "digits, resnet18 at width 0.589 (wider: 0.589), 20 epochs" in tables.note(load(wider))
    alone = find_study("submodules").plan(seeds="0")
    assert "Holm" not in tables.note(load(alone))


@pytest.mark.slow
def test_what_has_nothing_to_show_any_more_is_taken_away(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    written(plan)
    (mine := places / "figures" / "submodules-digits-mine.pdf").write_text("kept")
    for arm in ("ch", "sp", "ch+sp"):
        for config in plan.arms[arm]:
            (Run(config).folder / "result.json").unlink()
    names = {path.name for path in written(plan)}
    assert names == {path.name for path in (places / "figures").iterdir()} - {mine.name}
    assert "submodules-digits-differences.pdf" not in names and "submodules-digits-curves.pdf" in names


@pytest.mark.slow
def test_a_half_done_study_is_reported_from_its_finished_runs(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS | {"ch": [5.0, None, None], "ch+sp": [None] * 3})
    Run(plan.arms["ch"][1]).write("metrics.jsonl", '{"epoch": 1, "top1_error": 1.0}\n')  # stopped, and partial
    Run(plan.arms["ch"][1]).write_status(state="preempted")
    written(plan)
    table = pd.read_csv(places / "figures" / "submodules-digits.csv").set_index("arm")
    assert table["done"].tolist() == [3, 1, 3, 0] and table.loc["ch", "top1_error"] == 5.0
    assert "7 of 12 runs are done" in (places / "figures" / "submodules-digits.tex").read_text()
    assert len(load(plan).epochs) == 7 * 2


def test_a_width_that_was_found_is_named_beside_the_usual_one() -> None:
    plan = find_study("submodules").plan(seeds="0-2")
    assert "resnet18 at width 0.5 (wider: 0.589), 20 epochs; errors" in tables.note(load(plan))


@pytest.mark.parametrize(
    ("dataset", "source", "printed"),
    [("digits", "imagenet", [30.91, 24.81, 23.01]), ("cifar100", "cifar100", [None, 22.74, 18.99])],
)
def test_the_benchmark_stands_beside_the_table_of_its_data_set(
    dataset: str, source: str, printed: list[float | None]
) -> None:
    plan = find_study("benchmark").plan(dataset, seeds="0", arms=["ResNet-18", "ResNet-50", "* (gc)"])
    table = tables.summary(found := load(plan))
    column = table[f"paper_{source}_top1_error"]
    assert [None if math.isnan(value) else value for value in column] == printed
    name = {"imagenet": "ImageNet-1K", "cifar100": "CIFAR-100"}[source]
    assert f"Paper: full width, {name}, one run each." in tables.note(found)
    texts = typeset.for_reading(table)
    assert texts["Paper top-1"].tolist() == ["–" if value is None else f"{value:.2f}" for value in printed]
    assert texts["Paper top-5"].tolist()[1] == {"imagenet": "7.69", "cifar100": "6.37"}[source]
    assert set(texts["Runs"]) == {"0 of 1"} and set(texts["Top-1 error"]) == {"–"}


def test_on_cifar_arms_that_table_1_lacks_have_the_numbers_of_imagenet() -> None:
    plan = find_study("submodules").plan("cifar100", seeds="0")
    table = tables.summary(found := load(plan))
    assert table["paper_imagenet_top1_error"].tolist()[:2] == [30.91, 30.25]
    assert "Paper: full width, ImageNet-1K" in tables.note(found)


def gamlib(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_study_without_a_notebook_is_reported_by_the_one_of_any_study(finish_all: FinishAll, places: Path) -> None:
    """Its arms are called by numbers, and stay so in every table."""
    own = Study(name="own", arms={"16": {"reduction": 16}, "0.10": {"reduction": 4}}).plan(seeds="0-1")
    finish_all(own, {"16": [5.0, 6.0], "0.10": [4.0, 5.5]})
    own.save()
    output = gamlib("report", "own")
    lines = [line.split() for line in output.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in ("16", "0.10")] == [
        ["16", "2"],
        ["0.10", "2"],
        ["0.10", "16"],
    ]
    assert [path.name for path in (places / "figures").iterdir()] == ["own"]
    names = {path.name for path in (places / "figures" / "own").iterdir()}
    assert names >= {"own-digits.png", "own-digits-curves.pdf", "own-digits.tex"}
    assert all(name in output for name in names)
    assert "arms:" in (places / "runs" / "studies" / "own-digits.ipynb").read_text()
    output = gamlib("report", "own", "--format", "svg", "--width", "3.5", "--out", str(places / "paper"))
    written = {path.name for path in (places / "paper").iterdir()}
    assert written == {
        Path(name).with_suffix(".svg").name if Path(name).suffix in (".pdf", ".png") else name for name in names
    }
    assert all(name in output for name in written) and "own-digits.png" not in output
    assert 'width="252pt"' in (places / "paper" / "own-digits.svg").read_text()
    assert {path.name for path in (places / "figures" / "own").iterdir()} == names, "what was there stays"


def test_numbers_that_other_code_made_are_said_to_be_and_from_which_commit(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, ERRORS, source=source_hash())
    assert tables.outdated(load(plan)) == ""
    finish_all(plan, ERRORS)
    said = tables.outdated(load(plan))
    assert said.startswith("Other code made these numbers, at commit 8fbcf0f, than the present, which is ")
    assert source_hash() in said and " at commit " in said.rpartition(source_hash())[2]


def test_a_report_stands_until_a_run_the_code_or_what_is_asked_for_changes(
    plan: Plan, finish_all: FinishAll, finish: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    executed = []

    def execute(notebook: str, name: str, given: dict[str, Any], kernel: None) -> None:
        executed.append(given["arms"])
        told = {"parameters": given, "exception": None}
        write_whole(places / "runs" / "studies" / f"{name}.ipynb", json.dumps({"metadata": {"papermill": told}}))
        write_whole(places / "figures" / "a.png", "")
        report.record(plan, [places / "figures" / "a.png"])

    def again(of: Plan = plan) -> int:
        before = len(executed)
        assert report.report(of, anew=False) == [places / "figures" / "a.png"]
        return len(executed) - before

    finish_all(plan, ERRORS)
    monkeypatch.setattr(report, "_execute", execute)
    assert [again(), again()] == [1, 0]
    (places / "figures" / "a.png").unlink()
    assert [again(), again()] == [1, 0]
    finish(plan.configs[0], 5.0)
    assert [again(), again()] == [1, 0]
    fewer = plan.study.plan(seeds="0-2", arms=["baseline", "ch"])
    assert [again(fewer), again(fewer), again()] == [1, 0, 1]
    for file in ("ablation/results/tables.py", "gamlib/paper/__init__.py"):
        os.utime(ROOT / file)
        assert [again(), again()] == [1, 0]
    assert len(report.report(plan)) == 1 and again() == 0 and len(executed) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "pdf,gif"], "formats='gif': allowed: pdf, png, svg"),
        (["--width", "1"], "width=1.0: allowed: inches from 3 to 20"),
        (["--out", __file__], f"out='{__file__}': allowed: a folder"),
    ],
)
def test_what_no_figure_can_have_is_refused_in_one_line(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["report", "own", *options])
    assert (result.exit_code, result.output) == (2, f"{message}\n")


@pytest.mark.slow
def test_an_export_takes_away_its_own_files_and_no_others(plan: Plan, finish_all: FinishAll, places: Path) -> None:
    finish_all(plan, ERRORS)
    written(plan)
    elsewhere = {path.name for path in written(plan, formats="svg", out=str(places / "paper"))}
    assert not any(name.endswith((".pdf", ".png")) for name in elsewhere)
    for config in plan.configs:
        (Run(config).folder / "result.json").unlink()
    assert written(plan) == [] and not list((places / "figures").iterdir())
    assert {path.name for path in (places / "paper").iterdir()} == elsewhere


def test_committed_files_that_differ_now_are_said_to(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "own.png")]
    assert report.said_of_changes(paths) == ""
    for path in paths:
        path.write_text("as it is committed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "a.png", "b.png"], ["commit", "-qm", "figures"]):
        subprocess.run([*git, *words], check=True)
    paths[2].write_text("not committed")
    assert report.said_of_changes(paths) == "" == report.said_of_changes([])
    paths[0].write_text("of another processor")
    said = report.said_of_changes(paths)
    assert said.startswith("1 of these files differs from the committed one: another processor rounds otherwise")
    assert "\n" not in said and report.said_of_changes(paths[1:]) == ""
