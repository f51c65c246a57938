"""Submission to SLURM: a study is one job array, and a run has one job, whoever submits it and whatever goes wrong.

Options of the jobs come from the command line, the user's file, the project's table, and the shell.
"""

import math
import os
import re
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import submitit
from filelock import FileLock
from pydantic import ConfigDict, Field, model_validator

from ablation.errors import Checked, ConfigError
from ablation.execution import FORMER, slurm
from ablation.execution.execute import execute, forward_signals
from ablation.paths import ROOT, runs_root
from ablation.runs import Run, RunStopped
from ablation.status import UNDER_WAY

DEFAULTS = Path("~/.config/gamlib.toml")  # and pyproject.toml, whose table it goes before
OF_THE_SHELL = ("partition", "account", "qos", "constraint")  # that sbatch's variables may give, such as SBATCH_ACCOUNT
OF_SUBMITIT = {"partition": "slurm_partition", "gpus": "gpus_per_node", "cpus": "cpus_per_task", "mem": "mem_gb"}
OF_SUBMITIT |= {"timeout": "timeout_min"}
DAY_MINUTES = 24 * 60
KEY_VALUE = "key=value, such as reservation=mine"
FILES_AT_ONCE = 16
UNANSWERED = "timed out|unable to contact|communication|connect"  # what sbatch says of a job that may be queued
FRUITLESS = 5  # attempts without a step before a run fails: SLURM's signal may come a minute early, and so by chance


class SlurmOptions(Checked):
    """The options that everyone uses; all others stand in `slurm`, a table or a list of "key=value", in sbatch's words
    but for two of submitit's: `array-parallelism`, jobs of an array at once, and `setup`, shell commands before each.
    """

    model_config = ConfigDict(strict=True)

    partition: str | None = Field(None, description="a name")
    gpus: int | None = Field(None, ge=0, description="a whole number from 0")
    cpus: int | None = Field(None, ge=1, description="a whole number from 1")
    mem: float | None = Field(None, gt=0, lt=math.inf, description="a number above 0, of GB")
    timeout: int | None = Field(None, ge=1, description="a whole number from 1, of minutes")
    slurm: dict[str, Any] = Field({}, description="a table")

    @model_validator(mode="before")
    @classmethod
    def _translated(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Texts "key=value" as a table, and in it what were options of their own."""
        typed = {key: value for key, value in given.items() if value not in (None, [], ())}
        slurm = typed.pop("slurm", {})
        if isinstance(slurm, list | tuple):
            pairs = [(key, value or True) for key, _, value in (str(text).partition("=") for text in slurm)]
        elif isinstance(slurm, dict):
            pairs = list(slurm.items())
        else:
            raise ValueError(f"slurm={slurm!r}: allowed: {KEY_VALUE}, or a table of them")
        other: dict[str, Any] = {}
        for key, value in [*((key, typed.pop(key)) for key in FORMER if key in typed), *pairs]:
            if not (name := key.strip("- ").replace("_", "-")):
                raise ValueError(f"slurm={f'{key}={value}'!r}: allowed: {KEY_VALUE}")
            for one in value if isinstance(value, list | tuple) else [value]:
                other[name] = [*other.get(name, []), one] if name == "setup" else one
        at_once = str(other.get("array-parallelism", 1))
        if not at_once.isdecimal() or int(at_once) < 1:
            raise ValueError(f"array-parallelism={at_once}: allowed: a whole number from 1")
        return {**typed, "slurm": other}


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """The options of several tables, of which the last goes before the others, as `SlurmOptions` has them.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    found: dict[str, Any] = {"slurm": {}}
    for table in tables:
        options = SlurmOptions(**table).model_dump(exclude_none=True)
        found |= options | {"slurm": found["slurm"] | options["slurm"]}
    return found


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit's executor gets: `given` on the command line, before the user's file, before the project's table.

    What none of them says of `OF_THE_SHELL` is as sbatch's variables have it; its other variables count for nothing.

    Raises:
        ConfigError: an unknown key or an impossible value in one of the three; the message names the file.
    """
    default = {key: os.environ.get(f"SBATCH_{key.upper()}") or None for key in OF_THE_SHELL} | {"timeout": DAY_MINUTES}
    files = _of_file(ROOT / "pyproject.toml", "tool", "gamlib", "slurm"), _of_file(DEFAULTS.expanduser(), "slurm")
    options = merged(default, *files, given)
    other, minutes = options.pop("slurm"), options["timeout"]
    found = {OF_SUBMITIT[key]: value for key, value in options.items()}
    if "array-parallelism" in other:
        found["slurm_array_parallelism"] = int(other.pop("array-parallelism"))
    if "setup" in other:
        found["slurm_setup"] = other.pop("setup")
    # A share of a short time, so that a run gets somewhere before it is told to stop; SLURM looks twice a minute.
    found["slurm_signal_delay_s"] = int(min(120, 15 * minutes))
    return found | {"slurm_additional_parameters": other if "no-requeue" in other else {"requeue": True, **other}}


def _of_file(path: Path, *keys: str) -> dict[str, Any]:
    """The options in a table of a file, if there is one."""
    try:
        table: Any = tomllib.loads(path.read_text())
        for key in keys:
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{key} is not a table")
        return merged(table)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # no text, no TOML, or no options
        raise ConfigError(f"{path}: {'.'.join(keys)}: {error}") from None


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
        parameters: of submitit's executor, see `parameters`.
        environment: variables for the kernels.
        accepted: called once, when SLURM has taken the first jobs or none were to be submitted.

    Raises:
        ConfigError: more GPUs than a run has devices, SLURM does not say which runs have jobs, or sbatch refuses; what
            had been submitted before stays so.
    """
    gpus = parameters.get("gpus_per_node")
    if (fewest := min(run.config.devices for run in runs)) < (gpus or 0):
        raise ConfigError(f"gpus={gpus}: allowed: {fewest}, as many as the run has devices; see -p devices={gpus}")
    with submission_lock():
        known = slurm.statuses(runs, must_know=True)
        todo = [run for run in runs if known[run].state not in (*UNDER_WAY, "done")]
        submitted: list[Run] = []
        for devices in dict.fromkeys(run.config.devices for run in todo):
            own = {"gpus_per_node": devices} if devices > 1 and gpus != 0 else {}
            alike, most = [run for run in todo if run.config.devices == devices], slurm.max_array_size()
            for array in (alike[first : first + most] for first in range(0, len(alike), most)):
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


def _submit(
    array: Sequence[Run], parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[list[str], Path]:
    """The ids of new jobs, of which no run knows yet, and the file that says so."""
    record = runs_root() / "submitit" / f"gamlib-{uuid.uuid4().hex[:12]}.submitting"
    record.touch()  # as long as it is there, jobs of that name may be there of which no run knows
    executor = submitit.AutoExecutor(folder=record.parent, cluster="slurm")
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
    before, own = run.status(), submitit.JobEnvironment().job_id
    if before.cluster == "slurm" and before.job_id != own and slurm.live({before.job_id}):
        print(f"job {before.job_id} has this run, so this one ends", flush=True)
        return
    with forward_signals(lambda by: None):  # while it is queued again
        try:
            execute(run, environment, ("slurm", own))
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
