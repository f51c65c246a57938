"""The results of a study as one object of four frames, which tables, figures and notes take, wherever they were read.

Published, the same frames are text files, see `publication`.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablation.errors import ConfigError
from ablation.execution.slurm import statuses
from ablation.paths import runs_root
from ablation.runs import PREDICTIONS, Run, all_runs, unique
from ablation.status import Result
from ablation.studies import Plan

KEY = ["arm", "seed"]
OUTCOME = [name for name in Result.model_fields if name != "signature"]
SPEEDS = ("images_per_second", "peak_memory_mib")  # of training, as the epochs have them
COLUMNS = {
    "runs": [*KEY, "state", "error", "attempts", "ended", *OUTCOME],
    "epochs": [*KEY, "epoch", "top1_error", *SPEEDS],
    "origins": [*KEY, "commit", "clean", "source", "device"],
    "predictions": ["label"],
}
TEXTS = dict.fromkeys(("arm", "commit", "source", "submitted_source", "error"), str)  # may look like numbers
PRIVATE = ("host", "interpreter", "earlier")  # of a machine: nobody's business; and what has rows of its own
LOSSES = {  # of a file that a finished run should have, by the frame that it is for
    "epochs": "is missing in curves and speeds",
    "origins": "its commit is unknown",
    "predictions": "is missing in the comparison by image",
}


class _DamagedError(ValueError):
    """A file of a run is whole and cannot be used; the message says what is wrong with it."""


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
        problems: a line for each file or folder that could not be used: damaged, missing, or not of a run; behind the
            colon what is lost by it.
    """

    plan: Plan
    runs: pd.DataFrame
    epochs: pd.DataFrame
    origins: pd.DataFrame
    predictions: pd.DataFrame
    problems: tuple[str, ...] = ()

    @property
    def done(self) -> pd.DataFrame:
        """The rows of the finished runs."""
        return self.runs[self.runs["state"] == "done"]

    def of_run(self, name: str, arm: str, seed: int) -> pd.DataFrame:
        """The rows of a run in the frame `name`, without its arm and seed."""
        frame: pd.DataFrame = getattr(self, name)
        return frame[(frame["arm"] == arm) & (frame["seed"] == seed)].drop(columns=KEY)

    def labelled(self) -> "Results":
        """The same results, each arm called by its label: what figures and tables show."""
        plan = self.plan.labelled()
        names = dict(zip(self.plan.study.arms, plan.study.arms, strict=True))
        if all(name == label for name, label in names.items()):
            return self
        runs, epochs, origins = (
            frame.assign(arm=frame["arm"].map(names)) for frame in (self.runs, self.epochs, self.origins)
        )
        of_runs = product(self.plan.arms, plan.seeds)
        columns = {predicted_by(arm, seed): predicted_by(names[arm], seed) for arm, seed in of_runs}
        return Results(plan, runs, epochs, origins, self.predictions.rename(columns=columns), self.problems)


def predicted_by(arm: str, seed: int) -> str:
    """The column of a run among the predictions."""
    return f"{arm} seed {seed}"


def load(plan: Plan, folder: Path | str | None = None) -> Results:
    """The results of a plan, as its runs stand now or as they were published.

    Args:
        plan: for published results one of `publication.published`.
        folder: of published results; None is the folder of runs.

    Raises:
        ConfigError: a published file is missing, damaged, or not of this study.
    """
    if folder is None:
        return _of_runs(plan)
    frames, definition = {}, Path(folder) / f"{plan.name}.json"
    for name in COLUMNS:
        path = Path(folder) / f"{plan.name}-{name}.csv"
        try:
            data, hashes = path.read_bytes(), json.loads(definition.read_text())["sha256"]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path} cannot be read: {' '.join(repr(error).split())}") from None
        if hashlib.sha256(data).hexdigest() != hashes.get(name):
            raise ConfigError(f"{path} is damaged, or of another publication than {definition.name}")
        frames[name] = _frame(name, pd.read_csv(BytesIO(data), keep_default_na=False, na_values=[""], dtype=TEXTS))
    return Results(plan, **frames, problems=())


