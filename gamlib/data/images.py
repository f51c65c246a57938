"""The images of a data set: small ones all in memory, as uint8; large ones as files that workers read.

`digits` is the UCI test set of handwritten digits as it comes inside scikit-learn: 1,797 real grey images of 8x8. CIFAR
comes through torchvision, which downloads it where a network exists and verifies checksums; so are the archives of
ImageNet unpacked.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.data.datasets import DATASETS, DatasetError, Tree, data_root, describe, open_rgb, scan
from gamlib.files import locked, remove_parts, replacing


@dataclass(frozen=True)
class Images:
    """Training and test part: images uint8 [N, 3, H, W], labels int64 [N] from 0 to num_classes - 1."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Files:
    """Training and test part: paths of image files, and their labels int64 [N]."""

    train: Sequence[Path]
    train_labels: Tensor
    test: Sequence[Path]
    test_labels: Tensor


def load(name: str, train_fraction: float = 1.0, evaluate_on: str = "test") -> Images | Files:
    """The images of a data set; with `train_fraction` below 1 a stratified part of the training images.

    The split and the part are the same whatever the seed of a run, so that runs of one data set can be compared image
    by image. With `evaluate_on="validation"` images that are neither for training nor for the test stand in the place
    of the test part: what is chosen, is chosen on those. But for digits they are a tenth of the training images.

    Raises:
        ValueError: a fraction outside (0, 1] or too small for one image of each class.
        DatasetError: an unknown data set, missing data, or an image that cannot be used.
    """
    dataset = describe(name)
    kept = dataset.training_size(train_fraction, evaluate_on)
    images: Images | Files
    if name == "digits":
        images = _digits(evaluate_on)
    elif name.startswith("cifar"):
        images = _cifar(name)
    else:
        tree = _imagenet() if name == "imagenet" else scan(name)
        labels = torch.tensor(tree.train_labels), torch.tensor(tree.test_labels)
        images = Files(tree.train, labels[0], tree.test, labels[1])
        if dataset.in_memory:
            decoded = _decoded(tree)
            images = Images(decoded[: len(tree.train)], labels[0], decoded[len(tree.train) :], labels[1])
    if dataset.held_out and evaluate_on == "validation":
        held_out, rest = stratified(images.train_labels, dataset.validation_size)
        both = [(_pick(images.train, part), images.train_labels[part]) for part in (rest, held_out)]
        images = type(images)(*both[0], *both[1])
    if kept < len(images.train):
        part, _ = stratified(images.train_labels, kept)
        images = replace(images, train=_pick(images.train, part), train_labels=images.train_labels[part])
    return images


def _pick(images: Any, indices: Tensor) -> Any:
    return images[indices] if isinstance(images, Tensor) else [images[index] for index in indices.tolist()]


def prepare(name: str) -> None:
    """Have the images on this machine's disk, checked, before runs start: a cluster's nodes may have no network.

    Raises:
        DatasetError: they are not there and cannot be downloaded.
    """
    describe(name)
    if name.startswith("cifar"):
        _cifar(name)
    elif name == "imagenet":
        _unpack_imagenet()


