import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gamlib.data import batches
from gamlib.data.batches import IMAGENET_MEAN, IMAGENET_STD, Batches, FromFiles, FromMemory, crop, seed_of, sizes
from gamlib.data.datasets import DatasetError
from gamlib.data.images import Files, Images

CPU = torch.device("cpu")
TRAIN, TEST = 13, 7
Source = Callable[..., Batches]


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def images() -> Images:
    """Small images, their labels their numbers; higher than wide, so that an exchange would show."""
    return Images(pixels(TRAIN, 3, 9, 6), torch.arange(TRAIN), pixels(TEST, 3, 9, 6), torch.arange(TEST))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Images whose red rises to the right, green downwards, blue with their number; their labels are that number."""
    folder, paths = tmp_path_factory.mktemp("files"), []
    across, down = np.meshgrid(np.arange(100), np.arange(80))
    for number in range(TRAIN + TEST):
        image = np.stack([2 * across, 3 * down, np.full_like(down, 10 * number)], axis=2).astype(np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(image if number % 2 else image.transpose(1, 0, 2)[:, ::-1].copy()).save(paths[-1])
    return Files(paths[:TRAIN], torch.arange(TRAIN), paths[TRAIN:], torch.arange(TEST))


@pytest.fixture(params=["memory", "files"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, images: Images, files: Files) -> Source:
    """Makes either kind of source, with test batches of 4."""
    monkeypatch.setattr(batches, "EVALUATION_BATCH", 4)
    monkeypatch.setattr(batches, "STREAMED_EVALUATION_BATCH", 4)

    def made(seed: int = 5, **options: Any) -> Batches:
        if request.param == "memory":
            return FromMemory(images, CPU, seed=seed, **{"pad": 2, "flip": True, **options})
        return FromFiles(files, CPU, seed=seed, **{"workers": 0, "size": 32, **options})

    return made


Pairs = list[tuple[Tensor, Tensor]]


def same(found: Iterator[tuple[Tensor, Tensor]] | Pairs, expected: Iterator[tuple[Tensor, Tensor]] | Pairs) -> bool:
    """The same batches, bit by bit."""
    pairs = list(found), list(expected)
    return len(pairs[0]) == len(pairs[1]) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(*pairs, strict=True)
    )


def joined(found: Iterator[tuple[Tensor, Tensor]] | Pairs) -> tuple[Tensor, Tensor]:
    parts = list(found)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_a_seed_follows_from_all_its_numbers_in_their_order_and_fits_a_generator() -> None:
    assert (seed_of(0), seed_of(0, 1), seed_of(1, 2, 3)) == (
        5254295370254170289,  # what runs in the middle were started with: never to change
        5973285143095172824,
        8064461727618995781,
    )
    many = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)] + [(1, 23), (12, 3), (123,), ()]
    seeds = {seed_of(*numbers) for numbers in many}
    assert len(seeds) == len(many) and all(0 <= seed < 2**63 for seed in seeds)
    assert torch.Generator().manual_seed(max(seeds)).initial_seed() == max(seeds)


def test_neighbouring_seeds_have_half_of_their_bits_in_common() -> None:
    differing = [(seed_of(0, n) ^ seed_of(0, n + 1)).bit_count() for n in range(200)]
    assert 30 < sum(differing) / 200 < 33 and min(differing) > 10


@pytest.mark.parametrize(
    ("total", "size", "expected"),
    [(64, 32, [32, 32]), (65, 32, [32, 32]), (66, 32, [32, 32, 2]), (5, 32, [5]), (1, 32, []), (3, 2, [2])],
)
def test_an_epoch_has_whole_batches_and_a_rest_of_two_or_more(total: int, size: int, expected: list[int]) -> None:
    assert sizes(total, size) == expected


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_crops_are_slices_at_their_offsets_mirrored_where_asked(pad: int) -> None:
    padded = pixels(10, 9 + 2 * pad, 6 + 2 * pad, 3)
    generator = torch.Generator().manual_seed(pad)
    picked = torch.tensor([7, 0, 7, 3, 9, 1, 1, 2])
    offsets = torch.randint(0, 2 * pad + 1, (2, 8), generator=generator)
    flips = torch.tensor([0, 1, 1, 0, 1, 0, 1, 0]).bool()
    found = crop(padded, picked, offsets, flips, pad)
    assert found.shape == (8, 3, 9, 6) and found.is_contiguous(memory_format=torch.channels_last)
    for n, (index, row, column, flip) in enumerate(
        zip(picked.tolist(), *offsets.tolist(), flips.tolist(), strict=True)
    ):
        one = padded.numpy()[index][row : row + 9, column : column + 6]
        assert np.array_equal(found[n].numpy().transpose(1, 2, 0), one[:, ::-1] if flip else one)


def test_mean_and_deviation_are_those_of_double_precision_and_one_for_a_constant_channel() -> None:
    images = pixels(50, 3, 9, 6)
    images[:, 1] = images[:, 1] // 200 + 250  # nearly constant, where a difference of squares fails
    images[:, 2] = 77
    mean, std = batches.mean_and_std(images)
    expected, true = torch.std_mean(images.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), true, rtol=1e-7, atol=0)
    torch.testing.assert_close(std[:2].double(), expected[:2], rtol=1e-6, atol=0)
    assert mean.dtype == std.dtype == torch.float32 and expected[2] == 0 and std[2] == 1


def test_every_image_comes_once_an_epoch(source: Source) -> None:
    assert [len(labels) for _, labels in source().train(0, 5)] == [5, 5, 3]
    for epoch in (0, 7):
        assert sorted(joined(source().train(epoch, 5))[1].tolist()) == list(range(TRAIN))


def test_one_image_that_would_be_alone_in_a_batch_is_left_out(source: Source) -> None:
    assert [len(labels) for _, labels in source().train(0, 4)] == [4, 4, 4]
    assert len(set(joined(source().train(0, 4))[1].tolist())) == 12


def test_another_epoch_or_seed_has_another_order_and_other_crops(source: Source) -> None:
    first, *others = (joined(source(seed).train(epoch, 5)) for seed, epoch in ((5, 0), (5, 1), (6, 0), (0, 5)))
    for images, labels in others:
        assert labels.tolist() != first[1].tolist()
        shown = [bool(torch.equal(images[labels == n], first[0][first[1] == n])) for n in range(TRAIN)]
        assert sum(shown) < 4


def test_an_epoch_depends_on_no_other_random_numbers_and_not_on_what_came_before(source: Source) -> None:
    torch.manual_seed(1)
    one = source()
    before = list(one.train(3, 5))
    list(one.train(0, 5)), list(one.test())
    torch.manual_seed(2)
    assert same(one.train(3, 5), before)
    assert same(source().train(3, 5), before)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("size", [5, 11])
def test_an_epoch_begun_at_a_step_is_the_tail_of_the_whole_one(source: Source, size: int, rank: int) -> None:
    share = source(rank=rank, world=2)
    whole = list(share.train(2, size))
    assert len(whole) == len(sizes(TRAIN, size))
    for first in range(len(whole) + 1):
        assert same(share.train(2, size, first), whole[first:])


def test_the_batch_size_changes_neither_order_nor_crops(source: Source) -> None:
    five, eleven = joined(source().train(1, 5)), joined(source().train(1, 11))
    assert torch.equal(five[0], eleven[0]) and torch.equal(five[1], eleven[1])


@pytest.mark.parametrize("size", [5, 11])
def test_two_processes_have_the_very_batches_of_one_between_them(source: Source, size: int) -> None:
    zero, one = (list(source(rank=rank, world=2).train(4, size)) for rank in (0, 1))
    for (images, labels), *shares in zip(source().train(4, size), zero, one, strict=True):
        for rank, (part, own) in enumerate(shares):
            assert torch.equal(part, images[rank::2]) and torch.equal(own, labels[rank::2])


def test_two_processes_test_every_image_once_between_them(source: Source) -> None:
    images, labels = joined(source().test())
    for rank in (0, 1):
        part, own = joined(source(rank=rank, world=2).test())
        assert torch.equal(part, images[rank::2]) and torch.equal(own, labels[rank::2])


def test_a_share_is_empty_where_a_batch_is_smaller_than_the_world(source: Source) -> None:
    last = source(rank=TRAIN - 1, world=TRAIN)
    (_, most), (images, labels) = last.train(0, 11)  # eleven, and the two that are left
    assert len(most) == len(images) == len(labels) == 0 and images.shape[1] == 3
    assert sum(len(labels) for _, labels in last.test()) == 0  # seven


def test_the_test_images_come_in_their_order_and_the_same_each_time(source: Source) -> None:
    one = source()
    assert (one.train_size, one.test_size) == (TRAIN, TEST)
    assert [labels.tolist() for _, labels in one.test()] == [[0, 1, 2, 3], [4, 5, 6]]
    first = list(one.test())
    list(one.train(0, 5))
    assert same(one.test(), first) and same(source(seed=9).test(), first)


def test_images_from_memory_are_those_of_the_data_set_normalised(images: Images) -> None:
    plain = FromMemory(images, CPU, seed=0)
    std, mean = torch.std_mean(images.train.double(), dim=(0, 2, 3), correction=0)
    for (shown, labels), whole in ((joined(plain.train(0, 13)), images.train), (joined(plain.test()), images.test)):
        expected = (whole[labels].double() - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(shown.double(), expected, rtol=0, atol=1e-5)
        assert shown.dtype == torch.float32
    shown = joined(plain.train(0, 13))[0]
    torch.testing.assert_close(shown.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(shown.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


def moves(source: FromMemory, epochs: int) -> Tensor:
    """Row and column where a bright pixel at (4, 2) of 9x6 comes to lie, one row an image."""
    places = [joined(source.train(epoch, 50))[0][:, 0].gt(0).nonzero()[:, 1:] for epoch in range(epochs)]
    return torch.cat(places)


def test_crops_from_memory_shift_evenly_by_up_to_the_padding_and_flips_are_half(images: Images) -> None:
    dots = torch.zeros(200, 3, 9, 6, dtype=torch.uint8)
    dots[:, :, 4, 2] = 255
    dotted = Images(dots, torch.zeros(200, dtype=torch.int64), dots[:1], torch.zeros(1, dtype=torch.int64))
    shifted = moves(FromMemory(dotted, CPU, seed=0, pad=2), 5)
    assert len(shifted) == 1000
    for axis, centre in enumerate((4, 2)):
        counts = (shifted[:, axis] - centre + 2).bincount()
        assert len(counts) == 5 and int(counts.min()) > 150
    assert len(shifted.unique(dim=0)) == 25  # rows and columns apart
    flipped = moves(FromMemory(dotted, CPU, seed=0, flip=True), 5)
    assert set(map(tuple, flipped.tolist())) == {(4, 2), (4, 3)}
    assert 430 < int((flipped[:, 1] == 3).sum()) < 570
    assert set(map(tuple, moves(FromMemory(dotted, CPU, seed=0), 1).tolist())) == {(4, 2)}


def uint8(images: Tensor) -> Tensor:
    """Undo torchvision's normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    found = (images * std + mean) * 255
    assert float((found - found.round()).abs().max()) < 1e-3
    return found.round().to(torch.uint8)