def _of_runs(plan: Plan) -> Results:
    plan = plan.declaring(next((saved for saved in Plan.saved() if saved.name == plan.name), plan))
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "epochs": [], "origins": []}
    predictions: dict[str, Any] = {}
    problems: list[str] = []
    runs = [(arm, Run(config)) for arm, configs in plan.arms.items() for config in configs]
    now = statuses(run for _, run in runs)
    for arm, run in runs:
        key, result, status = {"arm": arm, "seed": run.config.seed}, run.result(), now[run]
        outcome = {"state": "done" if result else status.state, "attempts": status.attempts, "ended": status.heartbeat}
        outcome["error"] = status.error.replace(str(runs_root()), "runs")
        rows["runs"].append(key | outcome | (result.model_dump() if result else {}))
        if result is None:
            if (path := run.folder / "result.json").exists():
                problems.append(f"{_short(path)} is damaged or of another run: the run does not count")
            continue
        with _using(run.folder / "metrics.jsonl", LOSSES["epochs"], problems):
            rows["epochs"] += [key | epoch for epoch in _epochs(run, result)]
        with _using(run.folder / "provenance.json", LOSSES["origins"], problems):
            rows["origins"] += [key | origin for origin in _origins(run)]
        with _using(run.folder / PREDICTIONS, LOSSES["predictions"], problems):
            predicted, label = read_predictions(run)
            if not np.array_equal(predictions.setdefault("label", label), label):
                raise _DamagedError("is of other test images")
            predictions[predicted_by(arm, run.config.seed)] = predicted
    frames = {name: _frame(name, pd.DataFrame(some)) for name, some in (rows | {"predictions": predictions}).items()}
    return Results(plan, **frames, problems=tuple(dict.fromkeys([*problems, *_foreign(plan)])))


def _frame(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A frame with the columns that it always has, and, but for runs, more behind them if there are any."""
    there = COLUMNS[name] if name == "runs" else frame.columns
    frame = frame.reindex(columns=list(dict.fromkeys([*there, *COLUMNS[name]])))
    if name == "runs":
        numbers = [column for column in OUTCOME if column != "source"]
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
        frame[["error", "ended"]] = frame[["error", "ended"]].fillna("")
    return frame.astype({"arm": str, "seed": int} if "seed" in frame else {})


@contextmanager
def _using(path: Path, loss: str, problems: list[str]) -> Iterator[None]:
    """Go on without a file that cannot be used, and say what is wrong with it and what is lost by it."""
    try:
        yield
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib and numpy do
        broken = f"{'cannot be read' if isinstance(error, OSError) else 'is damaged'} ({type(error).__name__})"
        what = {FileNotFoundError: "is missing", _DamagedError: str(error)}.get(type(error), broken)
        problems.append(f"{_short(path)} {what}: {loss}")


def _epochs(run: Run, result: Result) -> list[dict[str, Any]]:
    """The epochs of a finished run as `metrics.jsonl` has them."""
    rows = [dict(json.loads(line)) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    if [row.get("epoch") for row in rows] != list(range(1, result.epochs + 1)):
        raise _DamagedError(f"has {len(rows)} epochs, not those 1 to {result.epochs} of its run")
    return rows


def _origins(run: Run) -> list[dict[str, Any]]:
    """What `provenance.json` says of each code and machine, the last one last; versions of packages are one text."""
    last = json.loads((run.folder / "provenance.json").read_text())
    made = [*last.get("earlier", []), last]
    public = [{key: value for key, value in origin.items() if key not in PRIVATE} for origin in made]
    return [origin | {"versions": json.dumps(origin.get("versions", {}))} for origin in public]


def read_predictions(run: Run) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The classes that the run predicted for the test images, and the images' own, both int [images].

    Raises: what numpy does where the file is missing or damaged.
    """
    with np.load(run.folder / PREDICTIONS) as arrays:
        predicted, label = arrays["predicted"], arrays["label"]
    if predicted.shape != label.shape:
        raise ValueError(f"predicted has shape {predicted.shape}, label {label.shape}: allowed: the same")
    return predicted, label


def _foreign(plan: Plan) -> Iterator[str]:
    """A line for every folder of the study's data set that is not what its `config.json` says, or has none."""
    beside = runs_root() / plan.configs[0].dataset_name
    bare = [path for path in beside.glob("[!.]*/") if not (path / "config.json").is_file()]
    own = {run.folder for run in unique(plan.configs)}
    for path in sorted(bare + all_runs(beside.name)[1]):
        if path not in own:
            yield f"{_short(path)} is no run: left alone"
        elif (path / "result.json").exists():
            yield f"{_short(path)} has no whole config.json: its result is found all the same"


def _short(path: Path) -> str:
    return str(path.relative_to(runs_root()))
