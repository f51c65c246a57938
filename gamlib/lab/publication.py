"""Runs as data to publish: small text files in `figures/data/` from which every table and figure is made again.

Of a study there are four tables with a row a run, an epoch of a run, an origin of a run (code and machine, as
`provenance.json` has it), and a test image: `<name>-runs.csv`, `-epochs.csv`, `-origins.csv`, `-predictions.csv`; and
`<name>.json`: the study, every run's configuration, and the hashes of the tables. Weights are not among them. Unpacked,
they are folders of runs like those that training leaves, so that all that reads runs reads them.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from gamlib.files import write_whole
from gamlib.lab import evidence
from gamlib.lab.by_image import write_predictions
from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.places import figures_root, runs_root
from gamlib.lab.runs import Result, Run, RunFailed
from gamlib.lab.slurm import statuses
from gamlib.lab.status import Status
from gamlib.lab.studies import Plan, Study

TABLES = ("runs", "epochs", "origins", "predictions")
TEXTS = ("arm", "commit", "source", "submitted_source", "error")  # columns that may look like numbers
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
    now = statuses(run for _, run in runs)
    for run, status in now.items():
        if status.state in UNDER_WAY:
            how = f"{plan.name} is published when all its runs have ended; `gamlib cancel` stops them"
            raise RunFailed(f"{run.folder.name} is {status.state}: {how}")
    done = [(arm, run) for arm, run in runs if now[run].state == "done"]
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
        "runs": pd.DataFrame([_key(arm, run) | _outcome(now[run], run.result()) for arm, run in runs]),
        "epochs": pd.DataFrame(epochs),
        "origins": pd.DataFrame(origins),
        "predictions": pd.DataFrame({"label": labels[0], **{name: of for name, (of, _) in predictions.items()}}),
    }
    texts = {_table_path(plan, table): frames[table].to_csv(index=False) for table in TABLES}
    definition = plan.model_dump(exclude={"cluster", "slurm"})
    definition["sha256"] = {table: _hash(texts[_table_path(plan, table)].encode()) for table in TABLES}
    # last: until it is there, the tables are those of nothing
    texts[_definition_path(plan)] = json.dumps(definition, indent=1, ensure_ascii=False) + "\n"
    for path, text in texts.items():
        write_whole(path, text)
    return sorted(texts)


def _key(arm: str, run: Run) -> dict[str, Any]:
    return {"arm": arm, "seed": run.config.seed}


def _outcome(status: Status, result: Result | None) -> dict[str, Any]:
    """What became of a run, and its result if it has one."""
    error = status.error.replace(str(runs_root()), "runs")
    told = {"state": status.state, "error": error, "attempts": status.attempts, "ended": status.heartbeat}
    return told | (result or Result.model_construct()).model_dump(exclude={"signature"}, warnings=False)


def _flat(origin: dict[str, Any]) -> dict[str, Any]:
    """An origin for a table: the versions of packages are one text."""
    public = {key: value for key, value in origin.items() if key not in PRIVATE}
    return public | {"versions": json.dumps(origin.get("versions", {}))}


def _table_path(plan: Plan, table: str) -> Path:
    return data_folder() / f"{plan.name}-{table}.csv"


def _definition_path(plan: Plan) -> Path:
    return data_folder() / f"{plan.name}.json"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(names: Collection[str] = ()) -> list[Plan]:
    """The plans of published studies, some by their names or those of their studies, by default all.

    Raises:
        ConfigError: nothing of that name is published, or a file is damaged.
    """
    paths = sorted(data_folder().glob("*.json"))
    if not paths:
        raise ConfigError(f"nothing is published in {data_folder()}")
    plans = [_plan(path) for path in paths]
    for name in names:
        if not any(name in (plan.name, plan.study.name) for plan in plans):
            there = ", ".join(dict.fromkeys(plan.study.name for plan in plans))
            raise ConfigError(f"study {name!r}: published in {data_folder()} is {there}")
    return [plan for plan in plans if not names or {plan.name, plan.study.name} & {*names}]


def _plan(path: Path) -> Plan:
    """The plan of a published study. What its configurations lack, other code did not know: it is at its default."""
    try:
        content = json.loads(path.read_text())
        known = {key: content[key] for key in ("dataset", "seeds", "overrides", "source")}
        arms = {arm: [RunConfig.recorded(run) for run in runs] for arm, runs in content["arms"].items()}
        plan = Plan.model_construct(**known, study=Study(**content["study"]), arms=arms)
        if plan.name != path.stem:
            raise ConfigError(f"it is {plan.name}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is not a published study: {' '.join(repr(error).split())}") from None
    return plan


def restore(plan: Plan) -> int:
    """Put the published runs of a study into the folder of runs; how many.

    What is done or under way there stays as it is, and so does what is begun there and not published as done. What is
    begun there and published as done is set aside, into a folder within its own.

    Raises:
        ConfigError: a published table is missing, damaged, or not of this study; nothing was restored.
    """
    tables = {table: read(plan, table) for table in TABLES}
    restored = 0
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            of_run = {name: _of(tables[name], arm, run.config.seed) for name in ("runs", "epochs", "origins")}
            if of_run["runs"][0]["state"] == "missing":
                continue
            run.folder.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout), FileLock(run.folder / ".lock", timeout=0):  # whose it is has it under way
                its_own = {f"{arm} seed {run.config.seed}": "predicted"}
                restored += _restore(run, of_run, tables["predictions"].rename(columns=its_own))
    if plan.name not in {saved.name for saved in Plan.saved()}:
        plan.save()
    return restored


def _restore(run: Run, of_run: dict[str, list[dict[str, Any]]], predictions: pd.DataFrame) -> bool:
    """Whether it was restored, given its rows of the tables."""
    (outcome,) = of_run["runs"]
    here, there = run.status().state, outcome["state"]
    if here in ("done", *UNDER_WAY) or (there != "done" and here != "missing"):
        return False
    run.set_aside()
    if there == "done":
        *earlier, last = [row | {"versions": json.loads(row["versions"])} for row in of_run["origins"]]
        result = Result.model_validate({"signature": run.signature, **outcome})
        run.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in of_run["epochs"]))
        run.write("provenance.json", json.dumps({**last, "earlier": earlier}, indent=2))
        write_predictions(run.folder, predictions["predicted"].to_numpy(), predictions["label"].to_numpy())
        run.write("result.json", result.model_dump_json(indent=2))
    told = {"heartbeat": outcome.get("ended", "")} | {key: outcome[key] for key in ("state", "attempts")}
    run.describe()
    run.write("status.json", Status(**told, error=outcome.get("error", "")).model_dump_json(indent=2))
    return True


def read(plan: Plan, table: str) -> pd.DataFrame:
    """One of `TABLES` as it was published.

    Raises:
        ConfigError: it is missing, or not the one that was published with the study.
    """
    path = _table_path(plan, table)
    try:
        data = path.read_bytes()
        hashes = json.loads(_definition_path(plan).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(repr(error).split())}") from None
    if _hash(data) != hashes.get(table):
        raise ConfigError(f"{path} is damaged, or of another publication than {_definition_path(plan).name}")
    return pd.read_csv(BytesIO(data), keep_default_na=False, na_values="", dtype=dict.fromkeys(TEXTS, str))


def _of(frame: pd.DataFrame, arm: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a run, without its arm, its seed and what is not known."""
    rows = frame[(frame["arm"] == arm) & (frame["seed"] == seed)].drop(columns=["arm", "seed"]).to_dict("records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]


@contextmanager
def unpacked(plans: Iterable[Plan]) -> Iterator[None]:
    """Have published runs, and no others, in the folder of runs while the block lasts.

    Two studies that share runs may have been published at different times: they are to be unpacked one by one.
    """
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
