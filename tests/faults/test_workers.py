"""A signal to all processes of a job, its readers of images among them: SLURM's preemption, or Ctrl-C in a terminal."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from victims import processes, same

from ablation.config import RunConfig
from ablation.execution.train import train
from ablation.runs import Run


def run_in(folder: Path) -> Run:
    os.environ |= {"GAM_RUNS": str(folder / "runs"), "GAM_DATA": str(folder.parent / "data")}
    values: dict[str, Any] = {"dataset": "imagefolder:noise", "backbone": "resnet18", "width": 0.25, "stem": "imagenet"}
    return Run(RunConfig(**values, epochs=3, batch_size=4, workers=2))


def _train(folder: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a kernel; here it is what started this process
    os.environ["GAM_BATCH"] = "1"
    train(run_in(folder))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_to_a_job_and_its_readers_saves_and_the_next_goes_on_bit_by_bit(
    tmp_path: Path, number: signal.Signals
) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("one", "other"):
            folder = tmp_path / "data" / "noise" / part / label
            folder.mkdir(parents=True)
            for index in range(16):
                Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    process = processes.Process(target=_train, args=(tmp_path / "undisturbed",))
    process.start()
    process.join()
    run = run_in(tmp_path / "stopped")
    process = processes.Process(target=_train, args=(tmp_path / "stopped",))
    process.start()
    while run.metrics().empty and process.exitcode is None:
        time.sleep(0.02)
    assert process.pid is not None
    os.killpg(process.pid, number)
    process.join()
    assert run.status().state == "preempted"
    assert run.status().error.startswith(f"stopped by {number.name} in epoch ")
    process = processes.Process(target=_train, args=(tmp_path / "stopped",))
    process.start()
    process.join()
    assert process.exitcode == 0 and same(run, run_in(tmp_path / "undisturbed"))
