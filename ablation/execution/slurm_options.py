"""Options of SLURM's jobs: of the command line, of the user's file, of the project's table, of the shell."""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ablation.config import ConfigError, one_line
from ablation.paths import ROOT

DEFAULTS = Path("~/.config/gamlib.toml")  # and pyproject.toml, whose table it goes before
FORMER = ("account", "qos", "constraint", "array_parallelism", "setup")  # options once, and still read: keys of `slurm`
OF_THE_SHELL = ("partition", "account", "qos", "constraint")  # that sbatch's variables may give, such as SBATCH_ACCOUNT
DAY_MINUTES = 24 * 60
KEY_VALUE = "key=value, such as reservation=mine"


class SlurmOptions(BaseModel):
    """The options that everyone uses; all others stand in `slurm`, in sbatch's words but for two of submitit's:
    `array-parallelism`, jobs of an array at once, and `setup`, shell commands before each job.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    partition: str | None = Field(None, description="a name")
    gpus: int | None = Field(None, ge=0, description="a whole number from 0")
    cpus: int | None = Field(None, ge=1, description="a whole number from 1")
    mem: float | None = Field(None, gt=0, lt=math.inf, description="a number above 0, of GB")
    timeout: int | None = Field(None, ge=1, description="a whole number from 1, of minutes")
    slurm: dict[str, Any] = {}

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


def merged(*tables: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The options of several tables, of which the last goes before the others, as `SlurmOptions` has them.

    Raises:
        ConfigError: an unknown key or an impossible value; the message begins with `where`.
    """
    found: dict[str, Any] = {"slurm": {}}
    for table in tables:
        try:
            options = SlurmOptions(**table).model_dump(exclude_none=True)
        except ValidationError as error:
            raise ConfigError(where + one_line(error, SlurmOptions)) from None
        found |= options | {"slurm": found["slurm"] | options["slurm"]}
    return found


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit's executor gets: `given` on the command line, before the user's file, before the project's table.

    What none of them says of `OF_THE_SHELL` is as sbatch's variables have it; its other variables count for nothing.

    Raises:
        ConfigError: an unknown key or an impossible value in one of the three; the message names the file.
    """
    shell = {key: os.environ.get(f"SBATCH_{key.upper()}") or None for key in OF_THE_SHELL}
    files = {ROOT / "pyproject.toml": ("tool", "gamlib", "slurm"), DEFAULTS.expanduser(): ("slurm",)}
    tables = [merged(_table(path, *keys), where=f"{path}: {'.'.join(keys)}: ") for path, keys in files.items()]
    options = merged(shell, *tables, given)
    other = options["slurm"]
    at_once = other.pop("array-parallelism", None)
    minutes = options.get("timeout", DAY_MINUTES)
    found = {
        "slurm_partition": options.get("partition"),
        "gpus_per_node": options.get("gpus"),
        "cpus_per_task": options.get("cpus"),
        "mem_gb": options.get("mem"),
        "timeout_min": minutes,
        "slurm_array_parallelism": None if at_once is None else int(at_once),
        "slurm_setup": other.pop("setup", None),
        # A share of a short time, so that a run gets somewhere before it is told to stop; SLURM looks twice a minute.
        "slurm_signal_delay_s": int(min(120, 15 * minutes)),
        "slurm_additional_parameters": other if "no-requeue" in other else {"requeue": True, **other},
    }
    return {key: value for key, value in found.items() if value is not None}


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
