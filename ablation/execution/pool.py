"""The runs of one command or one job: executed in their order, some at once, each in a process of its own."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

import psutil

from ablation.errors import ConfigError
from ablation.execution.execute import SIGNALS, execute
from ablation.execution.forkserver import ForkServer, Job
from ablation.execution.progress import Progress
from ablation.paths import usable_gpus
from ablation.runs import REMOVED, Run, RunFailed, RunStopped
from gamlib.signals import held_back

if TYPE_CHECKING:
    from ablation.execution.forked_kernel import ForkedKernel

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.2
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and either's within Windows
ENDED = ("failed", "preempted", "missing")
BY_SIGNAL = "stopped by SIG"  # the reasons of runs that were stopped as their job was
GRACE_SECONDS = 120  # for a run to end its step and save


def environments_of(todo: Sequence[Run], workers: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """Variables for the kernels of all runs that are executed at once, each with a share of this process's GPUs."""
    devices = max(run.config.devices for run in todo)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and any(map(os.path.exists, GPU_DRIVERS)):  # else there is no need to wait for torch
        visible = ",".join(map(str, range(usable_gpus())))
    gpus = [name for name in (visible or "").split(",") if name]
    if 0 < len(gpus) < devices:
        raise ConfigError(f"devices={devices}: allowed: 1 to {len(gpus)}, the GPUs of this machine")
    shares = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)] or [""]
    at_once = min(workers, len(todo), len(shares) if devices > 1 and gpus else workers)
    return [environment | {"CUDA_VISIBLE_DEVICES": shares[index % len(shares)]} for index in range(at_once)]


class SlurmJob(NamedTuple):
    """A job of SLURM's that executes several runs: its id, and the signals that it was told to end by, in their order.

    grace_seconds: for its runs to end a step and save.
    """

    id: str
    told: list[str]
    grace_seconds: float


def execute_here(
    run: Run, environment: Mapping[str, str], since: float, slurm_job: tuple[str, int], kernel: "ForkedKernel | None"
) -> None:
    """What a process of the pool does: it executes its run, and all that it prints goes to the run's log.

    In a job of SLURM's it ends with that, if not by SLURM, then by itself; as a local one it may outlive its command.
    """
    with (run.folder / "log.txt").open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    job_id, pid = slurm_job
    if not job_id:
        execute(run, environment, ("local", str(os.getpid())), kernel, since)
    elif run.status().belongs_to(job_id):
        Thread(target=_terminate_after, args=(psutil.Process(pid),), daemon=True).start()
        execute(run, environment, ("slurm", job_id), kernel, since)


def _terminate_after(process: psutil.Process) -> None:
    process.wait()
    os.kill(os.getpid(), signal.SIGTERM)


