"""What a trained network says of every test image: two networks can then be compared image by image."""

from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from gamlib.training.batches import Batches
from gamlib.training.parallel import Group


def forward(network: Any, images: Tensor, *, amp: bool, channels_last: bool) -> Any:
    """What a network gives for images [N, 3, H, W], in training, in tests and in predictions alike.

    Args:
        network: a model, or what wraps or compiles it.
        images: on its device.
        amp: under bfloat16 autocast.
        channels_last: the order of the images in memory; other orders round otherwise.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        return network(
            images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        )


def ranked(scores: Tensor, number: int) -> Tensor:
    """The classes of the highest scores [N, classes], best first: [N, number or fewer].

    Of equal scores, which bfloat16 often gives, the lower class is first, as with `argmax`.
    """
    return scores.argsort(dim=1, descending=True, stable=True)[:, :number]


@torch.no_grad()
def predict(
    model: nn.Module, batches: Batches, group: Group, *, amp: bool = False, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Look once at every test image; every process of the group must call this, and all get the whole.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the group's device; compiled, as it was trained.
        amp: in bfloat16, as it was trained.
        channels_last: in that order of memory, as it was trained.

    Returns:
        The class that was predicted and the one that the image has, int64 [test_size] each, in the images' order.
    """
    model.eval()
    both = torch.zeros(2, batches.test_size, dtype=torch.int64, device=group.device)
    parts: list[Tensor] = [both[:, :0]]
    with closing(batches.test()) as stream:
        for images, labels in stream:
            scores = forward(model, images, amp=amp, channels_last=channels_last)
            parts.append(torch.stack([ranked(scores, 1)[:, 0], labels]))
    both[:, group.rank :: group.world] = torch.cat(parts, dim=1)
    predicted, label = group.total(both).cpu()
    return predicted, label
