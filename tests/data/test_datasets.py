import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from ablation.config import RunConfig
from gamlib.data import datasets
from gamlib.data.datasets import DATASETS, DatasetError, describe, scan
from gamlib.training.recipes import RECIPES

CLASSES = [f"{part}/{label}/0.png" for part in ("train", "test") for label in "ab"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the data set `imagefolder:birds`, not made yet."""
    monkeypatch.setenv("GAM_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "birds"


def grow(root: Path, files: Iterable[str] = CLASSES, size: tuple[int, int] = (8, 8)) -> None:
    """A tree of images of one colour, their folders long at rest; a name that ends in / is an empty folder."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir()
        elif name.endswith((".png", ".jpg", ".JPEG")):
            Image.new("RGB", size).save(root / name)
        else:
            (root / name).write_text("no image")
    for folder in (path for path in root.rglob("*") if path.is_dir()):
        os.utime(folder, (1, 1))


def scan_anew(name: str = "imagefolder:birds") -> datasets.Tree:
    """As another process scans."""
    datasets._scan.cache_clear()
    return scan(name)


def names(tree: datasets.Tree) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    def listed(files: tuple[Path, ...], labels: tuple[int, ...]) -> list[tuple[str, int]]:
        return [(str(file.relative_to(tree.root)), at) for file, at in zip(files, labels, strict=True)]

    return listed(tree.train, tree.train_labels), listed(tree.test, tree.test_labels)


def test_the_data_lie_under_gam_data_or_in_the_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert datasets.data_root() == root.parent
    monkeypatch.delenv("GAM_DATA")
    assert datasets.data_root() == Path(__file__).resolve().parents[2] / "data"


def test_a_tree_gives_its_files_by_name_with_the_index_of_their_class(root: Path) -> None:
    grow(root, [*CLASSES, "train/b/10.png", "train/b/9.jpg", "train/a/deep/er/1.JPEG"])
    tree = scan("imagefolder:birds")
    assert tree.classes == ("a", "b") and tree.image_size == (8, 8)
    train = [("a/0.png", 0), ("a/deep/er/1.JPEG", 0), ("b/0.png", 1), ("b/10.png", 1), ("b/9.jpg", 1)]
    assert names(tree) == (
        [(f"train/{name}", label) for name, label in train],
        [("test/a/0.png", 0), ("test/b/0.png", 1)],
    )


def test_hidden_files_and_those_that_are_no_images_are_left_out(root: Path) -> None:
    grow(root)
    bare = names(scan("imagefolder:birds"))
    rest = ["train/a/.0.png", "train/a/notes.txt", "train/.cache/0.png", "train/list.png", "train/a/png", "c/"]
    grow(root, rest)
    assert names(scan_anew()) == bare


def test_val_stands_for_test_only_where_there_is_no_test(root: Path) -> None:
    grow(root, ["train/a/0.png", "train/b/0.png", "val/a/1.png", "val/b/1.png"])
    assert names(scan("imagefolder:birds"))[1] == [("val/a/1.png", 0), ("val/b/1.png", 1)]
    grow(root)
    assert names(scan("imagefolder:birds"))[1] == [("test/a/0.png", 0), ("test/b/0.png", 1)]


def test_a_path_is_absolute_or_under_gam_data_or_at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(root)
    monkeypatch.setenv("HOME", str(root.parent))
    relative = scan("imagefolder:birds")
    for name in (f"imagefolder:{root}", "imagefolder:~/birds"):
        assert scan(name).root == relative.root == root and scan(name).hashes == relative.hashes
    grow(root.parent / "deep" / "birds")
    assert scan("imagefolder:deep/birds").root == root.parent / "deep" / "birds"


TRAIN = ["train/a/0.png", "train/b/0.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no folder {root}/train; {root} should hold train/<class>/<images> and test/ (or val/)"),
        (["test/a/0.png"], "no folder {root}/train; {root} should hold"),
        (TRAIN, "no folder {root}/val; {root} should hold"),
        ([*CLASSES, "train/c/readme.txt", "test/c/0.png"], "no image in {root}/train/c; allowed: .jpg"),
        ([*CLASSES, "train/c/0.png", "test/c/"], "no image in {root}/test/c; allowed: .jpg"),
        ([*CLASSES, "train/d/0.png", "train/c/0.png"], "the same classes; only in train/: c, d"),
        ([*CLASSES, "test/d/0.png"], "the same classes; only in test/: d"),
        ([*TRAIN, "val/b/0.png", "val/c/0.png"], "the same classes; only in train/: a; only in val/: c"),
        (["train/a/0.png", "test/a/0.png"], "{root}/train holds 1 class folders; allowed: 2 or more"),
        (["train/0.png", "test/0.png"], "{root}/train holds 0 class folders; allowed: 2 or more"),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused_by_what_is_missing(root: Path, files: list[str], message: str) -> None:
    grow(root, files)
    with pytest.raises(DatasetError) as refused:
        describe("imagefolder:birds")
    text = str(refused.value)
    assert text.startswith("dataset='imagefolder:birds': ") and message.format(root=root) in text and "\n" not in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("0.png", b"no image"),
        ("0.ppm", b"P6 8 x8 255\n"),
        ("0.bmp", b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\0\0\1\0" * 2 + b"\1\0\x18\0" + bytes(24)),
    ],
    ids=["text", "letters in the size", "four billion pixels"],
)
def test_a_first_image_that_cannot_be_read_is_refused_by_name(root: Path, file: str, content: bytes) -> None:
    grow(root, [*CLASSES[1:], "train/a/"])
    (root / "train" / "a" / file).write_bytes(content)
    with pytest.raises(DatasetError) as refused:
        describe("imagefolder:birds")
    assert str(refused.value).startswith(f"{root}/train/a/{file} cannot be read as an image: ")


