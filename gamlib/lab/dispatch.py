"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import submitit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.execute import execute
from gamlib.lab.places import runs_root
from gamlib.lab.runs import JOB, Run, first_line, unique

CLUSTERS = ("local", "slurm", "debug")
POLL_SECONDS = 0.2
YEAR_MINUTES = 365 * 24 * 60  # a local job has no time limit; submitit wants one
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class Tally:
    """What became of the runs that were asked for."""

    runs: list[Run]
    done_before: int = 0
    done: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)  # with the reason, in one line
    running: int = 0
    seconds: list[float] = field(default_factory=list)


class Board:
    """Progress for people: a live line in a terminal or in Jupyter, one line a finished run elsewhere."""

    def __init__(self, tally: Tally, workers: int) -> None:
        self.tally, self.workers, self.began = tally, workers, time.monotonic()
        self.console = Console(soft_wrap=True)
        live = self.console.is_terminal or (self.console.is_jupyter and JOB not in os.environ)
        text = TextColumn("{task.fields[counts]}", table_column=Column(no_wrap=True))
        self.bar = Progress(BarColumn(bar_width=30), text, console=self.console, disable=not live)
        self.task = self.bar.add_task("", total=len(tally.runs), counts=self.counts())

    def __enter__(self) -> "Board":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self.bar.stop()

    def counts(self) -> str:
        """Runs done, running and failed, and the time left."""
        tally = self.tally
        parts = [
            f"{tally.done_before + len(tally.done)} of {len(tally.runs)} runs done",
            f"{tally.running} running",
            f"{len(tally.failed)} failed",
        ]
        if (left := self.seconds_left()) is not None:
            parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """From the mean time of the runs that ended; None before the first has."""
        tally = self.tally
        todo = len(tally.runs) - tally.done_before - len(tally.done) - len(tally.failed)
        if not tally.seconds or not todo:
            return None
        per_run = sum(tally.seconds) / len(tally.seconds) / self.workers
        since_last = time.monotonic() - self.began - self.last_end
        return max(0.0, todo * per_run - since_last)

    last_end = 0.0

    def ended(self, run: Run, seconds: float, reason: str) -> None:
        """One run has ended; say how, with the reason where it failed."""
        tally, result = self.tally, run.result()
        if result:
            tally.done.append(run)
        else:
            tally.failed[run] = reason
        tally.seconds.append(seconds)
        self.last_end = time.monotonic() - self.began
        what = f"top-1 error {result.top1_error:.2f} %" if result else f"FAILED: {reason}"
        self.console.print(
            f"{run.folder.name}  {what}  ({seconds:.0f} s)  [{self.counts()}]", markup=False, highlight=False
        )
        self.refresh()

    def refresh(self) -> None:
        """Show the present counts."""
        ended = self.tally.done_before + len(self.tally.done) + len(self.tally.failed)
        self.bar.update(self.task, completed=ended, counts=self.counts())


def dispatch(
    configs: Sequence[RunConfig],
    cluster: str = "local",
    workers: int | None = None,
    wait: bool = True,
    slurm: Mapping[str, Any] | None = None,
    before: Callable[[], object] = lambda: None,
) -> Tally:
    """Execute the runs that are not done, each configuration once; the other runs go on when one fails.

    Args:
        configs: what to run, in this order.
        cluster: "local", a queue on this machine; "slurm", one submitit job a run; "debug", in this process.
        workers: local runs at once, each with its share of the cores; by default one for every core, four at most.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: what submitit's AutoExecutor is told, e.g. `slurm_partition`, `timeout_min`, `gpus_per_node`.
        before: called once when everything is found in order, just before the first job starts.

    Raises:
        ConfigError: an unknown cluster, an impossible number of workers, or no SLURM on this machine.
        KeyboardInterrupt: stopped; what was running is marked `preempted`, what is done stays done.
    """
    if cluster not in CLUSTERS:
        raise ConfigError(f"cluster={cluster!r}: allowed: {', '.join(CLUSTERS)}")
    cores = len(os.sched_getaffinity(0))
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: allowed: a whole number from 1")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug")
    if not wait and cluster != "slurm":
        raise ConfigError(f"wait=False: allowed with cluster='slurm' only; jobs of {cluster!r} need this process")
    runs = unique(configs)
    todo = [run for run in runs if run.result() is None]
    tally = Tally(runs, done_before=len(runs) - len(todo))
    before()
    if not todo:
        return tally
    workers = 1 if cluster == "debug" else min(workers or min(cores, 4), len(todo))
    if cluster == "slurm":
        workers = len(todo)
    with Board(tally, workers) as board:
        if cluster == "slurm":
            _slurm_jobs(todo, board, wait, slurm or {})
        elif cluster == "debug":
            _in_process(todo, board)
        else:
            _local_queue(todo, board, workers, cores)
    return tally