def stratified(labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices of a stratified part of `size` images, and of the others; always the same ones.

    Every class gives one image at least and its share, the largest one more where shares do not come out even.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rank = torch.empty(len(labels))
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
        rank[members[0]] = 0
    kept = rank.argsort(stable=True)
    return kept[:size], kept[size:]


def _digits(evaluate_on: str) -> Images:
    """898 images are for the test, 200 for training, and 699 for validation (choosing a recipe)."""
    # The file that sklearn.datasets.load_digits reads; importing that would cost every run three seconds.
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DatasetError("dataset='digits': the images lie inside scikit-learn: pip install scikit-learn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    small = torch.from_numpy(table[:, :64]).reshape(-1, 8, 8).float() * (255 / 16)  # from 0 to 16
    large = F.interpolate(small[:, None], size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(table[:, 64].copy())
    rest, test = stratified(labels, len(images) // 2 + 1)
    train, validation = (rest[part] for part in stratified(labels[rest], DATASETS["digits"].train_size))
    shown = validation if evaluate_on == "validation" else test
    return Images(images[train], labels[train], images[shown], labels[shown])


def _cifar(name: str) -> Images:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    root = data_root()
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that others have filled may be read-only
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root / f".{name}.lock"))
        try:
            train, test = (kind(str(root), train=part, download=True) for part in (True, False))
        except (URLError, OSError, RuntimeError, EOFError) as error:
            raise DatasetError(
                f"dataset={name!r}: no whole copy in {root}, and it could not be downloaded; the folder should hold "
                f"{kind.base_folder}/ or {kind.filename} (MD5 {kind.tgz_md5}), from www.cs.toronto.edu/~kriz/cifar.html"
            ) from error
    parts = []
    for part in (train, test):
        parts += [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)]
    return Images(*parts)


def _unpack_imagenet() -> Path:
    """Its folder; what lies there as the original archives is unpacked by torchvision, checked."""
    from torchvision.datasets import ImageNet

    root = data_root() / "imagenet"
    try:
        if not all((root / split).is_dir() for split in ("train", "val")):
            with locked(root / ".lock"):
                for split in ("train", "val"):
                    ImageNet(str(root), split=split)
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"dataset='imagenet': nothing usable in {root}; it should hold train/<wnid>/ and val/<wnid>/, or "
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from www.image-net.org"
        ) from error
    return root


def _imagenet() -> Tree:
    dataset, root = DATASETS["imagenet"], _unpack_imagenet()
    tree = scan("imagenet")
    if len(tree.classes) != dataset.num_classes:
        raise DatasetError(
            f"dataset='imagenet': {len(tree.classes)} class folders in {root}/train; there must be "
            f"{dataset.num_classes}. Another tree of classes is dataset='imagefolder:{root}'"
        )
    for part, files, size in (("train", tree.train, dataset.train_size), ("val", tree.test, dataset.validation_size)):
        if len(files) != size:
            raise DatasetError(f"dataset='imagenet': {len(files):,} images in {root}/{part}; there must be {size:,}")
    return tree


def _decoded(tree: Tree) -> Tensor:
    """The images of a tree as uint8 [N, 3, H, W], decoded once and kept beside them in `.decoded-<stamp>.npz`.

    Two runs that start together: one decodes, the other waits. In a read-only folder every run decodes for itself.
    """
    files, (width, height) = tree.train + tree.test, tree.image_size
    kept = tree.root / f".decoded-{tree.hashes[1]}.npz"
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(locked(tree.root / ".decoded.lock"))
        with suppress(Exception):  # numpy and zipfile raise many kinds for what is damaged, which checksums tell
            images = np.load(kept, allow_pickle=False)["images"]
            if images.dtype == np.uint8 and images.shape == (len(files), 3, height, width):
                return torch.from_numpy(images)
        with ThreadPoolExecutor() as pool:  # PIL lets go of the interpreter while it decodes
            images = np.stack(list(pool.map(lambda file: _small(file, tree.image_size), files)))
        try:
            remove_parts(kept)
            with replacing(kept) as file:
                np.savez(file, images=images)
            for old in set(tree.root.glob(".decoded-*.npz")) - {kept}:
                old.unlink()
        except OSError as error:
            print(f"{kept} cannot be kept ({error.strerror}); every run decodes the images anew", flush=True)
    return torch.from_numpy(images)


def _small(file: Path, size: tuple[int, int]) -> "np.ndarray[Any, Any]":
    image = open_rgb(file)
    if image.size != size:
        raise DatasetError(
            f"{file} has {image.size[0]}x{image.size[1]} pixels and the first image {size[0]}x{size[1]}; small images "
            "must be of one size (if the first is larger than 64 pixels, all are cropped to 224x224)"
        )
    return np.asarray(image).transpose(2, 0, 1)
