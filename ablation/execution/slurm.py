"""SLURM, asked and told through its own commands: what jobs do, how they are cancelled, and how one goes on."""

import math
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ablation.errors import ConfigError
from ablation.execution.progress import OF_RUNS
from ablation.parameters import parse_seeds
from ablation.paths import runs_root
from ablation.runs import Run
from ablation.status import Status

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED"}
LIVE = WAITING | RUNNING
OVERRIDES = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")  # variables that change its commands
PATIENCE, SILENCE = 15.0, 60.0  # seconds for an answer, and in which one that has not come is not asked for again
JOBS_AT_ONCE = 500  # that one scancel ends in that time
MEMORY = "memory limit|oom.kill|out of memory"
CAUSE = r"^[\w.]*(Error|Exception)\b|errno|no space left|no locks available|quota exceeded|permission denied"
PAUSES = (1, 2, 4, 8, 15, 30, 60, 60)  # seconds, between attempts to have a job queued again
REFUSAL = "disabled|invalid|denied|not permitted"  # in SLURM's words; all else may pass
NO_SUCH_JOB = "Invalid job id"  # in squeue's words


@cache
def max_array_size() -> int:
    """Runs of one job array: SLURM's MaxArraySize less one, or its default where it does not say."""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config").stdout, re.MULTILINE)
    return max(1, int(size[1]) - 1) if size else 1000


def partitions() -> list[str] | None:
    """The names of SLURM's partitions; None if it cannot be asked."""
    answer = _ask("sinfo", "-h", "-o", "%R")
    return sorted(set(answer.stdout.split())) if answer.returncode == 0 else None


def accounting_answers() -> bool:
    """Whether SLURM keeps accounts of jobs that have ended, and can be asked for them."""
    return _ask("sacct", "-n", "-X", "-o", "JobID").returncode == 0


class Job(NamedTuple):
    """What SLURM knows of a job: its state, and why it waits; both empty if SLURM says that there is no such job."""

    state: str = ""
    reason: str = ""


def states(job_ids: Collection[str]) -> dict[str, Job] | None:
    """What SLURM knows of each job, from squeue and then sacct; None if it cannot be asked.

    A job that is left out is one of which SLURM has said nothing. That is no evidence that it is gone.
    """
    if not job_ids:
        return {}
    answer = _ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %r", "-j", ",".join(_arrays(job_ids)))
    if answer.returncode and NO_SUCH_JOB not in answer.stderr:
        return None
    lines = [line.split(None, 2) for line in answer.stdout.splitlines()]
    found = {words[0]: Job(*words[1:]) for words in lines if len(words) > 1}
    listed = _arrays(found)
    for job_id, state in _accounted(set(job_ids) - found.keys()):
        if state not in WAITING:  # a job that waits is one that squeue has
            found.setdefault(job_id, Job(state))
    left = set(job_ids) - found.keys()
    for array in _arrays(left):  # squeue has other tasks of it, or denies it when asked for it alone
        if array in listed or NO_SUCH_JOB in _ask("squeue", "-h", "-j", array).stderr:
            found |= {job_id: Job() for job_id in left if job_id.partition("_")[0] == array}
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def live(job_ids: Collection[str], or_unknown: bool = False) -> set[str]:
    """Those of some jobs that wait or run; if asked, those too of which SLURM has said nothing."""
    known = states(job_ids) or {}
    return {job_id for job_id in job_ids if (known[job_id].state in LIVE if job_id in known else or_unknown)}


def _arrays(job_ids: Iterable[str]) -> list[str]:
    """The numbers of the arrays of which some jobs are tasks, and of the single ones."""
    return sorted({job_id.partition("_")[0] for job_id in job_ids})


def _accounted(job_ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """The jobs that sacct has of the arrays of some, and their states."""
    if not job_ids:
        return
    answer = _ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(_arrays(job_ids)))
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        # Tasks that never began are one line: 7_[1-3,5%2]. A state may have more words: CANCELLED by 0.
        if match := re.match(r"(\d+)(_\d+)?(?:_\[(.+?)(?:%\d+)?\])?\|(\w+)", line):
            array, task, tasks, state = match.groups("")
            with suppress(ConfigError):  # of a list that was cut short
                numbers = parse_seeds(tasks) if tasks else []
                yield from [(f"{array}_{number}", state) for number in numbers] or [(array + task, state)]


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
        job_id = next((job_id for job_id, job in jobs.items() if job.state in LIVE), status.job_id)
        if job_id in jobs and (status.cluster == "slurm" or status.state != "running"):
            changes = {"job_id": job_id} | _correction(status, job_id, jobs[job_id])
            found[run] = status.model_copy(update=changes)
        if must_know and len(jobs) < len(status.slurm_jobs()):
            found[run] = status.model_copy(update={"state": "queued"})
    return found


