"""Studies: arms times seeds, with a name. They are YAML files (see `study_files`), or a few lines of Python."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ablation.arms import Arm, Values, of_mechanism, of_this_package
from ablation.config import ConfigError, RunConfig, one_line, translated, unknown_name
from ablation.dataset_names import folder_name
from ablation.parameters import parse_seeds
from ablation.paths import runs_root
from ablation.provenance import source_hash
from ablation.runs import Run
from ablation.widths import widened
from gamlib.files import write_whole


class Study(BaseModel):
    """Arms that answer one question, by name.

    Raises:
        ConfigError: unknown keys, a name that is no file name, no arms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", description="letters, digits, - and _")
    question: str = Field("", description="a sentence")
    note: str = Field("", description="a sentence that stands under its tables")
    arms: dict[str, Arm] = Field(min_length=1, description="at least one arm: a name and its values")
    base: Values = Field({}, description="values of RunConfig that hold for every arm")
    compare: list[tuple[str, str]] = Field(
        [], description="pairs of an arm and its reference; by default every arm and the first"
    )
    notebook: str = Field("", description="the file name of a notebook in notebooks/")
    dataset: str = Field("digits", description="where it runs unless another is asked for")
    seeds: str = Field("0-2", description="seeds unless others are asked for, such as 0-4 or 0,3,7")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(one_line(error, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _short_arms(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Arms in their long form, and by default every arm compared with the first."""
        if not isinstance(given.get("arms"), Mapping):
            return given
        arms = {}
        for label, arm in given["arms"].items():
            if isinstance(arm, Mapping) and "values" not in arm:
                own = {key: arm[key] for key in Arm.model_fields if key in arm}
                arm = own | {"values": {key: value for key, value in arm.items() if key not in own}}
            arms[str(label)] = arm if arm is not None else {}
        every = [(label, next(iter(arms))) for label in list(arms)[1:]]
        compare = given.get("compare")
        return {**given, "arms": arms, "compare": every if compare is None else compare}

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for values in (self.base, *(arm.values for arm in self.arms.values())):
            for key in ("seed", "dataset"):
                if key in values:
                    raise ValueError(f"{key}={values[key]!r}: a study gets it when it is run, not from base or an arm")
        for label in (label for pair in self.compare for label in pair):
            if label not in self.arms:
                raise ValueError(f"compare={label!r}: allowed: {', '.join(self.arms)}")
        free = [label for label, arm in self.arms.items() if arm.parameters_of is None]
        for label, arm in self.arms.items():
            if arm.parameters_of not in (None, *free):
                allowed = ", ".join(free) or "an arm without parameters_of"
                raise ValueError(f"arm {label!r}: parameters_of={arm.parameters_of!r}: allowed: {allowed}")
            if arm.parameters_of is not None and "width" in arm.values:
                raise ValueError(f"arm {label!r}: width={arm.values['width']!r}: parameters_of decides it")
        return self

    def as_yaml(self) -> str:
        """As a YAML file would say it, without what is at its default."""
        values = {
            **self.model_dump(mode="json", exclude_defaults=True),
            "compare": [list(pair) for pair in self.compare],
        }
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))

    def labels(self, arms: Iterable[str] | str = ()) -> list[str]:
        """Names of the arms that are meant, in the study's order.

        Args:
            arms: names, or patterns such as "ResNet-18*"; none of them is all arms.

        Raises:
            ConfigError: a pattern that is no arm's.
        """
        kept = set() if (patterns := [arms] if isinstance(arms, str) else list(arms)) else set(self.arms)
        for pattern in patterns:
            found = {pattern} & self.arms.keys() or {label for label in self.arms if fnmatchcase(label, pattern)}
            if not found:
                raise ConfigError(f"arms={pattern!r}: allowed: {', '.join(self.arms)}")
            kept |= found
        return [label for label in self.arms if label in kept]

    def plan(
        self,
        dataset: str | None = None,
        seeds: Iterable[int] | int | str | None = None,
        arms: Iterable[str] | str = (),
        **overrides: Any,
    ) -> "Plan":
        """The runs of this study, resolved and checked, all of them before anything starts.

        Args:
            dataset: where to run it; None is the study's own.
            seeds: whole numbers, or a text such as "0-4" or "0,3,7"; None is the study's own.
            arms: some of the arms, see `labels`.
            overrides: values for every arm whose mechanism has them, e.g. `epochs=3`.

        Raises:
            ConfigError: a value is refused, or is one that the arms of this study set themselves.
        """
        dataset = self.dataset if dataset is None else dataset
        numbers, chosen = parse_seeds(self.seeds if seeds is None else seeds), self.labels(arms)
        overrides = {key: value for key, value in translated(overrides).items() if value is not None}
        for key, value in overrides.items():
            if key == "seed":
                raise ConfigError(f"seed={value}: a study has several; give --seeds")
            if key not in RunConfig.model_fields:
                raise ConfigError(unknown_name(key, RunConfig.model_fields))
            if any(key in self.arms[label].values for label in chosen):
                raise ConfigError(f"{key}={value}: the arms of {self.name} set {key} themselves")
        references = {self.arms[label].parameters_of for label in chosen}
        needed = {label: arm for label, arm in self.arms.items() if label in references.union(chosen)}
        runs: dict[str, list[RunConfig]] = {}
        taken: set[str] = set()
        for label, arm in needed.items():
            values = {**self.base, **overrides, "dataset": dataset, **arm.values}
            fitting = of_mechanism(values, set(arm.values))
            taken |= fitting.keys()
            runs[label] = [RunConfig(**{**fitting, "seed": seed}) for seed in numbers]
        for label, arm in needed.items():
            if arm.parameters_of is not None:
                try:
                    runs[label] = [widened(config, runs[arm.parameters_of][0]) for config in runs[label]]
                except ValueError as error:
                    raise ConfigError(
                        f"arm {label!r}, parameters_of={arm.parameters_of!r}: {error}; --arms can leave it out"
                    ) from None
        for key in overrides.keys() - taken:
            raise ConfigError(f"{key}={overrides[key]}: no arm of {self.name} has {key}")
        of_arms = {label: runs[label] for label in chosen}
        for label in chosen:
            of_this_package(runs[label][0].attention)
        return Plan(study=self, dataset=dataset, seeds=numbers, overrides=overrides, arms=of_arms, source=source_hash())


class Plan(BaseModel):
    """A study, or some arms of it, on a data set with seeds: what `gamlib status` and `report` read back later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: Study
    dataset: str
    seeds: list[int]
    overrides: dict[str, Any]
    arms: dict[str, list[RunConfig]]
    source: str  # hash of the code that checked it
    cluster: str = "local"  # where it was submitted to last
    slurm: dict[str, Any] = {}  # options of its jobs there

    @property
    def name(self) -> str:
        """`<study>-<dataset>`: the name of its figures."""
        return f"{self.study.name}-{folder_name(self.dataset)}"

    @property
    def compare(self) -> list[tuple[str, str]]:
        """The comparisons of the study of which both sides are among the plan's arms."""
        return [pair for pair in self.study.compare if self.arms.keys() >= set(pair)]

    def values(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The values, seeds aside, that all runs share, and by arm those that make it."""
        of_arms = {arm: configs[0].model_dump(exclude={"seed"}) for arm, configs in self.arms.items()}
        first = next(iter(of_arms.values()))
        shared = {key for key in first if all(values[key] == first[key] for values in of_arms.values())}
        own = {arm: {key: values[key] for key in values if key not in shared} for arm, values in of_arms.items()}
        return {key: value for key, value in first.items() if key in shared}, own

    @property
    def configs(self) -> list[RunConfig]:
        """All runs, seed by seed, so that a study that is stopped half-way has whole seeds."""
        return [configs[index] for index in range(len(self.seeds)) for configs in self.arms.values()]

    def save(self, cluster: str = "local", slurm: Mapping[str, Any] | None = None) -> None:
        """Remember what was asked for, in `runs/studies/`: a definition, not a state.

        Other arms that were asked for earlier, with the same seeds and overrides, stay part of it, as they are now:
        the files of a data set, or what a recipe prescribes, may have changed since. A plan with runs that are no part
        of it is kept beside it for `submitted`, until those are done or removed.
        """
        plan, path = self, _plans() / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            before = self.read(path)
            if before is not None and self._asked() == before._asked() and before.arms.keys() - self.arms.keys():
                with suppress(ConfigError):  # refused by now: they are no part of it any more
                    plan = self.study.plan(self.dataset, self.seeds, [*before.arms, *self.arms], **self.overrides)
            plan = plan.model_copy(update={"cluster": cluster, "slurm": slurm or {}})
            if before is not None:
                before.keep()
            write_whole(path, plan.model_dump_json(indent=2))
            own = {config.signature for config in plan.configs}
            for kept in kept_plans(plan.name):
                earlier = self.read(kept)
                if earlier is None or all(run.signature in own for run in earlier.unfinished()):
                    kept.unlink()

    def keep(self, **changes: Any) -> None:
        """Remember it beside the plan that was asked for last, with some values changed."""
        signatures = sorted(config.signature for config in self.configs)
        name = f"{self.name}-{hashlib.sha256(json.dumps(signatures).encode()).hexdigest()[:8]}.json"
        write_whole(_plans() / "earlier" / name, self.model_copy(update=changes).model_dump_json(indent=2))

    def unfinished(self) -> list[Run]:
        """Its runs that were begun or submitted, and are not done."""
        return [run for run in map(Run, self.configs) if run.folder.exists() and run.result() is None]

    def _asked(self) -> tuple[Any, ...]:
        return self.study, self.dataset, self.seeds, self.overrides

    @classmethod
    def saved(cls) -> list[Self]:
        """The plans of all studies that were submitted, the last one first."""
        paths = sorted(_plans().glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [plan for plan in map(cls.read, paths) if plan is not None]

    @classmethod
    def load(cls, study: str, dataset: str | None = None) -> Self:
        """The plan of a study that was last submitted.

        Raises:
            ConfigError: there is none; the message lists those that exist.
        """
        plans = cls.saved()
        for plan in plans:
            if plan.study.name == study and dataset in (None, plan.dataset):
                return plan
        names = ", ".join(f"{plan.study.name} on {plan.dataset}" for plan in plans)
        there = f"submitted were {names}" if names else "none was submitted yet, see `gamlib study --help`"
        raise ConfigError(f"study {study!r}{f' on {dataset}' if dataset else ''}: {there}")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The plan that was written to a file; None where it is not whole."""
        try:
            content = {"cluster": "local", "slurm": {}, **json.loads(path.read_text())}
            content = {key: content[key] for key in cls.model_fields}
            arms = {label: [RunConfig.trusted(run) for run in runs] for label, runs in content["arms"].items()}
            return cls.model_construct(**{**content, "study": Study(**content["study"]), "arms": arms})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None


def _plans() -> Path:
    return runs_root() / "studies"


def kept_plans(name: str) -> list[Path]:
    """The files of plans that were asked for before the last one of a name, see `Plan.save`."""
    return sorted((_plans() / "earlier").glob(f"{name}-????????.json"))
