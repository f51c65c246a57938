"""What happens to a run, as its `status.json` says, whether the process that wrote it lives, and its outcome."""

import socket
import time
from datetime import UTC, datetime
from typing import Literal

import psutil
from pydantic import BaseModel

HEARTBEAT_SECONDS = 10
LOST_AFTER_SECONDS = 120

State = Literal["missing", "queued", "running", "preempted", "failed", "done", "lost"]


class Status(BaseModel):
    """`status.json`: what happens to a run. Times are ISO 8601 in UTC; `pid` on `host` is the process that owns it."""

    state: State = "missing"
    attempts: int = 0
    heartbeat: str = ""
    started: str = ""
    cluster: str = ""
    job_id: str = ""
    earlier_jobs: list[str] = []  # of SLURM's: one that has ended may be queued again by hand
    host: str = ""
    pid: int = 0
    error: str = ""
    fruitless: int = 0  # attempts in a row that were told to stop before they took a step

    def slurm_jobs(self) -> list[str]:
        """All jobs of SLURM's that the run was given, the last one first."""
        return [self.job_id] * (self.cluster == "slurm" and self.job_id != "") + self.earlier_jobs


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


def alive(status: Status) -> bool:
    """Whether the process lives that owns a run, as far as can be known here: on another machine, by its heartbeat."""
    if status.host == socket.gethostname():
        try:
            process = psutil.Process(status.pid)
            if process.create_time() > _seconds(status.heartbeat) + HEARTBEAT_SECONDS:
                return False  # another process by now has its number
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
    if status.state == "queued":  # on another machine, or in a cluster's queue
        return True
    return time.time() - _seconds(status.heartbeat) < LOST_AFTER_SECONDS


def now() -> str:
    """This moment as `status.json` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:  # of a file that was written by hand
        return 0.0
