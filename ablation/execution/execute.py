"""The job of a run: its notebook through papermill, in a kernel of our own choosing; and the signals that it gets."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from ablation.execution.kernel import execute_notebook
from ablation.paths import NOTEBOOKS
from ablation.provenance import SOURCE, source_hash
from ablation.runs import JOB, REMOVED, Run, RunStopped
from gamlib.signals import held_back

if TYPE_CHECKING:
    from ablation.execution.forked_kernel import ForkedKernel

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@contextmanager
def forward_signals(to: Callable[[str], object], numbers: Collection[signal.Signals] = SIGNALS) -> Iterator[None]:
    """While the block lasts, SIGTERM, SIGUSR2 and SIGINT, or some of them, do nothing but call `to` with their name.

    For a run that makes a request in its folder, which training reads after every step: so they reach the process that
    trains, wherever they come from. That is a grandchild in a session of its own, and would end without a word.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = {number: signal.signal(number, lambda number, _: to(signal.Signals(number).name)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, previous in before.items():
            signal.signal(number, previous)


def execute(
    run: Run,
    environment: Mapping[str, str],
    job: tuple[str, str] = ("", ""),
    kernel: "ForkedKernel | None" = None,
    since: float | None = None,
) -> None:
    """The job of a run: its notebook through papermill, and the truth about how that ended.

    Args:
        run: what to run; nothing happens when it is done.
        environment: variables for the kernel beside those of this process.
        job: the cluster and the id of the job that this process is; two empty texts if it is none.
        kernel: what becomes the kernel, if that is not to be a new process.
        since: requests to stop from before, in seconds since 1970, are forgotten; by default from before this process.

    Raises:
        RunStopped: a signal or a request stopped it, and its state is saved.
        RunFailed: a cell failed, the kernel died, or no whole result was left; the message is the reason in one line.
    """
    (cluster, job_id), owned = job, threading.Event()
    since = psutil.Process().create_time() if since is None else since

    def ask(by: str) -> None:
        if not owned.is_set() and not (status := run.status()).mine():
            if status.state == "running":
                raise RunStopped(f"another process has the run, and this one was stopped by {by} while it waited")
            raise RunStopped(f"stopped by {by} before it began")
        run.ask_to_stop(by)

    with forward_signals(ask), run.claim(cluster, job_id, since=since) as mine:
        if not mine:
            return
        owned.set()  # whatever a late submitter writes into its status
        with (run.folder / "log.txt").open("a", buffering=1) as log, ThreadPoolExecutor(1) as thread:
            how = "a forked kernel" if kernel else "a kernel that starts anew"
            told = f"{cluster} job {job_id or 'none'}, process {os.getpid()}, {how}"
            print(f"--- attempt {run.status().attempts}, {told}", file=log)
            try:
                if environment.get(SOURCE, source_hash()) != source_hash():
                    run.write_status(error="its code is not the one that it was submitted with")
                if by := run.asked_to_stop():
                    raise RunStopped(f"stopped by {by} before it began")
                values, output = run.config.model_dump(), run.folder / "run.ipynb"
                values["attention"] = run.architecture()["attention"]
                # A thread, since nbclient takes SIGINT and SIGTERM for itself in the main one. SLURM sends a signal to
                # all processes of a job: the kernel, which has the thread's mask, hears it when training does.
                with held_back(signal.SIGTERM, signal.SIGUSR2):
                    executed = thread.submit(
                        execute_notebook,
                        *(NOTEBOOKS / "run.ipynb", output, values, log, {**environment, JOB: run.signature}, kernel),
                    )
                executed.result()
            except BaseException as error:
                traceback.print_exc(file=log)
                if run.removed():
                    raise RunStopped(REMOVED) from None
                if getattr(error, "ename", "") == RunStopped.__name__:  # papermill's, of a cell that raised it
                    raise RunStopped(error.evalue) from None  # type: ignore[attr-defined]
                raise
