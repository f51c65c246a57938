"""Published runs one by one, and whether their files agree with one another: nothing is trained for it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.results import publication
from ablation.results.frames import Results, load, predicted_by
from ablation.runs import first_line
from ablation.studies import Plan
from gamlib.data.datasets import DatasetError, describe
from gamlib.sources import own_file, split_hash

ERRORS = ("top1_error", "top5_error", "test_loss", "train_loss", "train_top1_error")  # of a run's last epoch
NEEDED = (*ERRORS, "seconds", "epochs", "parameters")


@dataclass(frozen=True)
class Record:
    """A finished run as it was published: its place in a study, its configuration, the study's frames, their folder."""

    plan: Plan
    arm: str
    config: RunConfig
    results: Results
    folder: Path

    def __str__(self) -> str:
        return f"{self.plan.name}, {self.arm}, seed {self.config.seed}"

    @property
    def row(self) -> dict[str, Any]:
        """Its outcome."""
        return dict(self.rows("runs").iloc[0])

    def rows(self, name: str) -> pd.DataFrame:
        """Its rows in a frame of the results."""
        return self.results.of_run(name, self.arm, self.config.seed)

    def predicted(self) -> pd.DataFrame:
        """The classes of the test images and those that it gave them, which are NaN where there are none."""
        return self.results.predictions.reindex(columns=["label", predicted_by(self.arm, self.config.seed)])

    def others(self) -> "pd.Series[float]":
        """Top-1 errors of the other published seeds of its arm."""
        done = self.results.done
        return done.loc[(done["arm"] == self.arm) & (done["seed"] != self.config.seed), "top1_error"]

    def attention(self) -> str:
        """Its mechanism, from the published file if it is one of somebody's own."""
        if own_file(self.config.attention) is None:
            return self.config.attention
        place, content_hash = split_hash(self.config.attention)
        code = publication.code_file(self.config, self.folder).absolute()
        return f"{code}:{place.rpartition(':')[2]}#{content_hash}"


@dataclass(frozen=True)
class Problem:
    """A published number that others which were published with it contradict."""

    run: str
    number: str
    published: Any
    computed: Any
    source: str

    def __str__(self) -> str:
        return f"{self.run}: {self.number} is published as {self.published}, and by {self.source} it is {self.computed}"


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for JSON, which has no NaN: what is not known is None."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def records(
    names: Iterable[str] = (), dataset: str | None = None, folder: Path | str | None = None
) -> tuple[list[Record], list[Problem]]:
    """The finished runs of published studies, see `publication.published`; and what of the rows is of no run.

    Raises:
        ConfigError: nothing of that name or on that data set is published, no run is done, or a file is damaged.
    """
    folder = publication.data_folder() if folder is None else Path(folder)
    found, problems = list[Record](), list[Problem]()
    for plan in publication.published([*names], dataset, folder):
        try:
            results = load(plan, folder)
        except (KeyError, TypeError, ValueError) as error:  # written by hand, with the hash that fits
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the tables of {plan.name} cannot be read: {first_line(error)}") from None
        rows = list(zip(results.runs["arm"], results.runs["seed"], strict=True))
        of_plan = {(arm, config.seed): config for arm, configs in plan.arms.items() for config in configs}
        for arm, seed in dict.fromkeys([*of_plan, *rows]):
            name, number = f"{plan.name}, {arm}, seed {seed}", rows.count((arm, seed))
            if (wanted := int((arm, seed) in of_plan)) != number:
                problems.append(Problem(name, "its number of rows in runs.csv", number, wanted, f"{plan.name}.json"))
            elif number and (record := Record(plan, arm, of_plan[arm, seed], results, folder)).row["state"] == "done":
                if lacks := [name for name in NEEDED if pd.isna(record.row[name])]:
                    raise ConfigError(f"{record}: runs.csv has no {lacks[0]} of it")
                found.append(record)
    if not found and not problems:
        raise ConfigError(f"no run that is published in {folder} is done")
    return found, problems


def contradictions(record: Record) -> Iterator[Problem]:
    """The numbers of a run that its own predictions, epochs, origins or configuration contradict. Trains nothing.

    Building its network executes the code of a mechanism of somebody's own. Without its images there are no FLOPs.
    """
    published = record.row
    for number, source, computed in _computed(record):
        if not _equal(published[number], computed):
            yield Problem(str(record), number, published[number], computed, source)


def lacking(found: Iterable[Record]) -> list[str]:
    """The data sets of published runs whose images are not here."""
    return sorted({record.config.dataset for record in found if _image_size(record.config.dataset) is None})


def _image_size(dataset: str) -> tuple[int, int] | None:
    """Width and height of its images, if they are here."""
    with suppress(DatasetError):
        return describe(dataset).image_size
    return None


def _computed(record: Record) -> Iterator[tuple[str, str, Any]]:
    """What other published files say of an outcome: the number, the file, the value."""
    epochs, predicted = record.rows("epochs"), record.predicted()
    listed = epochs["epoch"].tolist()
    yield "epochs", "the configuration", record.config.epochs
    yield "epochs", "epochs.csv", len(listed) if listed == [*range(1, len(listed) + 1)] else f"those {listed}"
    last = epochs.iloc[-1].to_dict() if listed else {}
    for number in ERRORS:
        yield number, "the last epoch in epochs.csv", last.get(number)
    yield "seconds", "epochs.csv", epochs["seconds"].sum() if "seconds" in epochs else None
    label, given = (predicted[name] for name in predicted)
    yield "top1_error", "predictions.csv", None if given.isna().all() else 100 * float((given != label).mean())
    yield "source", "origins.csv", "+".join(dict.fromkeys(map(str, record.rows("origins")["source"])))
    size = _image_size(record.config.dataset)
    try:  # every class has an image at least, whatever is tested on
        architecture = record.config.architecture(int(label.max()) + 1) | {"attention": record.attention()}
        parameters, flops = _count(json.dumps(architecture | {"weights": None}), size or (64, 64))
    except Exception as error:  # of a file of somebody's own, whatever it raises
        parameters = flops = f"none, since it cannot be built ({first_line(error)})"  # type: ignore[assignment]
    yield "parameters", "its network", parameters
    if size is not None and not pd.isna(record.row["flops"]):
        yield "flops", "its network", flops


@cache
def _count(architecture: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Parameters and FLOPs of a network, which the seeds of an arm share."""
    import torch

    from gamlib.backbones import build_model
    from gamlib.paper.complexity import complexity

    with torch.device("meta"):
        network = build_model(**json.loads(architecture))
    costs = complexity(network, (1, 3, image_size[1], image_size[0]))
    return costs.parameters, costs.flops


def _equal(published: Any, computed: Any) -> bool:
    """Whether two are the same, numbers but for the last bits of a sum or quotient; NaN and what is no number never."""
    try:
        return math.isclose(float(published), float(computed), rel_tol=1e-9)
    except (TypeError, ValueError):
        return bool(published == computed)


def cheapest(found: Sequence[Record], number: int) -> list[Record]:
    """The published runs of the configurations that took the least seconds of training; studies may share one.

    Those come first whose errors are of test images: others, which choose a recipe or measure speed, support no claim.
    """
    by_seconds = sorted(found, key=lambda it: (it.config.evaluate_on != "test", it.row["seconds"], str(it)))
    wanted = list(dict.fromkeys(record.config.signature for record in by_seconds))[:number]
    return [record for record in by_seconds if record.config.signature in wanted]
