"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil
import submitit
from filelock import FileLock, Timeout

from gamlib.lab import slurm as slurms
from gamlib.lab import slurm_options
from gamlib.lab.board import Board, Tally
from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.execute import execute
from gamlib.lab.places import cores, require_locks, require_notebook, runs_root, share_of_cores
from gamlib.lab.provenance import SOURCE, source_hash
from gamlib.lab.runs import REMOVED, Run, RunStopped, first_line, unique
from gamlib.signals import held_back
from gamlib.training.datasets import DatasetError

CLUSTERS = ("local", "slurm", "debug")
POLL_SECONDS = 0.2
GRACE_SECONDS = 120  # for a run to end its step and save
YEAR_MINUTES = 365 * 24 * 60  # a local job has no time limit; submitit wants one
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def dispatch(
    configs: Sequence[RunConfig],
    cluster: str = "local",
    workers: int | None = None,
    wait: bool = True,
    slurm: Mapping[str, Any] | None = None,
    before: Callable[[], object] = lambda: None,
    rerun_stale: bool = False,
) -> Tally:
    """Execute the runs that are not done, each configuration once; the other runs go on when one fails.

    Args:
        configs: what to run, in this order.
        cluster: "local", a queue on this machine; "slurm", one submitit job a run; "debug", in this process.
        workers: local runs at once, each with its share of the cores; by default one for every core, four at most.
            Another number gives a run another number of threads, and its results other last bits.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: options of the jobs by the names of `slurm_options.NAMES`, e.g. `partition`, `timeout` in minutes,
            `gpus`, and in `slurm` any other options of sbatch as a list of "key=value" (slurm only).
        before: called once when everything is found in order: just before the first job starts here, or when SLURM
            has taken the first ones.
        rerun_stale: runs that other code than the present has done are done again; what they left is set aside.

    Raises:
        ConfigError: an unknown cluster, an impossible number of workers, no SLURM on this machine, fewer GPUs than a
            run has devices, images that are not there, a package without its notebooks, or a folder without locks.
        KeyboardInterrupt: stopped; local runs save their state and are marked `preempted`, SLURM jobs go on.
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
    told: dict[str, Any] = {}
    if cluster == "slurm":
        if not slurms.here():
            raise ConfigError(
                "cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug"
            )
        given = dict(slurm or {})
        extra = given.pop("slurm", ())
        told = slurm_options.options(given, extra)
    require_notebook("run.ipynb")
    require_locks(runs_root())
    runs = unique(configs)
    stale = [run for run in runs if rerun_stale and run.stale()]
    todo = [run for run in runs if run.result() is None or run in stale]
    tally = Tally(runs, done_before=len(runs) - len(todo))
    for run in runs:
        if run not in todo and run.parts_of_notebooks():
            with suppress(Timeout), FileLock(run.folder / ".lock", timeout=0):  # or its job is still at it
                run.keep_notebook()
    if todo:
        _prepare({run.config.dataset for run in todo})
    devices = max([run.config.devices for run in todo], default=1)
    gpus = _gpus(devices) if todo and cluster == "local" else [""]
    if not todo or cluster != "slurm":
        before()
    for run in stale:
        with suppress(Timeout), FileLock(run.folder / ".lock", timeout=0):  # who holds it runs it anew already
            if run.stale():
                run.set_aside()
    if not todo:
        return tally
    threads = told.get("cpus_per_task", share_of_cores(workers))
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if cluster == "debug":
        with Board(tally) as board:
            _in_process(todo, board, environment)
        return tally
    if cluster == "slurm":
        _on_slurm(todo, tally, told, environment if "cpus_per_task" in told else {}, wait, before)
        return tally
    at_once = min(workers or min(cores(), 4), len(todo))
    if devices > 1 and gpus != [""]:
        at_once = min(at_once, len(gpus))
    slots = [environment | {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(at_once)]
    executor = submitit.AutoExecutor(folder=runs_root() / "submitit", cluster="local")
    executor.update_parameters(name="gamlib", timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    with Board(tally) as board:
        _queue(todo, board, executor, slots)
    return tally


def _on_slurm(
    todo: list[Run],
    tally: Tally,
    told: Mapping[str, Any],
    environment: Mapping[str, str],
    wait: bool,
    accepted: Callable[[], object],
) -> None:
    from gamlib.lab import arrays

    with Board(tally) as board:
        submitted = arrays.submit(todo, told, {SOURCE: source_hash(), **environment}, accepted)
        others = len(todo) - len(submitted)
        board.console.print(
            f"{len(submitted)} runs submitted" + f", {others} were in a queue before" * (others > 0), highlight=False
        )
        if wait:
            try:
                arrays.watch(todo, board)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("stopped waiting; the SLURM jobs go on, see `gamlib status`") from None


def _in_process(todo: list[Run], board: Board, environment: Mapping[str, str]) -> None:
    for run in todo:
        began, board.tally.running = time.monotonic(), 1
        board.refresh()
        reason = ""
        try:
            execute(run, environment)
        except RunStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        board.tally.running = 0
        board.ended(run, time.monotonic() - began, reason)


def _queue(
    todo: list[Run],
    board: Board,
    executor: submitit.AutoExecutor,
    slots: list[dict[str, str]],
) -> None:
    """At most one job a slot, in order; submitit's local executor alone would start all of them at once.

    Args:
        slots: for every job that may run at once, variables for its kernel.
    """
    waiting, free = deque(todo), deque(range(len(slots)))
    active: dict[int, tuple[Run, submitit.Job[None], float]] = {}
    try:
        for run in todo:
            run.queue()
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.popleft()
                if by := run.asked_to_stop():
                    free.append(slot)
                    run.write_status(state="preempted", error=f"stopped by {by} before it began")
                    board.ended(run, 0, run.status().error)
                    continue
                with held_back(signal.SIGINT):  # a terminal sends it to all; jobs hear of it by a request, in time
                    active[slot] = run, executor.submit(execute, run, slots[slot]), time.monotonic()
            board.tally.running = len(active)
            board.refresh()
            time.sleep(POLL_SECONDS)
            for slot, (run, job, began) in list(active.items()):
                if job.done():
                    del active[slot]
                    free.append(slot)
                    board.tally.running = len(active)
                    board.ended(run, time.monotonic() - began, _settle(run, job))
    except BaseException:  # Ctrl-C among them: the jobs end with this process
        _stop(active, waiting, board)
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
    if status.state == "missing":
        return REMOVED
    reason = f"its job ended without a word; see {job.paths.stdout}"
    with suppress(OSError):
        run.write_status(state="failed", error=reason)
    return reason


def _stop(active: Mapping[int, tuple[Run, submitit.Job[None], float]], waiting: Iterable[Run], board: Board) -> None:
    """Have the jobs save and end, kill those that take too long, and say of every run where it stands.

    A second Ctrl-C does not wait.
    """
    for run in waiting:
        run.unqueue()
    jobs = [(run, job) for run, job, _ in active.values() if not job.done()]
    if jobs:
        board.console.print("stopping: every run saves its state; Ctrl-C again does not wait for that", highlight=False)
    try:
        for run, job in jobs:
            if str(run.status().job_id) == job.job_id:  # or it is another's, and this job waits for it
                run.ask_to_stop("its dispatcher")
            else:
                _kill(job)
        _wait(GRACE_SECONDS, lambda: all(job.done() for _, job in jobs))
    except KeyboardInterrupt:
        pass
    for _, job in jobs:
        if not job.done():
            _kill(job)
    _wait(15, lambda: all(job.done() for _, job in jobs))
    for run, _ in jobs:
        if run.status().state == "lost":  # its job was killed before it could say so itself
            run.write_status(state="preempted", error="stopped from outside")
        run.unqueue()


def _kill(job: submitit.Job[None]) -> None:
    """End a local job's processes; submitit's own way leaves them a second."""
    with suppress(psutil.NoSuchProcess):
        controller = psutil.Process(int(job.job_id))
        for process in [*controller.children(recursive=True), controller]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _wait(seconds: float, happened: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _gpus(devices: int) -> list[str]:
    """The GPUs that this process may use, in shares of as many as a run has devices, for CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: there are some, but fewer than that.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = [name for name in visible.split(",") if name]
    else:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    if 0 < len(gpus) < devices:
        raise ConfigError(f"devices={devices}: allowed: 1 to {len(gpus)}, the GPUs of this machine")
    return [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)] or [""]


def _prepare(datasets: Iterable[str]) -> None:
    """Have all images on the disk before the first job starts: nodes may have no network."""
    for dataset in sorted(set(datasets) - {"digits"}):
        from gamlib.training.data import prepare

        try:
            prepare(dataset)
        except DatasetError as error:
            raise ConfigError(str(error)) from None
