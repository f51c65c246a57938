"""Recipes: how a network is trained, as data, and what each data set gets by default. A run can override each value."""

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
        return self.lr * self.drop_factor ** sum(epoch >= drop * self.epochs for drop in self.drops)


RECIPES = {
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
    )
}


@dataclass(frozen=True)
class Dataset:
    """What holds of a data set before an image is read, and the defaults that a run on it gets."""

    num_classes: int
    train_size: int
    recipe: str
    stem: str
    width: float
    pad: int  # pixels of zero padding for random crops in training; 0 for none
    flip: bool  # random horizontal flips in training


# Half the usual width lets a run finish in half a minute on one core. 200 training images: see `_digits`.
DATASETS = {
    "digits": Dataset(num_classes=10, train_size=200, recipe="digits", stem="imagenet", width=0.5, pad=2, flip=False)
}


def training_size(dataset: str, train_fraction: float) -> int:
    """Number of training images that `load` gives for a fraction.

    Raises:
        ValueError: a fraction that leaves fewer than one image for each class.
    """
    info = DATASETS[dataset]
    kept = round(train_fraction * info.train_size)
    if not info.num_classes <= kept <= info.train_size:
        lowest = info.num_classes / info.train_size
        raise ValueError(f"train_fraction={train_fraction}: allowed for {dataset}: {lowest:.3g} to 1")
    return kept
