"""One configuration of a run: the only way in, from a shell, a YAML file, a notebook or papermill alike."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ablation.dataset_names import folder_name
from ablation.errors import ConfigError
from ablation.networks import count_parameters
from gamlib.data.datasets import DATASETS, NAMES, Dataset, describe
from gamlib.names import ATTENTIONS, BACKBONES, OPTIONS, has_max_pool
from gamlib.training.recipes import RECIPES, TrainingConfig

__all__ = ["ConfigError", "RunConfig", "count_parameters", "one_line", "split_hash", "translated", "unknown_name"]

RESOLVED: Any = None  # the default of a field whose value the data set or the recipe prescribes
RECIPE_VALUES = tuple(field.name for field in fields(TrainingConfig) if field.default is MISSING)
DATASET_VALUES = ("stem", "width", "pad", "flip", "workers")
# Fields as the first version named them; so they stay in signatures, checkpoints and the names of folders.
OLD_NAMES = {"milestones": "drops", "gamma": "drop_factor"}


class RunConfig(BaseModel):
    """Everything that decides a run. A field left out, or None, gets what its data set, recipe or mechanism says.

    Values are coerced to the type of their field ("false" is False, "1e-3" a number) or refused by name. After
    construction every value is final; an option that the mechanism does not have (`groups` of CBAM) stays None. The
    network is built once without memory, so that what cannot be built is refused here and not in a job.

    Raises:
        ConfigError: an unknown name, a wrong type, or a value outside what `description` allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field("digits", description=NAMES)
    dataset_hash: str | None = Field(None, description="left out: it is worked out from the files of an image folder")
    backbone: str = Field("resnet18", description="a name from build_model.backbones()")
    attention: str = Field("gam", description="a name from build_model.attentions()")
    submodules: str | None = Field(None, description="ch+sp, ch, sp")
    reduction: int | None = Field(None, ge=1, description="a whole number that divides the channels")
    groups: int | None = Field(None, ge=1, description="a whole number that divides channels / reduction")
    gate_max_pool: bool | None = Field(None, description="true, false")
    max_pool: bool = Field(True, description="true, false")
    stem: str = Field(RESOLVED, description="imagenet, cifar")
    width: float = Field(RESOLVED, gt=0, le=16, description="a number above 0, up to 16")
    weights: str | None = Field(None, description="none, a file, a name such as IMAGENET1K_V1")
    recipe: str = Field(RESOLVED, description=", ".join(RECIPES))
    epochs: int = Field(RESOLVED, ge=1, description="a whole number from 1")
    batch_size: int = Field(RESOLVED, ge=2, description="a whole number from 2")
    lr: float = Field(RESOLVED, gt=0, description="a number above 0")
    momentum: float = Field(RESOLVED, ge=0, lt=1, description="a number from 0, below 1")
    weight_decay: float = Field(RESOLVED, ge=0, description="a number from 0")
    label_smoothing: float = Field(RESOLVED, ge=0, lt=1, description="a number from 0, below 1")
    milestones: list[float] = Field(RESOLVED, description="rising fractions of the epochs, such as 0.3,0.6,0.8")
    gamma: float = Field(RESOLVED, gt=0, le=1, description="a number above 0, up to 1")
    pad: int = Field(RESOLVED, ge=0, le=64, description="a whole number from 0 to 64")
    flip: bool = Field(RESOLVED, description="true, false")
    amp: bool = Field(False, description="true, false")
    compile: bool = Field(False, description="true, false")
    cuda_graphs: bool = Field(False, description="true, false")
    channels_last: bool = Field(True, description="true, false")
    deterministic: bool = Field(False, description="true, false")
    devices: int = Field(1, ge=1, le=64, description="a whole number from 1 to 64")
    seed: int = Field(0, ge=0, lt=2**63, description="a whole number from 0")
    train_fraction: float = Field(1.0, gt=0, le=1, description="a number above 0, up to 1")
    workers: int = Field(RESOLVED, ge=0, le=256, description="a whole number from 0 to 256")
    evaluate_on: Literal["test", "validation"] = Field("test", description="test, validation")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(one_line(error, type(self))) from None

    @classmethod
    def trusted(cls, values: Mapping[str, Any]) -> Self:
        """A configuration that was resolved and written by any version of this code, as it is; else one checked."""
        if (values := translated(values)).keys() != cls.model_fields.keys():
            return cls(**values)
        return cls.model_construct(**values)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """As any code wrote it, not checked: its images may be gone. What it lacks is at its default."""
        values = translated(values)
        return cls.model_construct(**{key: values.get(key, field.default) for key, field in cls.model_fields.items()})

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in what was left out."""
        values = {key: value for key, value in translated(given).items() if value is not None or key == "attention"}
        if values.get("weights") in ("none", "None"):  # as a shell must say it
            del values["weights"]
        name = str(values.get("dataset", "digits"))
        dataset = describe(name)
        backbone = _known("backbone", values.get("backbone", "resnet18"), BACKBONES)
        recipe = _known("recipe", values.get("recipe", _recipe_of(dataset, backbone)), RECIPES)
        if values.setdefault("dataset_hash", dataset.hash) != dataset.hash:
            raise ValueError(
                f"dataset_hash={values['dataset_hash']!r}: the files of {name} are others now, "
                f"their hash is {dataset.hash}"
            )
        attention = _known("attention", values.get("attention", "gam"), ATTENTIONS)
        if "weights" in values:
            values["weights"] = _resolved(values["weights"], backbone)
        for key in OPTIONS:
            if key in values and key not in ATTENTIONS[attention]:
                having = [name for name, options in ATTENTIONS.items() if key in options]
                raise ValueError(f"{key}={values[key]!r}: attention={attention} has none, only {', '.join(having)}")
        return _prescribed(dataset, recipe) | ATTENTIONS[attention] | values

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in (bool, bool | None):
            raise ValueError("a bool is not a number or name")
        if isinstance(value, str) and info.field_name == "milestones":
            return [part for part in value.strip("[]() ").split(",") if part.strip()]
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _zero_has_no_sign(cls, value: Any) -> Any:
        """-0.0 is 0.0, and one configuration has one signature."""
        return value + 0.0 if isinstance(value, float) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.max_pool and not has_max_pool(self.backbone, self.stem):
            raise ValueError(
                f"max_pool=False: {self.backbone} with stem={self.stem} has no max-pooling to leave out; "
                "the ResNets with stem=imagenet have"
            )
        self._can_be_fed(describe(self.dataset))
        count_parameters(self.architecture(), self.weights)
        return self

    def _can_be_fed(self, dataset: Dataset) -> None:
        if self.milestones != sorted(set(self.milestones)) or not all(0 < when < 1 for when in self.milestones):
            description = type(self).model_fields["milestones"].description
            raise ValueError(f"milestones={self.milestones}: allowed: {description}")
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs=True: allowed with compile=true, whose network is captured")
        if dataset.in_memory and self.workers:
            raise ValueError(f"workers={self.workers}: allowed: 0, since the images of {self.dataset} lie in memory")
        if not dataset.in_memory and self.pad:
            raise ValueError(f"pad={self.pad}: allowed: 0, since {self.dataset} is cropped to 224x224 at random")
        rest = dataset.training_size(self.train_fraction, self.evaluate_on) % self.batch_size
        smallest = rest if rest > 1 else self.batch_size
        if smallest < self.devices:
            raise ValueError(f"devices={self.devices}: the smallest batch of an epoch has {smallest} images")

    def architecture(self) -> dict[str, Any]:
        """The arguments of `build_model`."""
        keys = ("backbone", "attention", "stem", "max_pool", "width")
        chosen = {key: getattr(self, key) for key in OPTIONS if getattr(self, key) is not None}
        weights = self.weights and split_hash(self.weights)[0]
        rest = {"num_classes": describe(self.dataset).num_classes, "weights": weights}
        return {key: getattr(self, key) for key in keys} | chosen | rest

    def training(self) -> TrainingConfig:
        """The part that the training loop takes."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        return TrainingConfig(**values | {"milestones": tuple(self.milestones)})

    def identity(self) -> dict[str, Any]:
        """All values by the names that the first version gave them: what signatures and checkpoints are made of."""
        return {OLD_NAMES.get(key, key): value for key, value in self.model_dump().items()}

    @property
    def signature(self) -> str:
        """Hash of all resolved values, 64 hexadecimal digits: two runs with one signature are one run."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def dataset_name(self) -> str:
        """The data set as the name of a folder."""
        return folder_name(self.dataset)

    @property
    def name(self) -> str:
        """Backbone, mechanism, what differs from their defaults, and the seed: "resnet18-gam-sp-s0"."""
        # A name must not depend on whether an image folder is still there, so for those it goes by the stem.
        like = self.dataset if self.dataset in DATASETS else "cifar10" if self.stem == "cifar" else "imagenet"
        usual = {key: field.default for key, field in type(self).model_fields.items()}
        usual |= _prescribed(DATASETS[like], self.recipe) | {"recipe": _recipe_of(DATASETS[like], self.backbone)}
        usual |= {"pad": self.pad, "dataset_hash": self.dataset_hash} if self.dataset not in DATASETS else {}
        usual |= ATTENTIONS.get(self.attention, {})
        parts = [self.backbone, self.attention]
        for key, value in self.model_dump(exclude={"dataset", "backbone", "attention", "seed"}).items():
            if value is not None and value != usual[key]:
                key = OLD_NAMES.get(key, key)
                value = Path(split_hash(value)[0]).stem if key == "weights" else value
                value = "_".join([key, *map(str, value)]) if isinstance(value, list) else value
                value = f"{key}_{value}" if key == "recipe" else value  # `cifar` is the name of a stem too
                word = ("" if value else "no_") + key
                parts.append(word if isinstance(value, bool) else value if isinstance(value, str) else f"{key}{value}")
        return "-".join(["-".join(parts)[:100], f"s{self.seed}"])


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of the fields, also those that are given by a name of the first version.

    Raises:
        ConfigError: a value is given by both.
    """
    found = dict(values)
    for name, old in OLD_NAMES.items():
        if (value := found.pop(old, None)) is not None:
            if found.get(name) is not None:
                raise ConfigError(f"{old}={value}: {name}={found[name]} is given too, which is the name of the same")
            found[name] = value
    return found


