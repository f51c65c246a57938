"""SLURM, asked and told through its own commands: what jobs do, what a user has written once, and how a job goes on."""

import getpass
import math
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gamlib.lab.config import ConfigError
from gamlib.lab.places import ROOT, runs_root
from gamlib.lab.runs import Run, Status

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"CONFIGURING", "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED"}
DEFAULTS = Path("~/.config/gamlib.toml")  # and pyproject.toml, whose table it goes before
NAMES = {  # of an option here, and as submitit has it
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "mem": "mem_gb",
    "timeout": "timeout_min",
    "setup": "slurm_setup",
    "array_parallelism": "slurm_array_parallelism",
}
DAY_MINUTES = 24 * 60
LOG_BYTES = 2**18  # of a log's end that are searched for a cause
MEMORY = "memory limit|oom.kill|out of memory"
CAUSE = r"^\w*(Error|Exception)\b|errno|no space left|no locks available|quota exceeded|permission denied"
PAUSES = (1, 2, 4, 8, 15, 30, 60, 60)  # seconds, between attempts to have a job queued again
REFUSAL = "disabled|invalid|denied|not permitted"  # in SLURM's words; all else may pass


def options(given: Mapping[str, Any], extra: Iterable[str] = ()) -> dict[str, Any]:
    """What submitit is told: `given` on the command line, before the user's file, before the project's table.

    Args:
        given: by the keys of `NAMES`; None is not given.
        extra: any other option of sbatch as "key=value", or "key" for one without a value.

    Raises:
        ConfigError: an unknown key or an impossible value in one of the three, or text without a key.
    """
    merged: dict[str, Any] = {}
    for where, table in (
        (f"{ROOT / 'pyproject.toml'}: tool.gamlib.slurm", _table(ROOT / "pyproject.toml", "tool", "gamlib", "slurm")),
        (f"{DEFAULTS.expanduser()}: slurm", _table(DEFAULTS.expanduser(), "slurm")),
        ("slurm", {key: value for key, value in given.items() if value not in (None, [], ())}),
    ):
        for key in table.keys() - {*NAMES, "slurm"}:
            raise ConfigError(f"{where}.{key}: allowed: {', '.join(NAMES)}, and a table slurm of other sbatch options")
        if not isinstance(table.get("slurm", {}), dict):
            raise ConfigError(f"{where}.slurm={table['slurm']!r}: allowed: a table of other sbatch options")
        merged |= table
    more: dict[str, Any] = dict(merged.pop("slurm", {}))
    for text in extra:
        key, _, value = text.partition("=")
        if not key.strip("- "):
            raise ConfigError(f"slurm={text!r}: allowed: key=value, such as reservation=mine")
        more[key.strip("- ").replace("_", "-")] = value or True
    for key, least in {"gpus": 0, "cpus": 1, "timeout": 1, "array_parallelism": 1}.items():
        value = merged.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{key}={value!r}: allowed: a whole number from {least}")
    memory = merged.get("mem", 1)
    if not isinstance(memory, int | float) or isinstance(memory, bool) or not 0 < memory < math.inf:
        raise ConfigError(f"mem={memory!r}: allowed: a number above 0, of GB")
    if isinstance(merged.get("setup"), str):
        merged["setup"] = [merged["setup"]]
    found: dict[str, Any] = {"timeout_min": DAY_MINUTES} | {NAMES[key]: value for key, value in merged.items()}
    # A share of a short time, so that a run gets somewhere before it is told to stop; SLURM looks every half minute.
    found["slurm_signal_delay_s"] = int(min(120, 15 * found["timeout_min"]))
    found["slurm_additional_parameters"] = more if "no-requeue" in more else {"requeue": True, **more}
    return found


def _table(path: Path, *keys: str) -> dict[str, Any]:
    try:
        table: Any = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for key in keys:
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {key} is not a table")
    return dict(table)


@cache
def max_array_size() -> int:
    """Runs of one job array: SLURM's MaxArraySize less one, or its default where it does not say."""
    answer = _ask("scontrol", "show", "config") or ""
    sizes = [line.partition("=")[2].strip() for line in answer.splitlines() if line.startswith("MaxArraySize")]
    return max(1, int(sizes[0]) - 1) if sizes and sizes[0].isdecimal() else 1000


def states(job_ids: Collection[str]) -> dict[str, str] | None:
    """SLURM's state of each job that it knows, from squeue and then sacct; None if it cannot be asked."""
    if not job_ids:
        return {}
    queue = _ask("squeue", "-u", getpass.getuser(), "-h", "-r", "-t", "all", "-o", "%i %T")
    if queue is None:
        return None
    found = dict(line.split()[:2] for line in queue.splitlines() if len(line.split()) > 1)
    rest = set(job_ids) - found.keys()
    if rest:
        arrays = sorted({job_id.partition("_")[0] for job_id in rest})
        for first in range(0, len(arrays), 500):
            answer = _ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(arrays[first : first + 500]))
            for line in (answer or "").splitlines():
                job_id, _, words = line.partition("|")
                state = words.partition(" ")[0]  # of "CANCELLED by 0"
                if state and state not in WAITING:  # a job that waits is one that squeue has
                    found.setdefault(job_id, state)
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def statuses(runs: Iterable[Run]) -> dict[Run, Status]:
    """What every run does: its folder's word first, and where a job of SLURM's has it, what SLURM knows better.

    A job that SLURM has ended, or does not know, has no running or waiting run. If SLURM cannot be asked, the folders'
    word stands, with the age of their heartbeats.
    """
    found = {run: run.status() for run in runs}
    asked = {run: status for run, status in found.items() if status.cluster == "slurm" and _open(status)}
    known = states({status.job_id for status in asked.values()})
    if known is not None:
        for run, status in asked.items():
            found[run] = _corrected(status, known.get(status.job_id))
    return found


def _open(status: Status) -> bool:
    return bool(status.job_id) and status.state not in ("done", "missing")


def _corrected(status: Status, slurm: str | None) -> Status:
    if slurm in WAITING:
        return status.model_copy(update={"state": "queued", "error": ""})
    if slurm in RUNNING:  # between the word "preempted" and the queue, too
        return status.model_copy(update={"state": "running"}) if status.state in ("preempted", "lost") else status
    if slurm is None:
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
    """Cancel jobs by their ids, or all of this user's of a name; those that have ended are passed over.

    Raises:
        ConfigError: SLURM cannot be told.
    """
    ids = sorted(job_ids)
    calls = [["--user", getpass.getuser(), "--name", name]] if name else []
    calls += [ids[first : first + 200] for first in range(0, len(ids), 200)]
    for arguments in calls:
        if _ask("scancel", "--quiet", *arguments) is None:
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


def _ask(*command: str) -> str | None:
    """What a command of SLURM's prints; None if there is none, or it fails."""
    answer = _answer(*command)
    return answer.stdout if answer is not None and answer.returncode == 0 else None


def _answer(*command: str) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
