"""Data sets: their images as uint8 tensors, and what happens to a batch of them.

`digits` is the UCI test set of handwritten digits as it comes inside scikit-learn: 1,797 real grey images of 8x8, each
0 to 16. It needs no download, and with few training images it is hard enough for an ablation to say something.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.training.recipes import DATASETS, training_size


@dataclass(frozen=True)
class Images:
    """Training and test part: images uint8 [N, 3, H, W], labels int64 [N] from 0 to num_classes - 1."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "Images":
        """The same on another device."""
        return Images(*(part.to(device) for part in vars(self).values()))


def load(dataset: str, train_fraction: float = 1.0, evaluate_on: str = "test") -> Images:
    """The images of a data set; with `train_fraction` below 1 a stratified part of the training images.

    The split and the part are the same whatever the seed of a run, so that runs of one data set can be compared image
    by image. With `evaluate_on="validation"` other images that are neither for training nor for the test stand in the
    place of the test part: what is chosen, is chosen on those.

    Raises:
        ValueError: an unknown data set, or a fraction outside (0, 1] or too small for one image of each class.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset={dataset!r}: allowed: {', '.join(DATASETS)}")
    images = _digits(evaluate_on)
    kept = training_size(dataset, train_fraction)
    if kept == len(images.train):
        return images
    train, train_labels = _part(images.train, images.train_labels, kept)[:2]
    return Images(train, train_labels, images.test, images.test_labels)


def _digits(evaluate_on: str) -> Images:
    """Of 1,797 images 898 are for the test, 200 for training, and 699 for validation (choosing a recipe).

    With so few the baseline errs on several per cent; at a ceiling no ablation could say anything.
    """
    # The file that sklearn.datasets.load_digits reads; importing that would cost every run three seconds.
    (package,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    table = np.loadtxt(Path(package) / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    small = torch.from_numpy(table[:, :64]).reshape(-1, 8, 8).float() * (255 / 16)
    large = F.interpolate(small[:, None], size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(table[:, 64].copy())
    rest, rest_labels, test, test_labels = _part(images, labels, len(images) // 2 + 1)
    train, train_labels, validation, validation_labels = _part(rest, rest_labels, DATASETS["digits"].train_size)
    if evaluate_on == "validation":
        return Images(train, train_labels, validation, validation_labels)
    return Images(train, train_labels, test, test_labels)


def _part(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A stratified part of `size` images and the others: images, labels, other images, other labels.

    Every class gives its share, and the largest classes one image more where shares do not come out even.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels))
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
    kept = rank.argsort(stable=True)
    return images[kept[:size]], labels[kept[:size]], images[kept[size:]], labels[kept[size:]]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] to float32 by the mean and standard deviation of the training images ([3], 0 to 255)."""
    return (images.float() - mean[:, None, None]) / std[:, None, None]


def augment(images: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops of the padded images, each its own, and random flips: uint8 [N, 3, H, W] to the same."""
    n, _, height, width = images.shape
    if pad:
        offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator).to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)
        columns = offsets[1] + torch.arange(width, device=images.device)
        padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        picked = padded[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = picked.permute(0, 3, 1, 2)
    if flip:
        flipped = torch.rand(n, generator=generator).to(images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images
