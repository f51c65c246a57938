"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import psutil
from filelock import Timeout

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution import arrays
from ablation.execution.execute import execute
from ablation.execution.forkserver import ForkServer, Job
from ablation.execution.progress import Progress
from ablation.execution.slurm import statuses
from ablation.paths import NOTEBOOKS, cores, require, require_locks, runs_root, share_of_cores
from ablation.provenance import SOURCE, source_hash
from ablation.runs import REMOVED, Run, RunFailed, RunStopped, first_line, unique
from ablation.status import UNDER_WAY
from gamlib.data.datasets import DatasetError
from gamlib.signals import held_back

if TYPE_CHECKING:
    from ablation.execution.forked_kernel import ForkedKernel

CLUSTERS = ("local", "slurm", "debug")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS, SLURM_POLL_SECONDS = 0.2, 5.0
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and either's within Windows
GRACE_SECONDS = 120  # for a local run to end its step and save


def dispatch(
    configs: Sequence[RunConfig],
    cluster: str = "local",
    workers: int | None = None,
    wait: bool = True,
    slurm: Mapping[str, Any] | None = None,
    before: Callable[[], object] = lambda: None,
    rerun_stale: bool = False,
) -> Progress:
    """Execute the runs that are not done, each configuration once; the other runs go on when one fails.

    Args:
        configs: what to run, in this order.
        cluster: "local", a queue on this machine; "slurm", one submitit job a run; "debug", in this process.
        workers: local runs at once, each with its share of the cores; by default one for every core, four at most.
            Another number gives a run another number of threads, and its results other last bits.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: options of the jobs, see `arrays.SlurmOptions` (slurm only).
        before: called once when everything is found in order: just before the first job starts here, or when SLURM
            has taken the first ones.
        rerun_stale: runs that other code than the present has done are done again; what they left is set aside.

    Raises:
        ConfigError: an unknown cluster, an impossible number of workers, no SLURM on this machine, fewer GPUs than a
            run has devices, images that are not there, a package without its notebooks, or a folder without locks.
        KeyboardInterrupt: stopped; local runs save their state and are marked `preempted`, SLURM jobs go on.
    """
    _check(cluster, workers, wait, slurm or {})
    parameters = arrays.parameters(slurm or {}) if cluster == "slurm" else {}
    require(NOTEBOOKS / "run.ipynb")
    require_locks(runs_root())
    runs = unique(configs)
    todo = [run for run in runs if run.result() is None or (rerun_stale and run.stale())]
    progress = Progress(runs, done_before=len(runs) - len(todo))
    for dataset in sorted({run.config.dataset for run in todo} - {"digits"}):
        from gamlib.data.images import prepare

        try:
            prepare(dataset)  # now: nodes may have no network
        except DatasetError as error:
            raise ConfigError(str(error)) from None
    threads = parameters.get("cpus_per_task", share_of_cores(workers))
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if todo and cluster == "local":
        environments = _environments(todo, workers or min(cores(), 4), environment)
    if not todo or cluster == "debug":
        before()
    for run in runs:
        if run.result() is not None and ((rerun_stale and run.stale()) or any(run.folder.glob(".run.*.ipynb"))):
            with suppress(Timeout), run.lock(timeout=0):  # or its job is still at it
                run.recover_notebook()
                if rerun_stale and run.stale():
                    run.archive()
    if not todo:
        return progress
    with progress:
        if cluster == "slurm":
            environment = {SOURCE: source_hash()} | (environment if "cpus_per_task" in parameters else {})
            submitted = arrays.submit(todo, parameters, environment, before)
            others = len(todo) - len(submitted)
            progress.write(f"{len(submitted)} runs submitted" + f", {others} were in a queue before" * (others > 0))
            if wait:
                _watch(todo, progress)
        elif cluster == "debug":
            _in_process(todo, environment, progress)
        else:
            with ForkServer(environment) as server:
                _locally(todo, environments, progress, before, server)
    return progress


def _check(cluster: str, workers: int | None, wait: bool, slurm: Mapping[str, Any]) -> None:
    if cluster not in CLUSTERS:
        raise ConfigError(f"cluster={cluster!r}: allowed: {', '.join(CLUSTERS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: allowed: a whole number from 1")
    if workers is not None and cluster != "local":
        raise ConfigError(f"workers={workers}: allowed with cluster='local' only, and this is {cluster!r}")
    if cluster != "slurm" and (slurm or not wait):
        option = next(iter(slurm), "wait=False")
        raise ConfigError(f"{option}: allowed with cluster='slurm' only, and this is {cluster!r}")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug")


def _environments(todo: Sequence[Run], workers: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """Variables for the kernels of all runs that are executed at once, each with a share of this process's GPUs."""
    devices = max(run.config.devices for run in todo)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and any(map(os.path.exists, GPU_DRIVERS)):  # else there is no need to wait for torch
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [name for name in (visible or "").split(",") if name]
    if 0 < len(gpus) < devices:
        raise ConfigError(f"devices={devices}: allowed: 1 to {len(gpus)}, the GPUs of this machine")
    shares = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)] or [""]
    at_once = min(workers, len(todo), len(shares) if devices > 1 and gpus else workers)
    return [environment | {"CUDA_VISIBLE_DEVICES": shares[index % len(shares)]} for index in range(at_once)]