def _prescribed(dataset: Dataset, recipe: str) -> dict[str, Any]:
    """What a data set and a recipe prescribe."""
    of_recipe = {key: getattr(RECIPES[recipe], key) for key in RECIPE_VALUES}
    of_dataset = {key: getattr(dataset, key) for key in DATASET_VALUES}
    return {"recipe": recipe} | of_dataset | of_recipe | {"milestones": list(RECIPES[recipe].milestones)}


def _recipe_of(dataset: Dataset, backbone: str) -> str:
    return "mobilenet" if (dataset.recipe, backbone) == ("imagenet", "mobilenet_v2") else dataset.recipe


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """What pydantic found, in one line: every refused value and what is allowed in its place."""
    found = []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == "extra_forbidden":
            found.append(unknown_name(name, model.model_fields))
        elif name in model.model_fields:
            found.append(f"{name}={detail['input']!r}: allowed: {model.model_fields[name].description}")
        else:
            found.append(str(detail["msg"]).removeprefix("Value error, "))
    return "; ".join(found)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The line that refuses a parameter of an unknown name."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name} is not a parameter: {hint}There are {', '.join(known)}"


def _known(key: str, value: Any, names: Iterable[str]) -> str:
    if value not in (names := list(names)):
        raise ValueError(f"{key}={value!r}: allowed: {', '.join(names)}")
    return str(value)


