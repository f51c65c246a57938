"""What happens to a run, as its `status.json` says, whether the process that wrote it lives, and its outcome."""

import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

HEARTBEAT_SECONDS = 10
LOST_AFTER_SECONDS = 120
PROGRESS_SECONDS = 3.0  # between two looks at how far a run is, and two words of it

State = Literal["missing", "queued", "running", "preempted", "failed", "done", "lost"]
UNDER_WAY = ("queued", "running")  # states


class Status(BaseModel):
    """`status.json`: what happens to a run. Times are ISO 8601 in UTC; `pid` on `host` is the process that owns it."""

    state: State = "missing"
    attempts: int = 0
    heartbeat: str = ""
    cluster: str = ""
    job_id: str = ""
    earlier_jobs: list[str] = []  # of SLURM's: one that has ended may be queued again by hand
    shared: bool = False  # whether the job has other runs too: it does not come back to one that has left it
    host: str = ""
    pid: int = 0
    error: str = ""
    fruitless: int = 0  # attempts in a row that were told to stop before they took a step

    def slurm_jobs(self) -> list[str]:
        """All jobs of SLURM's that the run was given, the last one first."""
        return [self.job_id] * (self.cluster == "slurm" and self.job_id != "") + self.earlier_jobs

    def belongs_to(self, job_id: str) -> bool:
        """Whether this job of SLURM's is the run's."""
        return (self.cluster, self.job_id) == ("slurm", job_id)

    def mine(self, pid: int | None = None) -> bool:
        """Whether this process owns the run, or else one of its host."""
        return (self.host, self.pid) == (socket.gethostname(), pid or os.getpid())

    def alive(self) -> bool:
        """Whether the process lives that owns the run, as far as can be known here: elsewhere, by its heartbeat."""
        import psutil  # late: of runs that have ended nobody asks

        beat = 0.0
        with suppress(ValueError):  # of a file that was written by hand
            beat = datetime.fromisoformat(self.heartbeat).timestamp()
        if self.host != socket.gethostname():
            return self.state == "queued" or time.time() - beat < LOST_AFTER_SECONDS
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            another = process.create_time() > beat + HEARTBEAT_SECONDS  # that has its number by now
            return bool(not another and process.status() != psutil.STATUS_ZOMBIE)
        return False


class Result(BaseModel):
    """`result.json`: the outcome of a run, of its last epoch. Errors in percent, losses in nats.

    seconds: of training; tests and what comes before and after the epochs are not counted.
    """

    signature: str
    epochs: int
    top1_error: float
    top5_error: float
    test_loss: float
    train_loss: float
    train_top1_error: float
    parameters: int
    seconds: float
    source: str
    flops: int | None = None  # of one test image; results of code before 2026-11-22 lack it


class TrainingProgress(BaseModel):
    """`progress.json`: how far a run that trains has come; in words, such as "epoch 37/60 · 4.2 % · 12 min left".

    epoch: the present one, counted from 1.
    top1_error: in percent, after the last epoch that is over; None before that.
    seconds: that all epochs take with their tests, at the speed since this execution began; None before it is known.
    seconds_left: how many of these are to come.
    """

    epoch: int
    epochs: int
    top1_error: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        words = [f"epoch {self.epoch}/{self.epochs}"]
        if self.top1_error is not None:
            words.append(f"{self.top1_error:.1f} %")
        if self.seconds_left is not None:
            words.append(f"{duration(self.seconds_left)} left")
        return " · ".join(words)


def duration(seconds: float) -> str:
    """A time as people say it: "45 s" below two minutes, "12 min" below an hour, then "3 h 20 min"."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def this_process() -> dict[str, Any]:
    """The values by which a status names its owner."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
