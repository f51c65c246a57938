"""What a network says of the test images: losses and errors while it is trained, and every single class afterwards."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib.data.batches import Batches
from gamlib.training.parallel import Group
from gamlib.training.recipes import TrainingConfig


def compiled(model: nn.Module, config: TrainingConfig) -> Any:
    """What is called in a model's place: the model, or what torch.compile makes of it."""
    mode = "reduce-overhead" if config.cuda_graphs else "default"
    return torch.compile(model, dynamic=False, mode=mode) if config.compile else model


def forward(network: Any, images: Tensor, config: TrainingConfig) -> Any:
    """What a network gives for images [N, 3, H, W], in training, in tests and in predictions alike.

    Args:
        network: a model, or what wraps or compiles it.
        images: on its device.
        config: whether under bfloat16 autocast (`amp`), and the order of the images in memory (`channels_last`), since
            other orders round otherwise.
    """
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp):
        return network(images.contiguous(memory_format=layout))


def ranked(scores: Tensor, number: int) -> Tensor:
    """The classes of the highest scores [N, classes], best first: [N, number or fewer].

    Of equal scores, which bfloat16 often gives, the lower class is first, as with `argmax`.
    """
    return scores.argsort(dim=1, descending=True, stable=True)[:, :number]


@torch.no_grad()
def evaluate(
    scores: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    group: Group,
    on_batch: Callable[[], object] = lambda: None,
) -> tuple[float, float, float]:
    """Mean cross entropy in nats, top-1 and top-5 error in percent; every image counts once over the whole group."""
    sums = torch.zeros(4, dtype=torch.float64, device=group.device)  # losses, misses in one, misses in five, images
    for images, labels in batches:
        predicted = scores(images).float()
        hits = ranked(predicted, 5) == labels[:, None]
        sums[0] += F.cross_entropy(predicted, labels, reduction="sum")
        sums[1] += (~hits[:, 0]).sum()
        sums[2] += (~hits.any(1)).sum()
        sums[3] += len(labels)
        on_batch()
    loss, top1, top5, number = group.total(sums).tolist()
    return loss / number, 100 * top1 / number, 100 * top5 / number


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, group: Group, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Look once at every test image; every process of the group must call this, and each gets all of it.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the group's device.
        batches: of which this looks at the test images.
        config: by which it was trained; it computes as it did then.

    Returns:
        The class that was predicted and the one that the image has, int64 [test_size] each, in the images' order.
    """
    network = compiled(model.eval(), config)
    both = torch.zeros(2, batches.test_size, dtype=torch.int64, device=group.device)
    parts: list[Tensor] = [both[:, :0]]
    with closing(batches.test()) as stream:
        for images, labels in stream:
            parts.append(torch.stack([ranked(forward(network, images, config), 1)[:, 0], labels]))
    both[:, group.rank :: group.world] = torch.cat(parts, dim=1)
    predicted, label = group.total(both).cpu()
    return predicted, label
