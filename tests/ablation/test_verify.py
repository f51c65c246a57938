"""`gamlib verify`: published runs are trained again and compared, and files that contradict each other are named."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import PIL.Image
import pytest
from started import Command, wait_for
from typer.testing import CliRunner

from ablation.cli import app
from ablation.execution.train import train
from ablation.paths import ROOT, runs_root
from ablation.results import publication, records, statistics, verify
from ablation.results.records import Record
from ablation.runs import Run
from ablation.studies import Study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
SMALL: dict[str, Any] = {"epochs": 2, "width": 0.25, "train_fraction": 0.25, "batch_size": 10}
NAME = "small-digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was trained and published: `runs/` and `figures/data/`."""
    folder = tmp_path_factory.mktemp("published")
    with mock.patch.dict(os.environ, {f"GAM_{name.upper()}": str(folder / name) for name in ("runs", "figures")}):
        own = shutil.copy(ROOT / "examples" / "eca.py", folder)
        arms = {"ch": {"submodules": "ch"}}
        for plan in (
            Study(name="small", arms=arms).plan(seeds="0-2", **SMALL),
            Study(name="own", arms={"eca": {"attention": f"{own}:ECA"}}).plan(seeds="0", **SMALL),
            Study(name="longer", arms=arms).plan(seeds="0", **SMALL | {"epochs": 12}),
        ):
            for config in plan.configs:
                train(Run(config))
            publication.publish(plan)
    (folder / "eca.py").unlink()
    return folder


@pytest.fixture
def data(trained: Path, places: Path) -> Path:
    """The published files, to be doctored."""
    return Path(shutil.copytree(trained / "figures" / "data", places / "given"))


def gamlib(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", *arguments])
    return result.exit_code, result.output


def doctor(data: Path, table: str, pattern: str, text: str) -> None:
    """Change a table, and the hash that says that it was not changed."""
    path, definition = data / f"{NAME}-{table}.csv", data / f"{NAME}.json"
    before = path.read_text()
    path.write_text(after := re.sub(pattern, text, before, count=1, flags=re.M))
    assert after != before
    content = json.loads(definition.read_text())
    content["sha256"][table] = hashlib.sha256(after.encode()).hexdigest()
    definition.write_text(json.dumps(content))


def configure(data: Path, **values: Any) -> None:
    """Publish another configuration for the first seed of the first arm."""
    content = json.loads((data / f"{NAME}.json").read_text())
    content["arms"]["ch"][0].update(values)
    (data / f"{NAME}.json").write_text(json.dumps(content))


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in runs_root().rglob("*") if path.is_file() and path.name[0] != "."}


