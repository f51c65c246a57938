"""Studies: arms times seeds, with a name. They are YAML files (see `study_files`), or a few lines of Python."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from ablation.arms import Arm, Seeds, Values, check_looks, configurations, resolved
from ablation.config import RunConfig, title, translated
from ablation.errors import ConfigError, one_line, unknown_name, warn_once
from ablation.hypotheses import Declared, Hypotheses
from ablation.parameter_counts import remember
from ablation.parameters import parse_seeds
from ablation.paths import runs_root
from ablation.provenance import source_hash
from ablation.runs import Run, first_line
from gamlib.files import locked, write_whole

Recorded = Annotated[RunConfig, WrapValidator(lambda run, _: RunConfig.recorded(dict(run)))]


class Study(Hypotheses):
    """Arms that answer one question, by name, and what is tested of them."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", description="letters, digits, - and _")
    question: str = Field("", description="a sentence")
    note: str = Field("", description="a sentence that stands under its tables")
    arms: dict[str, Arm] = Field(min_length=1, description="at least one arm: a name and its values")
    base: Values = Field({}, description="values of RunConfig that hold for every arm")
    notebook: str = Field("", description="the file name of a notebook in notebooks/")
    dataset: str = Field("digits", description="where it runs unless another is asked for, or {path: ..., name: ...}")
    dataset_title: str = Field("", description="what figures and tables call it", exclude_if=lambda title: not title)
    seeds: Seeds = Field("0-2", description="seeds unless others are asked for, such as 0-4 or 0,3,7")

    def __init__(self, **values: Any) -> None:  # of any type: they are coerced or refused
        super().__init__(**values)

    _resolved = model_validator(mode="before")(resolved)

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
        check_looks(self.arms)
        return self

    def as_yaml(self) -> str:
        """As a YAML file would say it, without what is at its default."""
        import yaml

        values = self.model_dump(mode="json", exclude_defaults=True)
        tested = {key: values.pop(key) for key in Hypotheses.model_fields if key in values}
        values |= {"compare": [], "test": self.test, **tested}  # no comparison is not the default; the test is shown
        values["arms"] = {name: arm.pop("values", {}) | arm for name, arm in values["arms"].items()}
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))

    def labels(self, arms: Iterable[str] | str = ()) -> list[str]:
        """The arms that names, or patterns such as "ResNet-18*", mean, in the study's order; none of them mean all.

        Raises:
            ConfigError: a pattern that is no arm's.
        """
        patterns, kept = [arms] if isinstance(arms, str) else list(arms), set[str]()
        for pattern in patterns or self.arms:
            found = {pattern} & self.arms.keys() or {label for label in self.arms if fnmatchcase(label, pattern)}
            if not found:
                raise ConfigError(f"arms={pattern!r}: allowed: {', '.join(self.arms)}")
            kept |= found
        return [label for label in self.arms if label in kept]

    def as_submitted(
        self, dataset: str | None, seeds: Iterable[int] | int | str | None, arms: Iterable[str] | str, **overrides: Any
    ) -> "Plan":
        """The plan that was last submitted, if it was of the same, whatever has changed since; else a new one."""
        with suppress(ConfigError):
            last, chosen = Plan.load(self.name, dataset or self.dataset), self.labels(arms)
            asked = (parse_seeds(self.seeds if seeds is None else seeds), translated(overrides))
            if (last.study, last.seeds, last.overrides) == (self, *asked) and {*chosen} <= last.arms.keys():
                return last.model_copy(update={"arms": {label: last.arms[label] for label in chosen}})
        return self.plan(dataset, seeds, arms, **overrides)

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
        values = {**self.base, **overrides, "dataset": dataset}
        runs, taken = configurations(self.arms, chosen, values, numbers)
        for key in overrides.keys() - taken:
            raise ConfigError(f"{key}={overrides[key]}: no arm of {self.name} has {key}")
        of_arms = {label: runs[label] for label in chosen}
        return Plan(study=self, dataset=dataset, seeds=numbers, overrides=overrides, arms=of_arms, source=source_hash())


