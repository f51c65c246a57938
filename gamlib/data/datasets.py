"""Data sets by name: what holds of each before an image is read, and the defaults that a run on it gets.

`digits` lies inside scikit-learn; the others are looked for under `$GAM_DATA`, by default `data/` of the repository.
`imagefolder:PATH` is any tree of class folders, PATH/train/<class>/... and PATH/test/<class>/... (or PATH/val/...),
with PATH absolute or under `$GAM_DATA`. This module knows no torch, so that a configuration is checked at once.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = "imagefolder:"
SMALL = 64  # pixels: images up to this size are kept in memory, larger ones are read by workers
# What torchvision.datasets.ImageFolder takes for an image.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises


class DatasetError(ValueError):
    """Images that are missing or unusable; the message is one line that names the place and what belongs there."""


@dataclass(frozen=True)
class Dataset:
    """What holds of a data set, and the defaults that a run on it gets: those of CIFAR unless it says otherwise."""

    num_classes: int
    train_size: int
    validation_size: int
    held_out: bool = True  # the validation images are taken from the training images, only for those who ask for them
    in_memory: bool = True  # all lie on the training device; else workers read them, cropped to 224x224
    recipe: str = "cifar"
    stem: str = "cifar"
    width: float = 1.0
    pad: int = 4  # pixels of zero padding for random crops in training; 0 for none
    flip: bool = True  # random horizontal flips in training
    workers: int = 0  # processes that read images
    image_size: tuple[int, int] = (32, 32)  # width and height in pixels, as a network gets it
    hash: str | None = None  # of the names and sizes of an image folder's files

    def training_size(self, train_fraction: float, evaluate_on: str) -> int:
        """Number of training images with a fraction of them, and without those that are held out.

        Raises:
            ValueError: a fraction, or a data set, that leaves fewer than one image for each class.
        """
        there = self.train_size - (self.validation_size if self.held_out and evaluate_on == "validation" else 0)
        if there < self.num_classes:
            raise ValueError(f"{there} training images are too few for {self.num_classes} classes")
        kept = round(train_fraction * there)
        if not self.num_classes <= kept <= there:
            raise ValueError(f"train_fraction={train_fraction}: allowed here: {self.num_classes / there:.3g} to 1")
        return kept


_DIGITS = Dataset(
    num_classes=10,
    train_size=200,  # with more the baseline is at a ceiling
    validation_size=699,
    held_out=False,
    recipe="digits",
    stem="imagenet",
    width=0.5,  # a run takes half a minute on one core
    pad=2,
    flip=False,
)
_IMAGENET = Dataset(
    num_classes=1000,
    train_size=1_281_167,
    validation_size=50_000,
    in_memory=False,
    recipe="imagenet",
    stem="imagenet",
    pad=0,
    workers=8,
    image_size=(224, 224),
)
DATASETS = {
    "digits": _DIGITS,
    "cifar10": Dataset(num_classes=10, train_size=50_000, validation_size=5_000),
    "cifar100": Dataset(num_classes=100, train_size=50_000, validation_size=5_000),
    "imagenet": _IMAGENET,
}
NAMES = f"{', '.join(DATASETS)}, {FOLDER}PATH"


def data_root() -> Path:
    """Folder of the data sets: $GAM_DATA, by default `data/` of the repository."""
    return Path(os.environ.get("GAM_DATA") or Path(__file__).resolve().parents[2] / "data").absolute()


def describe(name: str) -> Dataset:
    """What holds of a data set; an image folder is looked at for it.

    Raises:
        DatasetError: an unknown name, or a folder that is no tree of class folders.
    """
    if name in DATASETS:
        return DATASETS[name]
    tree = scan(name)
    classes, size = len(tree.classes), len(tree.train)
    known: dict[str, Any] = {"num_classes": classes, "train_size": size, "hash": tree.hash}
    known["validation_size"] = max(classes, round(size / 10))
    if max(tree.image_size) > SMALL:
        return replace(_IMAGENET, **known)
    return Dataset(**known, pad=max(1, min(tree.image_size) // 8), image_size=tree.image_size)


@dataclass(frozen=True)
class Tree:
    """An image folder: files with the index of their class, in the order of their names."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]
    image_size: tuple[int, int]  # width and height of the first image, in pixels
    hash: str  # of the names and sizes of all files
    stamp: str  # of their times too


def scan(name: str) -> Tree:
    """The files of `imagefolder:PATH`.

    Raises:
        DatasetError: not such a name, a missing folder, a class without images, other classes for the test.
    """
    path = name.removeprefix(FOLDER)
    if path == name or not path:
        raise DatasetError(f"dataset={name!r}: allowed: {NAMES}")
    root = data_root() / Path(path).expanduser()
    test = root / "test" if (root / "test").is_dir() else root / "val"
    for part in (root / "train", test):
        if not part.is_dir():
            raise DatasetError(
                f"dataset={name!r}: no folder {part}; {root} should hold train/<class>/<images> and test/ (or val/) "
                "with the same classes"
            )
    folders = [base for part in (root / "train", test) for base, _, _ in os.walk(part, followlinks=True)]
    return _scan(name, root, test, tuple(os.stat(folder).st_mtime_ns for folder in folders))


@lru_cache(maxsize=8)
def _scan(name: str, root: Path, test: Path, _: tuple[int, ...]) -> Tree:
    """Once a process for a folder as it stands: a study asks for every run."""
    classes, of_test = ([folder.name for folder in _class_folders(part)] for part in (root / "train", test))
    if classes != of_test:
        only = {"train": {*classes} - {*of_test}, test.name: {*of_test} - {*classes}}
        odd = "; ".join(f"only in {part}/: {', '.join(sorted(labels))}" for part, labels in only.items() if labels)
        raise DatasetError(f"dataset={name!r}: training and test must have the same classes; {odd}")
    if len(classes) < 2:
        raise DatasetError(f"dataset={name!r}: {root / 'train'} holds {len(classes)} class folders; allowed: 2 or more")
    names, times = hashlib.sha256(), hashlib.sha256()
    found: dict[Path, list[tuple[Path, int]]] = {root / "train": [], test: []}
    for part, labelled in found.items():
        for index, label in enumerate(classes):
            files = _images(part / label)
            if not files:
                raise DatasetError(f"dataset={name!r}: no image in {part / label}; allowed: {' '.join(ENDINGS)}")
            for file in files:
                status = file.stat()
                line = f"{part.name}/{file.relative_to(part)}\0{status.st_size}\n".encode("utf-8", "surrogateescape")
                names.update(line)
                times.update(line + str(status.st_mtime_ns).encode())
                labelled.append((file, index))
    train, tested = (tuple(files) for files in found.values())
    return Tree(root, tuple(classes), train, tested, _size(train[0][0]), names.hexdigest()[:16], times.hexdigest()[:16])


def _class_folders(part: Path) -> list[Path]:
    return sorted(folder for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """In the order of their paths and without hidden ones, unlike torchvision's `make_dataset`, which needs torch."""
    paths = (Path(base) / name for base, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in paths if path.name.lower().endswith(ENDINGS) and not path.name.startswith("."))


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except UNREADABLE as error:
        raise DatasetError(f"{file} cannot be read as an image: {error}") from None