def test_what_is_trained_again_is_bit_identical_and_runs_of_ones_own_are_not_touched(
    data: Path, finish: Callable[..., Run]
) -> None:
    found, _ = records.records(["small"], None, data)
    finish(found[0].config, 99.0)  # by this the published run would not be reproduced
    before = files()
    result = CliRunner().invoke(app, ["verify", "small", "own", "--from", str(data), "--all", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["problems"] == [] and len(answer["runs"]) == 4
    assert {run["verdict"] for run in answer["runs"]} == {"bit-identical"}  # of the code that was published beside, too
    assert all(run["here"] == run["published"] and run["seconds"] > 0 for run in answer["runs"])
    assert files() == before and not (runs_root() / "verify").exists()


def test_the_cheapest_run_is_verified_and_named(data: Path) -> None:
    doctor(data, "runs", r"^(ch,1,.*),[\d.]+,(\w+,\d+)$", r"\1,0.001,\2")
    code, output = gamlib("--from", str(data))
    assert code == 1 and f"{NAME}, ch, seed 1: seconds is published as 0.001, and by epochs.csv it is " in output
    assert f"{NAME}, ch, seed 1: trained in 0 s when it was published, now again in " in output
    assert output.count("bit-identical") == 1 and f"{NAME}, ch, seed 1: bit-identical: top-1 error " in output


@pytest.mark.parametrize(
    ("table", "pattern", "text", "message"),
    [
        (
            "runs",
            r"^ch,0,done,,1,([^,]+),2,[\d.]+",
            r"ch,0,done,,1,\1,2,1.5",
            "ch, seed 0: top1_error is published as 1.5",
        ),
        ("runs", r"^(ch,2,.*,)(\d+)$", r"\g<1>7", "ch, seed 2: flops is published as 7"),
        ("runs", r"^(ch,2,.*,)\d+(,[\d.]+,\w+,\d+)$", r"\g<1>8\2", "ch, seed 2: parameters is published as 8"),
        ("runs", r"^(ch,1,.*,)\w+(,\d+)$", r"\1abc\2", "ch, seed 1: source is published as abc, and by origins.csv"),
        ("runs", r"^ch,1,.*\n", "", "ch, seed 1: its number of rows in runs.csv is published as 0"),
        ("runs", r"^ch,1,", "ch,11,", "ch, seed 11: its number of rows in runs.csv is published as 1"),
        ("epochs", r"^(ch,0,2,[\d.]+),[\d.]+", r"\1,0.25", "and by the last epoch in epochs.csv it is 0.25"),
        ("epochs", r"^ch,0,2,.*\n", "", "ch, seed 0: epochs is published as 2, and by epochs.csv it is 1"),
        ("predictions", r"^\d,(\d),", r"0,9,", "top1_error is published as "),
    ],
)
def test_a_doctored_number_is_named_without_training(
    table: str, pattern: str, text: str, message: str, data: Path
) -> None:
    assert gamlib("small", "--from", str(data), "--runs", "0") == (0, "3 published runs: their files agree\n")
    doctor(data, table, pattern, text)
    code, output = gamlib("small", "--from", str(data), "--runs", "0")
    assert code == 1 and message in output and not runs_root().exists(), output


def test_what_a_file_lacks_is_null_in_json_which_has_no_nan(data: Path) -> None:
    doctor(data, "epochs", r"^(ch,0,2,[\d.]+),[\d.]+", r"\1,")
    result = CliRunner().invoke(app, ["verify", "small", "--from", str(data), "--runs", "0", "--json"])
    (problem,) = json.loads(result.stdout, parse_constant=pytest.fail)["problems"]
    assert result.exit_code == 1 and problem["computed"] is None and problem["published"] > 0


def test_a_configuration_of_another_length_or_size_contradicts_its_tables(data: Path) -> None:
    configure(data, epochs=3, width=0.5)
    code, output = gamlib("small", "--from", str(data), "--runs", "0")
    assert code == 1 and "ch, seed 0: epochs is published as 2, and by the configuration it is 3" in output
    assert "ch, seed 0: parameters is published as " in output and output.count("\n") == 4


def test_another_configuration_is_not_reproduced_and_what_it_gave_is_kept(data: Path) -> None:
    configure(data, evaluate_on="validation")
    for _ in range(2):
        code, output = gamlib("small", "--from", str(data), "--all")
        assert code == 1 and f"{NAME}, ch, seed 0: not reproduced: " in output, output
        assert "its test images are others" in output and "the same command judges that until it is removed" in output
        (kept,) = runs_root().glob("verify/digits/*-validatio*-s0-*/result.json")
    assert json.loads((kept.parent / "status.json").read_text())["attempts"] == 1


def with_errors(record: Record, errors: list[float]) -> Record:
    """A record beside whose own run its arm has so many others with these errors."""
    own = record.results.runs.query("arm == 'ch' and seed == 0")
    rows = [own.assign(seed=seed, top1_error=error) for seed, error in enumerate(errors, 1)]
    return replace(record, results=replace(record.results, runs=pd.concat([own, *rows])))


def test_what_differs_is_judged_by_the_prediction_interval_of_the_other_seeds(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published metrics are others in their last digits; the error here is that of seed 0."""
    monkeypatch.setenv("GAM_RUNS", str(trained / "runs"))
    doctor(data, "epochs", r"^(ch,0,2,[\d.]+,[\d.]{6})", r"\g<1>1")
    doctor(data, "origins", r"^(ch,0,.*?)True(.*?)2\.\d+\.\d+", r"\1True\g<2>2.0.1")
    record = records.records(["small"], None, data)[0][0]
    error = record.row["top1_error"]
    cases = {
        verify.WITHIN: [error - 1, error + 1, error + 0.5],
        verify.NOT: [error - 11, error - 10, error - 10.5],
        verify.UNJUDGED: [error],
    }
    for verdict, errors in cases.items():
        found = verify.judge(with_errors(record, errors), {})
        assert (found.verdict, found.reproduced) == (verdict, verdict == verify.WITHIN)
        assert found.reason == "metrics differ from epoch 2 on" and "torch" in found.differences
        low, high = statistics.prediction95(errors)
        assert verdict == verify.UNJUDGED or f"interval of 3 other seeds {low:.2f} to {high:.2f} %" in str(found)
    assert "differs by +0.00 points, nothing to judge by (other seeds: 1)" in str(found)
    assert "\n    differs: torch " in str(found) and found.as_json()["low"] is None
    assert verify.judge(with_errors(record, [error, error, error]), {}).verdict == verify.UNJUDGED


def test_a_published_error_does_not_vouch_for_itself(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the run errs as its arm does, and published is much less."""
    monkeypatch.setenv("GAM_RUNS", str(trained / "runs"))
    record = records.records(["small"], None, data)[0][0]
    error = record.row["top1_error"]
    record = with_errors(record, [error - 1, error + 1, error + 0.5])
    runs = record.results.runs
    runs.loc[runs["seed"] == 0, "top1_error"] = error - 20
    assert verify.judge(record, {}).verdict == verify.NOT


def test_a_prediction_interval_is_that_of_one_more_value() -> None:
    low, high = statistics.prediction95([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 * math.sqrt(4 / 3), 2 + 4.302653 * math.sqrt(4 / 3)))
    assert all(math.isnan(end) for values in ([], [1.0], [1.0, 1.0]) for end in statistics.prediction95(values))


def test_a_verification_that_is_stopped_goes_on_from_its_checkpoint(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("longer", "--from", str(data))
    process = Command("verify", *command)
    wait_for(lambda: [*runs_root().glob("verify/digits/*/metrics.jsonl")])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(60)
    (metrics,) = runs_root().glob("verify/digits/*/metrics.jsonl")
    before = metrics.read_text()
    assert process.returncode == 130 and "the same command goes on from here" in output, output
    assert before.count("\n") < 12 and (metrics.parent / "checkpoint.pt").exists()
    monkeypatch.setattr(verify, "_remove", lambda verdicts: None)
    code, output = gamlib(*command)
    assert code == 0 and "longer-digits, ch, seed 0: bit-identical" in output, output
    assert metrics.read_text().startswith(before)  # the seconds of those epochs, too


def test_what_other_code_has_begun_is_trained_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_remove", lambda verdicts: None)
    assert gamlib("small", "--from", str(data))[0] == 0
    (path,) = runs_root().glob("verify/digits/*/provenance.json")
    path.write_text(path.read_text().replace('"source": "', '"source": "of old '))
    (path.parent / "result.json").unlink()
    code, output = gamlib("small", "--from", str(data))
    assert code == 0 and "bit-identical" in output, output
    assert (path.parent / "before-unknown" / "checkpoint.pt").exists()
    assert json.loads(path.read_text())["earlier"] == []


def test_the_committed_records_agree_with_each_other(committed: Path, places: Path, monkeypatch: Any) -> None:
    """Their FLOPs are those of images of 32x32 pixels in ten classes; without these, they are not compared."""
    monkeypatch.setenv("GAM_DATA", str(places / "data"))
    command = ("--from", str(committed / "figures" / "data"), "--runs")
    code, output = gamlib(*command, "1")
    assert code == 2 and "FLOPs were not compared where images are not here: imagefolder:cifar10-jpeg" in output
    assert "scale-cpu-imagefolder-cifar10-jpeg, quarter width, seed 2 cannot be trained here: dataset='" in output
    assert f"no folder {places / 'data' / 'cifar10-jpeg' / 'train'}" in output and not runs_root().exists()
    for path in (
        places / "data/cifar10-jpeg" / part / str(kind) / "0.png" for part in ("train", "test") for kind in range(10)
    ):
        path.parent.mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32)).save(path)
    code, output = gamlib(*command, "0")
    assert code == 0 and re.fullmatch(r"\d+ published runs: their files agree\n", output), output
    code, output = gamlib(*command, "1")
    assert code == 2 and "the files of imagefolder:cifar10-jpeg are others now" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runs", "-1"), "runs=-1: allowed: a whole number from 0"),
        (("--runs", "2", "--all"), "runs=2: allowed without --all"),
        (("other",), "study 'other': published in "),
        (("--dataset", "cifar10"), "dataset='cifar10': published on digits"),
        (("--cluster", "cloud"), "cluster='cloud': allowed: local, slurm, debug"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: tuple[str, ...], message: str, data: Path) -> None:
    code, output = gamlib("--from", str(data), *arguments)
    assert code == 2 and output.splitlines()[-1].startswith(message), output


def test_what_a_run_lacks_or_holds_no_more_is_told_before_training(data: Path) -> None:
    doctor(data, "runs", r"^(ch,0,.*),[\d.]+,(\w+,\d+)$", r"\1,,\2")
    assert gamlib("--from", str(data)) == (2, f"{NAME}, ch, seed 0: runs.csv has no seconds of it\n")
    configure(data, lr=None)
    doctor(data, "runs", r"^(ch,0,.*),,(\w+,\d+)$", r"\1,0.001,\2")
    code, output = gamlib("--from", str(data))
    assert code == 2 and f"{NAME}, ch, seed 0 cannot be trained here: lr=None: here that is 0.01" in output
    configure(data, lr="fast", width="../..")
    code, output = gamlib("--from", str(data))
    assert code == 2 and "cannot be trained here: width='../..': allowed: a number above 0" in output
    assert not runs_root().exists()


def test_the_code_of_a_record_is_needed_and_must_be_that_of_its_runs(data: Path) -> None:
    (code_file,) = data.glob("*.py")
    code_file.write_text(code_file.read_text() + "\n")
    code, output = gamlib("own", "--from", str(data), "--runs", "0", "--json")
    assert code == 1 and "and by its network it is none, since it cannot be built (ValueError: attention='" in output
    code, output = gamlib("own", "--from", str(data))
    assert code == 2 and "own-digits, eca, seed 0 cannot be trained here: attention=" in output


def test_a_damaged_table_is_refused_and_named(data: Path) -> None:
    table = data / f"{NAME}-epochs.csv"
    table.write_text(table.read_text().replace("\n", "\n\n", 1))
    code, output = gamlib("--from", str(data))
    assert (code, output.count("\n")) == (2, 1) and f"{table} is damaged, or of another publication" in output
