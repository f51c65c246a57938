import hashlib
import io
import pickle
import tarfile
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets as theirs

from gamlib.data import images as data
from gamlib.data.datasets import DATASETS, DatasetError
from gamlib.data.images import Files, Images


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$GAM_DATA, which does not exist yet; and no network."""

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("GAM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def load(name: str, *arguments: Any, **options: Any) -> Images:
    found = data.load(name, *arguments, **options)
    assert isinstance(found, Images)
    return found


def rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_digits_are_scikit_learns_images_each_in_one_part() -> None:
    test, validation = load("digits"), load("digits", evaluate_on="validation")
    assert torch.equal(test.train, validation.train) and torch.equal(test.train_labels, validation.train_labels)
    images = torch.cat([test.train, test.test, validation.test])
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.uint8
    small = torch.from_numpy(load_digits().images).float() * (255 / 16)
    large = torch.nn.functional.interpolate(small[:, None], (32, 32), mode="bilinear").round().to(torch.uint8)
    labels = torch.cat([test.train_labels, test.test_labels, validation.test_labels]).tolist()
    target = load_digits().target.tolist()
    for channel in range(3):
        found = sorted(zip(rows(images[:, channel]), labels, strict=True))
        assert found == sorted(zip(rows(large[:, 0]), target, strict=True))


def test_parts_of_digits_are_stratified_and_the_same_every_time() -> None:
    first, again = load("digits"), load("digits")
    assert torch.equal(first.test, again.test) and torch.equal(first.train_labels, again.train_labels)
    assert first.train_labels.bincount().tolist() == [20] * 10
    shares = first.test_labels.bincount() / torch.from_numpy(load_digits().target).bincount()
    assert float(shares.max() - shares.min()) < 0.02


def test_a_fraction_of_digits_keeps_every_class_and_leaves_the_test_alone() -> None:
    part, whole = load("digits", 0.25), load("digits")
    assert part.train_labels.bincount().tolist() == [5] * 10 and set(rows(part.train)) < set(rows(whole.train))
    assert torch.equal(part.test, whole.test)


@pytest.mark.parametrize(("arguments", "message"), [(("mnist",), "allowed: digits"), (("digits", 0.01), "0.05 to 1")])
def test_a_bad_value_is_refused(arguments: tuple[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(*arguments)


@pytest.mark.parametrize("name", ["mnist", "cifar5"])
def test_an_unknown_data_set_cannot_be_prepared(name: str) -> None:
    with pytest.raises(DatasetError, match=f"dataset='{name}': allowed: digits"):
        data.prepare(name)


def test_cifar_is_refused_where_its_folder_cannot_be_made(root: Path) -> None:
    root.write_text("no folder")
    with pytest.raises(DatasetError, match=f"in {root}"):
        data.prepare("cifar10")


@dataclass(frozen=True)
class Cifar:
    """What lies in an archive that was made as CIFAR's are: names and contents, and the pixels planes first."""

    name: str
    folder: Path
    archive: Path
    md5: str
    batch: Path  # a file of the unpacked folder
    images: dict[str, np.ndarray[Any, Any]]
    labels: dict[str, list[int]]


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    """A small CIFAR in the real one's place, 400 and 50 images, with torchvision expecting its checksums."""
    kind, ten = (theirs.CIFAR10, True) if request.param == "cifar10" else (theirs.CIFAR100, False)
    classes = 10 if ten else 100
    draw = np.random.default_rng(classes)
    images = {part: draw.integers(0, 256, (n, 3072), dtype=np.uint8) for part, n in (("train", 400), ("test", 50))}
    labels = {part: draw.permutation(np.arange(len(these)) % classes).tolist() for part, these in images.items()}
    entries: dict[str, dict[str, Any]] = {}
    for part, number in (("train", 5 if ten else 1), ("test", 1)):
        chunks = zip(np.split(images[part], number), np.split(np.array(labels[part]), number), strict=True)
        for n, (pixels, own) in enumerate(chunks, 1):
            name = (f"data_batch_{n}" if part == "train" else "test_batch") if ten else part
            coarse = {} if ten else {"coarse_labels": [0] * len(own)}
            entries[name] = {"data": pixels, "labels" if ten else "fine_labels": own.tolist()} | coarse
    meta = "batches.meta" if ten else "meta"
    entries[meta] = {kind.meta["key"]: [f"class {label}" for label in range(classes)]}
    root.mkdir()
    md5s = {}
    with tarfile.open(root / kind.filename, "w:gz", compresslevel=1) as archive:
        for name, entry in entries.items():
            content = pickle.dumps(entry, protocol=2)
            md5s[name] = hashlib.md5(content).hexdigest()
            (info := tarfile.TarInfo(f"{kind.base_folder}/{name}")).size = len(content)
            archive.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5((root / kind.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "tgz_md5", md5)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, md5s[name]] for name, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5s[meta]})
    monkeypatch.setitem(DATASETS, request.param, replace(DATASETS[request.param], train_size=400, validation_size=100))
    folder = root / kind.base_folder
    planes = {part: these.reshape(-1, 3, 32, 32) for part, these in images.items()}
    batch = folder / kind.train_list[-1][0]
    return Cifar(request.param, folder, root / kind.filename, md5, batch, planes, labels)


def test_cifars_pixels_and_labels_come_through_as_they_are_in_the_archive(cifar: Cifar) -> None:
    data.prepare(cifar.name)
    cifar.archive.unlink()  # what was unpacked is enough
    found = load(cifar.name)
    assert found.train.dtype == torch.uint8 and found.train_labels.dtype == torch.int64
    for images, labels, part in ((found.train, found.train_labels, "train"), (found.test, found.test_labels, "test")):
        assert np.array_equal(images.numpy(), cifar.images[part]) and labels.tolist() == cifar.labels[part]


