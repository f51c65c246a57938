"""Runs as data to publish: the four frames of a study as small text files in `figures/data/`, and runs made of these.

`frames.load` reads them from there, so that every table and figure is made again from them. Weights are not among them.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from ablation.config import ConfigError
from ablation.paths import figures_root
from ablation.results.frames import FRAMES, Results, load, predicted_by, published_plans, sha256
from ablation.runs import Run, RunFailed
from ablation.status import Result, Status
from ablation.studies import Plan
from gamlib.files import write_whole

UNDER_WAY = ("queued", "running")


def data_folder() -> Path:
    """Where published data lie: `data/` among the figures."""
    return figures_root() / "data"


def publish(plan: Plan) -> list[Path]:
    """Write the results of a study: of the finished runs all, of the others how they ended; the paths.

    Raises:
        RunFailed: no run is done, some are queued or running, or files of a finished one cannot be used.
    """
    results = load(plan)
    for row in results.runs[results.runs["state"].isin(UNDER_WAY)].itertuples():
        config = next(config for config in plan.arms[str(row.arm)] if config.seed == row.seed)
        how = f"{plan.name} is published when all its runs have ended; `gamlib cancel` stops them"
        raise RunFailed(f"{Run(config).folder.name} is {row.state}: {how}")
    if results.done.empty:
        raise RunFailed(f"no run of {plan.name} is done: there is nothing to publish")
    if results.unusable:
        raise RunFailed(f"{results.unusable[0]}: {plan.name} is not published")
    frames = {name: getattr(results, name) for name in FRAMES}
    texts = {data_folder() / f"{plan.name}-{name}.csv": frame.to_csv(index=False) for name, frame in frames.items()}
    definition = plan.model_dump(exclude={"cluster", "slurm", "submitted"})
    definition["sha256"] = dict(zip(FRAMES, (sha256(text.encode()) for text in texts.values()), strict=True))
    # last: until it is there, the tables are those of nothing
    texts[data_folder() / f"{plan.name}.json"] = json.dumps(definition, indent=1, ensure_ascii=False) + "\n"
    for path, text in texts.items():
        write_whole(path, text)
    return sorted(texts)


def published(names: Collection[str] = (), folder: Path | str | None = None) -> list[Plan]:
    """The plans of published studies, some by their names or those of their studies, by default all.

    Raises:
        ConfigError: nothing of that name is published, or a file is damaged.
    """
    folder = data_folder() if folder is None else folder
    plans = published_plans(folder)
    for name in names:
        if not any(name in (plan.name, plan.study.name) for plan in plans):
            there = ", ".join(dict.fromkeys(plan.study.name for plan in plans))
            raise ConfigError(f"study {name!r}: published in {folder} is {there}")
    return [plan for plan in plans if not names or {plan.name, plan.study.name} & {*names}]


def published_plan(study: str, dataset: str | None, folder: Path | str) -> Plan:
    """The plan of one published study, on one of its data sets.

    Raises:
        ConfigError: it is not published on that data set, or on several and none is named.
    """
    plans = published([study], folder)
    found = [plan for plan in plans if dataset in (None, plan.dataset)]
    if len(found) != 1:
        raise ConfigError(f"dataset={dataset!r}: published on {', '.join(plan.dataset for plan in plans)}")
    return found[0]


def restore(plan: Plan) -> int:
    """Put the published runs of a study into the folder of runs; how many.

    What is done or under way there stays as it is, and so does what is begun there and not published as done. What is
    begun there and published as done is set aside, into a folder within its own.

    Raises:
        ConfigError: a published table is missing, damaged, or not of this study; nothing was restored.
    """
    results = load(plan, data_folder())
    restored = 0
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            (outcome,) = _rows(results.runs, arm, run.config.seed)
            if outcome["state"] == "missing":
                continue
            run.folder.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout), FileLock(run.folder / ".lock", timeout=0):  # whose it is has it under way
                restored += _restore(run, outcome, results, arm)
    if plan.name not in {saved.name for saved in Plan.saved()}:
        plan.save()
    return restored


def _restore(run: Run, outcome: dict[str, Any], results: Results, arm: str) -> bool:
    """Whether it was restored."""
    here, there = run.status().state, outcome["state"]
    if here in ("done", *UNDER_WAY) or (there != "done" and here != "missing"):
        return False
    run.archive()
    if there == "done":
        origins = _rows(results.origins, arm, run.config.seed)
        *earlier, last = [row | {"versions": json.loads(row["versions"])} for row in origins]
        predicted, label = (results.predictions[name] for name in (predicted_by(arm, run.config.seed), "label"))
        result = Result.model_validate({"signature": run.signature, **outcome})
        epochs = _rows(results.epochs, arm, run.config.seed)
        run.write("metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))
        run.write("provenance.json", json.dumps({**last, "earlier": earlier}, indent=2))
        run.write_predictions(predicted.to_numpy(), label.to_numpy())
        run.write("result.json", result.model_dump_json(indent=2))
    told = {"heartbeat": outcome["ended"]} | {key: outcome[key] for key in ("state", "attempts", "error")}
    run.write_config()
    run.write("status.json", Status(**told).model_dump_json(indent=2))
    return True


def _rows(frame: pd.DataFrame, arm: str, seed: int) -> list[dict[str, Any]]:
    """The rows of a run, without its arm, its seed and what is not known."""
    rows = frame[(frame["arm"] == arm) & (frame["seed"] == seed)].drop(columns=["arm", "seed"]).to_dict("records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]
