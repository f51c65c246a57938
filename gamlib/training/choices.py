"""What a `TrainingConfig` chooses, put together from torch's and torchvision's own parts."""

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from gamlib.training.recipes import TrainingConfig


def optimizer_of(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD, or AdamW with the momentum as its first beta and 0.999 as the second; its weight decay is decoupled."""
    parameters, decay = model.parameters(), config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.lr, (config.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=decay, nesterov=config.nesterov)


def schedule_of(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> lr_scheduler.LRScheduler | None:
    """The learning rate of every step, of which an epoch has `steps`; None where `lr_at` gives that of an epoch.

    All but the steps end at or near 0. `warmup` rises from 1 % of the rate; of one cycle, which rises by itself, `lr`
    is the highest.
    """
    if config.schedule == "step" and not config.warmup:
        return None
    total = config.epochs * steps
    warmup = min(round(config.warmup * steps), total - 1)
    main: lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, total - warmup)
    elif config.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, config.lr, total, cycle_momentum=False)
    elif config.schedule == "linear":
        main = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total - warmup)
    else:
        main = lr_scheduler.LambdaLR(optimizer, lambda step: config.lr_at((warmup + step) // steps) / config.lr)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], [warmup])


def average_of(model: nn.Module, config: TrainingConfig) -> AveragedModel | None:
    """The moving average of weights and buffers from the first step on, in evaluation mode; None without `ema`."""
    if not config.ema:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True).eval()


class Augmentation:
    """Random erasing of each image, then mixup or cutmix of the batch: of both, one at random.

    All numbers come from torch's global generator on the CPU; without any of these choices none is drawn.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.erase = v2.RandomErasing(config.random_erasing, inplace=True) if config.random_erasing else None
        kinds = ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        mixes = [kind(alpha=alpha) for kind, alpha in kinds if alpha]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images [n, 3, H, W], augmented, and how much each has of which one, [n, n]; None where not mixed.

        An erased part has the mean of the training images.
        """
        if self.erase is not None:
            images = images.clone()
            for image in images:
                self.erase(image)
        if self.mix is None:
            return images, None
        mixed: tuple[Tensor, Tensor] = self.mix(images, torch.eye(len(images), device=images.device))
        return mixed
