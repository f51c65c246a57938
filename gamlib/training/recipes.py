"""Recipes: how a network is trained, as data. A run can override each value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, and a learning rate that drops by `drop_factor` at given fractions of the epochs."""

    source: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    drops: tuple[float, ...]
    drop_factor: float

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0; a run of other length has its drops in proportion."""
        return self.lr * self.drop_factor ** sum(epoch + 1e-9 >= drop * self.epochs for drop in self.drops)


_CIFAR = Recipe(
    source="GAM paper, section 4.1: 0.1, dropped at 60, 120 and 160 of 200 epochs. The paper says no more: factor 0.2, "
    "batches of 128, momentum 0.9 and weight decay 5e-4 as usual for CIFAR (Zagoruyko & Komodakis, arXiv 1605.07146)",
    epochs=200,
    batch_size=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.0,
    drops=(60 / 200, 120 / 200, 160 / 200),
    drop_factor=0.2,
)

_IMAGENET = Recipe(
    source="GAM paper, section 4.1: 0.1, dropped every 30 of 90 epochs. The rest as in CBAM (arXiv 1807.06521) and "
    "ResNet (arXiv 1512.03385): factor 0.1, batches of 256, momentum 0.9, weight decay 1e-4",
    epochs=90,
    batch_size=256,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    label_smoothing=0.0,
    drops=(30 / 90, 60 / 90),
    drop_factor=0.1,
)

RECIPES = {
    "cifar": _CIFAR,
    "imagenet": _IMAGENET,
    "mobilenet": Recipe(
        **{
            **vars(_IMAGENET),
            "source": "GAM paper, section 4.1: as for the ResNets, but for 0.045 and a weight decay of 4e-5",
            "lr": 0.045,
            "weight_decay": 4e-5,
        }
    ),
    "digits": Recipe(
        # The learning rate was chosen on the baseline, on validation images: studies/digits-recipe.yaml.
        source="ours: SGD as in the paper's CIFAR runs, short, with small batches",
        epochs=20,
        batch_size=32,
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.0,
        drops=(0.5, 0.8),
        drop_factor=0.1,
    ),
}
