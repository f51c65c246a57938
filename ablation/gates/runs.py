"""The networks of finished runs, as initialised, along training and at its end, and images to look at through them."""

import os
import shlex
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from ablation.config import RunConfig
from ablation.runs import Run, RunFailed
from ablation.studies import Plan
from ablation.study_files import OF_THE_PROJECT, PAPER_STUDIES
from gamlib.backbones import build_model
from gamlib.data import images as data
from gamlib.data.batches import FromFiles, FromMemory, for_test
from gamlib.data.datasets import open_rgb
from gamlib.training.checkpoint import kept, read, weights_of

GATELESS = ("none", "gam_no_gate")


def runs_by_arm(plan: Plan) -> dict[str, Run]:
    """The first run of each arm with attention that is done and whose weights can be read; a warning names the others.

    Raises:
        RunFailed: there is no such run.
    """
    found: dict[str, Run] = {}
    for arm, configs in plan.arms.items():
        for run in (Run(config) for config in configs if config.attention not in GATELESS):
            if arm in found or run.result() is None:
                continue
            try:
                load_network(run)
                found[arm] = run
            except RunFailed as error:
                warnings.warn(f"not shown: {error}", stacklevel=2)
    if not found:
        name, by_file = plan.study.name, OF_THE_PROJECT - {*PAPER_STUDIES}
        command = ["gamlib", "study", f"studies/{name}.yaml" if name in by_file else name, "--dataset", plan.dataset]
        command += ["--seeds", ",".join(map(str, plan.seeds))]
        command += [part for key, value in plan.overrides.items() for part in ("-p", f"{key}={value}")]
        raise RunFailed(f"no run with attention of {plan.name} is done: `{shlex.join(command)}` makes them")
    return found


def epochs_of(run: Run) -> list[int]:
    """After how many epochs the network of a finished run is known: 0, as initialised, and those that were kept.

    Raises:
        RunFailed: the run is not done.
    """
    if run.result() is None:
        raise RunFailed(f"{run.folder.name} is {run.status().state}: only the gates of a run that is done can be read")
    return [0, *(epoch for epoch in range(1, run.config.epochs + 1) if _weights(run, epoch).exists())]


def load_network(run: Run, epoch: int | None = None) -> nn.Module:
    """The network of a finished run after its last epoch or another one of `epochs_of`, in evaluation mode on the CPU.

    Raises:
        RunFailed: the run is not done, or these weights were not kept, or cannot be read.
    """
    config, known = run.config, epochs_of(run)
    epoch = config.epochs if epoch is None else epoch
    path = _weights(run, epoch)
    if epoch not in known:
        raise RunFailed(
            f"{path} is not there: the weights after epoch {epoch} were not kept or are removed; there are those after "
            f"{', '.join(map(str, known))}. Remove the folder and the same command trains anew"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as training began
        network = build_model(**run.architecture() | ({"weights": None} if epoch else {})).eval()
    if epoch == 0:
        return network
    try:
        state = read(path)
        if state["identity"] != config.identity() or state["epoch"] != epoch:
            raise ValueError("it is of another run or epoch")
        network.load_state_dict(weights_of(state))
    except (OSError, ValueError, RuntimeError) as error:
        raise RunFailed(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from None
    return network


def _weights(run: Run, epoch: int) -> Path:
    return run.folder / "checkpoint.pt" if epoch == run.config.epochs else kept(run.folder, epoch)


@dataclass(frozen=True)
class Sample:
    """An image, uint8 [3, H, W], normalised as a network takes it, float32 [3, H, W], and its class if it is known."""

    image: Tensor
    input: Tensor
    label: int | None
    name: str


def load_sample(config: RunConfig, image: int | str | os.PathLike[str] = 0) -> Sample:
    """One of the test images of a run, or a file of one's own, cropped to their size.

    Args:
        image: index of a test image from 0, or the path of a file. Grey becomes RGB, transparency is dropped.

    Raises:
        ValueError: no such index.
        DatasetError: a file that cannot be read as an image.
    """
    images, mean, std = _images(config.dataset, config.train_fraction, config.evaluate_on)
    if isinstance(image, int) or str(image).isdecimal():
        index = int(image)  # type: ignore[arg-type]
        if not 0 <= index < len(images.test):
            raise ValueError(f"image={image}: allowed: 0 to {len(images.test) - 1}, or the path of a file")
        found, label, name = images.test[index], int(images.test_labels[index]), f"{config.evaluate_on} image {index}"
    else:
        found, label, name = Path(image).expanduser(), None, Path(image).name
    if isinstance(found, Path):
        opened = open_rgb(found)
        if isinstance(images, data.Images):
            height, width = images.test.shape[2:]
            found = pil_to_tensor(ImageOps.fit(opened, (width, height)))
        else:
            found = for_test()(opened)
    return Sample(found, (found.float() - mean) / std, label, name)


def image_count(config: RunConfig) -> int:
    """Number of images that a run was tested on."""
    return len(_images(config.dataset, config.train_fraction, config.evaluate_on)[0].test)


def normalisation(config: RunConfig) -> tuple[Tensor, Tensor]:
    """The mean and the deviation that normalise a run's images, [3, 1, 1], in units of 0 to 255.

    Raises:
        DatasetError: its images are not there.
    """
    _, mean, std = _images(config.dataset, config.train_fraction, config.evaluate_on)
    return mean, std


@lru_cache(maxsize=2)
def _images(dataset: str, train_fraction: float, evaluate_on: str) -> tuple[data.Images | data.Files, Tensor, Tensor]:
    """The images of runs, and the mean and deviation that normalise them, [3, 1, 1] in units of 0 to 255."""
    images = data.load(dataset, train_fraction, evaluate_on)
    source: Any = FromMemory if isinstance(images, data.Images) else FromFiles
    batches = source(images, torch.device("cpu"), seed=0)
    return images, batches.mean, batches.std
