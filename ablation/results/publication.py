"""Runs as data to publish: the four frames of a study as small text files in `figures/data/`, and runs made of these.

Of a study these are `<name>-runs.csv`, `-epochs.csv`, `-origins.csv`, `-predictions.csv`, and `<name>.json` with the
study, every run's configuration, and the hashes of the four; and the files of mechanisms of one's own. `frames.load`
reads them from there, so that every table and figure is made again from them. Weights are not among them.
"""

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import Timeout

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.named_files import copied
from ablation.paths import figures_root
from ablation.results.frames import COLUMNS, KEY, LOSSES, Results, load, predicted_by
from ablation.runs import Run, RunFailed
from ablation.status import UNDER_WAY, Result, Status
from ablation.studies import Plan
from gamlib.files import write_whole
from gamlib.sources import file_hash, own_file, split_hash


def data_folder() -> Path:
    """Where published data lie: `data/` among the figures."""
    return figures_root() / "data"


def publish(plan: Plan) -> list[Path]:
    """Write the results of a study: of the finished runs all, of the others how they ended; the paths.

    Raises:
        RunFailed: no run is done, some are queued or running, or files of a finished one cannot be used.
    """
    results = load(plan)
    for arm, seed, state in results.runs[[*KEY, "state"]].itertuples(index=False):
        if state in UNDER_WAY:
            run = Run(plan.arms[arm][plan.seeds.index(seed)])
            how = f"{plan.name} is published when all its runs have ended; `gamlib cancel` stops them"
            raise RunFailed(f"{run.folder.name} is {state}: {how}")
    if results.done.empty:
        raise RunFailed(f"no run of {plan.name} is done: there is nothing to publish")
    for what, _, loss in (problem.rpartition(": ") for problem in results.problems):
        if loss in LOSSES.values():
            raise RunFailed(f"{what}: {plan.name} is not published")
    tables = {name: getattr(results, name).to_csv(index=False) for name in COLUMNS}
    definition = results.plan.model_dump(exclude={"cluster", "slurm", "submitted"})
    definition["sha256"] = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tables.items()}
    texts = {data_folder() / f"{plan.name}-{name}.csv": text for name, text in tables.items()}
    definition_text = json.dumps(definition, indent=1, ensure_ascii=False) + "\n"
    for run in (Run(config) for configs in plan.arms.values() for config in configs):
        if (file := own_file(run.config.attention)) is not None:
            for code in (run.folder / file.name, file):  # which may have changed, where no run has a copy
                if code.is_file() and file_hash("code", code) == split_hash(run.config.attention)[1]:
                    texts[code_file(run.config)] = code.read_text()
            definition_text = definition_text.replace(json.dumps(f"{file.parent}/")[1:-1], "")
    # last: until it is there, the tables are those of nothing
    texts[data_folder() / f"{plan.name}.json"] = definition_text
    for path, text in texts.items():
        write_whole(path, text)
    return sorted(texts)


def code_file(config: RunConfig, folder: Path | str | None = None) -> Path:
    """Where the file of a mechanism of one's own is published, one for each content; by default in `data_folder()`."""
    text, content_hash = split_hash(config.attention)
    folder = data_folder() if folder is None else Path(folder)
    return folder / f"{Path(text.rpartition(':')[0]).stem}-{content_hash}.py"


def published(names: Collection[str] = (), dataset: str | None = None, folder: Path | str | None = None) -> list[Plan]:
    """The plans of published studies. What a configuration lacks is at its default.

    Args:
        names: of plans or of their studies; by default all.
        dataset: on which they ran; by default any.
        folder: where they are published; by default `data_folder()`.

    Raises:
        ConfigError: nothing of that name or on that data set is published, or a file is damaged.
    """
    folder = data_folder() if folder is None else Path(folder)
    if not (plans := [_read(path) for path in sorted(folder.glob("*.json"))]):
        raise ConfigError(f"nothing is published in {folder}; what gamlib has published lies in its repository")
    for name in names:
        if not any(name in (plan.name, plan.study.name) for plan in plans):
            there = ", ".join(dict.fromkeys(plan.study.name for plan in plans))
            raise ConfigError(f"study {name!r}: published in {folder} is {there}")
    plans = [plan for plan in plans if not names or {plan.name, plan.study.name} & {*names}]
    if not (found := [plan for plan in plans if dataset in (None, plan.dataset)]):
        there = ", ".join(dict.fromkeys(plan.dataset for plan in plans))
        raise ConfigError(f"dataset={dataset!r}: published on {there}")
    return found


def published_plan(study: str, dataset: str | None, folder: Path | str) -> Plan:
    """The plan of one published study, on one of its data sets.

    Raises:
        ConfigError: it is not published on that data set, or on several and none is named.
    """
    first, *others = published([study], dataset, folder)
    if others:
        raise ConfigError(f"dataset=None: published on {', '.join(plan.dataset for plan in (first, *others))}")
    return first


def _read(path: Path) -> Plan:
    try:
        plan = Plan.model_validate(json.loads(path.read_text()))
        if plan.name != path.stem:
            raise ConfigError(f"it is {plan.name}")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a published study: {' '.join(repr(error).split())}") from None
    return plan


def on_all_datasets(results: Results, folder: Path | str | None = None) -> list[Results]:
    """The results of a study on all data sets on which it was submitted, or published, by the data set's name."""
    plans = Plan.saved() if folder is None else published(folder=folder)
    others = {plan.dataset: plan for plan in plans if plan.study == results.plan.study}
    there = {dataset: load(plan, folder) for dataset, plan in others.items() if dataset != results.plan.dataset}
    return [each for _, each in sorted((there | {results.plan.dataset: results}).items())]


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
            (outcome,) = _rows("runs", arm, run, results)
            if outcome["state"] != "missing":
                run.folder.mkdir(parents=True, exist_ok=True)
                with suppress(Timeout), run.lock(timeout=0):  # whose it is has it under way
                    here = run.status().state
                    if here == "missing" or (here not in ("done", *UNDER_WAY) and outcome["state"] == "done"):
                        _restore(run, arm, outcome, results)
                        restored += 1
    if plan.name not in {saved.name for saved in Plan.saved()}:
        plan.save()
    return restored


def _restore(run: Run, arm: str, outcome: dict[str, Any], results: Results) -> None:
    run.archive()
    if outcome["state"] == "done":
        origins = [row | {"versions": json.loads(row["versions"])} for row in _rows("origins", arm, run, results)]
        epochs = [json.dumps(epoch) + "\n" for epoch in _rows("epochs", arm, run, results)]
        result = Result.model_validate({"signature": run.signature, **outcome})
        predicted, label = results.predictions[predicted_by(arm, run.config.seed)], results.predictions["label"]
        run.write("metrics.jsonl", "".join(epochs))
        run.write("provenance.json", json.dumps({**origins[-1], "earlier": origins[:-1]}, indent=2))
        run.write_predictions(predicted.to_numpy(), label.to_numpy())
        run.write("result.json", result.model_dump_json(indent=2))
    copied(run.config.attention, run.folder, code_file(run.config))
    run.write_config()
    status = Status.model_validate({**outcome, "heartbeat": outcome["ended"]})
    run.write("status.json", status.model_dump_json(indent=2))


def _rows(name: str, arm: str, run: Run, results: Results) -> list[dict[str, Any]]:
    """The rows of a run in a frame, without what is not known."""
    rows = results.of_run(name, arm, run.config.seed).to_dict("records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]
