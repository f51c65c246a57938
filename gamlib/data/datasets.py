"""Data sets by name: what holds of each before an image is read, and the defaults that a run on it gets.

`digits` lies inside scikit-learn; the others are looked for under `$GAM_DATA`, by default `data/`.
`imagefolder:PATH` is any tree of class folders, PATH/train/<class>/... and PATH/test/<class>/... (or PATH/val/...),
with PATH absolute or under `$GAM_DATA`. This module knows no torch, so that a configuration is checked at once.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamlib.files import folder_of

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "imagefolder:"
SMALL = 64  # pixels: images up to this size are kept in memory, larger ones are read by workers
# What torchvision.datasets.ImageFolder takes for an image.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # PIL's modes of 8 bits a channel


class DatasetError(ValueError):
    """Images that are missing or unusable; the message is one line that names the place and what belongs there."""


@dataclass(frozen=True)
class Dataset:
    """What holds of a data set, and the defaults that a run on it gets: those of CIFAR unless it says otherwise."""

    num_classes: int
    train_size: int
    validation_size: int
    recipe: str = "cifar"
    stem: str = "cifar"
    held_out: bool = True  # the validation images are taken from the training images, only for those who ask for them
    in_memory: bool = True  # all lie on the training device; else workers read them, cropped to 224x224
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


DATASETS = {  # classes, training and validation images, recipe, stem
    # With more training images the baseline is at a ceiling; at this width a run takes half a minute on one core.
    "digits": Dataset(10, 200, 699, "digits", "imagenet", held_out=False, width=0.5, pad=2, flip=False),
    "cifar10": Dataset(10, 50_000, 5_000, "cifar", "cifar"),
    "cifar100": Dataset(100, 50_000, 5_000, "cifar", "cifar"),
    "imagenet": Dataset(
        1000, 1_281_167, 50_000, "imagenet", "imagenet", in_memory=False, pad=0, workers=8, image_size=(224, 224)
    ),
}
NAMES = f"{', '.join(DATASETS)}, {FOLDER}PATH"


def data_root() -> Path:
    """Folder of the data sets: $GAM_DATA, by default `data/` of the repository or, without a clone, from here."""
    return folder_of("data")


def describe(name: str) -> Dataset:
    """What holds of a data set; an image folder is looked at for it.

    Raises:
        DatasetError: an unknown name, or a folder that is no tree of class folders.
    """
    if name in DATASETS:
        return DATASETS[name]
    tree = scan(name)
    known: dict[str, Any] = {"num_classes": len(tree.classes), "train_size": len(tree.train), "hash": tree.hashes[0]}
    known["validation_size"] = max(len(tree.classes), round(len(tree.train) / 10))
    if max(tree.image_size) > SMALL:
        return replace(DATASETS["imagenet"], **known)
    return Dataset(**known, pad=max(1, min(tree.image_size) // 8), image_size=tree.image_size)


@dataclass(frozen=True)
class Tree:
    """Class folders of images: files in the order of their names, with the index of their class."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Path, ...]
    train_labels: tuple[int, ...]
    test: tuple[Path, ...]
    test_labels: tuple[int, ...]

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the first image, in pixels."""
        return open_rgb(self.train[0]).size

    @cached_property
    def hashes(self) -> tuple[str, str]:
        """Of the names and sizes of all files, and of their times too: 16 hexadecimal digits each."""
        names, times = hashlib.sha256(), hashlib.sha256()
        for file in self.train + self.test:
            status = file.stat()
            line = f"{file.relative_to(self.root)}\0{status.st_size}\n".encode("utf-8", "surrogateescape")
            names.update(line)
            times.update(line + str(status.st_mtime_ns).encode())
        return names.hexdigest()[:16], times.hexdigest()[:16]


def scan(name: str) -> Tree:
    """The files of `imagefolder:PATH`, or of `imagenet`.

    Raises:
        DatasetError: not such a name, a missing folder, a class without images, other classes for the test.
    """
    path = name.removeprefix(FOLDER)
    if path in (name, "") and name != "imagenet":
        raise DatasetError(f"dataset={name!r}: allowed: {NAMES}")
    root = data_root() / Path(path).expanduser()
    # ImageNet's own test images have no classes: what the paper tests on is the validation part.
    test = root / ("test" if (root / "test").is_dir() and name != "imagenet" else "val")
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
    classes, of_test = (
        sorted(folder.name for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        for part in (root / "train", test)
    )
    if classes != of_test:
        only = {"train": {*classes} - {*of_test}, test.name: {*of_test} - {*classes}}
        odd = "; ".join(f"only in {part}/: {', '.join(sorted(labels))}" for part, labels in only.items() if labels)
        raise DatasetError(f"dataset={name!r}: training and test must have the same classes; {odd}")
    if len(classes) < 2:
        raise DatasetError(f"dataset={name!r}: {root / 'train'} holds {len(classes)} class folders; allowed: 2 or more")
    listed: list[Any] = []
    for part in (root / "train", test):
        files = [_images(part / label) for label in classes]
        if not all(files):
            empty = part / classes[files.index([])]
            raise DatasetError(f"dataset={name!r}: no image in {empty}; allowed: {' '.join(ENDINGS)}")
        listed.append(tuple(file for of_class in files for file in of_class))
        listed.append(tuple(label for label, of_class in enumerate(files) for _ in of_class))
    return Tree(root, tuple(classes), *listed)


def _images(folder: Path) -> list[Path]:
    """In the order of their paths and without hidden ones, unlike torchvision's `make_dataset`, which needs torch."""
    paths = (Path(base) / name for base, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in paths if path.name.lower().endswith(ENDINGS) and not path.name.startswith("."))


def open_rgb(file: Path) -> "Image.Image":
    """A file as a PIL image in RGB; grey is repeated, transparency dropped.

    Raises:
        DatasetError: the file is no image, is cut short, or is grey with more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in CONVERTED:
                return image.convert("RGB")
            mode = image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{file} cannot be read as an image: {error}") from None
    raise DatasetError(f"{file} has pixels of mode {mode}; allowed: 8 bits a channel ({', '.join(CONVERTED)})")
