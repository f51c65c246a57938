"""Options of SLURM's jobs, from the command line, the user's file, the project's table, and the shell."""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from ablation.errors import Checked, ConfigError
from ablation.execution import FORMER
from gamlib.files import base_folder

DEFAULTS = Path("~/.config/gamlib.toml")  # and pyproject.toml, whose table it goes before
OF_THE_SHELL = ("partition", "account", "qos", "constraint")  # that sbatch's variables may give, such as SBATCH_ACCOUNT
OF_SUBMITIT = {"partition": "slurm_partition", "gpus": "gpus_per_node", "cpus": "cpus_per_task", "mem": "mem_gb"}
OF_SUBMITIT |= {"timeout": "timeout_min"}
OF_JOBS = ("runs_per_job", "at_once")  # and not of the executor
DAY_MINUTES = 24 * 60
KEY_VALUE = "key=value, such as reservation=mine"


class SlurmOptions(Checked):
    """The options that everyone uses, and two of our own: how many runs a job has, and of these at once.

    All others stand in `slurm`, a table or a list of "key=value", in sbatch's words but for three of submitit's:
    `array-parallelism`, jobs of an array at once, `setup`, shell commands before each, and `python`, the command that
    starts Python in a job, in place of the interpreter that submits.
    """

    model_config = ConfigDict(strict=True)

    partition: str | None = Field(None, description="a name")
    gpus: int | None = Field(None, ge=0, description="a whole number from 0")
    cpus: int | None = Field(None, ge=1, description="a whole number from 1")
    mem: float | None = Field(None, gt=0, lt=math.inf, description="a number above 0, of GB")
    timeout: int | None = Field(None, ge=1, description="a whole number from 1, of minutes")
    runs_per_job: int | None = Field(None, ge=1, description="a whole number from 1")
    at_once: int | None = Field(None, ge=1, description="a whole number from 1, runs of a job")
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
        if not isinstance(python := other.get("python", "python"), str) or not python.strip():
            raise ValueError(f"python={python}: allowed: a command, such as 'apptainer exec gam.sif python'")
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
    """What submitit's executor gets, and `OF_JOBS`: `given`, before the user's file, before the project's table.

    What none of them says of `OF_THE_SHELL` is as sbatch's variables have it; its other variables count for nothing.

    Raises:
        ConfigError: an unknown key or an impossible value in one of the three; the message names the file.
    """
    default = {key: os.environ.get(f"SBATCH_{key.upper()}") or None for key in OF_THE_SHELL} | {"timeout": DAY_MINUTES}
    projects = _of_file(base_folder() / "pyproject.toml", "tool", "gamlib", "slurm")
    options = merged(default, projects, _of_file(DEFAULTS.expanduser(), "slurm"), given)
    other, minutes = options.pop("slurm"), options["timeout"]
    if options.get("at_once", 1) > (runs := options.get("runs_per_job", 1)):
        raise ConfigError(f"at_once={options['at_once']}: allowed: 1 to {runs}, the runs of a job; see runs_per_job")
    found = {OF_SUBMITIT.get(key, key): value for key, value in options.items()}
    if "array-parallelism" in other:
        found["slurm_array_parallelism"] = int(other.pop("array-parallelism"))
    found |= {f"slurm_{key}": other.pop(key) for key in ("setup", "python") if key in other}
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
