"""How a network is trained, as data: the training part of a configuration, and the recipes that give its values."""

from dataclasses import dataclass, replace

SCHEDULES = ("step", "cosine", "onecycle", "linear")  # of the learning rate
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class TrainingConfig:
    """A recipe, which has no defaults, what may be chosen beside it, and how its steps are computed.

    By default SGD with momentum on the cross entropy; the learning rate is multiplied by `gamma` at each of the
    `milestones`. The switches change nothing that is computed but its rounding.

    Raises:
        ValueError: a schedule or optimizer that there is not, or values that do not go together.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    milestones: tuple[float, ...]  # fractions of the epochs: a run of another length has them in proportion
    gamma: float
    amp: bool = False  # bfloat16 autocast
    channels_last: bool = False
    compile: bool = False  # torch.compile
    cuda_graphs: bool = False  # of the compiled network: fewer launches where kernels are short
    deterministic: bool = False  # on a GPU too, where it costs some speed; a CPU always is
    seed: int = 0  # of dropout and what `Augmentation` draws; initial weights and the batches have their own
    schedule: str = "step"
    warmup: float = 0.0  # epochs
    optimizer: str = "sgd"
    nesterov: bool = False
    mixup: float = 0.0  # alpha of the beta distribution; 0 is none
    cutmix: float = 0.0  # likewise
    random_erasing: float = 0.0  # probability for an image
    ema: float = 0.0  # how much of the averaged weights a step leaves; 0 is no average

    def __post_init__(self) -> None:
        for key, allowed in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)!r}: allowed: {', '.join(allowed)}")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup={self.warmup}: allowed: a number from 0, below epochs={self.epochs}")
        if self.warmup and self.schedule == "onecycle":
            raise ValueError(f"warmup={self.warmup}: allowed: 0, since schedule=onecycle rises by itself")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov=True: allowed with optimizer=sgd and a momentum above 0")

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0, with schedule="step" and after its warm-up."""
        return self.lr * self.gamma ** sum(epoch + 1e-9 >= milestone * self.epochs for milestone in self.milestones)


# GAM paper, section 4.1: 0.1, multiplied at 60, 120 and 160 of 200 epochs. The paper says no more: gamma 0.2, batches
# of 128, momentum 0.9 and weight decay 5e-4 as usual for CIFAR (Zagoruyko & Komodakis, arXiv 1605.07146).
_CIFAR = TrainingConfig(
    epochs=200,
    batch_size=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.0,
    milestones=(60 / 200, 120 / 200, 160 / 200),
    gamma=0.2,
)

# GAM paper, section 4.1: 0.1, multiplied every 30 of 90 epochs. The rest as in CBAM (arXiv 1807.06521) and ResNet
# (arXiv 1512.03385): gamma 0.1, batches of 256, momentum 0.9, weight decay 1e-4.
_IMAGENET = replace(_CIFAR, epochs=90, batch_size=256, weight_decay=1e-4, milestones=(30 / 90, 60 / 90), gamma=0.1)

RECIPES = {
    "cifar": _CIFAR,
    "imagenet": _IMAGENET,
    # GAM paper, section 4.1: as for the ResNets, but for 0.045 and a weight decay of 4e-5.
    "mobilenet": replace(_IMAGENET, lr=0.045, weight_decay=4e-5),
    # Ours: SGD as in the paper's CIFAR runs, short, with small batches. The learning rate was chosen on the baseline,
    # on validation images: studies/digits-recipe.yaml.
    "digits": replace(_CIFAR, epochs=20, batch_size=32, lr=0.01, milestones=(0.5, 0.8), gamma=0.1),
}
