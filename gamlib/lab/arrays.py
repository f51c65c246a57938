"""Submission to SLURM: a study is one job array, and a run has one job, whoever submits it and whatever goes wrong."""

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from filelock import FileLock

from gamlib.lab import slurm
from gamlib.lab.board import Board
from gamlib.lab.config import ConfigError
from gamlib.lab.execute import execute
from gamlib.lab.places import runs_root
from gamlib.lab.runs import Run, RunStopped
from gamlib.lab.stops import signals_ask

POLL_SECONDS = 5.0
FILES_AT_ONCE = 16
UNANSWERED = "timed out|unable to contact|communication|connect"  # what sbatch says of a job that may be queued
FRUITLESS = 5  # attempts without a step before a run fails: SLURM's signal may come a minute early, and so by chance


def submit(
    runs: Sequence[Run],
    told: Mapping[str, Any],
    environment: Mapping[str, str],
    accepted: Callable[[], object] = lambda: None,
) -> list[Run]:
    """Submit the runs that no one else has in a queue, and say which ones those were.

    A lock among all who share the folder of runs lets one submit at a time. What a killed submission left in SLURM's
    queue is cancelled first: its jobs would not find what to run.

    Args:
        runs: none of them done.
        told: what submitit's executor is told, see `slurm_options.options`.
        environment: variables for the kernels.
        accepted: called once, when SLURM has taken the first jobs or none were to be submitted.

    Raises:
        ConfigError: more GPUs than a run has devices, SLURM does not say which runs have jobs, or sbatch refuses; what
            had been submitted before stays so.
    """
    gpus = told.get("gpus_per_node") or 0
    if (fewest := min(run.config.devices for run in runs)) < gpus and gpus > 1:
        raise ConfigError(f"gpus={gpus}: allowed: {fewest}, as many as the run has devices; see -p devices={gpus}")
    folder = runs_root() / "submitit"
    folder.mkdir(parents=True, exist_ok=True)
    submitted: list[Run] = []
    with FileLock(folder / ".lock"):
        _cancel_killed_submissions()
        known = slurm.statuses(runs, sure=True)
        todo = [run for run in runs if known[run].state not in ("queued", "running", "done")]
        for devices in dict.fromkeys(run.config.devices for run in todo):
            alike = [run for run in todo if run.config.devices == devices]
            own = {"gpus_per_node": devices} if devices > 1 and told.get("gpus_per_node") != 0 else {}
            for first in range(0, len(alike), slurm.max_array_size()):
                array = alike[first : first + slurm.max_array_size()]
                jobs = _submit(array, {**told, **own}, environment)
                if not submitted:
                    accepted()
                with ThreadPoolExecutor(FILES_AT_ONCE) as pool:  # each write waits for the disk
                    list(pool.map(Run.queue, array, jobs.ids, ["slurm"] * len(array)))
                jobs.record.unlink()
                submitted += array
        if not submitted:
            accepted()
    return submitted


def cancel_killed_submissions() -> None:
    """Cancel what killed submissions left in SLURM's queue, when no other submission is under way.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    if (folder := runs_root() / "submitit").is_dir():
        with FileLock(folder / ".lock"):
            _cancel_killed_submissions()


def _cancel_killed_submissions() -> None:
    for record in (runs_root() / "submitit").glob("*.submitting"):
        slurm.cancel(name=record.stem)
        record.unlink()


class _Jobs(NamedTuple):
    """Jobs of SLURM's that no run knows yet, and the record that says so."""

    ids: list[str]
    record: Path


def _submit(array: Sequence[Run], told: Mapping[str, Any], environment: Mapping[str, str]) -> _Jobs:
    folder = runs_root() / "submitit"
    record = folder / f"gamlib-{uuid.uuid4().hex[:12]}.submitting"
    record.touch()  # as long as it is there, jobs of that name may be there of which no run knows
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    try:
        executor.update_parameters(name=record.stem, stderr_to_stdout=True, **told)
        with slurm.as_told():
            jobs = executor.map_array(train_on_slurm, array, [environment] * len(array))
    except (NameError, TypeError, ValueError) as error:
        record.unlink()
        raise ConfigError(" ".join(str(error).split())) from None
    except submitit.core.utils.FailedJobError as error:
        if not re.search(UNANSWERED, str(error), re.IGNORECASE):
            record.unlink()
            raise ConfigError(f"sbatch refused: {_last(str(error))}") from None
        with suppress(ConfigError):
            slurm.cancel(name=record.stem)  # and the record stays: SLURM may take in the job a little later
        raise ConfigError(f"sbatch: {_last(str(error))}; what it has queued all the same is cancelled") from None
    return _Jobs([job.job_id for job in jobs], record)


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line]
    return lines[-1].removeprefix("sbatch: error: ") if lines else "no reason given"


def train_on_slurm(run: Run, environment: Mapping[str, str]) -> None:
    """The job of a run on a cluster: told to stop before its time is up, it saves, and has itself queued again.

    A job that somebody has queued again by hand, and in whose place the run has got another one, ends at once.

    SLURM sends SIGUSR2 some time before the limit (`scancel --signal=USR2` does the same). Where it sends SIGTERM, it
    has decided already what becomes of the job: a preempted one it queues again by itself, a cancelled one not.

    Raises:
        RunStopped: by another signal, or SLURM would not queue it again.
        RunFailed: see `execute`.
    """
    before, (_, own) = run.status(), slurm.job()
    if before.cluster == "slurm" and before.job_id != own and slurm.live({before.job_id}):
        print(f"job {before.job_id} has this run, so this one ends", flush=True)
        return
    with signals_ask(lambda by: None):  # while it is queued again
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


def watch(runs: Sequence[Run], board: Board) -> None:
    """Wait until the jobs of some runs have ended, and tell of each."""
    left, began = list(runs), time.monotonic()
    while left:
        time.sleep(POLL_SECONDS)
        known = slurm.statuses(left)
        board.tally.running = sum(known[run].state == "running" for run in left)
        for run, status in known.items():
            if status.state not in ("queued", "running"):
                left.remove(run)
                board.ended(run, time.monotonic() - began, status.error)
        board.refresh()
