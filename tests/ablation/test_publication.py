"""Publication: runs as text files, and reports made of these alone."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from cells import written
from filelock import FileLock
from typer.testing import CliRunner

from ablation.cli import app
from ablation.errors import ConfigError
from ablation.execution import slurm
from ablation.paths import figures_root, runs_root
from ablation.results import load, publication
from ablation.runs import Run, RunFailed
from ablation.studies import Plan, Study
from ablation.study_files import find_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
FinishAll = Callable[..., None]
LABEL = np.arange(40) % 10
LOSS = "FloatingPointError: loss is nan, at step 7"
ERRORS = {"baseline": [6.0, 7.0, 8.1], "ch": [5.0, 5.5, None], "sp": [4.0, 4.5, 5.3], "ch+sp": [3.0, 3.5, 4.0]}


@pytest.fixture
def plan(finish_all: FinishAll) -> Plan:
    """A study of which one run failed, and one is of another commit and went on under this one."""
    plan = find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])
    finish_all(plan, ERRORS, top5_error=0.1 + 0.2, seconds=1 / 3)
    Run(plan.arms["ch"][2]).queue()
    Run(plan.arms["ch"][2]).write_status(state="failed", error=f"{LOSS}; see {runs_root()}/digits/log.txt")
    earlier = {"commit": "0" * 40, "clean": False, "device": "GPU", "versions": {"python": "3.10"}}
    last = {"commit": "1" * 40, "clean": True, "device": "cpu", "versions": {"python": "3.11"}, "host": "mine"}
    Run(plan.arms["sp"][0]).write("provenance.json", json.dumps({**last, "earlier": [earlier]}))
    plan.save()
    return plan


def gamlib(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def elsewhere(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runs, and no figures but the published data."""
    publication.data_folder().rename(places / "data")
    monkeypatch.setenv("GAM_RUNS", str(places / "other-runs"))
    monkeypatch.setenv("GAM_FIGURES", str(places / "other"))
    (places / "other").mkdir()
    (places / "data").rename(publication.data_folder())


def test_published_data_make_the_same_tables_and_figures_to_the_byte(
    plan: Plan, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {path.name: path.read_bytes() for path in written(plan)}
    code, output = gamlib("publish", "submodules")
    assert code == 0 and output.count("submodules-digits") == 5, output
    elsewhere(places, monkeypatch)
    code, output = gamlib("report", "--published", "submodules")
    assert code == 0 and "11 of 12 runs are done" in output, output
    assert {path.name: path.read_bytes() for path in figures_root().iterdir() if path.is_file()} == expected
    assert [path.name for path in (places / "other-runs").iterdir()] == ["studies"]  # the executed notebook


def test_restored_runs_are_those_that_were_published(plan: Plan, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(config) for config in plan.configs]
    results, before = [run.result() for run in runs], load(plan)
    publication.publish(plan)
    elsewhere(places, monkeypatch)
    assert "submodules-digits: 12 of 12 runs restored" in gamlib("restore")[1]
    runs = [Run(config) for config in plan.configs]
    assert [run.result() for run in runs] == results
    after = load(plan)
    for name in ("runs", "epochs", "origins", "predictions"):
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name))
    assert json.loads((Run(plan.arms["sp"][0]).folder / "provenance.json").read_text())["earlier"][0]["device"] == "GPU"
    failed = Run(plan.arms["ch"][2]).status()
    assert (failed.state, failed.error) == ("failed", f"{LOSS}; see runs/digits/log.txt")
    assert after.problems == () and Plan.load("submodules").arms == plan.arms
    assert "submodules-digits: 0 of 12 runs restored" in gamlib("restore")[1]
    code, output = gamlib("study", "submodules", "--seeds", "0-2", "--arms", "sp")
    assert code == 0 and "3 of 3 runs done, 3 of them before" in output


