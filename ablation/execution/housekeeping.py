"""Runs that are to stop, and files that nobody needs any more."""

import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ablation.execution import arrays, slurm
from ablation.paths import runs_root
from ablation.runs import Run, all_runs
from ablation.status import UNDER_WAY, Status

CANCEL_SECONDS = 60.0


def cancel(runs: Sequence[Run]) -> dict[Run, Status]:
    """Stop what is queued or running, wherever it is, and say what every one of those runs left.

    A run that trains saves its state, where its cluster gives it the time. This waits for that, but not for ever.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    if shutil.which("sbatch") is not None:
        with arrays.submission_lock():
            pass  # of a killed submission's jobs no run knows
    found = slurm.statuses(runs)
    stopped = {run: status for run, status in found.items() if status.state in UNDER_WAY}
    kept = _jobs_of_others(runs) if any(status.shared for status in found.values()) else set[str]()
    for run, status in stopped.items():
        if status.cluster != "slurm":
            run.ask_to_stop("gamlib cancel")
    jobs = {job_id for status in found.values() for job_id in status.slurm_jobs()}  # of runs that are done, too
    slurm.cancel(slurm.live(jobs - kept, or_unknown=True))
    for run, status in stopped.items():
        if status.state == "queued" and status.cluster == "slurm":
            run.write_status(state="preempted", error=_cancelled(status))
    until = time.monotonic() + CANCEL_SECONDS
    while True:
        for run in stopped:
            _take_out(run, kept)
        now = slurm.statuses(stopped)
        if time.monotonic() > until or all(status.state not in UNDER_WAY for status in now.values()):
            return now
        time.sleep(1)


def _cancelled(status: Status) -> str:
    return "cancelled before it began" if status.attempts == 0 else "cancelled while it waited to go on"


def _take_out(run: Run, kept: Collection[str]) -> None:
    """Take a run out of a job of several that goes on: at once, or when it has saved its state."""
    status = run.status()
    if status.job_id in kept and status.state == "running":
        run.ask_to_stop("gamlib cancel")
    elif status.job_id in kept and status.state in ("failed", "preempted"):  # it has said why
        run.write_status(job_id="")
    elif status.job_id in kept and status.state != "done":
        run.write_status(state="preempted", error=_cancelled(status), job_id="")


def _jobs_of_others(runs: Sequence[Run]) -> set[str]:
    """Jobs of several runs that others than these belong to."""
    mine = {run.signature for run in runs}
    others = [run.status() for run in all_runs()[0] if run.signature not in mine]
    return {status.job_id for status in others if status.shared and status.job_id and status.state != "done"}


def leftovers(checkpoints: bool, failed: bool = False) -> list[Path]:
    """Files of submitit's that no job needs, and of killed processes; if asked, checkpoints of runs done, failed runs.

    What is of a run that is done, and of jobs of which no run knows any more. The next submission puts right what one
    that was killed has left: while its word of that lies there, nothing of submitit's is taken away.
    """
    folder, there = runs_root() / "submitit", list[Path]()
    if folder.is_dir():
        with FileLock(folder / ".lock"):  # what is just being submitted has no run yet
            if not any(folder.glob("*.submitting")):
                there = sorted(folder.iterdir())
    runs, _ = all_runs()
    statuses = [status for run in runs if (status := run.status()).state not in ("done", "missing")]
    needed = {job_id for status in statuses for job_id in (status.job_id, *status.earlier_jobs)}
    found = []
    for path in there:
        name = path.resolve().name  # submitit leaves a link to 12_submission.sh, too
        parts = name.split("_")  # 12_submitted.pkl, 12_0_log.out, or of an array 12_3_0_log.out
        if path.name != ".lock" and not {parts[0], "_".join(parts[:2])} & needed:
            found.append(path)
    for run in runs:
        with suppress(Timeout), run.lock(timeout=0):  # or its owner is at work
            found += [*run.recover_notebook(), *sorted(run.folder.glob(".*.part"))]
        if checkpoints and run.result() is not None:
            found += sorted(run.folder.glob("checkpoint*.*"))
    for run, status in slurm.statuses(runs if failed else ()).items():
        if status.state == "failed":
            found += sorted(path for path in run.folder.rglob("*") if path.is_file())
    return list(dict.fromkeys(found))
