"""What a trained network says of every test image: two networks can then be compared image by image."""

from contextlib import closing

import torch
from torch import Tensor, nn

from gamlib.training.batches import Batches
from gamlib.training.parallel import Group


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, group: Group, amp: bool = False) -> tuple[Tensor, Tensor]:
    """Look once at every test image; every process of the group must call this, and all get the whole.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the group's device.
        amp: in bfloat16, as it was trained.

    Returns:
        The class that was predicted and the one that the image has, int64 [test_size] each, in the images' order.
    """
    model.eval()
    both = torch.zeros(2, batches.test_size, dtype=torch.int64, device=group.device)
    parts: list[Tensor] = [both[:, :0]]
    with closing(batches.test()) as stream:
        for images, labels in stream:
            with torch.autocast(group.device.type, torch.bfloat16, enabled=amp):
                scores = model(images)
            parts.append(torch.stack([scores.argmax(1), labels]))
    both[:, group.rank :: group.world] = torch.cat(parts, dim=1)
    predicted, label = group.total(both).cpu()
    return predicted, label
