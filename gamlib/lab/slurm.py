"""SLURM, asked and told through its own commands: what jobs do, how they are cancelled, and how one goes on."""

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gamlib.lab.config import ConfigError
from gamlib.lab.parameters import parse_seeds
from gamlib.lab.places import runs_root
from gamlib.lab.runs import Run
from gamlib.lab.status import Status

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED"}
OVERRIDES = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")  # by which SLURM's commands do other than told
PATIENCE, SILENCE = 15.0, 60.0  # seconds for an answer, and in which one that has not come is not asked for again
LOG_BYTES = 2**18  # of a log's end that are searched for a cause
MEMORY = "memory limit|oom.kill|out of memory"
CAUSE = r"^[\w.]*(Error|Exception)\b|errno|no space left|no locks available|quota exceeded|permission denied"
PAUSES = (1, 2, 4, 8, 15, 30, 60, 60)  # seconds, between attempts to have a job queued again
REFUSAL = "disabled|invalid|denied|not permitted"  # in SLURM's words; all else may pass


@cache
def max_array_size() -> int:
    """Runs of one job array: SLURM's MaxArraySize less one, or its default where it does not say."""
    answer = _asked("scontrol", "show", "config")
    lines = answer.stdout.splitlines() if answer is not None else []
    sizes = [line.partition("=")[2].strip() for line in lines if line.startswith("MaxArraySize")]
    return max(1, int(sizes[0]) - 1) if sizes and sizes[0].isdecimal() else 1000


class Job(NamedTuple):
    """What SLURM knows of a job: its state, and why it waits; both empty if SLURM says that there is no such job."""

    state: str = ""
    reason: str = ""

    @property
    def lives(self) -> bool:
        """Whether it waits or runs."""
        return self.state in WAITING or self.state in RUNNING


def states(job_ids: Collection[str]) -> dict[str, Job] | None:
    """What SLURM knows of each job, from squeue and then sacct; None if it cannot be asked.

    A job that is left out is one of which SLURM has said nothing. That is no evidence that it is gone.
    """
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    found: dict[str, Job] = {}
    for some in _parts(arrays):
        if (jobs := _queue(some)) is None:
            return None
        found |= jobs
    listed = {job_id.partition("_")[0] for job_id in found}
    for some in _parts(sorted({job_id.partition("_")[0] for job_id in job_ids if job_id not in found})):
        for job_id, state in _accounted(some):
            if state not in WAITING:  # a job that waits is one that squeue has
                found.setdefault(job_id, Job(state))
    for job_id in sorted(set(job_ids) - found.keys()):
        array = job_id.partition("_")[0]
        if array in listed or _denied(array):  # squeue knows its other tasks, or says that there is none
            listed.add(array)
            found[job_id] = Job()
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def live(job_ids: Collection[str], unless_known: bool = False) -> set[str]:
    """Those of some jobs that wait or run; if asked, those too of which SLURM has said nothing."""
    known = states(job_ids) or {}
    return {job_id for job_id in job_ids if (known[job_id].lives if job_id in known else unless_known)}


def _parts(ids: list[str]) -> list[list[str]]:
    return [ids[first : first + 500] for first in range(0, len(ids), 500)]


def _queue(arrays: list[str]) -> dict[str, Job] | None:
    """The jobs that squeue has of some arrays or single jobs; None if it cannot be asked."""
    answer = _asked("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %r", "-j", ",".join(arrays))
    if answer is None or (answer.returncode and not _denies(answer.stderr)):
        return None
    lines = [line.split(None, 2) for line in answer.stdout.splitlines()]
    return {words[0]: Job(words[1], *words[2:]) for words in lines if len(words) > 1}


def _denied(array: str) -> bool:
    """Whether squeue says that there is no such job; asked for several, it only leaves out those that are not."""
    answer = _asked("squeue", "-h", "-j", array)
    return answer is not None and _denies(answer.stderr)


def _denies(text: str) -> bool:
    return "Invalid job id" in text


