"""Batches of an epoch, normalised and augmented: from memory, or from files by workers.

Every random number here follows from the seed, the epoch and the place in it alone. So a run goes on in the middle of
an epoch as if it had never stopped, with any number of workers, and the processes of one run (`rank` of `world`) take
disjoint shares of the very batches that one process would see.
"""

import hashlib
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gamlib.data.datasets import DatasetError
from gamlib.data.images import Files, Images, open_rgb
from gamlib.signals import held_back

EVALUATION_BATCH = 500
STREAMED_EVALUATION_BATCH = 128
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of pixels from 0 to 1
Stream: TypeAlias = Generator[tuple[Tensor, Tensor], None, None]


class Batches(Protocol):
    """What the loop asks of a source: this process's share of every batch, as (images, labels) on the device.

    Images are float32 [n, 3, H, W] of mean 0 and deviation 1; a share is empty where a batch is smaller than the world.
    A stream that is not read to its end must be closed, which ends its workers.
    """

    train_size: int
    test_size: int

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """The training batches of an epoch from the `first` on, counted from 0."""

    def test(self) -> Stream:
        """The test images, each once, in their order."""


def seed_of(*numbers: int) -> int:
    """One seed of several numbers: a hash, so that neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def sizes(total: int, batch_size: int) -> list[int]:
    """The batches of an epoch; a last one of a single image is left out, since BatchNorm needs two."""
    rest = total % batch_size
    return [batch_size] * (total // batch_size) + ([rest] if rest > 1 else [])


class FromMemory:
    """Small images, kept whole on the device as uint8 [N, H, W, 3] with their padding.

    A batch is one indexing operation there: crop, flip and selection together.
    """

    def __init__(
        self,
        images: Images,
        device: torch.device,
        *,
        seed: int,
        pad: int = 0,
        flip: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.device, self.seed, self.pad, self.flip, self.rank, self.world = device, seed, pad, flip, rank, world
        self.train_size, self.test_size = len(images.train), len(images.test)
        self.mean, self.std = (value.to(device) for value in mean_and_std(images.train))
        self.images = F.pad(images.train, (pad,) * 4).permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = images.train_labels.to(device)
        self.test_images = images.test[rank::world].to(device)
        self.test_labels = images.test_labels[rank::world].to(device)

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """See `Batches`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.train_size, generator=generator)
        offsets = torch.randint(0, 2 * self.pad + 1, (2, self.train_size), generator=generator)
        flips = (torch.rand(self.train_size, generator=generator) < 0.5) & self.flip
        order, offsets, flips = (drawn.to(self.device) for drawn in (order, offsets, flips))
        begin = first * batch_size
        for size in sizes(self.train_size, batch_size)[first:]:
            share = slice(begin + self.rank, begin + size, self.world)
            images = crop(self.images, order[share], offsets[:, share], flips[share], self.pad)
            yield self._normalised(images), self.labels[order[share]]
            begin += size

    def test(self) -> Stream:
        """See `Batches`."""
        parts = (part.split(EVALUATION_BATCH) for part in (self.test_images, self.test_labels))
        for images, labels in zip(*parts, strict=True):
            yield self._normalised(images), labels

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean[:, None, None]) / self.std[:, None, None]


def crop(padded: Tensor, picked: Tensor, offsets: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Selected images, each cropped at its own offset and flipped or not.

    Args:
        padded: [N, H + 2 pad, W + 2 pad, 3].
        picked: indices [n].
        offsets: of the crops' rows and columns [2, n], from 0 to 2 pad.
        flips: whether to mirror left and right, bool [n].

    Returns:
        [n, 3, H, W] in the memory format channels_last.
    """
    height, width = padded.shape[1] - 2 * pad, padded.shape[2] - 2 * pad
    across = torch.arange(width, device=padded.device).expand(len(picked), -1)
    rows = offsets[0, :, None] + torch.arange(height, device=padded.device)
    columns = offsets[1, :, None] + torch.where(flips[:, None], across.flip(1), across)
    return padded[picked[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 [N, 3, H, W] for each channel, float32 [3], in units of 0 to 255."""
    counts = torch.stack([images[:, channel].flatten().bincount(minlength=256) for channel in range(3)]).double()
    shares, values = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]).square()).sum(1)
    std = variance.sqrt().float()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std))