def split_hash(weights: str) -> tuple[str, str]:
    """A file or a name, and the hash behind its last #, empty where there is none."""
    path, _, expected = weights.rpartition("#")
    return (path, expected) if re.fullmatch("[0-9a-f]{16}", expected) and path else (weights, "")


def _resolved(weights: Any, backbone: str) -> str:
    """A file's absolute path, # and the hash of what is in it; or the one name that a member of torchvision's has.

    A file given with a hash, as a configuration that was written has it, must still hold what it held then.
    """
    from gamlib.backbones.weights import locate

    text = os.fspath(weights) if isinstance(weights, os.PathLike) else weights
    path, expected = split_hash(text) if isinstance(text, str) else (text, "")
    if not isinstance(source := locate(backbone, path), Path):
        return source.name
    file = source.expanduser().resolve()
    try:
        found = _content_hash(file, file.stat().st_mtime_ns, file.stat().st_size)
    except OSError as error:
        raise ValueError(f"weights={path!r} cannot be read: {error.strerror}") from None
    if expected and found != expected:
        raise ValueError(f"weights={path!r}: the file has changed, its hash was {expected} and is {found}")
    return f"{file}#{found}"


@lru_cache
def _content_hash(file: Path, *_: int) -> str:
    """Of a file as it stands, by its time and size: the runs of a study share one, and it may be large."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