def test_a_run_that_is_done_here_is_not_overwritten(plan: Plan, finish_all: FinishAll) -> None:
    publication.publish(plan)
    finish_all(plan, ERRORS | {"sp": [9.0, 9.0, 9.0]})
    for arm, state in (("ch", "running"), ("ch+sp", "preempted")):
        (Run(plan.arms[arm][0]).folder / "result.json").unlink()
        Run(plan.arms[arm][0]).write_status(state=state, host=socket.gethostname(), pid=os.getpid())
    begun = Run(plan.arms["ch+sp"][0])
    begun.write("checkpoint.pt", "of epoch 1")
    with FileLock(begun.folder / ".lock"):
        assert publication.restore(plan) == 0  # whose it is may have just begun
    assert publication.restore(plan) == 1  # the preempted one, which is published as done
    assert Run(plan.arms["ch"][0]).status().state == "running" and begun.status().state == "done"
    assert not (begun.folder / "checkpoint.pt").exists()  # nor are there gates of another attempt
    assert (begun.folder / "before-unknown" / "checkpoint.pt").read_text() == "of epoch 1"
    assert load(plan).runs.set_index(["arm", "seed"])["top1_error"]["sp"].tolist() == [9, 9, 9]


def test_nothing_of_the_machine_but_its_kind_is_published(plan: Plan) -> None:
    texts = [path.read_text() for path in publication.publish(plan)]
    assert not any("mine" in text or str(figures_root().parent) in text for text in texts)


def test_names_of_all_kinds_come_back(finish_all: FinishAll) -> None:
    arms = {"16": {}, "0.10": {"reduction": 8}, "nan": {"reduction": 4}, 'a, "b"\n': {"attention": "se"}}
    plan = Study(name="own", arms=arms).plan(seeds="0-1")
    finish_all(plan, {arm: [5.0, 6.0] for arm in arms})
    publication.publish(plan)
    (back,) = publication.published(["own"])
    for name in ("runs", "epochs", "origins", "predictions"):
        there = getattr(load(back, publication.data_folder()), name)
        pd.testing.assert_frame_equal(there, getattr(load(plan), name), check_dtype=False)