def _in_process(todo: list[Run], board: Board) -> None:
    for run in todo:
        began, board.tally.running = time.monotonic(), 1
        board.refresh()
        reason = ""
        try:
            execute(run, {})
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        board.tally.running = 0
        board.ended(run, time.monotonic() - began, reason)


def _local_queue(todo: list[Run], board: Board, workers: int, cores: int) -> None:
    """At most `workers` submitit jobs at once, in order; submitit alone would start all of them."""
    executor = submitit.AutoExecutor(folder=runs_root() / "submitit", cluster="local")
    executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    gpus = _gpus()
    waiting, free = deque(todo), deque(range(workers))
    active: dict[int, tuple[Run, submitit.Job[None], float]] = {}
    for run in todo:
        run.queue()
    try:
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.popleft()
                environment = dict.fromkeys(THREAD_VARIABLES, str(max(1, cores // workers)))
                environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)] if gpus else ""
                active[slot] = run, executor.submit(execute, run, environment), time.monotonic()
            board.tally.running = len(active)
            board.refresh()
            time.sleep(POLL_SECONDS)
            for slot, (run, job, began) in list(active.items()):
                if job.done():
                    del active[slot]
                    free.append(slot)
                    board.tally.running = len(active)
                    board.ended(run, time.monotonic() - began, _settle(run, job))
    except KeyboardInterrupt:
        _stop(active, list(waiting))
        raise


def _settle(run: Run, job: submitit.Job[None]) -> str:
    """Why the run of a job that has ended failed, or nothing. One that wrote no end to its run was killed: say so."""
    if run.result() is not None:
        for path in (job.paths.submitted_pickle, job.paths.result_pickle, job.paths.stdout, job.paths.stderr):
            path.unlink(missing_ok=True)
        return ""
    status = run.status()
    if status.state in ("failed", "preempted"):
        return status.error
    reason = f"its job ended without a word; see {job.paths.stdout}"
    with suppress(OSError):
        run.write_status(state="failed", error=reason)
    return reason


def _stop(active: dict[int, tuple[Run, submitit.Job[None], float]], waiting: list[Run]) -> None:
    """Stop the jobs, wait until they are gone, and say of every run where it stands."""
    for _, job, _ in active.values():
        job.cancel(check=False)
    until = time.monotonic() + 15
    while any(not job.done() for _, job, _ in active.values()) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    for run, _, _ in active.values():
        if run.result() is None:
            run.write_status(state="preempted", error="stopped from outside", pid=0)
    for run in waiting:
        run.unqueue()


def _slurm_jobs(todo: list[Run], board: Board, wait: bool, parameters: Mapping[str, Any]) -> None:
    executor = submitit.AutoExecutor(folder=runs_root() / "submitit", cluster="slurm")
    try:
        executor.update_parameters(**{"name": "gamlib", "timeout_min": 24 * 60, "stderr_to_stdout": True, **parameters})
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    active: list[tuple[Run, submitit.Job[None], float]] = []
    for run in todo:
        job = executor.submit(execute, run, {})
        run.queue(job.job_id)
        active.append((run, job, time.monotonic()))
    while wait and active:
        board.tally.running = sum(job.state == "RUNNING" for _, job, _ in active)
        board.refresh()
        time.sleep(5)
        for entry in list(active):
            run, job, began = entry
            if run.result() is not None or job.done():
                active.remove(entry)
                board.ended(run, time.monotonic() - began, _settle(run, job))


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
