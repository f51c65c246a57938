"""The results of a study as one object of four frames, which tables, figures and notes take, wherever they were read.

Published, the same frames are text files: `<name>-runs.csv`, `-epochs.csv`, `-origins.csv`, `-predictions.csv`, and in
`<name>.json` the study, every run's configuration, and the hashes of the four.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablation.config import ConfigError, RunConfig
from ablation.execution.slurm import statuses
from ablation.paths import runs_root
from ablation.runs import PREDICTIONS, Run, all_runs, unique
from ablation.status import Result
from ablation.studies import Plan, Study

FRAMES = ("runs", "epochs", "origins", "predictions")
KEY = ["arm", "seed"]
OUTCOME = [name for name in Result.model_fields if name != "signature"]
SPEEDS = ("images_per_second", "peak_memory_mib")  # of training, as the epochs have them
COLUMNS = {
    "runs": [*KEY, "state", "error", "attempts", "ended", *OUTCOME],
    "epochs": [*KEY, "epoch", "top1_error", *SPEEDS],
    "origins": [*KEY, "commit", "clean", "source", "device"],
    "predictions": ["label"],
}
TEXTS = ("arm", "commit", "source", "submitted_source", "error")  # columns that may look like numbers
PRIVATE = ("host", "interpreter", "earlier")  # of a machine: nobody's business; and what has rows of its own


class DamagedError(ValueError):
    """A file of a run that cannot be used; the message is one line: which, and what is wrong with it."""


@dataclass(frozen=True)
class Results:
    """What is known of the runs of a plan.

    Attributes:
        runs: a row a run: arm, seed, state, error, attempts, when it ended, and the fields of `Result`, NaN where it is
            not done. Errors in percent, losses in nats.
        epochs: a row an epoch of a finished run: arm, seed, and the columns of `metrics.jsonl`.
        origins: a row for each code and machine that a finished run was computed with: arm, seed, and what
            `provenance.json` says; the last one last.
        predictions: a row a test image: its class (`label`), and the class that each finished run gave it, a column a
            run by the name that `predicted_by` gives.
        problems: a line for each file or folder that could not be used: damaged, missing, or not of a run.
        unusable: those of them that are files of finished runs, without what is lost by each.
    """

    plan: Plan
    runs: pd.DataFrame
    epochs: pd.DataFrame
    origins: pd.DataFrame
    predictions: pd.DataFrame
    problems: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    @property
    def done(self) -> pd.DataFrame:
        """The rows of the finished runs."""
        return self.runs[self.runs["state"] == "done"]


def predicted_by(arm: str, seed: int) -> str:
    """The column of a run among the predictions."""
    return f"{arm} seed {seed}"


def load(plan: Plan, folder: Path | str | None = None) -> Results:
    """The results of a plan, as its runs stand now or as they were published.

    Args:
        plan: for published results one of `published_plans`.
        folder: of published results; None is the folder of runs.

    Raises:
        ConfigError: a published file is missing, damaged, or not of this study.
    """
    if folder is None:
        return _of_runs(plan)
    runs, epochs, origins, predictions = (_published(plan, name, Path(folder)) for name in FRAMES)
    return Results(plan, runs, epochs, origins, predictions)


def _of_runs(plan: Plan) -> Results:
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "epochs": [], "origins": []}
    predictions: dict[str, Any] = {}
    losses = dict[str, str]()  # by what is unusable: a run that two arms share is named once
    no_results = list[str]()
    runs = [(arm, Run(config)) for arm, configs in plan.arms.items() for config in configs]
    now = statuses(run for _, run in runs)
    for arm, run in runs:
        key, result, status = {"arm": arm, "seed": run.config.seed}, run.result(), now[run]
        outcome: dict[str, Any] = {"state": "done" if result else status.state}
        outcome["error"] = status.error.replace(str(runs_root()), "runs")
        outcome |= {"attempts": status.attempts, "ended": status.heartbeat}
        rows["runs"].append(key | outcome | (result.model_dump(exclude={"signature"}) if result else {}))
        if result is None:
            if (path := run.folder / "result.json").exists():
                no_results.append(f"{_short(path)} is damaged or of another run: the run does not count")
            continue
        try:
            rows["epochs"] += [key | epoch for epoch in _epochs(run, result)]
        except DamagedError as error:
            losses[str(error)] = "is missing in curves and speeds"
        try:
            rows["origins"] += [key | origin for origin in _origins(run)]
        except DamagedError as error:
            losses[str(error)] = "its commit is unknown"
        try:
            predicted, label = read_predictions(run)
            if not np.array_equal(predictions.setdefault("label", label), label):
                raise DamagedError(f"{_short(run.folder / PREDICTIONS)} is of other test images")
            predictions[predicted_by(arm, run.config.seed)] = predicted
        except DamagedError as error:
            losses[str(error)] = "is missing in the comparison by image"
    frames = {name: _frame(name, pd.DataFrame(some)) for name, some in rows.items()}
    frames["predictions"] = _frame("predictions", pd.DataFrame(predictions))
    problems = (*dict.fromkeys(no_results), *(f"{what}: {loss}" for what, loss in losses.items()), *_foreign(plan))
    return Results(plan, **frames, problems=problems, unusable=tuple(losses))


def on_all_datasets(results: Results, folder: Path | str | None = None) -> list[Results]:
    """The results of a study on all data sets on which it was submitted, or published, by the data set's name."""
    plans = Plan.saved() if folder is None else published_plans(folder)
    others = {plan.dataset: plan for plan in plans if plan.study == results.plan.study}
    there = {dataset: load(plan, folder) for dataset, plan in others.items() if dataset != results.plan.dataset}
    return [each for _, each in sorted((there | {results.plan.dataset: results}).items())]


