"""The command as its user meets it: what is refused, how it exits, and what it prints."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ablation import parameter_counts
from ablation.cli import app
from ablation.runs import PROGRESS, Run
from ablation.status import TrainingProgress, this_process
from ablation.study_files import find_study


def gamlib(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "-p", "atention=gam"), "atention is not a parameter: did you mean attention?"),
        (("run", "-p", "epochs=many"), "epochs='many': allowed: a whole number from 1"),
        (("run", "-p", "backbone=resnet19"), "backbone='resnet19': allowed: resnet18"),
        (("run", "-p", "width=1", "-p", "groups=3"), "groups=3 does not divide the 4 hidden channels"),
        (("run", "-p", "epochs"), "-p epochs: allowed: texts like epochs=3"),
        (("run", "--cluster", "cloud"), "cluster='cloud': allowed: local, slurm, debug"),
        (("run", "--no-wait"), "wait=False: allowed with cluster='slurm' only"),
        (("run", "--partition", "gpu"), "partition: allowed with cluster='slurm' only"),
        (
            ("study", "submodules", "--cluster", "debug", "--workers", "3"),
            "workers=3: allowed with cluster='local' only",
        ),
        (("study", "submodules", "--seeds=-1"), "seeds='-1': allowed: whole numbers from 0"),
        (("study", "submodules", "-p", "seed=1"), "give --seeds"),
        (("study", "submodules", "--workers", "0"), "workers=0: allowed: a whole number from 1"),
        (("study", "submodules", "--dataset", "mnist"), "dataset='mnist': allowed: digits"),
        (("study", "submodules", "--arms", "ch", "--arms", "cs"), "arms='cs': allowed: baseline, ch, sp"),
        (("plan", "submodules", "--sd", "-1"), "sd=-1.0: allowed: points above 0"),
        (("plan", "submodules"), "no arm of this study has two finished runs that differ; give --sd"),
        (("plan", "submodules", "--sd", "1", "--arms", "ch"), "compare=[]: submodules compares none of these arms"),
        (("study", "nothing"), "study 'nothing': allowed: submodules, max_pooling"),
        (("status", "nothing"), "study 'nothing': none was submitted yet"),
        (("report", "submodules"), "none was submitted yet"),
    ],
)
def test_bad_input_is_refused_with_code_2_before_anything_is_written(
    arguments: tuple[str, ...], message: str, places: Path
) -> None:
    code, output = gamlib(*arguments)
    assert (code, message in output) == (2, True), output
    assert not (places / "runs").exists()
    assert len(output.strip().splitlines()) == 1


def test_a_dry_run_shows_what_would_run_and_starts_nothing(finish: Callable[..., Run], places: Path) -> None:
    done = finish(find_study("submodules").plan(seeds="0").arms["sp"][0], 4.0)
    code, output = gamlib("study", "submodules", "--seeds", "0", "--dry-run")
    assert code == 0
    assert f"done  {done.folder.name}" in output and output.count("would run (is missing)") == 5
    assert "submodules=ch+sp" in output and "epochs=20" in output
    (wider,) = (line for line in output.splitlines() if line.startswith("wider: "))
    assert "width=0.589" in wider and "(1.0009 times the parameters of ch+sp)" in wider
    assert not (places / "runs" / "studies").exists()


def test_a_dry_run_of_some_arms_shows_those() -> None:
    code, output = gamlib("study", "benchmark", "--arms", "ResNet-18*", "--arms", "MobileNetV2", "--dry-run")
    arms = [line.partition(":")[0] for line in output.splitlines() if line.startswith(("ResNet", "Mobile"))]
    assert (code, len(arms), arms[0], arms[-1]) == (0, 8, "ResNet-18", "MobileNetV2")


def test_a_plan_says_what_the_seeds_of_a_study_can_decide(finish: Callable[..., Run], places: Path) -> None:
    code, output = gamlib("plan", "submodules", "--seeds", "0-3", "--effect", "4", "--sd", "1")
    heading, *lines = output.splitlines()
    assert code == 0
    assert heading.strip().split(maxsplit=4) == [
        "Arm",
        "Reference",
        "Effect",
        "Power",
        "Seeds for 80 %  Smallest at 80 %",
    ]
    assert lines[0].split()[:5] == ["ch", "baseline", "4.00", "47%", "6"]  # paired, with four seeds
    assert len(lines) == 7 + 4 and lines[7].startswith("4 seeds; p of the paired t-test")
    assert not (places / "runs" / "studies").exists()
    for config, error in zip(find_study("submodules").plan(seeds="7,8").arms["ch"], (5.0, 5.5), strict=True):
        finish(config, error)
    code, output = gamlib("plan", "submodules")
    assert code == 0 and "Spread over seeds: 0.35 points (2 finished runs of 1 of the arms" in output


def test_status_as_json_has_a_row_for_every_run(finish: Callable[..., Run]) -> None:
    plan = find_study("submodules").plan(seeds="0-1")
    plan.save()
    finish(plan.arms["ch"][1], 4.5)
    code, output = gamlib("status", "submodules", "--json")
    rows = json.loads(output)
    assert (code, len(rows)) == (0, 12)
    (done,) = [row for row in rows if row["state"] == "done"]
    assert (done["arm"], done["seed"], done["top1_error"]) == ("ch", 1, 4.5)
    assert {row["state"] for row in rows} == {"done", "missing"}
    assert len(json.loads(gamlib("status", "--json")[1])) == 1


def test_status_says_how_far_runs_are_that_train_and_the_time_left_of_the_study(finish: Callable[..., Run]) -> None:
    plan = find_study("submodules").plan(seeds="0", arms=["ch", "sp", "baseline"])
    assert "progress" not in gamlib("status")[1]
    plan.save()
    done, trains, waits = map(Run, plan.configs)
    finish(done.config, 4.5, seconds=900)
    waits.queue()
    trains.write_status(state="running", **this_process())
    progress = TrainingProgress(epoch=37, epochs=60, top1_error=4.2, seconds=1500, seconds_left=700)
    trains.write(PROGRESS, progress.model_dump_json())
    code, output = gamlib("status", "submodules")
    assert (code, "epoch 37/60 · 4.2 % · 12 min left" in output) == (0, True), output
    assert output.splitlines()[-1] == "1 done, 1 running, 1 queued, 1 done by other code; 32 min left"
    rows = {row["state"]: row for row in json.loads(gamlib("status", "submodules", "--json")[1])}
    keys = ("progress", "epoch", "epochs", "seconds_left")
    assert [rows["running"][key] for key in keys] == ["epoch 37/60 · 4.2 % · 12 min left", 37, 60, 700]
    assert all(rows[state][key] is None for state in ("done", "queued") for key in keys)
    trains.write_status(state="running", pid=2**22 + 1)  # killed: more than Linux counts up to
    code, output = gamlib("status", "submodules")
    assert "epoch" not in output and output.splitlines()[-1] == "1 done, 1 lost, 1 queued, 1 done by other code"


def test_a_finished_run_is_not_run_again(finish: Callable[..., Run]) -> None:
    from ablation.config import RunConfig

    run = finish(RunConfig(), 4.25)
    code, output = gamlib("run")
    assert code == 0
    assert "already done: top-1 error 4.25 %" in output and run.folder.name in output


@pytest.mark.parametrize("command", ["run", "study", "status", "report"])
def test_every_command_has_help(command: str) -> None:
    code, output = gamlib(command, "--help")
    assert code == 0 and "Usage" in output


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [("--help", {"pydantic"}), ("status", {"yaml"}), ("study submodules --arms baseline --dry-run", {"tqdm"})],
)
def test_a_command_starts_without_what_it_has_no_need_of(
    arguments: str, modules: set[str], finish: Callable[..., Run], places: Path
) -> None:
    (places / "runs").mkdir()
    parameter_counts.count.cache_clear()  # so that the folder knows the network
    finish(find_study("submodules").plan(arms="baseline").configs[0], 4.0)
    command = [sys.executable, "-X", "importtime", "-m", "ablation.cli", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"torch", "numpy", "pandas", "scipy", "PIL", "psutil", "filelock", "submitit", "papermill", *modules}
    assert (done.returncode, imported & heavy) == (0, set())
