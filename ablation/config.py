"""One configuration of a run: the only way in, from a shell, a YAML file, a notebook or papermill alike."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ablation.errors import Checked, ConfigError
from ablation.mechanisms import chosen_options, mechanism, readable, slot_of
from ablation.named_files import with_hash
from ablation.parameter_counts import count
from ablation.provenance import source_hash
from gamlib.data.datasets import DATASETS, FOLDER, NAMES, Dataset, describe
from gamlib.names import ATTENTIONS, BACKBONES, OPTIONS, chosen_stages, has_max_pool
from gamlib.sources import placed, split_hash, without_folder
from gamlib.training.recipes import OPTIMIZERS, RECIPES, SCHEDULES, TrainingConfig

RESOLVED: Any = None  # the default of a field whose value the data set or the recipe prescribes
RECIPE_VALUES = tuple(field.name for field in fields(TrainingConfig) if field.default is MISSING)
DATASET_VALUES = ("stem", "width", "pad", "flip", "workers")
# Fields as the first version named them; so they stay in signatures, checkpoints and the names of folders.
OLD_NAMES = {"milestones": "drops", "gamma": "drop_factor"}
# Fields that were added later: at their defaults they are left out of signatures, so that the runs there are stay.
LATER = ("options", "stages", "schedule", "warmup", "optimizer", "nesterov", "mixup", "cutmix", "random_erasing", "ema")
NO_PART_OF_IT = {"tensorboard"}  # fields that change no number: a run is the same run with and without
# Image folders that are known by their name; lossy compression makes other images than CIFAR-10's, and other errors.
TITLES = {"cifar10-jpeg": "CIFAR-10 (JPEG)"}
FromZero = Annotated[float, Field(ge=0), AfterValidator(abs)]  # -0.0 is 0.0, and one configuration has one signature


class RunConfig(Checked):
    """Everything that decides a run. A field left out, or None, gets what its data set, recipe or mechanism says.

    Values are coerced to the type of their field ("false" is False, "1e-3" a number) or refused by name. After
    construction every value is final; an option that the mechanism does not have (`groups` of CBAM) stays None. The
    network is built once without memory, so that what cannot be built is refused here and not in a job.
    """

    dataset: str = Field("digits", description=NAMES)
    dataset_hash: str | None = Field(None, description="left out: it is worked out from the files of an image folder")
    backbone: str = Field("resnet18", description="a name from build_model.backbones()")
    attention: str = Field(
        "gam", description="a name from build_model.attentions(), or file.py:Class, package.module:Class, timm:NAME"
    )
    options: dict[str, Any] | None = Field(
        None, description="options of the mechanism by name, such as {kernel_size: 7}"
    )
    submodules: str | None = Field(None, description="ch+sp, ch, sp")
    reduction: int | None = Field(None, ge=1, description="a whole number that divides the channels")
    groups: int | None = Field(None, ge=1, description="a whole number that divides channels / reduction")
    gate_max_pool: bool | None = Field(None, description="true, false")
    stages: list[int] | None = Field(None, description="numbers of stages from 1, such as 1 or 1,3")
    max_pool: bool = Field(True, description="true, false")
    stem: str = Field(RESOLVED, description="imagenet, cifar")
    width: float = Field(RESOLVED, gt=0, le=16, description="a number above 0, up to 16")
    weights: str | None = Field(None, description="none, a file, a name such as IMAGENET1K_V1")
    recipe: str = Field(RESOLVED, description=", ".join(RECIPES))
    epochs: int = Field(RESOLVED, ge=1, description="a whole number from 1")
    batch_size: int = Field(RESOLVED, ge=2, description="a whole number from 2")
    lr: float = Field(RESOLVED, gt=0, description="a number above 0")
    momentum: FromZero = Field(RESOLVED, lt=1, description="a number from 0, below 1")
    weight_decay: FromZero = Field(RESOLVED, description="a number from 0")
    label_smoothing: FromZero = Field(RESOLVED, lt=1, description="a number from 0, below 1")
    milestones: list[float] = Field(RESOLVED, description="rising fractions of the epochs, such as 0.3,0.6,0.8")
    gamma: float = Field(RESOLVED, gt=0, le=1, description="a number above 0, up to 1")
    schedule: str = Field("step", description=", ".join(SCHEDULES))
    warmup: FromZero = Field(0.0, description="a number of epochs from 0")
    optimizer: str = Field("sgd", description=", ".join(OPTIMIZERS))
    nesterov: bool = Field(False, description="true, false")
    mixup: FromZero = Field(0.0, description="a number from 0, the alpha of mixup")
    cutmix: FromZero = Field(0.0, description="a number from 0, the alpha of cutmix")
    random_erasing: FromZero = Field(0.0, le=1, description="a number from 0 to 1, the probability for an image")
    ema: FromZero = Field(0.0, lt=1, description="a number from 0, below 1, the decay a step")
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
    tensorboard: bool = Field(False, description="true, false")

    def __init__(self, **values: Any) -> None:  # of any type: they are coerced or refused
        super().__init__(**values)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """As any version of this code wrote it, not checked: its images may be gone. What it lacks has its default."""
        return cls.model_construct(**translated(values))

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in what was left out."""
        values = {key: cls.model_fields[key].default for key in ("dataset", "backbone", "attention")}
        values |= {key: value for key, value in translated(given).items() if value is not None or key == "attention"}
        if values.get("weights") in ("none", "None"):  # as a shell must say it
            del values["weights"]
        dataset = describe(str(values["dataset"]))
        backbone = _known("backbone", values["backbone"], BACKBONES)
        values["attention"] = attention = mechanism(values["attention"])
        if values.setdefault("dataset_hash", dataset.hash) != dataset.hash:
            raise ValueError(
                f"dataset_hash={values['dataset_hash']!r}: the files of {values['dataset']} are others now, "
                f"their hash is {dataset.hash}"
            )
        if "weights" in values:
            values["weights"] = with_hash(values["weights"], backbone)
        values |= chosen_options(attention, values)
        if "stages" in values:
            values["stages"] = chosen_stages(_numbers(values["stages"]), backbone, attention, slot_of(attention))
        return _prescribed(dataset, backbone, values.get("recipe")) | ATTENTIONS.get(attention, {}) | values

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in (bool, bool | None):
            raise ValueError("a bool is not a number or name")
        if isinstance(value, str) and info.field_name == "milestones":
            return _parts(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        dataset = describe(self.dataset)
        if not self.max_pool and not has_max_pool(self.backbone, self.stem):
            raise ValueError(
                f"max_pool=False: {self.backbone} with stem={self.stem} has no max-pooling to leave out; "
                "the ResNets with stem=imagenet have"
            )
        if self.milestones != sorted(set(self.milestones)) or not all(0 < when < 1 for when in self.milestones):
            description = type(self).model_fields["milestones"].description
            raise ValueError(f"milestones={self.milestones}: allowed: {description}")
        usual = RECIPES[self.recipe]
        for key, value in (("milestones", list(usual.milestones)), ("gamma", usual.gamma)):
            if self.schedule != "step" and (given := getattr(self, key)) != value:
                raise ValueError(f"{key}={given}: allowed with schedule=step, not with {self.schedule}")
        self.training()
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs=True: allowed with compile=true, whose network is captured")
        if dataset.in_memory and self.workers:
            raise ValueError(f"workers={self.workers}: allowed: 0, since the images of {self.dataset} lie in memory")
        if not dataset.in_memory and self.pad:
            raise ValueError(f"pad={self.pad}: allowed: 0, since {self.dataset} is cropped to 224x224 at random")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard=True: allowed where it is installed (pip install tensorboard), here false")
        rest = dataset.training_size(self.train_fraction, self.evaluate_on) % self.batch_size
        smallest = rest if rest > 1 else self.batch_size
        if smallest < self.devices:
            raise ValueError(f"devices={self.devices}: the smallest batch of an epoch has {smallest} images")
        registered = getattr(sys.modules.get("gamlib.attention"), "MECHANISMS", {}).get(self.attention)
        if registered is not None and registered.__module__.partition(".")[0] != "gamlib":  # of a changed registry
            raise ValueError(
                f"attention={self.attention!r}: {registered.__module__}.{registered.__qualname__} is none of gamlib's "
                "own: no job could build it, and its results would be kept when its code changes; write it into a "
                "file and say file.py:Class"
            )
        self.parameters()
        return self

    def parameters(self, width: float | None = None) -> int:
        """Number of parameters of its network, or of one of another width, which no weights fit.

        Raises:
            ValueError: there is no such network, since `reduction` does not divide its channels, say.
        """
        changes, weights = ({}, self.weights) if width is None else ({"width": width, "weights": None}, None)
        return count(json.dumps([source_hash(), self.architecture() | changes, weights], sort_keys=True))

    def architecture(self, num_classes: int | None = None) -> dict[str, Any]:
        """The arguments of `build_model`; by default with as many classes as the data set has, which must be there."""
        keys = ("backbone", "attention", "stages", "stem", "max_pool", "width", *OPTIONS)
        chosen = {key: value for key in keys if (value := getattr(self, key)) is not None}
        chosen |= {"options": self.options} if self.options else {}
        weights = self.weights and split_hash(self.weights)[0]
        classes = describe(self.dataset).num_classes if num_classes is None else num_classes
        return chosen | {"num_classes": classes, "weights": weights}

    def training(self) -> TrainingConfig:
        """The part that the training loop takes."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainingConfig)}
        return TrainingConfig(**values | {"milestones": tuple(self.milestones)})

    def identity(self) -> dict[str, Any]:
        """What signatures and checkpoints are made of: values by the names that the first version gave them.

        A field that came later is left out at its default, so that runs from before keep their signature.
        """
        values = self.model_dump(exclude=NO_PART_OF_IT) | {"attention": without_folder(self.attention)}
        for key in LATER:
            if values[key] == type(self).model_fields[key].default:
                del values[key]
        return {OLD_NAMES.get(key, key): value for key, value in values.items()}

    @property
    def signature(self) -> str:
        """Hash of all resolved values, 64 hexadecimal digits: two runs with one signature are one run."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def dataset_name(self) -> str:
        """The data set as the name of a folder or a figure, another one for each.

        `imagefolder:a` is `imagefolder-a`; a path of several parts, which may read like another one, ends in a hash.
        """
        path = self.dataset.removeprefix(FOLDER)
        parts = self.dataset.replace(":", "/").split("/")
        plain = "-".join(part for part in parts if part not in ("", ".", "..", "~"))
        if plain in (path, f"{FOLDER[:-1]}-{path}"):
            return plain
        return f"{plain}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """Backbone, mechanism, what differs from their defaults, and the seed: "resnet18-gam-sp-s0"."""
        # A name must not depend on whether an image folder is still there, so for those it goes by the stem.
        like = self.dataset if self.dataset in DATASETS else "cifar10" if self.stem == "cifar" else "imagenet"
        usual = {key: field.default for key, field in type(self).model_fields.items()}
        usual |= _prescribed(DATASETS[like], self.backbone, self.recipe) | ATTENTIONS.get(self.attention, {})
        usual |= {"pad": self.pad, "dataset_hash": self.dataset_hash} if self.dataset not in DATASETS else {}
        parts = [self.backbone, readable(self.attention)]
        elsewhere = {"dataset", "backbone", "attention", "options", "seed", *NO_PART_OF_IT}
        options = {key: re.sub(r"[^\w.+-]+", "_", str(value)) for key, value in (self.options or {}).items()}
        parts += [f"{key}{value}" for key, value in options.items()]
        for key, value in self.model_dump(exclude=elsewhere).items():
            if value is not None and value != usual[key]:
                key = OLD_NAMES.get(key, key)
                value = Path(split_hash(value)[0]).stem if key == "weights" else value
                value = "stages" + "-".join(map(str, value)) if key == "stages" else value
                value = "_".join([key, *map(str, value)]) if isinstance(value, list) else value
                value = f"{key}_{value}" if key == "recipe" else value  # `cifar` is the name of a stem too
                word = ("" if value else "no_") + key
                parts.append(word if isinstance(value, bool) else value if isinstance(value, str) else f"{key}{value}")
        return "-".join(["-".join(parts)[:100], f"s{self.seed}"])


def title(dataset: str) -> str:
    """A data set's name as figures and tables say it: its own, or that by which an image folder is known."""
    return TITLES.get(Path(dataset.removeprefix(FOLDER)).name, dataset) if dataset.startswith(FOLDER) else dataset


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of the fields, also those that are given by a name of the first version.

    A mechanism's file that is found from here gets its whole path, by which jobs find it, too.

    Raises:
        ConfigError: a value is given by both.
    """
    found = dict(values)
    for name, old in OLD_NAMES.items():
        if (value := found.pop(old, None)) is not None:
            if found.get(name) is not None:
                raise ConfigError(f"{old}={value}: {name}={found[name]} is given too, which is the name of the same")
            found[name] = value
    return found if "attention" not in found else found | {"attention": placed(found["attention"])}


def _prescribed(dataset: Dataset, backbone: str, recipe: Any = None) -> dict[str, Any]:
    """What a data set prescribes for a backbone, its recipe among it, and the values of that recipe or another one."""
    usual = "mobilenet" if (dataset.recipe, backbone) == ("imagenet", "mobilenet_v2") else dataset.recipe
    chosen = RECIPES[_known("recipe", usual if recipe is None else recipe, RECIPES)]
    of_dataset = {"recipe": usual} | {key: getattr(dataset, key) for key in DATASET_VALUES}
    return of_dataset | {key: getattr(chosen, key) for key in RECIPE_VALUES} | {"milestones": list(chosen.milestones)}


def _known(key: str, value: Any, names: Iterable[str]) -> str:
    if value not in (names := list(names)):
        raise ValueError(f"{key}={value!r}: allowed: {', '.join(names)}")
    return str(value)


def _parts(text: str) -> list[str]:
    """The values of a list as a shell has it, "1,3" or "[1, 3]"."""
    return [part for part in text.strip("[]() ").split(",") if part.strip()]


def _numbers(value: Any) -> list[Any]:
    """A text, a single value or a list as a list, in which texts of whole numbers are numbers."""
    parts = _parts(value) if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return [int(part) if isinstance(part, str) and part.strip().isdecimal() else part for part in parts]