def test_what_cannot_be_published_is_refused_and_nothing_is_written(plan: Plan) -> None:
    with pytest.raises(RunFailed, match="no run of submodules-digits is done"):
        publication.publish(plan.study.plan(seeds="7"))
    Run(plan.arms["ch"][2]).queue()
    with pytest.raises(RunFailed, match=r"-gam-ch-s2-\w+ is queued: submodules-digits is published when all its runs"):
        publication.publish(plan)
    Run(plan.arms["ch"][2]).write_status(state="missing")
    (Run(plan.arms["sp"][1]).folder / "metrics.jsonl").write_text("{")
    with pytest.raises(RunFailed, match=r"metrics.jsonl is damaged .*: submodules-digits is not published"):
        publication.publish(plan)
    (Run(plan.arms["sp"][1]).folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    Run(plan.arms["ch"][0]).write_predictions(LABEL, LABEL[::-1])
    with pytest.raises(RunFailed, match=r"predictions.npz is of other test images: submodules-digits is not published"):
        publication.publish(plan)
    assert not publication.data_folder().exists()


def test_what_is_not_published_or_damaged_is_refused_in_one_line(plan: Plan, places: Path) -> None:
    code, output = gamlib("report", "--published")
    assert (code, output.count("\n")) == (2, 1) and "nothing is published in" in output
    assert gamlib("report")[0] == 2
    publication.publish(plan)
    code, output = gamlib("report", "--published", "max_pooling")
    assert code == 2 and "study 'max_pooling': published in" in output and "is submodules" in output
    assert gamlib("report", "--published", "--dataset", "cifar10") == (2, "dataset='cifar10': published on digits\n")
    table = publication.data_folder() / "submodules-digits-epochs.csv"
    whole = table.read_text()
    for damaged in (
        None,
        "",
        whole[:-20],
        whole.replace("500.0", "501.0", 1),
        whole.replace("\n", "\n<<<<<<< HEAD\n", 1),
    ):
        table.unlink() if damaged is None else table.write_text(damaged)
        for command in (["report", "--published"], ["restore"]):
            code, output = gamlib(*command)
            assert (code, output.count("\n")) == (2, 1) and "submodules-digits-epochs.csv" in output, output
            assert ("cannot be read" if damaged is None else "is damaged, or of another publication") in output
    table.write_text(whole)
    assert gamlib("report", "--published")[0] == 0
    (publication.data_folder() / "submodules-digits.json").write_text("{")
    with pytest.raises(ConfigError, match=r"submodules-digits.json is not a published study: JSONDecodeError"):
        publication.published()


def test_a_configuration_of_other_code_is_read_without_its_images(
    finish_all: FinishAll, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields come and go; a published study is read all the same, by a machine without its images, too."""
    images = places / "data" / "images"
    monkeypatch.setenv("GAM_DATA", str(images.parent))
    for path in (
        images / part / kind / f"{number}.png" for part in ("train", "test") for kind in "ab" for number in "01"
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (32, 32)).save(path)
    plan = Study(name="own", arms={"a": {}, "b": {"reduction": 8}}).plan("imagefolder:images", "0-1", batch_size=2)
    finish_all(plan, {"a": [5.0, 6.0], "b": [4.0, 3.0]})
    publication.publish(plan)
    expected = {path.name: path.read_bytes() for path in written(plan)}
    path = publication.data_folder() / f"{plan.name}.json"
    content = json.loads(path.read_text())
    for config in (config for configs in content["arms"].values() for config in configs):
        del config["deterministic"]
        config["of_old"] = 1
    path.write_text(json.dumps(content))
    shutil.rmtree(images)
    elsewhere(places, monkeypatch)
    code, output = gamlib("report", "--published")
    assert code == 0, output
    assert {path.name: path.read_bytes() for path in (figures_root() / "own").iterdir()} == expected


def test_studies_that_share_runs_are_reported_as_each_was_published(
    plan: Plan, places: Path, finish_all: FinishAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was published when their baseline had two seeds, the other when it had three."""
    early = Study(name="early", arms={"baseline": {"attention": "none"}, "sp": {"submodules": "sp"}}).plan(seeds="0-2")
    assert {config.signature for config in early.configs} < {config.signature for config in plan.configs}
    last = Run(plan.arms["baseline"][2]).folder
    last.rename(last.with_name("away"))
    publication.publish(early)
    expected = {path.name: path.read_bytes() for path in written(early)}
    last.with_name("away").rename(last)
    publication.publish(plan)
    expected |= {path.name: path.read_bytes() for path in written(plan)}
    elsewhere(places, monkeypatch)
    code, output = gamlib("report", "--published")
    assert code == 0 and "5 of 6 runs are done" in output and "11 of 12 runs are done" in output, output
    made = [path for path in figures_root().glob("**/*-digits*.*") if path.parent != publication.data_folder()]
    assert {path.name: path.read_bytes() for path in made} == expected


def test_what_slurm_knows_of_a_run_is_published(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder cannot say that it waits again, or that it was killed."""
    run = Run(plan.arms["ch"][2])
    run.write_status(state="preempted", cluster="slurm", job_id="7_0", error="saved in epoch 1")
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.Job("REQUEUED")))
    with pytest.raises(RunFailed, match="is queued: submodules-digits is published when"):
        publication.publish(plan)
    run.write_status(state="running")
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.Job("OUT_OF_MEMORY")))
    publication.publish(plan)
    (row,) = load(plan, publication.data_folder()).runs.query("arm == 'ch' and seed == 2").to_dict("records")
    assert (row["state"], row["error"]) == ("failed", "OUT_OF_MEMORY: its job left no word")
