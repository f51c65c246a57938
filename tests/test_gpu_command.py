"""`make gpu` on a machine without one: its limits, its summary, what it refuses. `--try` executes the true parts."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from started import processes

from ablation.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
gpu = importlib.import_module("gpu")

STAND_INS = """
import sys
sys.path.insert(0, "benchmarks")
import gpu
gpu.GRACE = gpu.SAVING = 2
gpu.PARTS = {
    "tests": (0.05, "sh -c 'echo 1 failed, 2 passed; exec sleep 100'"),
    "blocks": (0.05, "$PYTHON -c 'print(1); raise SystemExit(3)'"),
    "steps": (0.05, "sh -c 'trap : INT; sleep 100 & while true; do wait; done'"),
    "study": (0.85, "sh -c 'echo $OUT $SECONDS_TO_RUN; sleep ${NAP:-0}; exit ${CODE:-0}'"),
}
sys.exit(gpu.main())
"""


def started(out: Path, parts: str, **variables: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OUT": str(out), "SECONDS_TO_RUN": "60"} | variables
    command = [sys.executable, "-c", STAND_INS, "--try", "--parts", parts]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def lines(process: "subprocess.Popen[str]", out: Path) -> list[list[str]]:
    """The columns of the summary."""
    printed, _ = process.communicate(timeout=120)
    assert (out / "summary.txt").read_text() == printed
    return [re.split(r"  +", line) for line in printed.splitlines()]


@pytest.mark.slow
def test_a_part_that_fails_or_does_not_end_takes_nothing_from_the_others(tmp_path: Path) -> None:
    process = started(tmp_path, "tests,blocks,steps,study")
    tests, blocks, steps, study = lines(process, tmp_path)
    assert process.returncode == 1
    assert tests[:2] == ["tests", "failed"] and tests[3] == "1 failed, 2 passed"  # although it was cut short
    assert blocks[:2] == ["blocks", "failed"] and blocks[3] == "1"
    assert steps[:2] == ["steps", "cut short"]
    out, seconds = study[3].split()
    assert study[:2] == ["study", "passed"] and out == str(tmp_path) and 30 < int(seconds) < 55
    assert "=== sh -c 'echo 1 failed" in (tmp_path / "log.txt").read_text()
    assert not processes("", f"OUT={tmp_path}")


@pytest.mark.slow
def test_ctrl_c_stops_a_part_and_no_other_begins(tmp_path: Path) -> None:
    process = started(tmp_path, "study,tests", NAP="100")
    while "===" not in (log.read_text() if (log := tmp_path / "log.txt").exists() else ""):
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    found = lines(process, tmp_path)
    assert process.returncode == 130
    assert [line[:2] for line in found] == [["study", "stopped"], ["tests", "not run"]]
    assert not processes("", f"OUT={tmp_path}")


@pytest.mark.slow
def test_a_study_that_stops_at_its_own_limit_is_cut_short(tmp_path: Path) -> None:
    process = started(tmp_path, "study", CODE="124")
    assert [line[:2] for line in lines(process, tmp_path)] == [["study", "cut short"]]
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--parts", "tests,all"], {}, "parts='all': allowed: tests, blocks, blocks-compiled, blocks-all, steps"),
        ([], {"SECONDS_TO_RUN": "soon"}, "SECONDS_TO_RUN='soon': allowed: a whole number from 60"),
        ([], {"SECONDS_TO_RUN": "59"}, "SECONDS_TO_RUN='59': allowed: a whole number from 60"),
        ([], {"WORKERS": "0"}, "WORKERS='0': allowed: a whole number from 1"),
        (["--try"], {"OUT": "/proc/gpu"}, "OUT='/proc/gpu': No such file or directory; allowed: a folder that can be"),
        ([], {}, "torch finds no GPU; allowed without one: --try"),
    ],
)
def test_bad_values_are_refused_in_one_line(
    arguments: list[str],
    variables: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal(arguments, capsys, monkeypatch).startswith(message)


def test_what_is_missing_is_named_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("GAM_DATA", str(tmp_path))
    line = refusal([], capsys, monkeypatch)
    assert line.startswith(f"{tmp_path}/cifar10-jpeg: not there, see docs/data.md; allowed without it: --parts tests,")

    def version(name: str) -> str:
        if name in ("papermill", "pydantic-core"):
            raise gpu.PackageNotFoundError
        return "1"

    monkeypatch.setattr(gpu, "version", version)
    assert ": papermill, pydantic-core; benchmarks/gpu.txt lists" in refusal(["--try"], capsys, monkeypatch)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_every_package_that_it_needs_is_locked() -> None:
    needed = set(re.findall(r"^\w[\w-]*", (ROOT / "benchmarks" / "gpu.txt").read_text(), re.M))
    assert len(needed) > 50 and needed <= set(re.findall(r"^[\w-]+", (ROOT / "requirements.lock").read_text(), re.M))


def test_the_small_commands_are_of_the_full_ones() -> None:
    """A text that no command has would leave it at full size."""
    every: Any = " ".join(command for _, command in gpu.PARTS.values())
    assert all(text in every for text in gpu.SMALL)
    assert sum(share for share, _ in gpu.PARTS.values()) == pytest.approx(1)
