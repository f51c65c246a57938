"""What `gamlib doctor` says of this machine, and what it calls a problem."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from typer.testing import CliRunner

from ablation import doctor
from ablation.cli import app
from ablation.execution import slurm
from ablation.paths import ROOT
from gamlib.kernels import native

SAID = """
| NVIDIA-SMI 470.57.02    Driver Version: 470.57.02    CUDA Version: 11.4     |
"""


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH: no SLURM and no driver but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(slurm, "_unanswered", -math.inf)
    monkeypatch.setattr(native, "library", Mock())  # compiling has tests of its own
    return folder


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def told() -> dict[str, tuple[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = {one["name"]: (one["state"], one["text"]) for one in json.loads(result.output)}
    assert result.exit_code == any(state == "PROBLEM" for state, _ in found.values())
    return found


@pytest.mark.parametrize(
    ("forbidden", "compiled", "state"), [(True, False, "note"), (True, True, "ok"), (False, False, "ok")]
)
def test_packages_that_each_start_compiles_again(
    forbidden: bool, compiled: bool, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may not write bytecode, and who installed them has not."""
    (cached := tmp_path / "torch" / "__pycache__" / "torch.pyc").parent.mkdir(parents=True)
    if compiled:
        cached.touch()
    found = Mock(origin=str(tmp_path / "torch" / "__init__.py"), cached=str(cached))
    monkeypatch.setattr(doctor, "find_spec", Mock(return_value=found))
    monkeypatch.setattr("sys.dont_write_bytecode", forbidden)
    told, text = doctor._python()
    assert told == state and (f"python -m compileall -q {tmp_path}" in text) is (state == "note")


def test_a_machine_that_can_do_a_study_has_a_line_for_each_thing_and_code_0(places: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    *lines, last = result.output.splitlines()
    assert (result.exit_code, last) == (0, "nothing stops a study")
    assert [line.split()[1] for line in lines] == [*doctor.LOOKS]
    assert all(line.split()[0] in ("ok", "note") for line in lines)
    assert not (places / "runs").exists(), "it writes nothing"


def test_what_stops_a_study_is_named_on_the_last_line_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(5e8))
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, "a study is stopped by: runs")
    assert "0.5 GB free, and a study needs 1" in result.output


@pytest.mark.parametrize(("number", "text"), [(errno.ENOLCK, "has no file locks"), (errno.EACCES, "may write to")])
def test_runs_need_a_folder_with_locks_that_can_be_written(
    number: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
    state, said = told()["runs"]
    assert state == "PROBLEM" and text in said and "set GAM_RUNS to" in said


@pytest.mark.parametrize(
    ("cuda", "driver", "text"),
    [
        ("13.0", "470.57.02", "the driver is too old, this build needs 580 or newer"),
        ("13.0", "579.99", "this build needs 580 or newer"),
        ("12.8", "470.57.02", "this build needs 525 or newer"),
        ("13.0", "580.65.06", "new enough (580), so look at CUDA_VISIBLE_DEVICES"),
        ("12.6", "570.86.15", "new enough (525)"),
        ("99.0", "580.65.06", "compare the driver with what this build needs"),
        (None, "580.65.06", "install a build of torch for CUDA"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_noted_with_its_driver_and_the_one_that_this_build_needs(
    cuda: str | None, driver: str, text: str, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert told()["torch"] == ("ok", told()["torch"][1]) and told()["torch"][1].endswith("no GPU")
    command(programs, "nvidia-smi", f"echo '{SAID.replace('470.57.02', driver)}'")
    state, said = told()["torch"]
    assert state == "note" and f"(driver {driver}, up to CUDA 11.4): " in said and text in said
    assert "runs use the CPU" in said


def test_a_gpu_that_torch_can_use_is_in_order_whatever_its_driver(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's packages for forward compatibility let older drivers do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    command(programs, "nvidia-smi", f"echo '{SAID}'")
    state, said = told()["torch"]
    assert state == "ok" and said.endswith("2 GPUs, driver 470.57.02, up to CUDA 11.4")


def test_a_gpu_that_this_build_has_no_code_for_is_noted(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls it available, and fails at the first kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_120"])
    monkeypatch.setattr(torch.cuda, "init", torch.cuda._check_capability)
    state, said = told()["torch"]
    assert state == "note" and "; 1 GPU, driver unknown; torch warns: Found GPU0 Tesla V100 which is of" in said


def test_the_page_on_installation_names_the_driver_of_every_build() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    assert dict(re.findall(r"^\| CUDA (\d+)\.x .*\| (\d+) or newer \|$", text, re.M)) == {
        cuda: str(driver) for cuda, driver in doctor.DRIVERS.items() if int(cuda) >= 12
    }


def test_without_a_compiler_it_says_what_that_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setenv("GAM_COMPILER", "")
    state, said = told()["compiler"]
    assert state == "note" and "slower: GAM_COMPILER=''" in said and "install a C compiler" in said


def test_slurm_is_asked_for_partitions_and_accounts_and_need_not_answer(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told()["SLURM"] == ("ok", "none, so studies run on this machine")
    for name in ("sbatch", "sacct"):
        command(programs, name, "exit 0")
    command(programs, "sinfo", "echo gpu; echo cpu; echo gpu")
    assert told()["SLURM"] == ("ok", "partitions cpu, gpu; accounting answers")
    command(programs, "sacct", "exit 1")
    assert told()["SLURM"][0] == "note" and "sacct does not answer" in told()["SLURM"][1]
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    command(programs, "sinfo", "exec /bin/sleep 60")
    state, said = told()["SLURM"]
    assert state == "note" and "sinfo does not answer" in said


def test_data_sets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAM_DATA", str(tmp_path))
    for folder in ("cifar-10-batches-py", "birds/train", "imagenet/train"):
        (tmp_path / folder).mkdir(parents=True)
    assert f"in {tmp_path}: cifar10, imagenet, imagefolder:birds;" in told()["data"][1]


def test_a_package_that_is_missing_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=99", 'nothing-such>=1; extra == "lab"', 'neither>=1; extra == "dev"', 'numpy; extra == "lab"']
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    state, said = told()["gamlib"]
    assert state == "PROBLEM" and "lacks torch>=99, nothing-such>=1: pip install 'gamlib[lab]'" in said
    assert told()["optional"][1].startswith(("timm", "without tensorboard"))


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"gamlib {metadata.version('gamlib')}\n")
