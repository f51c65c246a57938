"""What the gates of finished runs look at: their networks along training, pictures, and the views that are drawn."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor, nn

from gamlib.backbones import build_model
from gamlib.gates import Gates, grad_cam, predict, read_gates
from gamlib.lab.config import RunConfig
from gamlib.lab.places import ROOT
from gamlib.lab.runs import Run, RunFailed, all_runs
from gamlib.lab.studies import STUDIES, Plan
from gamlib.training import data
from gamlib.training.batches import IMAGENET_MEAN, IMAGENET_STD, for_test, mean_and_std
from gamlib.training.checkpoint import kept, read

STUDY = str(ROOT / "studies" / "gates.yaml")  # the runs that 5_attention_maps.ipynb compares
GATELESS = ("none", "gam_no_gate")
LEGIBLE = 8  # positions along a side from which a spatial gate can be read


@dataclass(frozen=True)
class Picture:
    """An image to show, uint8 [3, H, W], as its network is fed, float32 [3, H, W], and its class if that is known."""

    pixels: Tensor
    fed: Tensor
    label: int | None
    name: str


@dataclass(frozen=True)
class View:
    """What one network makes of one picture, and its block `layer` with it.

    `before` and `after` are of Grad-CAM around the block, [H, W] from 0 to 1, for the class `label`; None for ABN,
    whose branch is no block. `predicted` is the class that the network finds, `confidence` its probability.
    """

    arm: str
    layer: str
    picture: Picture
    gates: Gates
    before: Tensor | None
    after: Tensor | None
    label: int
    predicted: int
    confidence: float


def finished(dataset: str | None = None) -> list[Run]:
    """The runs with attention, of a data set or of all, that are done and whose last weights are there."""
    return [
        run
        for run in all_runs()[0]
        if dataset in (None, run.config.dataset)
        and run.config.attention not in GATELESS
        and run.result() is not None
        and _weights(run, run.config.epochs).exists()
    ]


def epochs(run: Run) -> list[int]:
    """After how many epochs the network of a finished run is known: 0, as initialised, and those that were kept.

    Raises:
        RunFailed: the run is not done.
    """
    _refuse_unfinished(run)
    last = run.config.epochs
    return [0, *(epoch for epoch in range(1, last + 1) if _weights(run, epoch).exists())]


def network(run: Run, epoch: int | None = None) -> nn.Module:
    """The network of a finished run after its last epoch or another one of `epochs`, in evaluation mode on the CPU.

    Raises:
        RunFailed: the run is not done, or these weights were not kept, or cannot be read.
    """
    _refuse_unfinished(run)
    config = run.config
    epoch = config.epochs if epoch is None else epoch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as training began
        model = build_model(**config.architecture() | ({"weights": None} if epoch else {})).eval()
    if epoch == 0:
        return model
    path = _weights(run, epoch)
    try:
        state = read(path)
        if state["identity"] != config.model_dump() or state["epoch"] != epoch:
            raise ValueError("it is of another run or epoch")
        model.load_state_dict(state["model"])
    except FileNotFoundError:
        there = ", ".join(map(str, epochs(run)))
        raise RunFailed(
            f"{path} is not there: the weights after epoch {epoch} were not kept or are removed; there are those after "
            f"{there}. Remove the folder and the same command trains anew"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise RunFailed(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from None
    return model


def networks(run: Run) -> dict[int, nn.Module]:
    """The networks of a finished run along training, by `epochs`; errors are those of `network`."""
    return {epoch: network(run, epoch) for epoch in epochs(run)}


def _weights(run: Run, epoch: int) -> Path:
    return run.folder / "checkpoint.pt" if epoch == run.config.epochs else kept(run.folder, epoch)


def _refuse_unfinished(run: Run) -> None:
    if run.result() is None:
        raise RunFailed(
            f"{run.folder.name} is {run.status().state}: only the gates of a run that is done are looked at"
        )


@lru_cache(maxsize=2)
def _images(dataset: str, train_fraction: float, evaluate_on: str) -> tuple[Any, Tensor, Tensor]:
    """The images of runs, and the mean and deviation of what they are fed, [3, 1, 1] in units of 0 to 255."""
    images = data.load(dataset, train_fraction, evaluate_on)
    if isinstance(images, data.Images):
        mean, std = mean_and_std(images.train)
    else:
        mean, std = (255 * torch.tensor(value) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return images, mean[:, None, None], std[:, None, None]


def test_size(config: RunConfig) -> int:
    """Number of images that a run was tested on."""
    return len(_images(config.dataset, config.train_fraction, config.evaluate_on)[0].test)


def picture(config: RunConfig, image: int | str | os.PathLike[str] = 0) -> Picture:
    """A picture for the network of a run: one of its test images, or a file of one's own, cropped to their size.

    Args:
        image: index of a test image from 0, or the path of a file. Grey becomes RGB, transparency is dropped.

    Raises:
        ValueError: no such index.
        DatasetError: a file that cannot be read as an image.
    """
    images, mean, std = _images(config.dataset, config.train_fraction, config.evaluate_on)
    if isinstance(image, int) or (isinstance(image, str) and image.isdecimal()):
        index = int(image)
        if not 0 <= index < len(images.test):
            raise ValueError(f"image={image}: allowed: 0 to {len(images.test) - 1}, or the path of a file")
        found = images.test[index]
        pixels = found if isinstance(found, Tensor) else for_test()(data.open_rgb(found))
        label, name = int(images.test_labels[index]), f"{config.evaluate_on} image {index}"
    else:
        path, label = Path(image).expanduser(), None
        opened, name = data.open_rgb(path), path.name
        if isinstance(images, data.Images):
            height, width = images.test.shape[2:]
            opened = np.array(ImageOps.fit(opened, (width, height)))
            pixels = torch.from_numpy(opened).permute(2, 0, 1)
        else:
            pixels = for_test()(opened)
    return Picture(pixels, (pixels.float() - mean) / std, label, name)


def default_layer(gates: Mapping[str, Gates]) -> str:
    """The deepest block whose map still has 8x8 positions, else the first of the largest maps."""
    sides = {name: min(gate.factor.shape[1:]) for name, gate in gates.items()}
    legible = [name for name, side in sides.items() if side >= LEGIBLE]
    return legible[-1] if legible else max(sides, key=lambda name: sides[name])


def look(run: Run, picture: Picture, layer: str | None = None, arm: str = "", model: nn.Module | None = None) -> View:
    """What the network of a finished run makes of a picture. Grad-CAM explains its class, or the one predicted.

    Args:
        layer: name of an attention block; by default see `default_layer`.
        arm: the view's name, by default the run's.
        model: the run's network, where it is there already.

    Raises:
        RunFailed: see `network`.
        ValueError: the network has no such block, or none at all.
    """
    model = network(run) if model is None else model
    gates = read_gates(model, picture.fed)
    layer = _block(gates, layer)
    scores = predict(model, picture.fed)
    predicted = int(scores.argmax())
    label = predicted if picture.label is None else picture.label
    before, after = (None, None) if run.config.attention == "abn" else grad_cam(model, picture.fed, layer, label)
    return View(
        arm or run.config.name, layer, picture, gates[layer], before, after, label, predicted, float(scores[predicted])
    )


def views(plan: Plan, image: int | str | os.PathLike[str] = 0, layer: str | None = None) -> list[View]:
    """One view for every arm with attention, of the first of its runs that is done and has its weights.

    Raises:
        RunFailed: there is no such run.
        ValueError: no such image or layer.
    """
    return [look(run, picture(run.config, image), layer, arm) for arm, run in _of_arms(plan).items()]


def histories(
    plan: Plan, image: int | str | os.PathLike[str] = 0, layer: str | None = None
) -> dict[str, dict[int, Gates]]:
    """The gates of one block along training, by arm and number of epochs; arms and errors are those of `views`."""
    return {arm: history(networks(run), picture(run.config, image), layer) for arm, run in _of_arms(plan).items()}


def figure_name(plan: Plan) -> str:
    """The name of the figures of `views` and, with "-training" behind it, of `histories`."""
    return f"attention_maps-{plan.name.removeprefix(f'{Path(STUDY).stem}-')}"


def history(models: Mapping[int, nn.Module], picture: Picture, layer: str | None = None) -> dict[int, Gates]:
    """The gates of one block for a picture, by the number of epochs after which they were so.

    Args:
        models: of `networks`.
        layer: name of an attention block; by default see `default_layer`.

    Raises:
        ValueError: the network has no such block, or none at all.
    """
    along = {epoch: read_gates(model, picture.fed) for epoch, model in models.items()}
    return {epoch: gates[_block(gates, layer)] for epoch, gates in along.items()}


def _block(gates: Mapping[str, Gates], layer: str | None) -> str:
    layer = layer or default_layer(gates)
    if layer not in gates:
        raise ValueError(f"layer={layer!r}: allowed: {', '.join(gates)}")
    return layer


def _of_arms(plan: Plan) -> dict[str, Run]:
    """The first run of each arm with gates that is done and whose weights can be read; a warning names the others."""
    found: dict[str, Run] = {}
    for arm, configs in plan.arms.items():
        for run in (Run(config) for config in configs if config.attention not in GATELESS):
            if arm in found or run.result() is None:
                continue
            try:
                network(run)
                found[arm] = run
            except RunFailed as error:
                warnings.warn(f"not shown: {error}", stacklevel=3)
    if not found:
        name = plan.study.name if plan.study.name in STUDIES else f"studies/{plan.study.name}.yaml"
        chosen = "".join(f" -p {key}={value}" for key, value in plan.overrides.items())
        command = f"gamlib study {name} --dataset {plan.dataset} --seeds {','.join(map(str, plan.seeds))}{chosen}"
        raise RunFailed(f"no run with attention of {plan.name} is done: `{command}` makes them")
    return found