def _in_process(todo: Sequence[Run], environment: Mapping[str, str], progress: Progress) -> None:
    for run in todo:
        began, reason = time.monotonic(), ""
        progress.show(1)
        try:
            execute(run, environment)
        except RunStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        progress.show(0)
        progress.ended(run, time.monotonic() - began, reason)


def _watch(runs: Sequence[Run], progress: Progress) -> None:
    """Wait until the jobs of some runs have ended, and tell of each."""
    began, left = time.monotonic(), set(runs)
    try:
        while left:
            time.sleep(SLURM_POLL_SECONDS)
            known = statuses(left)
            progress.show(sum(status.state == "running" for status in known.values()))
            for run, status in known.items():
                if status.state not in UNDER_WAY:
                    left.remove(run)
                    progress.ended(run, time.monotonic() - began, status.error)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped waiting; the SLURM jobs go on, see `gamlib status`") from None


def execute_here(run: Run, environment: Mapping[str, str], kernel: "ForkedKernel | None") -> None:
    """What a local job does: it executes its run, and all that it prints goes to the run's log."""
    with (run.folder / "log.txt").open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    execute(run, environment, ("local", str(os.getpid())), kernel)


def _locally(
    runs: Sequence[Run],
    environments: list[dict[str, str]],
    progress: Progress,
    before: Callable[[], object],
    server: ForkServer,
) -> None:
    """Execute runs in their order, with a thread for the job of each of those at once."""
    at_once, stopping, hurry = len(environments), Event(), Event()
    threads, finished = ThreadPoolExecutor(at_once), SimpleQueue["Future[tuple[float, str]]"]()
    futures: dict[Future[tuple[float, str]], Run] = {}

    def execute_in_job(run: Run) -> tuple[float, str]:
        """The seconds that the job of a run took, and why the run failed, or nothing."""
        if stopping.is_set():
            return 0, "stopped from outside"
        if by := run.asked_to_stop():
            run.write_status(state="preempted", error=f"stopped by {by} before it began")
            return 0, run.status().error
        began, environment = time.monotonic(), environments.pop()
        try:
            job = server.start(execute_here, run, environment)
            while not job.ended(POLL_SECONDS) and not stopping.is_set():
                pass
            if not job.ended():
                _end(run, job, hurry)
            reason = _reason(run, job, stopping.is_set())
        except RunFailed as error:
            reason = str(error)
            run.write_status(state="failed", error=reason)
        finally:
            environments.append(environment)
        return time.monotonic() - began, reason

    try:
        for run in runs:
            run.queue()
        before()  # when other submissions can see that its runs wait
        with held_back(signal.SIGINT):  # a terminal sends it to all; jobs hear of it by a request, in time
            for run in runs:
                future = threads.submit(execute_in_job, run)
                futures[future] = run
                future.add_done_callback(finished.put)
        for _ in runs:
            while finished.empty():
                progress.show(at_once - len(environments))
                time.sleep(POLL_SECONDS)
            future = finished.get()
            progress.show(at_once - len(environments))
            progress.ended(futures[future], *future.result())
    except BaseException:  # Ctrl-C among them: the jobs end with this process
        stopping.set()  # before all that a second Ctrl-C may end: Python waits for the threads when it exits
        try:
            threads.shutdown(wait=False, cancel_futures=True)
            if active := [future for future in futures if future.running()]:
                with suppress(OSError):  # whoever read this may be gone, and the jobs must end all the same
                    progress.write("stopping: every run saves its state; Ctrl-C again does not wait for that")
            with suppress(KeyboardInterrupt):
                wait(active, GRACE_SECONDS)
        finally:
            hurry.set()
        wait(active, 15)
        for run in runs:
            if (status := run.status()).state == "queued" and status.mine():  # it never began
                run.write_status(state="missing", pid=0)
        raise


def _end(run: Run, job: Job, hurry: Event) -> None:
    """Have a job save and end, and kill it if it takes too long."""
    if run.status().mine(job.pid):  # or it is another's, and this job waits for it
        run.ask_to_stop("its dispatcher")
        while not job.ended(POLL_SECONDS) and not hurry.is_set():
            pass
    if not job.ended():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(job.pid)
            for one in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def _reason(run: Run, job: Job, stopping: bool) -> str:
    """Why the run of a job that has ended failed, or nothing; where that was killed, this says so in its place."""
    status = run.status()
    if status.state == "done":
        return ""
    if status.state in ("failed", "preempted", "missing"):
        return status.error or REMOVED
    if stopping:
        if status.state == "lost":
            run.write_status(state="preempted", error="stopped from outside")
        return "stopped from outside"
    error = job.error or f"its job ended without a word; see {run.folder / 'log.txt'}"
    with suppress(OSError):
        run.write_status(state="failed", error=error)
    return error
