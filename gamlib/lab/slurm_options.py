"""What jobs are told: options of the command line, of the user's file, of the project's table, of the shell."""

import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gamlib.lab.config import ConfigError
from gamlib.lab.places import ROOT

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
OF_THE_SHELL = ("partition", "account", "qos", "constraint")  # that sbatch's variables may give, such as SBATCH_ACCOUNT
DAY_MINUTES = 24 * 60


def options(given: Mapping[str, Any], extra: Iterable[str] = ()) -> dict[str, Any]:
    """What submitit is told: `given` on the command line, before the user's file, before the project's table.

    What none of them says of `OF_THE_SHELL` is as sbatch's variables have it; its other variables count for nothing.

    Args:
        given: by the keys of `NAMES`; None is not given.
        extra: any other option of sbatch as "key=value", or "key" for one without a value.

    Raises:
        ConfigError: an unknown key or an impossible value in one of the three, or text without a key.
    """
    shell = {key: os.environ.get(f"SBATCH_{key.upper()}") for key in OF_THE_SHELL}
    merged: dict[str, Any] = {key: value for key, value in shell.items() if value}
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
