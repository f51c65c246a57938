"""Submission to SLURM: a study is one job array, and a run has one job, whoever submits it and whatever goes wrong."""

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from filelock import FileLock

from ablation.config import ConfigError
from ablation.execution import slurm
from ablation.execution.execute import execute, this_job
from ablation.execution.progress import Progress
from ablation.execution.signals import forward_signals
from ablation.paths import runs_root
from ablation.runs import Run, RunStopped

POLL_SECONDS = 5.0
FILES_AT_ONCE = 16
UNANSWERED = "timed out|unable to contact|communication|connect"  # what sbatch says of a job that may be queued
FRUITLESS = 5  # attempts without a step before a run fails: SLURM's signal may come a minute early, and so by chance


def submit(
    runs: Sequence[Run],
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    accepted: Callable[[], object] = lambda: None,
) -> list[Run]:
    """Submit the runs that no one else has in a queue, and say which ones those were.

    A lock among all who share the folder of runs lets one submit at a time. What a killed submission left in SLURM's
    queue is cancelled first: its jobs would not find what to run.

    Args:
        runs: none of them done.
        parameters: of submitit's executor, see `slurm_options.parameters`.
        environment: variables for the kernels.
        accepted: called once, when SLURM has taken the first jobs or none were to be submitted.

    Raises:
        ConfigError: more GPUs than a run has devices, SLURM does not say which runs have jobs, or sbatch refuses; what
            had been submitted before stays so.
    """
    gpus = parameters.get("gpus_per_node")
    if (fewest := min(run.config.devices for run in runs)) < (gpus or 0):
        raise ConfigError(f"gpus={gpus}: allowed: {fewest}, as many as the run has devices; see -p devices={gpus}")
    submitted: list[Run] = []
    with FileLock(_folder() / ".lock"):
        _cancel_killed_submissions()
        known = slurm.statuses(runs, must_know=True)
        todo = [run for run in runs if known[run].state not in ("queued", "running", "done")]
        for array in _arrays(todo):
            devices = array[0].config.devices
            own = {"gpus_per_node": devices} if devices > 1 and gpus != 0 else {}
            job_ids, record = _submit(array, {**parameters, **own}, environment)
            if not submitted:
                accepted()
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:  # each write waits for the disk
                list(pool.map(Run.queue, array, job_ids, ["slurm"] * len(array)))
            record.unlink()
            submitted += array
        if not submitted:
            accepted()
    return submitted


def cancel_killed_submissions() -> None:
    """Cancel what killed submissions left in SLURM's queue, when no other submission is under way.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    with FileLock(_folder() / ".lock"):
        _cancel_killed_submissions()


def _cancel_killed_submissions() -> None:
    for record in _folder().glob("*.submitting"):
        slurm.cancel(name=record.stem)
        record.unlink()


def _folder() -> Path:
    folder = runs_root() / "submitit"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _arrays(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with the same number of devices together, and not more than SLURM takes as one array."""
    most, found = slurm.max_array_size(), list[list[Run]]()
    for devices in dict.fromkeys(run.config.devices for run in runs):
        alike = [run for run in runs if run.config.devices == devices]
        found += [alike[first : first + most] for first in range(0, len(alike), most)]
    return found


def _submit(
    array: Sequence[Run], parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[list[str], Path]:
    """The ids of new jobs, of which no run knows yet, and the file that says so."""
    record = _folder() / f"gamlib-{uuid.uuid4().hex[:12]}.submitting"
    record.touch()  # as long as it is there, jobs of that name may be there of which no run knows
    executor = submitit.AutoExecutor(folder=_folder(), cluster="slurm")
    try:
        executor.update_parameters(name=record.stem, stderr_to_stdout=True, **parameters)
        with slurm.without_overrides():
            jobs = executor.map_array(train_on_slurm, array, [environment] * len(array))
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
    before, (_, own) = run.status(), this_job()
    if before.cluster == "slurm" and before.job_id != own and slurm.live({before.job_id}):
        print(f"job {before.job_id} has this run, so this one ends", flush=True)
        return
    with forward_signals(lambda by: None):  # while it is queued again
        try:
            execute(run, environment)
        except RunStopped as stopped:
            if not str(stopped).startswith("stopped by SIGUSR2"):
                raise
            fruitless = before.fruitless + 1 if str(stopped) == before.error else 0
            if fruitless == FRUITLESS:
                error = f"{stopped}, {FRUITLESS + 1} times in a row: its time limit is too short"
                run.write_status(state="failed", error=error)
                raise
            run.write_status(state="queued", host="", pid=0, error=str(stopped), fruitless=fruitless)
            if not slurm.requeue(own):
                run.write_status(state="preempted", error=f"{stopped}; SLURM would not queue it again")
                raise


def watch(runs: Sequence[Run], progress: Progress) -> None:
    """Wait until the jobs of some runs have ended, and tell of each."""
    left, began = list(runs), time.monotonic()
    while left:
        time.sleep(POLL_SECONDS)
        known = slurm.statuses(left)
        progress.show(sum(known[run].state == "running" for run in left))
        for run, status in known.items():
            if status.state not in ("queued", "running"):
                left.remove(run)
                progress.ended(run, time.monotonic() - began, status.error)
