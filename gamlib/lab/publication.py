"""Runs as data to publish: small text files in `figures/data/` from which every table and figure is made again.

Of a study there are `<name>.json` (the study and every run's configuration) and four tables with a row a run, an epoch
of a run, an origin of a run (code and machine, as `provenance.json` has it), and a test image:
`<name>-runs.csv`, `-epochs.csv`, `-origins.csv` and `-predictions.csv`. Weights are not among them. Unpacked, they are
folders of runs like those that training leaves, so that all that reads runs reads them.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from gamlib.files import write_whole
from gamlib.lab import evidence
from gamlib.lab.by_image import write_predictions
from gamlib.lab.config import ConfigError
from gamlib.lab.places import figures_root
from gamlib.lab.runs import Result, Run, RunFailed, Status
from gamlib.lab.studies import Plan

TABLES = ("runs", "epochs", "origins", "predictions")
UNDER_WAY = ("queued", "running")
PRIVATE = ("host", "interpreter")  # of a machine: nobody's business


def data_folder() -> Path:
    """Where published data lie: `data/` among the figures."""
    return figures_root() / "data"


def publish(plan: Plan) -> list[Path]:
    """Write the data of a study's runs: of the finished ones all, of the others how they ended; the paths.

    Raises:
        RunFailed: no run is done, some are queued or running, or files of a finished one cannot be used.
    """
    runs = [(arm, Run(config)) for arm, configs in plan.arms.items() for config in configs]
    if under_way := [run for _, run in runs if run.status().state in UNDER_WAY]:
        name = f"{under_way[0].folder.name} is {under_way[0].status().state}"
        raise RunFailed(f"{name}: {plan.name} is published when all its runs have ended; `gamlib cancel` stops them")
    done = [(arm, run) for arm, run in runs if run.result() is not None]
    if not done:
        raise RunFailed(f"no run of {plan.name} is done: there is nothing to publish")
    try:
        epochs = [_key(arm, run) | epoch for arm, run in done for epoch in evidence.epochs(run)]
        origins = [_key(arm, run) | _flat(origin) for arm, run in done for origin in evidence.origins(run)]
        predictions = {f"{arm} seed {run.config.seed}": evidence.read_predictions(run) for arm, run in done}
    except evidence.DamagedError as error:
        raise RunFailed(f"{error}: {plan.name} is not published") from None
    labels = [label for _, label in predictions.values()]
    if any(list(label) != list(labels[0]) for label in labels):
        raise RunFailed(f"runs of {plan.name} were tested on different images: it is not published")
    frames = {
        "runs": pd.DataFrame([_key(arm, run) | _outcome(run) for arm, run in runs]),
        "epochs": pd.DataFrame(epochs),
        "origins": pd.DataFrame(origins),
        "predictions": pd.DataFrame({"label": labels[0], **{name: of for name, (of, _) in predictions.items()}}),
    }
    texts = {f"{plan.name}-{table}.csv": frames[table].to_csv(index=False) for table in TABLES}
    definition = plan.model_dump(exclude={"cluster", "slurm"})
    texts[f"{plan.name}.json"] = json.dumps(definition, indent=1, ensure_ascii=False) + "\n"
    data_folder().mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(data_folder() / name, text)
    return [data_folder() / name for name in sorted(texts)]


def _key(arm: str, run: Run) -> dict[str, Any]:
    return {"arm": arm, "seed": run.config.seed}


def _outcome(run: Run) -> dict[str, Any]:
    """What became of a run, and its result if it has one."""
    status, result = run.status(), run.result()
    told = {"state": status.state, "error": status.error, "attempts": status.attempts, "ended": status.heartbeat}
    return told | (result or Result.model_construct()).model_dump(exclude={"signature"}, warnings=False)


def _flat(origin: dict[str, Any]) -> dict[str, Any]:
    """An origin for a table: the versions of packages are one text."""
    public = {key: value for key, value in origin.items() if key not in PRIVATE}
    return public | {"versions": json.dumps(origin.get("versions", {}))}


def published(names: Iterable[str] = ()) -> list[Plan]:
    """The plans of published studies, some by their names or those of their studies, by default all.

    Raises:
        ConfigError: nothing of that name is published, or a file is damaged.
    """
    plans = [_plan(path) for path in sorted(data_folder().glob("*.json"))]
    for name in (names := list(names)):
        if not any(name in (plan.name, plan.study.name) for plan in plans):
            there = ", ".join(plan.study.name for plan in plans) or "nothing"
            raise ConfigError(f"study {name!r}: published in {data_folder()} is {there}")
    if not plans:
        raise ConfigError(f"nothing is published in {data_folder()}")
    return [plan for plan in plans if not names or {plan.name, plan.study.name} & set(names)]


def _plan(path: Path) -> Plan:
    plan = Plan.read(path)
    if plan is None or plan.name != path.stem:
        raise ConfigError(f"{path} is not a published study: damaged, or of other code")
    return plan


def restore(plan: Plan) -> int:
    """Put the published runs of a study into the folder of runs; how many.

    What is done or under way there stays as it is, and so does what is begun there and not published as done.

    Raises:
        ConfigError: a published table is missing or damaged; what was restored before it was met stays.
    """
    tables = {table: _table(plan, table) for table in TABLES}
    restored = 0
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            try:
                restored += _restore(arm, run, tables)
            except (KeyError, ValueError) as error:
                where = f"{data_folder() / plan.name}-*.csv: {arm}, seed {run.config.seed}"
                raise ConfigError(f"{where} is damaged or not whole: {' '.join(repr(error).split())}") from None
    if plan.name not in {saved.name for saved in Plan.saved()}:
        plan.save()
    return restored


def _restore(arm: str, run: Run, tables: dict[str, pd.DataFrame]) -> bool:
    """Whether there was something to restore."""
    of_run = {name: _of(tables[name], arm, run.config.seed) for name in ("runs", "epochs", "origins")}
    (outcome,) = of_run["runs"]
    here, there = run.status().state, outcome["state"]
    if there == "missing" or here in ("done", *UNDER_WAY) or (there != "done" and here != "missing"):
        return False
    run.write("config.json", json.dumps({**run.config.model_dump(), "signature": run.signature}, indent=2))
    told = {"heartbeat": outcome.get("ended", "")} | {key: outcome[key] for key in ("state", "attempts")}
    run.write("status.json", Status(**told, error=outcome.get("error", "")).model_dump_json(indent=2))
    if there == "done":
        predicted, label = (tables["predictions"][name] for name in (f"{arm} seed {run.config.seed}", "label"))
        *earlier, last = [row | {"versions": json.loads(row["versions"])} for row in of_run["origins"]]
        result = Result.model_validate({"signature": run.signature, **outcome})
        run.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in of_run["epochs"]))
        run.write("provenance.json", json.dumps({**last, "earlier": earlier}, indent=2))
        write_predictions(run.folder, predicted.to_numpy(), label.to_numpy())
        run.write("result.json", result.model_dump_json(indent=2))
    return True


def _table(plan: Plan, table: str) -> pd.DataFrame:
    path = data_folder() / f"{plan.name}-{table}.csv"
    try:
        texts = dict.fromkeys(("arm", "commit", "source", "submitted_source", "error"), str)
        found = pd.read_csv(path, keep_default_na=False, na_values="", dtype=texts)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if missing := {"label"} - {*found} if table == "predictions" else {"arm", "seed"} - {*found}:
        raise ConfigError(f"{path} is damaged: it has no column {', '.join(sorted(missing))}")
    return found


def _of(frame: pd.DataFrame, arm: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a run, without its arm, its seed and what is not known."""
    rows = frame[(frame["arm"] == arm) & (frame["seed"] == seed)].drop(columns=["arm", "seed"]).to_dict("records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]


@contextmanager
def unpacked(plans: Iterable[Plan]) -> Iterator[None]:
    """Have published runs, and no others, in the folder of runs while the block lasts."""
    before = os.environ.get("GAM_RUNS")
    with TemporaryDirectory(prefix="gam-published-") as folder:
        os.environ["GAM_RUNS"] = folder
        try:
            for plan in plans:
                restore(plan)
            yield
        finally:
            os.environ.pop("GAM_RUNS")
            if before is not None:
                os.environ["GAM_RUNS"] = before
