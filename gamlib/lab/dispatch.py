"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import submitit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.execute import execute
from gamlib.lab.places import cores, runs_root, share_of_cores
from gamlib.lab.runs import BATCH, Run, first_line, unique

CLUSTERS = ("local", "slurm", "debug")
POLL_SECONDS = 0.2
CLUSTER_POLL_SECONDS = 5
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


class Board:
    """Progress for people: a live line in a terminal or in Jupyter, one line a finished run elsewhere."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.began, self.last_end = tally, time.monotonic(), 0.0
        self.console = Console(soft_wrap=True)
        live = self.console.is_terminal or (self.console.is_jupyter and BATCH not in os.environ)
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
            left = max(0, int(left))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """From the time that the ended runs took; None before the first has ended."""
        ended = len(self.tally.done) + len(self.tally.failed)
        todo = len(self.tally.runs) - self.tally.done_before - ended
        return (
            self.last_end / ended * todo - (time.monotonic() - self.began - self.last_end) if ended and todo else None
        )

    def ended(self, run: Run, seconds: float, reason: str) -> None:
        """One run has ended; say how, with the reason where it failed."""
        tally, result = self.tally, run.result()
        if result:
            tally.done.append(run)
        else:
            tally.failed[run] = reason
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
            Another number gives a run another number of threads, and its results other last bits.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: what submitit's AutoExecutor is told, e.g. `slurm_partition`, `timeout_min`, `gpus_per_node`.
        before: called once when everything is found in order, just before the first job starts.

    Raises:
        ConfigError: an unknown cluster, an impossible number of workers, or no SLURM on this machine.
        KeyboardInterrupt: stopped; local runs are marked `preempted`, what is done stays done, SLURM jobs go on.
    """
    if cluster not in CLUSTERS:
        raise ConfigError(f"cluster={cluster!r}: allowed: {', '.join(CLUSTERS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: allowed: a whole number from 1")
    if workers is not None and cluster != "local":
        raise ConfigError(f"workers={workers}: allowed with cluster='local' only, and this is {cluster!r}")
    if cluster != "slurm" and (slurm or not wait):
        option = next(iter(slurm or {}), "wait=False")
        raise ConfigError(f"{option}: allowed with cluster='slurm' only, and this is {cluster!r}")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug")
    runs = unique(configs)
    todo = [run for run in runs if run.result() is None]
    tally = Tally(runs, done_before=len(runs) - len(todo))
    before()
    if not todo:
        return tally
    threads = (slurm or {}).get("cpus_per_task", share_of_cores(workers))
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if cluster == "debug":
        with Board(tally) as board:
            _in_process(todo, board, environment)
        return tally
    if cluster == "slurm":
        slots = [environment if "cpus_per_task" in (slurm or {}) else {} for _ in todo]
    else:
        gpus = _gpus()
        at_once = min(workers or min(cores(), 4), len(todo))
        visible = [gpus[slot % len(gpus)] if gpus else "" for slot in range(at_once)]
        slots = [environment | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible]
    executor = _executor(cluster, slurm or {})
    with Board(tally) as board:
        _queue(todo, board, executor, slots, here=cluster == "local", wait=wait)
    return tally


def _in_process(todo: list[Run], board: Board, environment: Mapping[str, str]) -> None:
    for run in todo:
        began, board.tally.running = time.monotonic(), 1
        board.refresh()
        reason = ""
        try:
            execute(run, environment)
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        board.tally.running = 0
        board.ended(run, time.monotonic() - began, reason)


def _executor(cluster: str, slurm: Mapping[str, Any]) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(folder=runs_root() / "submitit", cluster=cluster)
    limit = YEAR_MINUTES if cluster == "local" else 24 * 60
    try:
        executor.update_parameters(**{"name": "gamlib", "timeout_min": limit, "stderr_to_stdout": True, **slurm})
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    return executor


def _queue(
    todo: list[Run],
    board: Board,
    executor: submitit.AutoExecutor,
    slots: list[dict[str, str]],
    here: bool,
    wait: bool,
) -> None:
    """At most one job a slot, in order; submitit's local executor alone would start all of them at once.

    Args:
        slots: for every job that may run at once, variables for its kernel.
        here: the jobs are processes of this machine, and end with this one; else they are a cluster's.
    """
    waiting, free = deque(todo), deque(range(len(slots)))
    active: dict[int, tuple[Run, submitit.Job[None], float]] = {}
    try:
        for run in todo:
            run.queue(here)
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.popleft()
                active[slot] = run, executor.submit(execute, run, slots[slot]), time.monotonic()
            if not wait:
                return
            running = [run for run, _, _ in active.values() if here or run.status().state == "running"]
            board.tally.running = len(running)
            board.refresh()
            time.sleep(POLL_SECONDS if here else CLUSTER_POLL_SECONDS)
            for slot, (run, job, began) in list(active.items()):
                # A cluster without accounting never says that a job has ended; the run's own folder does.
                if job.done() or (not here and run.status().state in ("done", "failed")):
                    del active[slot]
                    free.append(slot)
                    board.tally.running = len(active)
                    board.ended(run, time.monotonic() - began, _settle(run, job))
    except KeyboardInterrupt:
        if not here:
            raise KeyboardInterrupt("stopped waiting; the SLURM jobs go on, see `gamlib status`") from None
        _stop(active, waiting)
        raise
    except BaseException:
        if here:
            _stop(active, waiting)
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


def _stop(active: Mapping[int, tuple[Run, submitit.Job[None], float]], waiting: Iterable[Run]) -> None:
    """Stop the jobs, wait until they are gone, and say of every run where it stands."""
    for _, job, _ in active.values():
        job.cancel(check=False)
    _wait(15, lambda: all(job.done() for _, job, _ in active.values()))
    _wait(2, lambda: all(run.status().state != "running" for run, _, _ in active.values()))  # unless it is another's
    for run, _, _ in active.values():
        if run.status().state == "lost":  # its job was killed before it could say so itself
            run.write_status(state="preempted", error="stopped from outside")
        run.unqueue()
    for run in waiting:
        run.unqueue()


def _wait(seconds: float, happened: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