class Plan(BaseModel):
    """A study, or some arms of it, on a data set with seeds: what `gamlib status` and `report` read back later."""

    model_config = ConfigDict(frozen=True)

    study: Study
    dataset: str
    seeds: list[int] = Field(min_length=1)
    overrides: dict[str, Any]
    arms: dict[str, list[Recorded]] = Field(min_length=1)
    source: str  # hash of the code that checked it
    cluster: str = "local"  # where it was submitted to last
    slurm: dict[str, Any] = {}  # options of its jobs there
    submitted: int = 0  # when it was first, in nanoseconds since 1970
    declared: Declared | None = None  # its hypotheses; None: of a plan from before they were declared

    @model_validator(mode="before")
    @classmethod
    def _with_its_test(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A plan that was written before tests were declared has the one that there was."""
        study = given.get("study")
        return {**given, "study": {"test": "paired", **study}} if isinstance(study, dict) else given

    @property
    def name(self) -> str:
        """`<study>-<dataset>`: the name of its figures."""
        return f"{self.study.name}-{self.configs[0].dataset_name}"

    @property
    def dataset_title(self) -> str:
        """The data set as figures and tables call it."""
        own = self.study.dataset_title if self.dataset == self.study.dataset else ""
        return own or title(self.dataset)

    @property
    def compare(self) -> list[tuple[str, str]]:
        """The comparisons of the study of which both sides are among the plan's arms."""
        return [pair for pair in self.study.compare if self.arms.keys() >= set(pair)]

    @property
    def configs(self) -> list[RunConfig]:
        """All runs, seed by seed, so that a study that is stopped half-way has whole seeds.

        An arm of a study that goes on until it is decided may have fewer of them than another.
        """
        by_seed = zip_longest(*self.arms.values())
        return [config for configs in by_seed for config in configs if config is not None]

    def labelled(self) -> "Plan":
        """The plan whose arms are called by their labels, for figures and tables; it is not one to be saved."""
        names = {name: arm.label or name for name, arm in self.study.arms.items()}
        arms = {names[name]: arm for name, arm in self.study.arms.items()}
        study = self.study.model_copy(update={"arms": arms, **self.study.renamed(names)})
        of_labels = {names[name]: configs for name, configs in self.arms.items()}
        return self.model_copy(update={"study": study, "arms": of_labels})

    def values(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The values, seeds aside, that all runs share, and by arm those that make it."""
        of_arms = {arm: configs[0].model_dump(exclude={"seed"}) for arm, configs in self.arms.items()}
        first = next(iter(of_arms.values()))
        shared = {key: value for key, value in first.items() if all(of[key] == value for of in of_arms.values())}
        return shared, {arm: {key: of[key] for key in of if key not in shared} for arm, of in of_arms.items()}

    def declares(self) -> dict[str, Any]:
        """What a change of it makes another declaration: the hypotheses, and the values that make the arms."""
        arms = {name: arm.model_dump(include={"values", "parameters_of"}) for name, arm in self.study.arms.items()}
        return {**self.study.hypotheses(), "overrides": self.overrides, "arms": arms}

    def declaring(self, before: "Plan") -> "Plan":
        """The plan with its declaration: that of an earlier one of which runs have begun, or one of this moment."""
        found, declares = before.declared, before.declares()
        began = (of.state == "done" or of.attempts for of in (Run(config).status() for config in before.configs))
        begun = found is not None and any(began)
        if not begun or declares != self.declares():
            changed = [*(found.before if found else ()), *([declares] if begun else ())]
            found = Declared(at=datetime.now(UTC).isoformat(timespec="seconds"), seeds=self.seeds, before=changed)
        return self.model_copy(update={"declared": self.declared or found})

    def save(self, cluster: str = "local", slurm: Mapping[str, Any] | None = None) -> None:
        """Remember what was submitted, in a file of its own in `runs/studies/`: a definition, not a state.

        Other arms that were asked for just before, with the same seeds and overrides, are part of it, as they are now:
        the files of a data set, or what a recipe prescribes, may have changed since. A plan that was loaded keeps its
        place; another is later than all, whatever clocks say. Plans of which `submitted` knows no run are removed.
        """
        folder, plan = runs_root() / "studies", self
        folder.mkdir(parents=True, exist_ok=True)
        remember()
        with locked(folder / ".lock"):
            there = _read_all()
            before = next((of for of in there.values() if of.name == self.name), self)
            same = all(getattr(before, key) == getattr(self, key) for key in ("study", "dataset", "seeds", "overrides"))
            if not self.submitted and same and before.arms.keys() - self.arms.keys():
                with suppress(ConfigError):  # refused by now: they are no part of it any more
                    arms = before.arms | self.arms  # some may go on to fewer seeds than others
                    whole = self.study.plan(self.dataset, self.seeds, arms, **self.overrides).arms
                    plan = self.model_copy(update={"arms": {arm: of[: len(arms[arm])] for arm, of in whole.items()}})
            plan = plan.declaring(before)
            at = self.submitted or max([time.time_ns(), *(1 + of.submitted for of in there.values())])
            own = (path for path, of in there.items() if (of.submitted, of.arms) == (at, self.arms))
            path = next(own, folder / f"{self.name}.{at}.json")
            plan = plan.model_copy(update={"cluster": cluster, "slurm": slurm or {}, "submitted": at})
            write_whole(path, plan.model_dump_json(indent=2))
            known = {of.submitted for _, _, of in submitted(self.study.name, self.dataset)}
            for other, of in there.items():
                if of.name == self.name and other != path and of.submitted not in known:
                    other.unlink()

    @classmethod
    def saved(cls) -> "list[Plan]":
        """Of each study and data set the plan that was submitted last, the last one first."""
        found: dict[str, Plan] = {}
        for plan in _read_all().values():
            found.setdefault(plan.name, plan)
        return list(found.values())

    @classmethod
    def load(cls, study: str, dataset: str | None = None) -> "Plan":
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
        raise ConfigError(f"study {study!r}{f' on {dataset}' * bool(dataset)}: {there}")


def submitted(study: str, dataset: str | None = None) -> list[tuple[Run, str, Plan]]:
    """All runs that were submitted of a study, each with its arm and its plan.

    Those of the plan that was submitted last, done or not, then those of earlier ones that are not done or removed.

    Raises:
        ConfigError: none was submitted; see `Plan.load`.
    """
    name, found = Plan.load(study, dataset).name, dict[str, tuple[Run, str, Plan]]()
    last, *earlier = [plan for plan in _read_all().values() if plan.name == name]
    for plan in (last, *earlier):
        for arm, run in ((arm, Run(config)) for arm, configs in plan.arms.items() for config in configs):
            if plan is last or (run.folder.exists() and run.result() is None):
                found.setdefault(run.signature, (run, arm, plan))
    return list(found.values())


def _read_all(attempts: int = 3) -> dict[Path, Plan]:
    """All plans that were submitted, the last one first, and their files; before, these had no time, or lay apart."""
    folder, found = runs_root() / "studies", dict[Path, Plan]()
    for path in [*folder.glob("*.json"), *folder.glob("earlier/*.json")]:
        try:
            written = path.stat().st_mtime_ns // (1 if path.parent == folder else 2)  # retried or not, the earlier one
            found[path] = Plan.model_validate({"submitted": written, **json.loads(path.read_text())})
        except (OSError, ValueError, TypeError) as error:  # a file that is not whole
            if isinstance(error, FileNotFoundError) and attempts:  # a plan that has its runs has just taken its place
                return _read_all(attempts - 1)
            why = one_line(error, Plan) if isinstance(error, ValidationError) else first_line(error)
            warn_once(f"{path} is no plan that this code can read, and is left out: {why}")
    return dict(sorted(found.items(), key=lambda item: -item[1].submitted))