@pytest.mark.parametrize("name", ["mnist", "imagefolder", "imagefolder:", ""])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(DatasetError) as refused:
        describe(name)
    allowed = "allowed: digits, cifar10, cifar100, imagenet, imagefolder:PATH"
    assert str(refused.value) == f"dataset={name!r}: {allowed}"


def append(file: Path) -> None:
    times = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(times, times))


def rename(file: Path) -> None:
    file.rename(file.with_name("1.png"))


def touch(file: Path) -> None:
    os.utime(file, (2, 2))


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("change", "other_hash"), [(append, True), (rename, True), (touch, False)])
def test_the_first_hash_follows_names_and_sizes_and_the_second_times_too(
    root: Path, part: str, change: Callable[[Path], None], other_hash: bool
) -> None:
    grow(root)
    before = scan_anew().hashes
    assert scan_anew().hashes == before
    change(root / part / "b" / "0.png")
    after = scan_anew().hashes
    assert (after[0] != before[0]) == other_hash
    assert after[1] != before[1]


def test_a_file_that_changes_its_class_changes_the_hash(root: Path) -> None:
    grow(root, ["train/a/0.png", "train/a/1.png", "train/b/2.png", *CLASSES[2:]])
    before = scan_anew().hashes[0]
    (root / "train" / "a" / "1.png").rename(root / "train" / "b" / "1.png")
    assert scan_anew().hashes[0] != before


@pytest.mark.parametrize("new", ["train/b/1.png", "test/b/1.png", "train/b/deep/1.png"])
def test_a_file_that_comes_is_seen_in_the_same_process(root: Path, new: str) -> None:
    grow(root, [*CLASSES, "train/b/deep/0.png"])
    before = describe("imagefolder:birds")
    Image.new("RGB", (8, 8)).save(root / new)
    after = describe("imagefolder:birds")
    assert after.train_size - before.train_size == (1 if new.startswith("train") else 0)
    assert after.hash != before.hash


@pytest.mark.parametrize(
    ("size", "style", "pad"),
    [
        ((32, 32), "cifar10", 4),
        ((64, 16), "cifar10", 2),
        ((4, 5), "cifar10", 1),
        ((64, 64), "cifar10", 8),
        ((65, 64), "imagenet", 0),
        ((20, 65), "imagenet", 0),
    ],
)
def test_small_images_get_cifars_defaults_and_large_ones_imagenets(
    root: Path, size: tuple[int, int], style: str, pad: int
) -> None:
    grow(root, [*CLASSES, *(f"train/a/{number}.png" for number in range(1, 35))], size)
    found = describe("imagefolder:birds")
    own = {
        "num_classes": 2,
        "train_size": 36,
        "validation_size": 4,
        "pad": pad,
        "hash": scan("imagefolder:birds").hashes[0],
    }
    own["image_size"] = size if style == "cifar10" else (224, 224)
    assert vars(found) == vars(DATASETS[style]) | own
    assert found.in_memory == (style == "cifar10")


def test_the_validation_part_has_room_for_every_class(root: Path) -> None:
    labels = [f"c{number}" for number in range(7)]
    grow(root, [f"{part}/{label}/{n}.png" for part in ("train", "test") for label in labels for n in range(3)])
    assert describe("imagefolder:birds").validation_size == 7


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagenet"])
def test_a_known_data_set_has_a_recipe_and_no_hash(name: str) -> None:
    assert describe(name).recipe in RECIPES and describe(name).hash is None


@pytest.mark.parametrize(
    ("name", "fraction", "evaluate_on", "size"),
    [
        ("digits", 1.0, "validation", 200),  # whose validation images are no training images anyway
        ("digits", 0.05, "test", 10),
        ("cifar100", 1.0, "test", 50_000),
        ("cifar100", 1.0, "validation", 45_000),
        ("cifar10", 0.5, "validation", 22_500),
        ("cifar100", 0.002, "test", 100),
        ("imagenet", 1.0, "test", 1_281_167),
        ("imagenet", 0.1, "validation", 123_117),
    ],
)
def test_the_training_size_is_a_fraction_of_what_is_not_held_out(
    name: str, fraction: float, evaluate_on: str, size: int
) -> None:
    assert describe(name).training_size(fraction, evaluate_on) == size


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.5, -0.5])
def test_a_fraction_with_fewer_images_than_classes_or_more_than_there_are_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"train_fraction={fraction}: allowed here: 0\.002 to 1"):
        describe("cifar100").training_size(fraction, "test")


def test_a_tree_without_images_for_training_and_validation_is_refused_in_words(root: Path) -> None:
    grow(root)  # one training image a class: held out for validation, nothing is left
    assert describe("imagefolder:birds").training_size(1.0, "test") == 2
    with pytest.raises(ValueError, match=r"0 training images are too few for 2 classes"):
        describe("imagefolder:birds").training_size(1.0, "validation")


@pytest.mark.parametrize(("name", "folder"), [("cifar100", "cifar100"), ("imagefolder:birds", "imagefolder-birds")])
def test_a_name_becomes_that_of_one_folder(name: str, folder: str) -> None:
    assert RunConfig.recorded({"dataset": name}).dataset_name == folder


def test_two_paths_never_share_the_name_of_a_folder() -> None:
    paths = ["a-b", "a/b", "../a/b", "./a/b", "/a/b", "a/../b", "~/a/b", "~a/b", "a:b", "a/b/", "a//b"]
    names = [RunConfig.recorded({"dataset": f"imagefolder:{path}"}).dataset_name for path in paths]
    assert len(set(names)) == len(paths)
    assert names[0] == "imagefolder-a-b" and all(name.startswith("imagefolder-") for name in names)
    assert all("/" not in name and ":" not in name for name in names)
