"""A training loop for CIFAR as popular repositories write it: what `benchmarks/training.py` compares gamlib's with.

Written independently of gamlib, with torch and torchvision alone; the network comes from the caller. Images are PIL
images, transformed one by one in a DataLoader's workers; the network is eager, NCHW and fp32; the loss is looked at
after every step.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10


class InMemory(CIFAR10):
    """torchvision's CIFAR10 over other images: its own way from an array through a PIL image to a tensor.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        transform: from a PIL image to a tensor.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[..., Tensor]) -> None:
        self.data = images.permute(0, 2, 3, 1).numpy()
        self.targets = labels.tolist()
        self.transform, self.target_transform = transform, None


def loader(
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    workers: int,
    order: Sequence[int] | None = None,
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Batches of an epoch: shuffled and augmented, or, for a comparison of losses, as they are in a given order.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        mean, std: of each channel, in units of 0 to 1.
        batch_size: images of a batch.
        workers: processes that load.
        order: indices of the images; without augmentation then.
    """
    augmentation = [transforms.RandomCrop(images.shape[-1], padding=4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose(
        [*(augmentation if order is None else []), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    dataset = InMemory(images, labels, transform)
    return DataLoader(dataset, batch_size=batch_size, shuffle=order is None, sampler=order, num_workers=workers)


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    lr: float,
    after_step: Callable[[], object] = lambda: None,
) -> list[float]:
    """Train for one epoch, in place; the losses of its steps."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    losses = []
    model.train()
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after_step()
    return losses