def _correction(status: Status, job_id: str, job: Job) -> dict[str, Any]:
    """What SLURM knows better of a run, by its job."""
    if job.state in WAITING:
        return {"state": "queued", "error": "" if job.reason in ("", "None") else f"waits: {job.reason}"}
    if job.state in RUNNING:  # after the run's last word, too, until its job is over or in the queue again
        return {} if status.state == "queued" else {"state": "running"}
    if not job.state:
        gone = {"state": "lost", "error": f"SLURM does not know its job {job_id} any more"}
        return gone if status.state in ("queued", "lost") else {}
    if status.state in ("failed", "preempted"):  # it could say so itself
        return {} if job.state in ("FAILED", "COMPLETED") else {"error": f"{job.state}: {status.error}"}
    if job.state not in ENDED:
        return {"error": f"SLURM says {job.state}"}
    return {"state": "failed", "error": f"{job.state}: {why_it_ended(job_id) or 'its job left no word'}"}


def log_of(job_id: str) -> Path:
    """What a job of SLURM's printed, and SLURM about it."""
    return runs_root() / "submitit" / f"{job_id}_0_log.out"


def why_it_ended(job_id: str) -> str:
    """The line of a job's log that says why it ended, or nothing.

    The last one that names a cause, memory first; else the last one that is not srun's, which only counts tasks. What
    a job says of its runs is not its own end.
    """
    try:
        lines = [line for line in log_of(job_id).read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    lines = [line for line in lines if OF_RUNS not in line]
    own = [line for line in lines if not line.startswith("srun: ")]
    of_memory = [line for line in lines if re.search(MEMORY, line, re.IGNORECASE)]
    causes = [line for line in own if re.search(CAUSE, line, re.IGNORECASE)]
    return next((some[-1].strip() for some in (of_memory, causes, own, lines) if some), "")


def cancel(job_ids: Iterable[str] = (), name: str = "") -> None:
    """Cancel jobs by their ids, or all of a name; those that have ended are passed over.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    ids = sorted(job_ids)
    parts = [ids[first : first + JOBS_AT_ONCE] for first in range(0, len(ids), JOBS_AT_ONCE)]
    for arguments in [["--name", name]] if name else parts:
        if _ask("scancel", "--quiet", *arguments).returncode:
            raise ConfigError("SLURM cannot be reached: scancel does not answer")


def requeue(job_id: str, signals: Collection[str] = ()) -> bool:
    """Have this job begin anew, with its id and in the same place; whether SLURM said yes, or ends the job anyway.

    Where it does not answer, this asks again for some minutes, but not after SIGTERM: SLURM may have said yes in an
    answer that was lost, or somebody may have cancelled the job, and either way another request would start it again.

    Args:
        job_id: SLURM's id of the job that this process is.
        signals: the names of those that this process gets while it asks.
    """
    for pause in (0, *PAUSES):
        time.sleep(pause)
        if "SIGTERM" in signals:
            return True
        answer = _ask("scontrol", "requeue", job_id, after_silence=True)
        if answer.returncode == 0 or re.search(REFUSAL, answer.stderr, re.IGNORECASE):
            return answer.returncode == 0
    return False


@contextmanager
def without_overrides() -> Iterator[None]:
    """While the block lasts, sbatch takes its options from what it is given, and not from the user's variables."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(OVERRIDES)}
    try:
        yield
    finally:
        os.environ.update(taken)


_unanswered = -math.inf  # when SLURM was last asked in vain


def _ask(*command: str, after_silence: bool = False) -> "subprocess.CompletedProcess[str]":
    """What one of SLURM's commands says, without the user's variables; if there is no answer, a failure without words.

    After one that has not answered in time, none is asked for a while, unless `after_silence`.
    """
    global _unanswered
    if after_silence or time.monotonic() > _unanswered + SILENCE:
        with suppress(OSError), without_overrides():
            own = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # lists of tasks are not cut
            try:
                return subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=own
                )
            except subprocess.TimeoutExpired:
                _unanswered = time.monotonic()
    return subprocess.CompletedProcess(command, 1, "", "")