def execute_all(
    runs: Sequence[Run],
    environments: list[dict[str, str]],
    progress: Progress,
    server: ForkServer,
    before: Callable[[], object] = lambda: None,
    job: SlurmJob | None = None,
) -> None:
    """Execute runs in their order, each in a process of its own, with a thread that waits for it.

    A run that fails in a job of SLURM's, or is cancelled by itself, leaves that job: it may be submitted again.

    Args:
        environments: variables for the kernel of each of those at once.
        before: called first; what it has queued here is missing again if it never begins.
        job: of SLURM's that this process is, if it is one.

    Raises:
        RunStopped: the job was told to end; its message is by what.
    """
    at_once, stopping, hurry, by = len(environments), Event(), Event(), "its dispatcher"
    threads, finished = ThreadPoolExecutor(at_once), SimpleQueue["Future[tuple[float, str]]"]()
    futures: dict[Future[tuple[float, str]], Run] = {}

    def under_way() -> list[Run]:
        return [run for future, run in futures.items() if future.running()]

    def execute_in_process(run: Run) -> tuple[float, str]:
        """The seconds that the process of a run took, and why the run failed, or nothing."""
        if stopping.is_set():
            return 0, "stopped from outside"
        began, since = time.monotonic(), time.time()
        if job and not run.status().belongs_to(job.id):
            return 0, "it has left this job"
        if not job and (asked := run.asked_to_stop()):
            run.write_status(state="preempted", error=f"stopped by {asked} before it began")
            return 0, run.status().error
        environment = environments.pop()
        try:
            process = server.start(execute_here, run, environment, since, (job.id if job else "", os.getpid()))
            while not process.ended(POLL_SECONDS) and not stopping.is_set():
                pass
            if not process.ended():
                _end(run, process, by, hurry)
            reason = _reason(run, process, by if stopping.is_set() else "", job)
        except RunFailed as error:
            reason = str(error)
            with suppress(OSError):
                run.write_status(state="failed", error=reason)
        finally:
            environments.append(environment)
        if job:
            _leave(run, job)
        return time.monotonic() - began, reason

    try:
        before()
        with held_back(*SIGNALS):  # a terminal sends SIGINT to all; jobs hear of it by a request, in time
            for run in runs:
                future = threads.submit(execute_in_process, run)
                futures[future] = run
                future.add_done_callback(finished.put)
        for _ in runs:
            while finished.empty():
                if job and job.told:
                    raise RunStopped(job.told[0])
                progress.show(under_way())
                time.sleep(POLL_SECONDS)
            future = finished.get()
            progress.show(under_way())
            progress.ended(futures[future], *future.result())
    except BaseException as error:  # Ctrl-C among them: the jobs end with this process
        by = str(error) if isinstance(error, RunStopped) else by
        stopping.set()  # before all that a second Ctrl-C may end: Python waits for the threads when it exits
        try:
            threads.shutdown(wait=False, cancel_futures=True)
            if active := [future for future in futures if future.running()]:
                with suppress(OSError):  # whoever read this may be gone, and the jobs must end all the same
                    progress.write("stopping: every run saves its state; Ctrl-C again does not wait for that")
            with suppress(KeyboardInterrupt):
                wait(active, job.grace_seconds if job else GRACE_SECONDS)
        finally:
            hurry.set()
        wait(active, 15)
        for run in runs:
            if (status := run.status()).state == "queued" and status.mine():  # it never began
                run.write_status(state="missing", pid=0)
        raise


def _end(run: Run, process: Job, by: str, hurry: Event) -> None:
    """Have the process of a run save and end, and kill it if it takes too long."""
    if (status := run.status()).mine(process.pid) and status.state not in ENDED:  # or it waits, for another's to end
        run.ask_to_stop(by)
        while not process.ended(POLL_SECONDS) and not hurry.is_set():
            pass
    if not process.ended():
        with suppress(psutil.NoSuchProcess):
            itself = psutil.Process(process.pid)
            for one in [*itself.children(recursive=True), itself]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def _reason(run: Run, process: Job, stopping_by: str, job: SlurmJob | None) -> str:
    """Why the run of a process that has ended failed, or nothing; where that was killed, this says so in its place."""
    status = run.status()
    if status.state == "done":
        return ""
    if status.state in ENDED:
        return status.error or REMOVED
    error, state = process.error or f"its process ended without a word; see {run.folder / 'log.txt'}", "failed"
    if stopping_by:
        error = f"stopped by {stopping_by} before it could save" if job else "stopped from outside"
    if stopping_by or error.startswith(BY_SIGNAL):
        state = "preempted"
    still_waits = status.state == "queued" and (stopping_by or (job and state == "preempted"))
    owned = status.state == "running" and status.mine(process.pid)  # it may not be gone from the system's table yet
    if (status.state in ("queued", "lost") or owned) and not still_waits:  # and not running as another's
        with suppress(OSError):
            run.write_status(state=state, error=error)
    return error


def _leave(run: Run, job: SlurmJob) -> None:
    """Take a run that has failed, or was stopped by itself, out of its job, which goes on without it."""
    status = run.status()
    failed = status.state in ("failed", "preempted") and not status.error.startswith(BY_SIGNAL)
    if failed and status.belongs_to(job.id):
        with suppress(OSError):
            run.write_status(job_id="")
