"""How the tests of this folder submit runs, disturb them and wait for them."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import nbformat
import pandas as pd
import psutil
import started
from cluster import Cluster
from started import of_test, processes

from ablation.config import RunConfig
from ablation.execution import slurm
from ablation.execution.dispatch import dispatch
from ablation.runs import Run
from ablation.status import Status
from gamlib.training.loop import MEASURED

LONG: dict[str, Any] = {"epochs": 30, "width": 0.25, "train_fraction": 0.2}  # some seconds of training
SHORT = LONG | {"epochs": 2}
Survives = Callable[[str], None]


def command(*arguments: str, values: dict[str, Any] | None = None) -> list[str]:
    parameters = [text for key, value in (values or {}).items() for text in ("-p", f"{key}={value}")]
    return [sys.executable, "-m", "ablation.cli", *arguments, *parameters]


def gamlib(*arguments: str, values: dict[str, Any] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*arguments, values=values), capture_output=True, text=True, timeout=600)


def submit(values: dict[str, Any], **options: Any) -> Run:
    """As `gamlib run --no-wait` does, without its start."""
    config = RunConfig(**values)
    dispatch([config], "slurm", wait=False, slurm={"cpus": 1, **options})
    return Run(config)


def now(run: Run) -> Status:
    return slurm.statuses([run])[run]


def wait_for(happened: Callable[[], object], seconds: float = 600, every: float = 0.5) -> None:
    started.wait_for(happened, seconds, every)


def ended(run: Run) -> Status:
    wait_for(lambda: now(run).state not in ("queued", "running"), every=1)
    return now(run)


def trains(run: Run) -> None:
    """Wait until it does: some epochs of this attempt are over."""
    before = run.metrics()
    wait_for(lambda: len(run.metrics()) > len(before) + 3 or run.result() is not None, every=0.1)
    assert run.result() is None, "it was through before it could be disturbed"


def begun(run: Run, attempt: int) -> None:
    """Wait until its job has begun that often."""
    wait_for(lambda: run.status().attempts >= attempt or run.result() is not None)
    assert run.status().attempts >= attempt, "it was through before"


def curve(run: Run) -> pd.DataFrame:
    return run.metrics().drop(columns=list(MEASURED))


def assert_undisturbed(run: Run, undisturbed: pd.DataFrame) -> None:
    assert ended(run).state == "done", now(run)
    pd.testing.assert_frame_equal(curve(run), undisturbed, check_exact=True)
    wait_for((run.folder / "run.ipynb").exists)  # it is done when its result is written, and the notebook comes after
    nbformat.validate(nbformat.read(run.folder / "run.ipynb", as_version=4))


def kernels() -> list[psutil.Process]:
    """The kernels of this test, forks and others."""
    return of_test("ipykernel_launcher") + of_test("gamlib-kernel")


def steps(cluster: Cluster) -> list[psutil.Process]:
    """SLURM's own processes around the jobs of this cluster."""
    return processes("slurmstepd", f"SLURM_CONF={cluster.environment['SLURM_CONF']}")
