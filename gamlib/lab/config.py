"""One configuration of a run: the only way in, from a shell, a YAML file, a notebook or papermill alike."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gamlib.training.datasets import DATASETS, NAMES, Dataset, describe, folder_name
from gamlib.training.recipes import RECIPES, Recipe

RESOLVED: Any = None  # the default of a field whose value the data set or the recipe prescribes
RECIPE_VALUES = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "label_smoothing", "drops", "drop_factor")
DATASET_VALUES = ("stem", "width", "pad", "flip", "workers")


class ConfigError(ValueError):
    """A value that is refused; the message is one line that names it and what is allowed."""


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
    drops: list[float] = Field(RESOLVED, description="rising fractions of the epochs, such as 0.3,0.6,0.8")
    drop_factor: float = Field(RESOLVED, gt=0, le=1, description="a number above 0, up to 1")
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
        """A configuration that was resolved and written by this code before, as it is; else one checked as usual."""
        if values.keys() != cls.model_fields.keys():
            return cls(**values)
        return cls.model_construct(**values)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """As any code wrote it, not checked: its images may be gone. What it lacks is at its default."""
        return cls.model_construct(**{key: values.get(key, field.default) for key, field in cls.model_fields.items()})

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in what was left out. torch comes in here: who only reads configurations need not wait."""
        from gamlib.backbones import OPTIONS, build_model

        values = {key: value for key, value in given.items() if value is not None or key == "attention"}
        if values.get("weights") in ("none", "None"):  # as a shell must say it
            del values["weights"]
        name = str(values.get("dataset", "digits"))
        dataset = describe(name)
        backbone = _known("backbone", values.get("backbone", "resnet18"), build_model.backbones())
        recipe = _known("recipe", values.get("recipe", _recipe_of(dataset, backbone)), RECIPES)
        defaults = _usual(dataset, recipe)
        if values.setdefault("dataset_hash", dataset.hash) != dataset.hash:
            raise ValueError(
                f"dataset_hash={values['dataset_hash']!r}: the files of {name} are others now, "
                f"their hash is {dataset.hash}"
            )
        attention = _known("attention", values.get("attention", "gam"), build_model.attentions())
        options = build_model.options(attention)
        if "weights" in values:
            values["weights"] = _resolved(values["weights"], backbone)
        for key in OPTIONS:
            if key in values and key not in options:
                having = [name for name in build_model.attentions() if key in build_model.options(name)]
                raise ValueError(f"{key}={values[key]!r}: attention={attention} has none, only {', '.join(having)}")
        return defaults | options | values

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in (bool, bool | None):
            raise ValueError("a bool is not a number or name")
        if isinstance(value, str) and info.field_name == "drops":
            return [part for part in value.strip("[]() ").split(",") if part.strip()]
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _zero_has_no_sign(cls, value: Any) -> Any:
        """-0.0 is 0.0, and one configuration has one signature."""
        return value + 0.0 if isinstance(value, float) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        from gamlib.backbones import build_model

        if not self.max_pool and not build_model.has_max_pool(self.backbone, self.stem):
            raise ValueError(
                f"max_pool=False: {self.backbone} with stem={self.stem} has no max-pooling to leave out; "
                "the ResNets with stem=imagenet have"
            )
        dataset = describe(self.dataset)
        self._can_be_fed(dataset)
        count_parameters(self.architecture(), self.weights)
        return self

    def _can_be_fed(self, dataset: Dataset) -> None:
        if self.drops != sorted(set(self.drops)) or not all(0 < drop < 1 for drop in self.drops):
            raise ValueError(f"drops={self.drops}: allowed: {type(self).model_fields['drops'].description}")
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
        from gamlib.backbones import OPTIONS

        keys = ("backbone", "attention", "stem", "max_pool", "width")
        chosen = {key: getattr(self, key) for key in OPTIONS if getattr(self, key) is not None}
        weights = self.weights and split_hash(self.weights)[0]
        rest = {"num_classes": describe(self.dataset).num_classes, "weights": weights}
        return {key: getattr(self, key) for key in keys} | chosen | rest

    def training_recipe(self) -> Recipe:
        """The recipe with the values of this run."""
        values = {key: getattr(self, key) for key in RECIPE_VALUES} | {"drops": tuple(self.drops)}
        return replace(RECIPES[self.recipe], **values)

    @property
    def signature(self) -> str:
        """Hash of all resolved values, 64 hexadecimal digits: two runs with one signature are one run."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    @property
    def dataset_name(self) -> str:
        """The data set as the name of a folder."""
        return folder_name(self.dataset)

    @property
    def name(self) -> str:
        """Backbone, mechanism, what differs from their defaults, and the seed: "resnet18-gam-sp-s0"."""
        # A name must not depend on whether an image folder is still there, so for those it goes by the stem.
        like = self.dataset if self.dataset in DATASETS else "cifar10" if self.stem == "cifar" else "imagenet"
        usual = _usual(DATASETS[like], self.recipe) | {"recipe": _recipe_of(DATASETS[like], self.backbone)}
        usual |= {"pad": self.pad, "dataset_hash": self.dataset_hash} if self.dataset not in DATASETS else {}
        # As the mechanisms have it (a test compares); asking them would make every reader of names wait for torch.
        usual |= {"submodules": "ch+sp", "reduction": 16, "groups": 1, "gate_max_pool": self.attention == "cbam"}
        usual |= {key: field.default for key, field in type(self).model_fields.items() if key not in usual}
        parts = [self.backbone, self.attention]
        for key, value in self.model_dump(exclude={"dataset", "backbone", "attention", "seed"}).items():
            if value is not None and value != usual[key]:
                value = Path(split_hash(value)[0]).stem if key == "weights" else value
                value = "_".join([key, *map(str, value)]) if isinstance(value, list) else value
                value = f"{key}_{value}" if key == "recipe" else value  # `cifar` is the name of a stem too
                word = ("" if value else "no_") + key
                parts.append(word if isinstance(value, bool) else value if isinstance(value, str) else f"{key}{value}")
        return "-".join(["-".join(parts)[:100], f"s{self.seed}"])


def _usual(dataset: Dataset, recipe: str) -> dict[str, Any]:
    """What a data set and a recipe prescribe."""
    prescribed = {key: getattr(RECIPES[recipe], key) for key in RECIPE_VALUES}
    of_dataset = {key: getattr(dataset, key) for key in DATASET_VALUES}
    return {"recipe": recipe} | of_dataset | prescribed | {"drops": list(RECIPES[recipe].drops)}


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
    """A file's whole path and behind # the hash of what is in it; or the one name that a member of torchvision's has.

    A file given with a hash, as a configuration that was written has it, must still hold what it held then.
    """
    from gamlib.backbones.initial import is_file, member

    text = os.fspath(weights) if isinstance(weights, os.PathLike) else weights
    path, expected = split_hash(text) if isinstance(text, str) else (text, "")
    if not is_file(path):
        return member(backbone, path).name
    file = Path(path).expanduser().resolve()
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


def count_parameters(architecture: Mapping[str, Any], file: str | None = None) -> int:
    """Parameters of the network that `build_model` makes of these arguments, built without memory and only once.

    Raises:
        ValueError: `build_model` says what does not fit. Another content of a file of weights is asked about anew.
    """
    return _count(json.dumps(architecture, sort_keys=True), file)


@lru_cache(maxsize=1024)
def _count(architecture: str, _: str | None) -> int:
    import torch

    from gamlib.backbones import build_model

    with torch.device("meta"):
        return sum(value.numel() for value in build_model(**json.loads(architecture)).parameters())
