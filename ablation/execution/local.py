"""The queue on this machine: runs as local jobs of submitit's, a few at once, and how they are stopped."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil
import submitit

from ablation.execution.execute import execute
from ablation.execution.progress import Progress
from ablation.paths import runs_root
from ablation.runs import REMOVED, Run
from gamlib.signals import held_back

POLL_SECONDS = 0.2
GRACE_SECONDS = 120  # for a run to end its step and save
YEAR_MINUTES = 365 * 24 * 60  # a local job has no time limit; submitit wants one


class _Active(NamedTuple):
    run: Run
    job: "submitit.Job[None]"
    began: float


def run_locally(runs: Sequence[Run], environments: Sequence[Mapping[str, str]], progress: Progress) -> None:
    """Execute runs in their order; submitit's local executor alone would start all of them at once.

    Args:
        environments: for every job that may run at once, variables for its kernel.

    Raises:
        KeyboardInterrupt: stopped; the runs have saved their state.
    """
    executor = submitit.AutoExecutor(folder=runs_root() / "submitit", cluster="local")
    executor.update_parameters(name="gamlib", timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    waiting, active = deque(runs), dict[int, _Active]()
    try:
        for run in runs:
            run.queue()
        while waiting or active:
            for slot, environment in enumerate(environments):
                while waiting and slot not in active:
                    run = waiting.popleft()
                    if by := run.asked_to_stop():
                        run.write_status(state="preempted", error=f"stopped by {by} before it began")
                        progress.ended(run, 0, run.status().error)
                        continue
                    with held_back(signal.SIGINT):  # a terminal sends it to all; jobs hear of it by a request, in time
                        active[slot] = _Active(run, executor.submit(execute, run, environment), time.monotonic())
            progress.show(len(active))
            time.sleep(POLL_SECONDS)
            for slot, (run, job, began) in list(active.items()):
                if job.done():
                    del active[slot]
                    progress.show(len(active))
                    progress.ended(run, time.monotonic() - began, _reason(run, job))
    except BaseException:  # Ctrl-C among them: the jobs end with this process
        _stop([one for one in active.values() if not one.job.done()], waiting, progress)
        raise


def _reason(run: Run, job: "submitit.Job[None]") -> str:
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


def _stop(active: Sequence[_Active], waiting: Iterable[Run], progress: Progress) -> None:
    """Have the jobs save and end, kill those that take too long, and say of every run where it stands.

    A second Ctrl-C does not wait.
    """

    def all_ended() -> bool:
        return all(one.job.done() for one in active)

    for run in waiting:
        run.unqueue()
    if active:
        with suppress(OSError):  # whoever read this may be gone, and the jobs must end all the same
            progress.write("stopping: every run saves its state; Ctrl-C again does not wait for that")
    with suppress(KeyboardInterrupt):
        for run, job, _ in active:
            if str(run.status().job_id) == job.job_id:  # or it is another's, and this job waits for it
                run.ask_to_stop("its dispatcher")
            else:
                _kill(job)
        _wait(GRACE_SECONDS, all_ended)
    for one in active:
        if not one.job.done():
            _kill(one.job)
    _wait(15, all_ended)
    for run, *_ in active:
        if run.status().state == "lost":  # its job was killed before it could say so itself
            run.write_status(state="preempted", error="stopped from outside")
        run.unqueue()


def _kill(job: "submitit.Job[None]") -> None:
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