def _accounted(arrays: list[str]) -> Iterator[tuple[str, str]]:
    """The jobs that sacct has, and their states."""
    answer = _asked("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(arrays))
    for line in answer.stdout.splitlines() if answer is not None and answer.returncode == 0 else ():
        name, _, words = line.partition("|")
        array, _, tasks = name.partition("_")
        if state := words.partition(" ")[0]:  # of "CANCELLED by 0"
            try:  # tasks that never began are one line: 7_[1-3,5%2]
                numbers = parse_seeds(tasks.strip("[]").partition("%")[0]) if tasks.startswith("[") else []
            except ConfigError:
                numbers = []
            yield from [(f"{array}_{number}", state) for number in numbers] or [(name, state)]


def statuses(runs: Iterable[Run], sure: bool = False) -> dict[Run, Status]:
    """What every run does: its folder's word first, and where a job of SLURM's has it, what SLURM knows better.

    A job that SLURM has ended, or says it does not have, has no running or waiting run. Where SLURM says nothing, the
    folders' word stands, with the age of their heartbeats.

    Args:
        sure: a run has no job only if SLURM says so: who is about to give it one must know.

    Raises:
        ConfigError: SLURM cannot be asked, and `sure` is wanted.
    """
    found = {run: run.status() for run in runs}
    asked = {run: status for run, status in found.items() if status.state not in ("done", "missing")}
    known = states({job_id for status in asked.values() for job_id in status.slurm_jobs()})
    if known is None and sure:
        raise ConfigError("SLURM cannot be reached: squeue does not answer, and some of the runs may have jobs")
    for run, status in asked.items():
        jobs = {job_id: known[job_id] for job_id in status.slurm_jobs() if known and job_id in known}
        job_id = next((job_id for job_id, job in jobs.items() if job.lives), status.job_id)
        if job_id in jobs and (status.cluster == "slurm" or status.state != "running"):
            found[run] = _corrected(status.model_copy(update={"job_id": job_id}), jobs[job_id])
        if sure and len(jobs) < len(status.slurm_jobs()):
            found[run] = status.model_copy(update={"state": "queued"})
    return found


def _corrected(status: Status, job: Job) -> Status:
    slurm = job.state
    if slurm in WAITING:
        why = "" if job.reason in ("", "None") else f"waits: {job.reason}"
        return status.model_copy(update={"state": "queued", "error": why})
    if slurm in RUNNING:  # after the run's last word, too, until its job is over or in the queue again
        return status if status.state == "queued" else status.model_copy(update={"state": "running"})
    if not slurm:
        gone = {"state": "lost", "error": f"SLURM does not know its job {status.job_id} any more"}
        return status.model_copy(update=gone) if status.state in ("queued", "lost") else status
    if status.state in ("failed", "preempted"):  # it could say so itself
        told = status.error if slurm in ("FAILED", "COMPLETED") else f"{slurm}: {status.error}"
        return status.model_copy(update={"error": told})
    if slurm not in ENDED:
        return status.model_copy(update={"error": f"SLURM says {slurm}"})
    why = why_it_ended(status.job_id) or "its job left no word"
    return status.model_copy(update={"state": "failed", "error": f"{slurm}: {why}"})


def log_of(job_id: str) -> Path:
    """What a job of SLURM's printed, and SLURM about it."""
    return runs_root() / "submitit" / f"{job_id}_0_log.out"


def why_it_ended(job_id: str) -> str:
    """The line of a job's log that says why it ended, or nothing.

    The last one that names a cause, memory first; else the last one that is not srun's, which only counts tasks.
    """
    try:
        with log_of(job_id).open("rb") as file:
            file.seek(max(0, log_of(job_id).stat().st_size - LOG_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    own = [line for line in lines if not line.startswith("srun: ")]
    for some in (_with(MEMORY, lines), _with(CAUSE, own), own, lines):
        if some:
            return some[-1].strip()
    return ""


def _with(pattern: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(pattern, line, re.IGNORECASE)]


def cancel(job_ids: Iterable[str] = (), name: str = "") -> None:
    """Cancel jobs by their ids, or all of a name; those that have ended are passed over.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    calls = [["--name", name]] if name else []
    for arguments in calls + _parts(sorted(job_ids)):
        answer = _asked("scancel", "--quiet", *arguments)
        if answer is None or answer.returncode:
            raise ConfigError("SLURM cannot be reached: scancel does not answer")


def requeue(job_id: str) -> bool:
    """Have this job begin anew, with its id and in the same place; whether SLURM said yes.

    Where it does not answer, this asks again for some minutes, or until the job's time is up.
    """
    for pause in (*PAUSES, None):
        answer = _answer("scontrol", "requeue", job_id)
        if answer is not None and (answer.returncode == 0 or re.search(REFUSAL, answer.stderr, re.IGNORECASE)):
            return answer.returncode == 0
        if pause is not None:
            time.sleep(pause)
    return False


def here() -> bool:
    """Whether this machine submits to a SLURM."""
    return shutil.which("sbatch") is not None


def job() -> tuple[str, str]:
    """The cluster and the id of the job that this process is, as submitit has them; two empty texts outside of one."""
    cluster = os.environ.get("SUBMITIT_EXECUTOR", "")
    if cluster == "local":
        return cluster, os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    return cluster, f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


@contextmanager
def as_told() -> Iterator[None]:
    """While the block lasts, sbatch takes its options from what it is given, and not from the user's variables."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(OVERRIDES)}
    try:
        yield
    finally:
        os.environ.update(taken)


_unanswered = -math.inf  # when SLURM was last asked in vain


def _asked(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """What one of SLURM's commands says; None if there is none, or for some time after one has not answered."""
    global _unanswered
    if time.monotonic() < _unanswered + SILENCE:
        return None
    began = time.monotonic()
    answer = _answer(*command)
    if answer is None and time.monotonic() > began + PATIENCE:
        _unanswered = time.monotonic()
    return answer


def _answer(*command: str) -> "subprocess.CompletedProcess[str] | None":
    own = {key: value for key, value in os.environ.items() if not key.startswith(OVERRIDES)}
    own |= {"SLURM_BITSTR_LEN": "0"}  # lists of tasks are not cut
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=own)
    except (OSError, subprocess.TimeoutExpired):
        return None
