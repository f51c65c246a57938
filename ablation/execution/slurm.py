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

from ablation.config import ConfigError
from ablation.parameters import parse_seeds
from ablation.paths import runs_root
from ablation.runs import Run
from ablation.status import Status

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED"}
OVERRIDES = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")  # variables that change what SLURM's commands do
PATIENCE, SILENCE = 15.0, 60.0  # seconds for an answer, and in which one that has not come is not asked for again
JOBS_AT_ONCE = 500  # whose ids stand in one command
LOG_BYTES = 2**18  # of a log's end that are searched for a cause
MEMORY = "memory limit|oom.kill|out of memory"
CAUSE = r"^[\w.]*(Error|Exception)\b|errno|no space left|no locks available|quota exceeded|permission denied"
PAUSES = (1, 2, 4, 8, 15, 30, 60, 60)  # seconds, between attempts to have a job queued again
REFUSAL = "disabled|invalid|denied|not permitted"  # in SLURM's words; all else may pass
NO_SUCH_JOB = "Invalid job id"  # in squeue's words


@cache
def max_array_size() -> int:
    """Runs of one job array: SLURM's MaxArraySize less one, or its default where it does not say."""
    answer = _ask("scontrol", "show", "config")
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout if answer is not None else "", re.MULTILINE)
    return max(1, int(size[1]) - 1) if size else 1000


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
    found: dict[str, Job] = {}
    for arrays in _parts(map(_array, job_ids)):
        if (jobs := _queued(arrays)) is None:
            return None
        found |= jobs
    listed = set(map(_array, found))
    for arrays in _parts(map(_array, set(job_ids) - found.keys())):
        for job_id, state in _accounted(arrays):
            if state not in WAITING:  # a job that waits is one that squeue has
                found.setdefault(job_id, Job(state))
    for job_id in sorted(set(job_ids) - found.keys()):
        if (array := _array(job_id)) in listed or _is_gone(array):  # squeue has other tasks of it, or denies it
            listed.add(array)
            found[job_id] = Job()
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def live(job_ids: Collection[str], or_unknown: bool = False) -> set[str]:
    """Those of some jobs that wait or run; if asked, those too of which SLURM has said nothing."""
    known = states(job_ids) or {}
    return {job_id for job_id in job_ids if (known[job_id].lives if job_id in known else or_unknown)}


def _array(job_id: str) -> str:
    return job_id.partition("_")[0]


def _parts(ids: Iterable[str]) -> list[list[str]]:
    different = sorted(set(ids))
    return [different[first : first + JOBS_AT_ONCE] for first in range(0, len(different), JOBS_AT_ONCE)]


def _queued(arrays: list[str]) -> dict[str, Job] | None:
    """The jobs that squeue has of some arrays or single jobs; None if it cannot be asked."""
    answer = _ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %r", "-j", ",".join(arrays))
    if answer is None or (answer.returncode and NO_SUCH_JOB not in answer.stderr):
        return None
    lines = [line.split(None, 2) for line in answer.stdout.splitlines()]
    return {words[0]: Job(words[1], *words[2:]) for words in lines if len(words) > 1}


def _is_gone(array: str) -> bool:
    """Whether squeue says that there is no such job; asked for several, it only leaves out those that are not."""
    answer = _ask("squeue", "-h", "-j", array)
    return answer is not None and NO_SUCH_JOB in answer.stderr


def _accounted(arrays: list[str]) -> Iterator[tuple[str, str]]:
    """The jobs that sacct has, and their states."""
    answer = _ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(arrays))
    for line in answer.stdout.splitlines() if answer is not None and answer.returncode == 0 else ():
        name, _, words = line.partition("|")
        array, _, tasks = name.partition("_")
        if state := words.partition(" ")[0]:  # of "CANCELLED by 0"
            try:  # tasks that never began are one line: 7_[1-3,5%2]
                numbers = parse_seeds(tasks.strip("[]").partition("%")[0]) if tasks.startswith("[") else []
            except ConfigError:
                numbers = []
            yield from [(f"{array}_{number}", state) for number in numbers] or [(name, state)]


