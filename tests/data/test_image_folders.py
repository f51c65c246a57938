import errno
import multiprocessing
import multiprocessing.synchronize
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gamlib.data import datasets
from gamlib.data import images as data
from gamlib.data.datasets import DatasetError
from gamlib.data.images import Files, Images

NAME = "imagefolder:birds"
Pixels = np.ndarray[Any, Any]
COUNTS = ("train", 3), ("test", 2)
FILES = [f"{part}/{label}/{n}.png" for part, count in COUNTS for label in "ab" for n in range(count)]
LABELS = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]


def pixels(number: int, *shape: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ten RGB images of 8x6, three of either class for training and two for the test."""
    monkeypatch.setenv("GAM_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "birds"
    for number, name in enumerate(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 6, 8, 3)).save(folder / name)
    return folder


def load(*arguments: Any) -> Images:
    """As a process that starts loads."""
    datasets._scan.cache_clear()
    found = data.load(NAME, *arguments)
    assert isinstance(found, Images)
    return found


def expected() -> Pixels:
    """What the files hold, planes first."""
    return np.stack([pixels(number, 6, 8, 3).transpose(2, 0, 1) for number in range(10)])


def whole(images: Images) -> Pixels:
    return torch.cat([images.train, images.test]).numpy()


def kept(root: Path) -> list[Path]:
    return list(root.glob(".decoded-*.npz"))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(file: Path) -> None:
        raise AssertionError(f"{file} was opened")

    monkeypatch.setattr(data, "open_rgb", opened)


def test_a_folders_images_are_its_files_pixels_with_the_labels_of_their_classes(root: Path) -> None:
    found = load()
    assert found.train.dtype == torch.uint8 and found.train_labels.dtype == torch.int64
    assert np.array_equal(whole(found), expected())
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == LABELS


def test_a_folders_validation_images_are_training_images_that_are_held_out(root: Path) -> None:
    held_out = load(1.0, "validation")
    labels = torch.cat([held_out.train_labels, held_out.test_labels]).tolist()
    found = sorted(zip(map(bytes, whole(held_out)), labels, strict=True))
    assert found == sorted(zip(map(bytes, expected()[:6]), LABELS[0], strict=True))
    assert held_out.train_labels.bincount().tolist() == [2, 2] and held_out.test_labels.bincount().tolist() == [1, 1]


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_a_fraction_leaves_images_of_every_class_or_is_refused(root: Path, fraction: float) -> None:
    for number in range(3, 18):  # of the other class there is one
        Image.fromarray(pixels(number, 6, 8, 3)).save(root / "train" / "a" / f"{number}.png")
    for number in (1, 2):
        (root / "train" / "b" / f"{number}.png").unlink()
    with suppress(ValueError):
        assert set(load(fraction).train_labels.tolist()) == {0, 1}


def test_a_folder_of_large_images_is_its_files(root: Path) -> None:
    for number, name in enumerate(FILES):
        Image.fromarray(pixels(number, 40, 65 if name == FILES[0] else 90, 3)).save(root / name)
    datasets._scan.cache_clear()
    found = data.load(NAME)
    assert isinstance(found, Files)
    assert [str(file.relative_to(root)) for file in [*found.train, *found.test]] == FILES
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == LABELS and not kept(root)


GREY, COLOUR, FOUR = pixels(1, 6, 8), pixels(2, 6, 8, 3), pixels(3, 6, 8, 4)
PALETTE = Image.fromarray(GREY % 7, "P")
PALETTE.putpalette(bytes(range(21)))


def multiplied(cmyk: Pixels) -> Pixels:
    light = 255 - cmyk.astype(float)
    return light[..., :3] * light[..., 3:] / 255


@pytest.mark.parametrize(
    ("image", "ending", "rgb"),
    [
        (Image.fromarray(GREY), "png", GREY[..., None].repeat(3, axis=2)),
        (Image.fromarray(GREY), "tif", GREY[..., None].repeat(3, axis=2)),
        (Image.fromarray(FOUR[..., :2].copy(), "LA"), "png", FOUR[..., :1].repeat(3, axis=2)),
        (Image.fromarray(FOUR), "png", FOUR[..., :3]),
        (Image.fromarray(GREY > 127), "png", np.where(GREY > 127, 255, 0)[..., None].repeat(3, axis=2)),
        (PALETTE, "png", np.arange(21).reshape(7, 3)[GREY % 7]),
        (Image.fromarray(FOUR, "CMYK"), "tiff", multiplied(FOUR)),
        (Image.new("CMYK", (8, 6), (200, 100, 0, 50)), "jpg", multiplied(np.full((6, 8, 4), (200, 100, 0, 50)))),
        (Image.new("L", (8, 6), 90), "JPEG", np.full((6, 8, 3), 90)),
    ],
    ids=["grey", "grey tiff", "grey alpha", "alpha", "one bit", "palette", "cmyk tiff", "cmyk jpeg", "grey jpeg"],
)
def test_images_of_other_modes_become_rgb_among_the_others(
    root: Path, image: Image.Image, ending: str, rgb: Pixels
) -> None:
    (root / FILES[4]).unlink()
    other = (root / FILES[4]).with_suffix(f".{ending}")
    image.save(other)
    with Image.open(other) as saved:
        assert saved.mode == image.mode != "RGB"
        assert np.array_equal(np.asarray(datasets.open_rgb(other)), np.asarray(saved.convert("RGB")))
    found = whole(load())
    assert float(np.abs(found[4].transpose(1, 2, 0) - rgb).max()) <= (2 if ending.lower().startswith("jp") else 1)
    assert np.array_equal(np.delete(found, 4, axis=0), np.delete(expected(), 4, axis=0))


def deep(file: Path) -> None:
    Image.fromarray(pixels(0, 6, 8).astype(np.uint16) * 257).save(file)


def cut_short(file: Path) -> None:
    Image.fromarray(pixels(0, 6, 8, 3)).save(file, "JPEG")
    os.truncate(file, file.stat().st_size - 60)


def text(file: Path) -> None:
    file.write_text("no image")


def larger(file: Path) -> None:
    Image.fromarray(pixels(0, 6, 9, 3)).save(file)


@pytest.mark.parametrize("name", [FILES[4], FILES[9]])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (deep, "has pixels of mode I;16; allowed: 8 bits a channel"),
        (cut_short, "cannot be read as an image: "),
        (text, "cannot be read as an image: "),
        (larger, "has 9x6 pixels and the first image 8x6; small images must be of one size"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_by_name_and_nothing_is_kept(
    root: Path, damage: Callable[[Path], None], message: str, name: str
) -> None:
    damage(root / name)
    with pytest.raises(DatasetError) as refused:
        load()
    assert str(refused.value).startswith(f"{root / name} {message}") and "\n" not in str(refused.value)
    assert not [path for path in root.iterdir() if "decoded-" in path.name]


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load()
    assert len(kept(root)) == 1
    forbid(monkeypatch)
    for again in (load(), load(0.5)):
        assert set(map(bytes, again.train.numpy())) <= set(map(bytes, first.train.numpy()))
    assert np.array_equal(whole(load()), expected())


@pytest.mark.parametrize("name", [FILES[0], FILES[9]])
def test_a_file_that_changed_is_decoded_and_the_old_array_removed(root: Path, name: str) -> None:
    (root / name).write_bytes((root / name).read_bytes().ljust(999, b"\0"))
    load()
    (old,) = kept(root)
    before = (root / name).stat()
    Image.fromarray(255 - expected()[FILES.index(name)].transpose(1, 2, 0)).save(root / name)
    (root / name).write_bytes((root / name).read_bytes().ljust(999, b"\0"))
    os.utime(root / name, ns=(0, before.st_mtime_ns + 1))  # of the same length: only its time tells
    assert (root / name).stat().st_size == before.st_size
    changed = expected()
    changed[FILES.index(name)] = 255 - changed[FILES.index(name)]
    assert np.array_equal(whole(load()), changed)
    (new,) = kept(root)
    assert new != old and not old.exists()


def saved(array: Pixels) -> Callable[[bytes], bytes]:
    def content(_: bytes) -> bytes:
        from io import BytesIO

        np.savez(file := BytesIO(), images=array)
        return file.getvalue()

    return content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:70],
        lambda content: b"",
        lambda content: b"no array" * 99,
        lambda content: b"PK\0\0" + content[4:],
        lambda content: content[:-500] + bytes([content[-500] ^ 1]) + content[-499:],
        lambda content: content.replace(b"}", b"{", 1),
        lambda content: content.replace(b"(10,", b"(90,", 1),
        lambda content: content.replace(b"(10,", b"(01,", 1),
        saved(np.zeros((9, 3, 6, 8), np.uint8)),
        saved(np.zeros((10, 3, 8, 6), np.uint8)),
        saved(np.zeros((10, 3, 6, 8), np.float32)),
    ],
    ids=[
        "cut by one",
        "cut header",
        "empty",
        "text",
        "zip",
        "a pixel",
        "brace",
        "long",
        "zero",
        "fewer",
        "turned",
        "floats",
    ],
)
def test_a_kept_array_that_is_damaged_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    load()
    (file,) = kept(root)
    good = file.read_bytes()
    assert damage(good) != good
    file.write_bytes(damage(good))
    assert np.array_equal(whole(load()), expected())
    forbid(monkeypatch)
    assert file.read_bytes() == good and np.array_equal(whole(load()), expected())


@pytest.mark.parametrize("locked", [True, False])
def test_a_folder_that_cannot_be_written_to_is_loaded_and_said_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locked: bool
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_only(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(data, "replacing", full)
    if locked:
        monkeypatch.setattr(data, "locked", read_only)
    for _ in range(2):
        assert np.array_equal(whole(load()), expected())
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{root}/.decoded-") and "cannot be kept (No space left on device)" in line
    assert not kept(root)


def load_in_a_process(start: multiprocessing.synchronize.Barrier, log: Path, out: Path) -> None:
    opened = datasets.open_rgb

    def slowly(file: Path) -> Any:
        with log.open("a") as lines:
            lines.write(f"{file.name}\n")
        time.sleep(0.1)
        return opened(file)

    data.open_rgb = slowly  # type: ignore[attr-defined]
    start.wait(60)
    np.save(out, whole(load()))


@pytest.mark.long
def test_of_two_processes_at_once_one_decodes_and_both_get_the_images(root: Path, tmp_path: Path) -> None:
    spawn, log, outs = multiprocessing.get_context("spawn"), tmp_path / "log", [tmp_path / "0.npy", tmp_path / "1.npy"]
    start = spawn.Barrier(2)
    processes = [spawn.Process(target=load_in_a_process, args=(start, log, out)) for out in outs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert all(np.array_equal(np.load(out), expected()) for out in outs)
    assert len(log.read_text().splitlines()) == len(FILES)
