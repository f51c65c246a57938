"""Images for the networks of runs: test images, and files of one's own."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ablation.config import RunConfig
from gamlib.data import images as data
from gamlib.data.batches import IMAGENET_MEAN, IMAGENET_STD, for_test, mean_and_std
from gamlib.data.datasets import open_rgb


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


@lru_cache(maxsize=2)
def _images(dataset: str, train_fraction: float, evaluate_on: str) -> tuple[data.Images | data.Files, Tensor, Tensor]:
    """The images of runs, and the mean and deviation that normalise them, [3, 1, 1] in units of 0 to 255."""
    images = data.load(dataset, train_fraction, evaluate_on)
    if isinstance(images, data.Images):
        mean, std = mean_and_std(images.train)
    else:
        mean, std = (255 * torch.tensor(value) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return images, mean[:, None, None], std[:, None, None]