@pytest.mark.parametrize("rank", [0, 1])
def test_any_number_of_workers_gives_the_same_bits(files: Files, rank: int) -> None:
    none, one, two = (
        FromFiles(files, CPU, seed=1, workers=workers, size=32, rank=rank, world=2) for workers in (0, 1, 2)
    )
    for epoch, first in ((0, 0), (3, 1)):
        expected = list(none.train(epoch, 5, first))
        assert same(one.train(epoch, 5, first), expected) and same(two.train(epoch, 5, first), expected)
    assert same(two.test(), none.test())


@pytest.mark.parametrize(("size", "resized"), [(32, 37), (224, 256)])
def test_test_images_are_the_centre_of_the_resized_file(files: Files, size: int, resized: int) -> None:
    found, labels = joined(FromFiles(files, CPU, seed=0, workers=0, size=size).test())
    assert found.shape == (TEST, 3, size, size) and found.dtype == torch.float32 and labels.dtype == torch.int64
    assert found.is_contiguous(memory_format=torch.channels_last)
    for number, path in enumerate(files.test):
        image = Image.open(path)
        width, height = (int(resized * side / min(image.size)) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        centre = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
        assert np.array_equal(uint8(found[number]).numpy().transpose(1, 2, 0), np.asarray(centre))


def test_training_images_are_parts_of_their_file_of_many_sizes_half_of_them_mirrored(files: Files) -> None:
    """Of a wide image red rises to the right: by how much and whither tells the part that was cut out."""
    spans, blues = [], set()
    source = FromFiles(files, CPU, seed=0, workers=0, size=32)
    for images, labels in (batch for epoch in range(10) for batch in source.train(epoch, TRAIN)):
        for image, label in zip(uint8(images).int(), labels.tolist(), strict=True):
            blues.add((label, *image[2].unique().tolist()))
            if label % 2:
                spans.append(int(image[0, 16, 31] - image[0, 16, 0]) / 2)
    assert blues == {(number, 10 * number) for number in range(TRAIN)}
    rising = sum(span > 0 for span in spans)
    assert len(spans) == 60 and 18 <= rising <= 42
    widths = sorted(map(abs, spans))
    assert 15 < widths[0] < 45 and 75 < widths[-1] < 100 and len(set(widths)) > 20


def test_files_are_not_mirrored_where_flips_are_off(files: Files) -> None:
    source = FromFiles(files, CPU, seed=0, workers=0, size=32, flip=False)
    for images, labels in (batch for epoch in range(3) for batch in source.train(epoch, TRAIN)):
        assert bool((images[labels % 2 == 1, 0, 16].diff(dim=1) >= 0).all())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_no_image_is_named_in_one_line(files: Files, tmp_path: Path, workers: int) -> None:
    (tmp_path / "odd.png").write_text("no image")
    train = [*files.train[:5], tmp_path / "odd.png", *files.train[6:]]
    source = FromFiles(Files(train, files.train_labels, train, files.train_labels), CPU, seed=0, workers=workers)
    for images in (source.train(0, 5), source.test()):
        with pytest.raises(DatasetError) as refused:
            list(images)
        assert str(refused.value).startswith(f"{tmp_path / 'odd.png'} cannot be read as an image: ")
        assert "\n" not in str(refused.value)
        assert not multiprocessing.active_children(), "a reader outlives its stream"
