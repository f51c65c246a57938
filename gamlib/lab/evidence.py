"""What lies in the folders of a study's runs: what can be used is read, what cannot is named, and the rest counts."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gamlib.lab.places import runs_root
from gamlib.lab.runs import Run, all_runs, unique
from gamlib.lab.studies import Plan

PREDICTIONS = "predictions.npz"
FILES = ("result.json", "metrics.jsonl", "provenance.json", PREDICTIONS)  # what a report reads of a run


class DamagedError(ValueError):
    """A file of a run that cannot be used; the message is one line: which, and what is wrong with it."""


def epochs(run: Run) -> list[dict[str, Any]]:
    """The epochs of a finished run as `metrics.jsonl` has them; none of a run that is not done.

    Raises:
        DamagedError: the file is missing, has half a line, or has other epochs than the run.
    """
    result = run.result()
    if result is None:
        return []
    path = run.folder / "metrics.jsonl"
    rows = [_parsed(path, line) for line in _text(path).splitlines()]
    if [row.get("epoch") for row in rows] != list(range(1, result.epochs + 1)):
        raise DamagedError(f"{_short(path)} has {len(rows)} epochs, not those 1 to {result.epochs} of its run")
    return rows


def origins(run: Run) -> list[dict[str, Any]]:
    """What `provenance.json` says of each code and machine that a run was computed with, the last one last.

    Raises:
        DamagedError: the file is missing or not whole.
    """
    path = run.folder / "provenance.json"
    last = _parsed(path, _text(path))
    return [*last.pop("earlier", []), last]


def read_predictions(run: Run) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The classes that the run predicted for the test images, and the images' own, both int [images].

    Raises:
        DamagedError: the file is missing or not whole.
    """
    path = run.folder / PREDICTIONS
    try:
        with np.load(path) as arrays:
            predicted, label = arrays["predicted"], arrays["label"]
            if predicted.shape != label.shape:
                raise ValueError
            return predicted, label
    except FileNotFoundError:
        raise DamagedError(f"{_short(path)} is missing") from None
    except Exception:  # a damaged archive raises whatever zipfile, zlib and numpy do
        raise DamagedError(f"{_short(path)} is damaged") from None


READERS: tuple[tuple[Callable[[Run], object], str], ...] = (  # and what a report lacks without
    (epochs, "is missing in curves and speeds"),
    (origins, "its commit is unknown"),
    (read_predictions, "is missing in the comparison by image"),
)


def problems(plan: Plan) -> list[str]:
    """A line for everything in the folders of a study that a report cannot use: damaged, missing, or not of a run."""
    found = []
    for run in unique(plan.configs):
        if run.result() is None:
            if (path := run.folder / "result.json").exists():
                found.append(f"{_short(path)} is damaged or of another run: the run does not count")
            continue
        for read, loss in READERS:
            try:
                read(run)
            except DamagedError as error:
                found.append(f"{error}: {loss}")
    own = {run.folder for run in unique(plan.configs)}
    for path in _foreign(plan):
        if path not in own:
            found.append(f"{_short(path)} is no run: left alone")
        elif (path / "result.json").exists():
            found.append(f"{_short(path)} has no whole config.json: its result is found all the same")
    return found


def trace(plan: Plan) -> list[str]:
    """Everything that a report depends on in the folders of a study, as hashes and names."""
    paths = [run.folder / name for run in unique(plan.configs) for name in FILES]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths]
    return hashes + list(map(str, _foreign(plan)))


def _foreign(plan: Plan) -> list[Path]:
    """Folders of the study's data set that are not what their `config.json` says, or have none."""
    beside = runs_root() / plan.configs[0].dataset_name
    bare = [path for path in beside.glob("[!.]*/") if not (path / "config.json").is_file()]
    return sorted(bare + all_runs(beside.name)[1])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise DamagedError(f"{_short(path)} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{_short(path)} cannot be read ({type(error).__name__})") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DamagedError(f"{_short(path)} is damaged")
    return value


def _short(path: Path) -> str:
    return str(path.relative_to(runs_root()))