class FromFiles:
    """Large images, read by workers: a random part resized to 224x224 and flipped; 256, then the centre, for the test.

    The same for any number of workers: every image's draws follow from the seed, the epoch and its index.
    """

    def __init__(
        self,
        files: Files,
        device: torch.device,
        *,
        seed: int,
        flip: bool = True,
        workers: int = 8,
        rank: int = 0,
        world: int = 1,
        size: int = 224,
    ) -> None:
        self.device, self.seed, self.workers, self.rank, self.world = device, seed, workers, rank, world
        self.train_size, self.test_size = len(files.train), len(files.test)
        self._train = _Opened(files.train, files.train_labels, seed, size, training=True, flip=flip)
        self._test = _Opened(files.test, files.test_labels, seed, size, training=False, flip=False)
        self.mean, self.std = (255 * torch.tensor(value, device=device) for value in (IMAGENET_MEAN, IMAGENET_STD))

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """See `Batches`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        parts = sizes(self.train_size, batch_size)
        order = torch.randperm(self.train_size, generator=generator)[: sum(parts)].split(parts)
        yield from self._loaded(self._train, epoch, [batch[self.rank :: self.world] for batch in order[first:]])

    def test(self) -> Stream:
        """See `Batches`."""
        share = torch.arange(self.test_size)[self.rank :: self.world]
        yield from self._loaded(self._test, 0, share.split(STREAMED_EVALUATION_BATCH))

    def _loaded(self, opened: "_Opened", epoch: int, batches: Sequence[Tensor]) -> Stream:
        loader = DataLoader(
            opened,
            batch_sampler=[[(epoch, index) for index in batch.tolist()] for batch in batches],
            num_workers=min(self.workers, len(batches)),
            pin_memory=self.device.type == "cuda",
            collate_fn=opened.stacked,
        )
        # A signal to all of a job is this process's to hear, which saves first; its readers end with the stream.
        with held_back(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            loaded = iter(loader)
        try:
            for images, labels in loaded:
                images, labels = (part.to(self.device, non_blocking=True) for part in (images, labels))
                images = images.contiguous(memory_format=torch.channels_last).float()
                yield (images - self.mean[:, None, None]) / self.std[:, None, None], labels
        except DatasetError as error:  # a worker's comes wrapped into its traceback, the message last
            raise DatasetError(str(error).strip().splitlines()[-1].removeprefix(_RAISED)) from None
        finally:  # now, and not when the last traceback that knows them is gone: they hear no signal of an end
            getattr(loaded, "_shutdown_workers", lambda: None)()


_RAISED = f"{DatasetError.__module__}.{DatasetError.__qualname__}: "


def for_test(size: int = 224) -> Any:
    """How a large image is fed for the test: from a PIL image its centre, as uint8 [3, size, size]."""
    from torchvision import transforms

    cropped = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    return transforms.Compose([*cropped, transforms.PILToTensor()])


class _Opened(Dataset[tuple[Tensor, int]]):
    """Image files as uint8 [3, size, size], by (epoch, index)."""

    def __init__(
        self, files: Sequence[Path], labels: Tensor, seed: int, size: int, *, training: bool, flip: bool
    ) -> None:
        from torchvision import transforms

        self.files, self.labels, self.seed, self.size = files, labels, seed, size
        cropped = [transforms.RandomResizedCrop(size)] + [transforms.RandomHorizontalFlip()] * flip
        self.transform = transforms.Compose([*cropped, transforms.PILToTensor()]) if training else for_test(size)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = at
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, index))
            return self.transform(open_rgb(self.files[index])), int(self.labels[index])

    def __len__(self) -> int:
        return len(self.files)

    def stacked(self, items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """A batch; an empty share of one is a batch too."""
        images = [image for image, _ in items]
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.stack(images) if images else empty, torch.tensor([label for _, label in items], dtype=torch.int64)