def _frame(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the columns that it always has, and more behind them if there are any."""
    missing = [column for column in COLUMNS[name] if column not in frame]
    frame = frame.reindex(columns=[*frame.columns, *missing])
    if name == "runs":
        numbers = [column for column in OUTCOME if column != "source"]
        frame = frame.reindex(columns=COLUMNS["runs"])
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
        frame["error"] = frame["error"].fillna("")
        frame["ended"] = frame["ended"].fillna("")
    return frame


def _epochs(run: Run, result: Result) -> list[dict[str, Any]]:
    """The epochs of a finished run as `metrics.jsonl` has them.

    Raises:
        DamagedError: the file is missing, has half a line, or has other epochs than the run.
    """
    path = run.folder / "metrics.jsonl"
    rows = [_parsed(path, line) for line in _text(path).splitlines()]
    if [row.get("epoch") for row in rows] != list(range(1, result.epochs + 1)):
        raise DamagedError(f"{_short(path)} has {len(rows)} epochs, not those 1 to {result.epochs} of its run")
    return rows


def _origins(run: Run) -> list[dict[str, Any]]:
    """What `provenance.json` says of each code and machine, the last one last; versions of packages are one text.

    Raises:
        DamagedError: the file is missing or not whole.
    """
    path = run.folder / "provenance.json"
    last = _parsed(path, _text(path))
    made = [*last.get("earlier", []), last]
    public = [{key: value for key, value in origin.items() if key not in PRIVATE} for origin in made]
    return [origin | {"versions": json.dumps(origin.get("versions", {}))} for origin in public]


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


def _foreign(plan: Plan) -> Iterable[str]:
    """A line for every folder of the study's data set that is not what its `config.json` says, or has none."""
    beside = runs_root() / plan.configs[0].dataset_name
    bare = [path for path in beside.glob("[!.]*/") if not (path / "config.json").is_file()]
    own = {run.folder for run in unique(plan.configs)}
    for path in sorted(bare + all_runs(beside.name)[1]):
        if path not in own:
            yield f"{_short(path)} is no run: left alone"
        elif (path / "result.json").exists():
            yield f"{_short(path)} has no whole config.json: its result is found all the same"


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


def published_plans(folder: Path | str) -> list[Plan]:
    """The plans of the studies that are published in a folder. What a configuration lacks is at its default.

    Raises:
        ConfigError: nothing is published there, or a file is damaged.
    """
    if not (paths := sorted(Path(folder).glob("*.json"))):
        raise ConfigError(f"nothing is published in {folder}")
    plans = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            known = {key: content[key] for key in ("dataset", "seeds", "overrides", "source")}
            arms = {arm: [RunConfig.recorded(run) for run in runs] for arm, runs in content["arms"].items()}
            plans.append(Plan.model_construct(**known, study=Study(**content["study"]), arms=arms))
            if plans[-1].name != path.stem:
                raise ConfigError(f"it is {plans[-1].name}")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is not a published study: {' '.join(repr(error).split())}") from None
    return plans


def sha256(data: bytes) -> str:
    """As `<name>.json` has it of the four tables."""
    return hashlib.sha256(data).hexdigest()


def _published(plan: Plan, name: str, folder: Path) -> pd.DataFrame:
    """One of `FRAMES` as it was published; see `load` for errors."""
    path, definition = folder / f"{plan.name}-{name}.csv", folder / f"{plan.name}.json"
    try:
        data = path.read_bytes()
        hashes = json.loads(definition.read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(repr(error).split())}") from None
    if sha256(data) != hashes.get(name):
        raise ConfigError(f"{path} is damaged, or of another publication than {definition.name}")
    texts = dict.fromkeys(TEXTS, str)
    found = pd.read_csv(BytesIO(data), keep_default_na=False, na_values=[""], dtype=texts)
    return _frame(name, found)
