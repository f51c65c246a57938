"""Batches of an epoch, normalised and augmented: from memory, or from files by workers.

Every random number here follows from the seed, the epoch and the place in it alone. So a run goes on in the middle of
an epoch as if it had never stopped, with any number of workers, and the processes of one run (`rank` of `world`) take
disjoint shares of the very batches that one process would see.
"""

import hashlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from gamlib.data.datasets import DatasetError, open_rgb
from gamlib.data.images import Files, Images
from gamlib.signals import held_back

EVALUATION_BATCH = 500
STREAMED_EVALUATION_BATCH = 128
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of pixels from 0 to 1
Stream: TypeAlias = Generator[tuple[Tensor, Tensor], None, None]
Read: TypeAlias = tuple[Tensor, Tensor] | DatasetError


def seed_of(*numbers: int) -> int:
    """One seed of several numbers: a hash, so that neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def sizes(total: int, batch_size: int) -> list[int]:
    """The batches of an epoch; a last one of a single image is left out, since BatchNorm needs two."""
    rest = total % batch_size
    return [batch_size] * (total // batch_size) + ([rest] if rest > 1 else [])


class Batches(ABC):
    """What the loop asks of a source: this process's share of every batch, as (images, labels) on the device.

    Images are float32 [n, 3, H, W] of mean 0 and deviation 1; a share is empty where a batch is smaller than the world.
    A stream that is not read to its end must be closed, which ends its workers. The seed decides the order of the
    training images, their crops and flips; this process is `rank` of `world`.
    """

    mean: Tensor  # of the pixels from 0 to 255 by channel, [3, 1, 1]
    std: Tensor

    def __init__(self, images: Images | Files, device: torch.device, seed: int, rank: int = 0, world: int = 1) -> None:
        self.device, self.seed, self.rank, self.world = device, seed, rank, world
        self.train_size, self.test_size = len(images.train), len(images.test)

    @abstractmethod
    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """The training batches of an epoch from the `first` on, counted from 0."""

    @abstractmethod
    def test(self) -> Stream:
        """The test images, each once, in their order."""

    def _shares(self, batch_size: int) -> list[slice]:
        """Of every batch of an epoch the places that are this process's."""
        ends = accumulate(sizes(self.train_size, batch_size), initial=0)
        return [slice(begin + self.rank, end, self.world) for begin, end in pairwise(ends)]

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class FromMemory(Batches):
    """Small images, kept whole on the device as uint8 [N, H, W, 3] with their padding; see `Batches`.

    A batch is one indexing operation there: crop, flip and selection together.
    """

    def __init__(self, images: Images, device: torch.device, *, pad: int = 0, flip: bool = False, **share: int) -> None:
        super().__init__(images, device, **share)
        self.pad, self.flip, own = pad, flip, slice(self.rank, None, self.world)
        self.mean, self.std = (value[:, None, None].to(device) for value in mean_and_std(images.train))
        self.images = F.pad(images.train, (pad,) * 4).permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = images.train_labels.to(device)
        self.test_images, self.test_labels = images.test[own].to(device), images.test_labels[own].to(device)

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """See `Batches`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.train_size, generator=generator)
        offsets = torch.randint(0, 2 * self.pad + 1, (2, self.train_size), generator=generator)
        flips = (torch.rand(self.train_size, generator=generator) < 0.5) & self.flip
        order, offsets, flips = (drawn.to(self.device) for drawn in (order, offsets, flips))
        for share in self._shares(batch_size)[first:]:
            images = crop(self.images, order[share], offsets[:, share], flips[share], self.pad)
            yield self._normalised(images), self.labels[order[share]]

    def test(self) -> Stream:
        """See `Batches`."""
        parts = (part.split(EVALUATION_BATCH) for part in (self.test_images, self.test_labels))
        for images, labels in zip(*parts, strict=True):
            yield self._normalised(images), labels


def crop(padded: Tensor, picked: Tensor, offsets: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Images [n, 3, H, W] in the order channels_last, picked out of padded ones [N, H + 2 pad, W + 2 pad, 3].

    Each is cropped at its own row and column of `offsets` [2, n], from 0 to 2 pad, and mirrored where `flips` [n] says.
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


class FromFiles(Batches):
    """Large images, read by workers: a random part at 224x224, perhaps flipped; of test images the centre."""

    def __init__(
        self, files: Files, device: torch.device, *, flip: bool = True, workers: int = 8, size: int = 224, **share: int
    ) -> None:
        super().__init__(files, device, **share)
        self.workers = workers
        self.mean, self.std = 255 * torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)[..., None, None]
        cropped = [transforms.RandomResizedCrop(size)] + [transforms.RandomHorizontalFlip()] * flip
        for_training = transforms.Compose([*cropped, transforms.PILToTensor()])
        self._read_training = partial(_read, files.train, files.train_labels, for_training, size)
        self._read_test = partial(_read, files.test, files.test_labels, for_test(size), size)

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """See `Batches`."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.train_size, generator=generator)
        parts = [order[share] for share in self._shares(batch_size)[first:]]
        yield from self._loaded(parts, partial(self._read_training, (self.seed, epoch)))

    def test(self) -> Stream:
        """See `Batches`."""
        parts = torch.arange(self.test_size)[self.rank :: self.world].split(STREAMED_EVALUATION_BATCH)
        yield from self._loaded(parts, partial(self._read_test, ()))

    def _loaded(self, parts: Sequence[Tensor], read: Callable[[Any], Read]) -> Stream:
        loader: DataLoader[Any] = DataLoader(
            parts,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=read,
            num_workers=min(self.workers, len(parts)),
            pin_memory=self.device.type == "cuda",
        )
        # A signal to all of a job is this process's to hear, which saves first; its readers end with the stream.
        with held_back(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            loaded = iter(loader)
        try:
            for batch in loaded:
                if isinstance(batch, DatasetError):
                    raise batch
                images, labels = (part.to(self.device, non_blocking=True) for part in batch)
                yield self._normalised(images.contiguous(memory_format=torch.channels_last)), labels
        finally:  # now, and not when the last traceback that knows them is gone: they hear no signal of an end
            getattr(loaded, "_shutdown_workers", lambda: None)()


def for_test(size: int = 224) -> Any:
    """How a large image is fed for the test: from a PIL image its centre, as uint8 [3, size, size]."""
    cropped = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    return transforms.Compose([*cropped, transforms.PILToTensor()])


def _read(
    files: Sequence[Path], labels: Tensor, transform: Any, size: int, seeds: tuple[int, ...], indices: Tensor
) -> Read:
    """A batch: images uint8 [n, 3, size, size] and labels [n]; or what is wrong with a file."""
    images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
    try:
        with torch.random.fork_rng(devices=[]):
            for place, index in enumerate(indices.tolist()):
                torch.manual_seed(seed_of(*seeds, index))
                images[place] = transform(open_rgb(files[index]))
    except DatasetError as error:  # raised in a worker, it would come wrapped into a traceback
        return error
    return images, labels[indices]