def statuses(runs: Iterable[Run], must_know: bool = False) -> dict[Run, Status]:
    """What every run does: its folder's word first, and where a job of SLURM's has it, what SLURM knows better.

    A job that SLURM has ended, or says it does not have, has no running or waiting run. Where SLURM says nothing, the
    folders' word stands, with the age of their heartbeats.

    Args:
        must_know: for who is about to submit runs: one of whose jobs SLURM says nothing counts as queued.

    Raises:
        ConfigError: SLURM cannot be asked, and the caller must know.
    """
    found = {run: run.status() for run in runs}
    open_ = {run: status for run, status in found.items() if status.state not in ("done", "missing")}
    known = states({job_id for status in open_.values() for job_id in status.slurm_jobs()})
    if known is None and must_know:
        raise ConfigError("SLURM cannot be reached: squeue does not answer, and some of the runs may have jobs")
    for run, status in open_.items():
        jobs = {job_id: known[job_id] for job_id in status.slurm_jobs() if known and job_id in known}
        job_id = next((job_id for job_id, job in jobs.items() if job.lives), status.job_id)
        if job_id in jobs and (status.cluster == "slurm" or status.state != "running"):
            found[run] = _corrected(status.model_copy(update={"job_id": job_id}), jobs[job_id])
        if must_know and len(jobs) < len(status.slurm_jobs()):
            found[run] = status.model_copy(update={"state": "queued"})
    return found


def _corrected(status: Status, job: Job) -> Status:
    """A run's status, by what SLURM knows of its job."""
    if job.state in WAITING:
        why = "" if job.reason in ("", "None") else f"waits: {job.reason}"
        return status.model_copy(update={"state": "queued", "error": why})
    if job.state in RUNNING:  # after the run's last word, too, until its job is over or in the queue again
        return status if status.state == "queued" else status.model_copy(update={"state": "running"})
    if not job.state:
        gone = {"state": "lost", "error": f"SLURM does not know its job {status.job_id} any more"}
        return status.model_copy(update=gone) if status.state in ("queued", "lost") else status
    if status.state in ("failed", "preempted"):  # it could say so itself
        own = status.error if job.state in ("FAILED", "COMPLETED") else f"{job.state}: {status.error}"
        return status.model_copy(update={"error": own})
    if job.state not in ENDED:
        return status.model_copy(update={"error": f"SLURM says {job.state}"})
    why = why_it_ended(status.job_id) or "its job left no word"
    return status.model_copy(update={"state": "failed", "error": f"{job.state}: {why}"})


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
    of_memory = [line for line in lines if re.search(MEMORY, line, re.IGNORECASE)]
    causes = [line for line in own if re.search(CAUSE, line, re.IGNORECASE)]
    return next((some[-1].strip() for some in (of_memory, causes, own, lines) if some), "")


def cancel(job_ids: Iterable[str] = (), name: str = "") -> None:
    """Cancel jobs by their ids, or all of a name; those that have ended are passed over.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    for arguments in [["--name", name]] if name else _parts(job_ids):
        answer = _ask("scancel", "--quiet", *arguments)
        if answer is None or answer.returncode:
            raise ConfigError("SLURM cannot be reached: scancel does not answer")


def requeue(job_id: str) -> bool:
    """Have this job begin anew, with its id and in the same place; whether SLURM said yes.

    Where it does not answer, this asks again for some minutes, or until the job's time is up.
    """
    for pause in (*PAUSES, None):
        answer = _run("scontrol", "requeue", job_id)
        if answer is not None and (answer.returncode == 0 or re.search(REFUSAL, answer.stderr, re.IGNORECASE)):
            return answer.returncode == 0
        if pause is not None:
            time.sleep(pause)
    return False


def available() -> bool:
    """Whether this machine submits to a SLURM."""
    return shutil.which("sbatch") is not None


@contextmanager
def without_overrides() -> Iterator[None]:
    """While the block lasts, sbatch takes its options from what it is given, and not from the user's variables."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(OVERRIDES)}
    try:
        yield
    finally:
        os.environ.update(taken)


_unanswered = -math.inf  # when SLURM was last asked in vain


def _ask(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """What one of SLURM's commands says; None if there is none, or for some time after one has not answered."""
    global _unanswered
    if time.monotonic() < _unanswered + SILENCE:
        return None
    began = time.monotonic()
    answer = _run(*command)
    if answer is None and time.monotonic() > began + PATIENCE:
        _unanswered = time.monotonic()
    return answer


def _run(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """What a command of SLURM's says, without the user's variables; None if there is none, or no answer in time."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(OVERRIDES)}
    own |= {"SLURM_BITSTR_LEN": "0"}  # lists of tasks are not cut
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=own)
    except (OSError, subprocess.TimeoutExpired):
        return None