def test_the_validation_images_of_cifar_are_a_fixed_stratified_part_of_the_training_images(cifar: Cifar) -> None:
    whole, split, again = (load(cifar.name, evaluate_on=on) for on in ("test", "validation", "validation"))
    assert torch.equal(split.train, again.train) and torch.equal(split.test, again.test)
    labelled = dict(zip(rows(whole.train), cifar.labels["train"], strict=True))
    train, validation = rows(split.train), rows(split.test)
    assert set(train) | set(validation) == set(labelled) and not set(train) & set(validation)
    assert [labelled[row] for row in train + validation] == split.train_labels.tolist() + split.test_labels.tolist()
    classes = DATASETS[cifar.name].num_classes
    assert split.train_labels.bincount().tolist() == [300 // classes] * classes
    assert split.test_labels.bincount().tolist() == [100 // classes] * classes
    part = load(cifar.name, 2 / 3, "validation")
    assert part.train_labels.bincount().tolist() == [200 // classes] * classes
    assert set(rows(part.train)) < set(train) and torch.equal(part.test, split.test)
    assert [labelled[row] for row in rows(part.train)] == part.train_labels.tolist()


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["archive", "batch", "nothing there"])
def test_cifar_that_is_damaged_or_missing_is_refused_by_what_belongs_there(cifar: Cifar, damage: str) -> None:
    if damage == "batch":
        data.prepare(cifar.name)
        flip_a_byte(cifar.batch)
    if damage == "archive":
        flip_a_byte(cifar.archive)
    else:
        cifar.archive.unlink()
    for refused in (data.prepare, data.load):
        with pytest.raises(DatasetError) as error:
            refused(cifar.name)
        text = str(error.value)
        assert text.startswith(f"dataset={cifar.name!r}: ") and "\n" not in text
        for place in (f"in {cifar.archive.parent},", f"{cifar.folder.name}/ or {cifar.archive.name} (MD5 {cifar.md5})"):
            assert place in text


def test_a_damaged_batch_of_cifar_is_unpacked_anew_from_a_good_archive(cifar: Cifar) -> None:
    data.prepare(cifar.name)
    flip_a_byte(cifar.batch)
    assert np.array_equal(load(cifar.name).train.numpy(), cifar.images["train"])


def grow(folder: Path, files: list[str], size: tuple[int, int] = (8, 6)) -> None:
    """A tree of images of random pixels."""
    for number, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def leaves(parts: tuple[str, str], train: int, test: int) -> list[str]:
    """So many files in either class of two."""
    counts = zip(parts, (train, test), strict=True)
    return [f"{part}/{label}/{n}.png" for part, count in counts for label in "ab" for n in range(count)]


def test_imagenet_is_refused_where_it_is_missing_or_of_another_size(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "imagenet"
    belongs = rf"nothing usable in {folder}; it should hold train/<wnid>/ and val/<wnid>/, or ILSVRC2012_img_train.tar"
    for _ in range(2):
        for refused in (data.load, data.prepare):
            with pytest.raises(DatasetError, match=belongs):
                refused("imagenet")
        folder.mkdir(parents=True, exist_ok=True)  # the second time it is there and empty
    grow(folder, leaves(("train", "val"), 3, 2))
    with pytest.raises(DatasetError, match=rf"2 class folders in {folder}/train; there must be 1000.*r:{folder}'"):
        data.load("imagenet")
    for train_size, validation_size, refusal in (
        (7, 4, "6 images in .*train; there"),
        (6, 5, "4 images in .*val; there"),
    ):
        small = replace(DATASETS["imagenet"], num_classes=2, train_size=train_size, validation_size=validation_size)
        monkeypatch.setitem(DATASETS, "imagenet", small)
        with pytest.raises(DatasetError, match=refusal):
            data.load("imagenet")
    (folder / "val" / "b" / "0.png").rename(folder / "0.png")
    (folder / "val" / "b" / "1.png").unlink()
    with pytest.raises(DatasetError, match=rf"dataset='imagenet': no image in {folder}/val/b; allowed"):
        data.load("imagenet")


def test_imagenet_is_files_with_its_validation_folder_as_the_test(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(DATASETS["imagenet"], num_classes=2, train_size=20, validation_size=4)
    monkeypatch.setitem(DATASETS, "imagenet", small)
    grow(root / "imagenet", leaves(("train", "val"), 10, 2))
    (root / "imagenet" / "test").mkdir()  # of images without classes
    whole, held_out, part = data.load("imagenet"), data.load("imagenet", 1.0, "validation"), data.load("imagenet", 0.5)
    assert isinstance(whole, Files) and isinstance(held_out, Files) and isinstance(part, Files)
    assert sorted(whole.train) == sorted((root / "imagenet" / "train").glob("*/*"))
    assert sorted(whole.test) == sorted((root / "imagenet" / "val").glob("*/*"))
    for found, train, test in ((whole, 20, 4), (held_out, 16, 4), (part, 10, 4)):
        assert (len(found.train), len(found.test)) == (train, test)
        for paths, labels in ((found.train, found.train_labels), (found.test, found.test_labels)):
            assert ["ab".index(path.parent.name) for path in paths] == labels.tolist()
            assert labels.bincount().tolist() == [len(paths) // 2] * 2
    assert sorted([*held_out.train, *held_out.test]) == sorted(whole.train) and set(part.train) < set(whole.train)
