"""The training loop: one for every network and data set, an epoch at a time."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib.training.data import Images, augment, normalise
from gamlib.training.recipes import Recipe

EVALUATION_BATCH = 500


def fit(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    pad: int = 0,
    flip: bool = False,
    amp: bool = False,
    compile: bool = False,
    channels_last: bool = False,
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Train a network in place, and give the metrics of every epoch when it ends.

    Losses are cross entropies in nats, errors are in percent. The test images are looked at once an epoch, for the
    curve: nothing is chosen by them, and the outcome of a run is its last epoch. With one seed, device and number of
    threads the losses and errors are the same to the last bit; on a GPU as far as its kernels are deterministic.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the device of the images. In training mode it may give
            a tuple of them: the first predict and are what the metrics speak of, the loss is the sum over all.
        seed: of the order of the images and of their augmentation (not of the initial weights).
        pad, flip: see `augment`.
        amp: bfloat16 autocast.
        on_step: called after every step.

    Raises:
        FloatingPointError: a loss of an epoch is not finite.
    """
    device = images.train.device
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    forward: Callable[[Tensor], Any] = torch.compile(model) if compile else model
    std, mean = torch.std_mean(images.train.float(), dim=(0, 2, 3))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    def scores(batch: Tensor) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return forward(normalise(batch, mean, std).contiguous(memory_format=layout))

    for epoch in range(recipe.epochs):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        model.train()
        loss_sum, wrong, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for picked in steps(len(images.train), recipe.batch_size, generator):
            picked = picked.to(device)
            labels = images.train_labels[picked]
            outputs = scores(augment(images.train[picked], pad, flip, generator))
            branches = outputs if isinstance(outputs, tuple) else (outputs,)
            losses = [
                F.cross_entropy(branch.float(), labels, label_smoothing=recipe.label_smoothing) for branch in branches
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            loss_sum += losses[0].detach() * len(labels)
            wrong += (branches[0].argmax(1) != labels).sum()
            seen += len(labels)
            on_step()
        train_loss, train_error = float(loss_sum) / seen, 100 * float(wrong) / seen
        seconds = time.perf_counter() - began
        model.eval()
        test_loss, top1_error, top5_error = evaluate(scores, images.test, images.test_labels)
        for name, value in (("training", train_loss), ("test", test_loss)):
            if not math.isfinite(value):
                raise FloatingPointError(f"training diverged: the {name} loss is {value} in epoch {epoch + 1}")
        yield {
            "epoch": epoch + 1,
            "lr": recipe.lr_at(epoch),
            "train_loss": train_loss,
            "train_top1_error": train_error,
            "test_loss": test_loss,
            "top1_error": top1_error,
            "top5_error": top5_error,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }


def steps(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled indices of an epoch, a batch at a time; a last batch of one is left out, since BatchNorm needs two."""
    return (batch for batch in torch.randperm(size, generator=generator).split(batch_size) if len(batch) > 1)


@torch.no_grad()
def evaluate(scores: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Mean cross entropy in nats, top-1 and top-5 error in percent; every image counts once."""
    predicted = torch.cat([scores(batch).float() for batch in images.split(EVALUATION_BATCH)])
    hits = predicted.topk(min(5, predicted.shape[1]), dim=1).indices == labels[:, None]
    top1, top5 = (100 * int((~hit).sum()) / len(labels) for hit in (hits[:, 0], hits.any(1)))
    return float(F.cross_entropy(predicted, labels)), top1, top5
