"""The runs of one command or one job: executed in their order, some at once, each in a process of its own."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import psutil

from ablation.errors import ConfigError
from ablation.execution.execute import SIGNALS, execute, forward_signals
from ablation.execution.forkserver import ForkServer, Job
from ablation.execution.progress import Progress
from ablation.paths import usable_gpus
from ablation.runs import REMOVED, Run, RunFailed, RunStopped

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
    gpus = [name for name in (visible or "").split(",") if name not in ("", "-1")]  # which says that there are none
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
    """Execute runs in their order, some at once, each in a process of its own.

    A run that fails in a job of SLURM's, or is cancelled by itself, leaves that job: it may be submitted again.

    Args:
        environments: variables for the kernel of each of those at once.
        before: called first; what it has queued here is missing again if it never begins.
        job: of SLURM's that this process is, if it is one.

    Raises:
        RunStopped: the job was told to end; its message is by what.
    """
    told, waiting = job.told if job else list[str](), deque(runs)
    active: dict[Run, tuple[Job, dict[str, str], float]] = {}  # the process, its kernel's variables, when it began
    ended: deque[tuple[Run, float, str]] = deque()  # and not told yet: the seconds, why it failed, or nothing

    def begin(run: Run) -> None:
        began, since = time.monotonic(), time.time()  # now: a request to stop that comes later is for this execution
        if job and not run.status().belongs_to(job.id):
            ended.append((run, 0, "it has left this job"))
        elif not job and (asked := run.asked_to_stop()):
            run.write_status(state="preempted", error=f"stopped by {asked} before it began")
            ended.append((run, 0, run.status().error))
        else:
            try:
                slurm_job = (job.id if job else "", os.getpid())
                process = server.start(execute_here, run, environments[-1], since, slurm_job)
                active[run] = process, environments.pop(), began
            except RunFailed as error:
                end(run, began, str(error), os.getpid())

    def end(run: Run, began: float, error: str | None, pid: int, stopped_by: str = "") -> None:
        ended.append((run, time.monotonic() - began, _reason(run, error, pid, stopped_by, job)))
        if job:
            _leave(run, job)

    def stop(by: str) -> None:
        for run, process in [(run, process) for run, (process, *_) in active.items() if not process.ended()]:
            if (status := run.status()).mine(process.pid) and status.state not in ENDED:
                run.ask_to_stop(by)
            else:  # it has not begun, or waits for another's to end
                _kill(process)
        if active:
            with suppress(OSError):  # whoever read this may be gone, and the jobs must end all the same
                progress.write("stopping: every run saves its state; Ctrl-C again does not wait for that")
        until = time.monotonic() + (job.grace_seconds if job else GRACE_SECONDS)
        with suppress(KeyboardInterrupt):
            while not all(process.ended() for process, *_ in active.values()) and time.monotonic() < until:
                if not job and len(told) > 1:
                    break
                time.sleep(POLL_SECONDS)
        for run, (process, _, began) in active.items():
            _kill(process)
            end(run, began, process.error, process.pid, by)
        for run in runs:
            if (status := run.status()).state == "queued" and status.mine():  # it never began
                run.write_status(state="missing", pid=0)

    raising = [number for number in SIGNALS if signal.getsignal(number) is signal.default_int_handler]
    try:
        before()
        with forward_signals(told.append, raising):  # or Ctrl-C could come when a process has just begun, unknown yet
            while waiting or active or ended:
                while waiting and environments and not told:
                    begin(waiting.popleft())
                progress.show([*active])
                while ended:
                    progress.ended(*ended.popleft())
                if told:
                    raise RunStopped(told[0]) if job else KeyboardInterrupt
                for run, (process, environment, began) in [*active.items()]:
                    if process.ended(POLL_SECONDS / len(active)):
                        del active[run]
                        environments.append(environment)
                        end(run, began, process.error, process.pid)
    except BaseException as error:
        with forward_signals(told.append, raising):
            stop(str(error) if isinstance(error, RunStopped) else "its dispatcher")
        raise


def _kill(process: Job) -> None:
    if not process.ended():
        with suppress(psutil.NoSuchProcess):
            itself = psutil.Process(process.pid)
            for one in [*itself.children(recursive=True), itself]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def _reason(run: Run, error: str | None, pid: int, stopped_by: str, job: SlurmJob | None) -> str:
    """Why the run of a process that has ended failed, or nothing; where that was killed, this says so in its place.

    `error` is what the process said at its end, None if it left no word; `stopped_by`, who has stopped all runs, if so.
    """
    status = run.status()
    if status.state == "done":
        return ""
    if status.state in ENDED:
        return status.error or REMOVED
    error, state = error or f"its process ended without a word; see {run.folder / 'log.txt'}", "failed"
    if stopped_by:
        error = f"stopped by {stopped_by} before it could save" if job else "stopped from outside"
    if stopped_by or error.startswith(BY_SIGNAL):
        state = "preempted"
    still_waits = status.state == "queued" and (stopped_by or (job and state == "preempted"))
    owned = status.state == "running" and status.mine(pid)  # it may not be gone from the system's table yet
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
