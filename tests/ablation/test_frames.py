"""Files of runs that are damaged, missing or foreign are named, and the rest is reported."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cells import written

from ablation.results import load, tables
from ablation.runs import Run
from ablation.studies import Plan
from ablation.study_files import find_study

FinishAll = Callable[..., None]
ERRORS = {"baseline": [6.0, 7.0, 8.0], "ch": [5.0, 5.5, 6.0], "sp": [4.0, 4.5, 5.0], "ch+sp": [3.0, 3.5, 4.0]}


@pytest.fixture
def plan(finish_all: FinishAll) -> Plan:
    made = find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])
    finish_all(made, ERRORS)
    return made


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def one(plan: Plan) -> tuple[Run, str]:
    run = Run(plan.arms["sp"][1])
    return run, f"digits/{run.folder.name}"


def test_nothing_wrong_is_nothing_said(plan: Plan) -> None:
    assert list(load(plan).problems) == []


def test_half_a_result_does_not_count_and_is_named(plan: Plan) -> None:
    run, name = one(plan)
    halve(run.folder / "result.json")
    assert list(load(plan).problems) == [f"{name}/result.json is damaged or of another run: the run does not count"]
    frame = load(plan).runs.set_index(["arm", "seed"])["top1_error"]
    assert frame.isna().sum() == 1 and frame.isna()["sp", 1]
    assert len(load(plan).epochs) == 11 * 2


def test_another_runs_result_does_not_count(plan: Plan) -> None:
    run, name = one(plan)
    shutil.copy(Run(plan.arms["ch"][0]).folder / "result.json", run.folder)
    assert list(load(plan).problems) == [f"{name}/result.json is damaged or of another run: the run does not count"]
    assert load(plan).runs["top1_error"].isna().sum() == 1


@pytest.mark.parametrize("kept", [-20, 0, 90])
def test_metrics_with_half_a_line_are_left_out_and_named_and_the_result_counts(plan: Plan, kept: int) -> None:
    run, name = one(plan)
    path = run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:kept])
    (problem,) = load(plan).problems
    assert problem.startswith(f"{name}/metrics.jsonl ") and problem.endswith(": is missing in curves and speeds")
    assert load(plan).runs["top1_error"].notna().all()
    curves = load(plan).epochs
    assert len(curves) == 11 * 2 and curves.query("arm == 'sp' and seed == 1").empty


def test_whole_lines_of_too_few_epochs_are_named(plan: Plan) -> None:
    run, name = one(plan)
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    (problem,) = load(plan).problems
    assert problem.startswith(f"{name}/metrics.jsonl has 1 epochs, not those 1 to 2 of its run")


@pytest.mark.parametrize("damage", [Path.unlink, halve])
def test_a_run_without_provenance_counts_and_its_commit_is_unknown(
    plan: Plan, damage: Callable[[Path], object]
) -> None:
    run, name = one(plan)
    damage(run.folder / "provenance.json")
    (problem,) = load(plan).problems
    assert problem.startswith(f"{name}/provenance.json is ") and problem.endswith(": its commit is unknown")
    found = load(plan)
    assert found.runs["top1_error"].notna().all() and "at commit 8fbcf0f, unknown, code" in tables.note(found)


def test_foreign_folders_are_named_and_left_alone(plan: Plan, places: Path) -> None:
    run, name = one(plan)
    holiday = places / "runs" / "digits" / "holiday"
    holiday.mkdir()
    shutil.copytree(run.folder, holiday.with_name("a-copy"))
    (places / "runs" / "cifar10" / "elsewhere").mkdir(parents=True)
    (run.folder / "config.json").write_text("[]")
    assert list(load(plan).problems) == [
        "digits/a-copy is no run: left alone",
        "digits/holiday is no run: left alone",
        f"{name} has no whole config.json: its result is found all the same",
    ]
    assert load(plan).runs["top1_error"].notna().all() and holiday.is_dir()
    (run.folder / "result.json").unlink()  # a run that is missing, and no problem
    assert list(load(plan).problems) == ["digits/a-copy is no run: left alone", "digits/holiday is no run: left alone"]


def test_a_report_goes_on_with_the_rest(plan: Plan, places: Path) -> None:
    for arm, file in (("baseline", "result.json"), ("ch", "metrics.jsonl"), ("sp", "provenance.json")):
        halve(Run(plan.arms[arm][0]).folder / file)
    (places / "runs" / "digits" / "holiday").mkdir()
    assert {path.suffix for path in written(plan)} == {".pdf", ".png", ".csv", ".tex"}
    assert "11 of 12 runs are done" in (places / "figures" / "submodules-digits.tex").read_text()
    assert len(load(plan).problems) == 4
