"""Submission to SLURM: a study is one job array, and a run has one job, whoever submits it and whatever goes wrong."""

import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import submitit
from filelock import FileLock

from ablation.errors import ConfigError
from ablation.execution import slurm
from ablation.execution.execute import execute, forward_signals
from ablation.execution.forkserver import ForkServer
from ablation.execution.pool import THREAD_VARIABLES, SlurmJob, environments_of, execute_all
from ablation.execution.progress import Progress
from ablation.execution.slurm_options import OF_JOBS
from ablation.paths import runs_root, share_of_cores
from ablation.runs import Run, RunFailed, RunStopped
from ablation.status import UNDER_WAY, Status

FILES_AT_ONCE = 16
UNANSWERED = "timed out|unable to contact|communication|connect"  # what sbatch says of a job that may be queued
SUBMISSION_SECONDS = 600  # for who submits a job of several runs to tell all of them; the next submission cancels it
FRUITLESS = 5  # attempts without a step before a run fails: SLURM's signal may come a minute early, and so by chance

Part = TypeVar("Part")


@contextmanager
def submission_lock() -> Iterator[None]:
    """Lets one submit at a time, among all who share the folder of runs.

    What a killed submission left in SLURM's queue is cancelled first: its jobs would not find what to run.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    folder = runs_root() / "submitit"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for record in folder.glob("*.submitting"):
            slurm.cancel(name=record.stem)
            record.unlink()
        yield


def submit(
    runs: Sequence[Run],
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    accepted: Callable[[], object] = lambda: None,
) -> list[Run]:
    """Submit the runs that no one else has in a queue, and say which ones those were.

    Args:
        runs: none of them done.
        parameters: of submitit's executor and of the jobs, see `slurm_options.parameters`.
        environment: variables for the kernels.
        accepted: called once, when SLURM has taken the first jobs or none were to be submitted.

    Raises:
        ConfigError: more GPUs than a run has devices, SLURM does not say which runs have jobs, or sbatch refuses; what
            had been submitted before stays so.
    """
    parameters, gpus = dict(parameters), parameters.get("gpus_per_node")
    runs_per_job, at_once = (parameters.pop(key, 1) for key in OF_JOBS)
    if (most := min(run.config.devices for run in runs) * at_once) < (gpus or 0):
        raise ConfigError(f"gpus={gpus}: allowed: {most}, as many as the runs of a job at once have devices")
    with submission_lock():
        known = slurm.statuses(runs, must_know=True)
        todo = [run for run in runs if known[run].state not in (*UNDER_WAY, "done")]
        submitted: list[Run] = []
        for devices in dict.fromkeys(run.config.devices for run in todo):
            needed = max(devices, gpus) if gpus else devices * at_once
            own = {"gpus_per_node": needed} if devices > 1 and gpus != 0 else {}
            jobs = _parts([run for run in todo if run.config.devices == devices], runs_per_job)
            for array in _parts(jobs, slurm.max_array_size()):
                job_ids, record = _submit(array, {**parameters, **own}, environment, at_once)
                if not submitted:
                    accepted()
                for_each = [
                    (run, job_id, len(job) > 1) for job, job_id in zip(array, job_ids, strict=True) for run in job
                ]
                with ThreadPoolExecutor(FILES_AT_ONCE) as threads:  # each write waits for the disk
                    list(threads.map(lambda one: one[0].queue(one[1], "slurm", one[2]), for_each))
                record.unlink()
                submitted += [run for run, *_ in for_each]
        if not submitted:
            accepted()
    return submitted


def _parts(all_: Sequence[Part], size: int) -> list[Sequence[Part]]:
    return [all_[first : first + size] for first in range(0, len(all_), size)]


def _submit(
    array: Sequence[Sequence[Run]], parameters: Mapping[str, Any], environment: Mapping[str, str], at_once: int
) -> tuple[list[str], Path]:
    """The ids of new jobs, of which no run knows yet, and the file that says so."""
    record = runs_root() / "submitit" / f"gamlib-{uuid.uuid4().hex[:12]}.submitting"
    delay = parameters["slurm_signal_delay_s"]
    of_jobs = {"name": record.stem, "stderr_to_stdout": True, **parameters}
    python = of_jobs.pop("slurm_python", None)  # the executor's own
    record.touch()  # as long as it is there, jobs of that name may be there of which no run knows
    executor = submitit.AutoExecutor(folder=record.parent, cluster="slurm", slurm_python=python)
    try:
        executor.update_parameters(**of_jobs)
        with slurm.without_overrides(), executor.batch():
            jobs = [
                executor.submit(train_several_on_slurm, runs, environment, at_once, record, delay / 2)
                if len(runs) > 1
                else executor.submit(train_on_slurm, runs[0], environment)
                for runs in array
            ]
    except (NameError, TypeError, ValueError) as error:
        record.unlink()
        raise ConfigError(" ".join(str(error).split())) from None
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).strip().splitlines() if line]
        reason = lines[-1].removeprefix("sbatch: error: ") if lines else "no reason given"
        if not re.search(UNANSWERED, str(error), re.IGNORECASE):
            record.unlink()
            raise ConfigError(f"sbatch refused: {reason}") from None
        with suppress(ConfigError):
            slurm.cancel(name=record.stem)  # and the record stays: SLURM may take in the job a little later
        raise ConfigError(f"sbatch: {reason}; what it has queued all the same is cancelled") from None
    return [job.job_id for job in jobs], record


def train_on_slurm(run: Run, environment: Mapping[str, str]) -> None:
    """The job of a run on a cluster: told to stop before its time is up, it saves, and has itself queued again.

    A job that somebody has queued again by hand, and in whose place the run has got another one, ends at once.

    SLURM sends SIGUSR2 some time before the limit (`scancel --signal=USR2` does the same). Where it sends SIGTERM, it
    has decided already what becomes of the job: a preempted one it queues again by itself, a cancelled one not.

    Raises:
        RunStopped: by another signal, or SLURM would not queue it again.
        RunFailed: see `execute`.
    """
    before, own = run.status(), submitit.JobEnvironment().job_id
    if before.job_id != own and before.cluster == "slurm" and slurm.live({before.job_id}):
        print(f"job {before.job_id} has this run, so this one ends", flush=True)
        return
    signals: list[str] = []  # while it is queued again
    with forward_signals(signals.append):
        try:
            execute(run, environment, ("slurm", own))
        except RunStopped:
            if not _queued_again({run: before}, own, signals):
                raise


def train_several_on_slurm(
    runs: Sequence[Run], environment: Mapping[str, str], at_once: int, record: Path, grace_seconds: float
) -> None:
    """The job of several runs, each in a process and a kernel of its own; for signals see `train_on_slurm`.

    Runs that have left it are passed over.

    Args:
        at_once: runs that are executed side by side.
        record: a file that is there until all runs know of this job.
        grace_seconds: for the runs to save before the job has itself queued again.

    Raises:
        RunStopped: by another signal.
        RunFailed: some of the runs have failed, or SLURM would not queue it again.
    """
    job = SlurmJob(submitit.JobEnvironment().job_id, [], grace_seconds)
    with forward_signals(job.told.append):
        until = time.monotonic() + SUBMISSION_SECONDS
        while record.exists() and not job.told:
            if time.monotonic() > until:
                raise RunFailed(f"its submission does not end; {record} is still there")
            time.sleep(1)
        before = {run: status for run in runs if (status := run.status()).belongs_to(job.id) and status.state != "done"}
        if not before:
            print("its runs are done or have left it", flush=True)
            return
        threads = {**dict.fromkeys(THREAD_VARIABLES, str(share_of_cores(at_once))), **environment}
        try:
            with ForkServer(threads) as server, Progress(list(before)) as progress:
                environments = environments_of(list(before), at_once, threads)
                execute_all(list(before), environments, progress, server, job=job)
        except RunStopped as stopped:
            if str(stopped) != "SIGUSR2":
                raise RunStopped(f"stopped by {stopped}") from None
        if not _queued_again(before, job.id, job.told) and (left := [run for run in before if run.result() is None]):
            raise RunFailed(f"{len(left)} of {len(before)} runs are not done; see `gamlib status`")


def _queued_again(before: Mapping[Run, Status], own: str, signals: Collection[str]) -> bool:
    """Whether SLURM has queued this job again, for its runs that the signal has stopped or that never began."""
    for run, was in before.items():
        now = run.status()
        if now.belongs_to(own) and now.state == "preempted" and now.error.startswith("stopped by SIGUSR2"):
            fruitless = was.fruitless + 1 if now.error == was.error else 0
            if fruitless == FRUITLESS:
                error = f"{now.error}, {FRUITLESS + 1} times in a row: its time limit is too short"
                run.write_status(state="failed", error=error, job_id="" if now.shared else own)
            else:
                run.write_status(state="queued", host="", pid=0, fruitless=fruitless)
    again = [run for run in before if (now := run.status()).belongs_to(own) and now.state == "queued"]
    if not again or slurm.requeue(own, signals):
        return bool(again)
    for run in again:
        error = run.status().error or "stopped before it began"
        run.write_status(state="preempted", error=f"{error}; SLURM would not queue it again")
    return False
