"""Schedules, optimizers, augmentation and averaged weights, each against its equation, and resumed to the last bit."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from gamlib.data import batches
from gamlib.data import images as data
from gamlib.training import loop
from gamlib.training.checkpoint import Checkpoints, kept, read, weights_of
from gamlib.training.choices import Augmentation, optimizer_of, schedule_of
from gamlib.training.parallel import Group
from gamlib.training.recipes import RECIPES, TrainingConfig

CPU = torch.device("cpu")
CONFIG = replace(RECIPES["digits"], epochs=3, batch_size=13, lr=0.05)  # four steps an epoch
STEPS = 4
ALL = {"warmup": 0.6, "schedule": "cosine", "optimizer": "adamw", "lr": 0.01, "amp": True, "label_smoothing": 0.1}
ALL |= {"mixup": 0.4, "cutmix": 1.0, "random_erasing": 0.5, "ema": 0.9}
CHOICES: dict[str, dict[str, Any]] = {
    "step after a warm-up": {"warmup": 1.5},
    "cosine": {"schedule": "cosine"},
    "onecycle": {"schedule": "onecycle"},
    "linear after a warm-up": {"schedule": "linear", "warmup": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "nesterov": {"nesterov": True},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "random erasing": {"random_erasing": 0.5},
    "ema": {"ema": 0.9},
    "all": ALL,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*features, nn.Dropout(0.2), nn.Linear(128, 10))


@cache
def images() -> data.Images:
    found = data.load("digits", 0.25)
    assert isinstance(found, data.Images)
    return found


def source() -> batches.FromMemory:
    return batches.FromMemory(images(), CPU, seed=0, pad=2, flip=True)


def train(config: TrainingConfig, model: nn.Module | None = None, **options: Any) -> list[dict[str, float]]:
    metrics = list(loop.fit(model or network(), source(), config, **options))
    return [{key: value for key, value in epoch.items() if key not in loop.MEASURED} for epoch in metrics]


def same(first: Any, second: Any) -> bool:
    """Whether two states hold the same values, to the last bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def rates(**values: Any) -> list[float]:
    """Of the steps of ten epochs of four."""
    config = replace(CONFIG, epochs=10, **values)
    optimizer = optimizer_of(network(), config)
    schedule = schedule_of(optimizer, config, STEPS)
    assert schedule is not None
    found = []
    for _ in range(10 * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_that_was_stopped_ends_in_the_same_bits(choice: str, tmp_path: Path) -> None:
    """Metrics and all of the last checkpoint; stopped after the last step of an epoch and in the middle of the next."""
    config = replace(CONFIG, **CHOICES[choice])
    expected = train(config, checkpoints=Checkpoints(tmp_path / "undisturbed", {}))
    for place in (STEPS, STEPS + 2):
        taken = [0]
        with pytest.raises(loop.Stopped, match=rf"in epoch {1 + place // 5} of 3 after {4 if place == 4 else 2} of 4"):
            train(
                config,
                checkpoints=Checkpoints(tmp_path / "stopped", {}),
                on_step=taken.append,
                stop=lambda: "a test" * (taken[-1] == place),  # noqa: B023
            )
        torch.manual_seed(place)  # the state of the generators is nobody's business
    assert train(config, checkpoints=Checkpoints(tmp_path / "stopped", {})) == expected
    whole, resumed = (read(tmp_path / name / "checkpoint.pt") for name in ("undisturbed", "stopped"))
    assert same({**whole, "seconds": 0, "metrics": 0}, {**resumed, "seconds": 0, "metrics": 0})
    assert expected != train(CONFIG), "the choice changes nothing"


@pytest.mark.slow
def test_a_training_without_choices_keeps_what_it_kept(tmp_path: Path) -> None:
    train(replace(CONFIG, epochs=1), checkpoints=Checkpoints(tmp_path, {}))
    state = read(tmp_path / "checkpoint.pt")
    keys = ["epoch", "step", "seconds", "metrics", "losses", "wrong", "model", "optimizer", "identity"]
    assert list(state) == keys and "initial_lr" not in state["optimizer"]["param_groups"][0]


def test_rates_follow_their_equations() -> None:
    total, lr = 10 * STEPS, 0.05
    cosine = [lr * (1 + math.cos(math.pi * k / total)) / 2 for k in range(total)]
    assert rates(schedule="cosine") == pytest.approx(cosine)
    assert rates(schedule="linear") == pytest.approx([lr * (1 - k / total) for k in range(total)])
    cycle = rates(schedule="onecycle")
    assert (cycle[0], max(cycle)) == pytest.approx((lr / 25, lr)) and cycle.index(max(cycle)) == 0.3 * total - 1
    warm = 6
    rise = [lr * (0.01 + 0.99 * k / warm) for k in range(warm)]
    linear = rates(schedule="linear", warmup=1.5)
    assert linear == pytest.approx(rise + [lr * (1 - k / (total - warm)) for k in range(total - warm)])
    by_epoch = replace(CONFIG, epochs=10)
    later = [by_epoch.lr_at(k // STEPS) for k in range(warm, total)]
    assert rates(warmup=1.5) == pytest.approx(rise + later) and len(set(later)) == 3


@pytest.mark.slow
def test_the_rate_in_the_metrics_is_that_of_the_last_step() -> None:
    found = [epoch["lr"] for epoch in train(replace(CONFIG, schedule="linear"))]
    assert found == pytest.approx([0.05 * (1 - k / 12) for k in (3, 7, 11)])


@pytest.mark.parametrize("choices", [{"nesterov": True}, {"optimizer": "adamw"}])
def test_an_optimizer_is_torchs_own(choices: dict[str, Any]) -> None:
    """AdamW: Loshchilov & Hutter, arXiv 1711.05101, algorithm 2; Nesterov's momentum as Sutskever et al. write it."""
    config = replace(CONFIG, lr=0.1, weight_decay=0.01, **choices)
    weight, gradients = nn.Parameter(torch.tensor([2.0], dtype=torch.float64)), (0.5, -0.3, 0.2)
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = optimizer_of(model, config)
    expected, first, second = 2.0, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        if config.nesterov:
            gradient += 0.01 * expected
            first = 0.9 * first + gradient
            expected -= 0.1 * (gradient + 0.9 * first)
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            scaled = (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
            expected -= 0.1 * (scaled + 0.01 * expected)
        assert weight.item() == pytest.approx(expected, abs=1e-12)


def test_without_augmentation_no_number_is_drawn() -> None:
    batch, before = torch.randn(4, 3, 8, 8), torch.get_rng_state()
    found, mixing = Augmentation(CONFIG)(batch)
    assert found is batch and mixing is None and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("choices", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(choices: dict[str, Any]) -> None:
    """The shares of an image are those of its pixels: image k has the value k."""
    torch.manual_seed(0)
    augment, own = Augmentation(replace(CONFIG, **choices)), torch.arange(5.0)
    found = set()
    for _ in range(5):
        batch, mixing = augment(own[:, None, None, None].expand(5, 3, 16, 16))
        assert mixing is not None
        torch.testing.assert_close(batch.mean((1, 2, 3)), mixing @ own)
        torch.testing.assert_close(mixing.sum(1), torch.ones(5))
        found.add(float(mixing[0, 0]))
    assert len(found) > 3 and all(0 <= share <= 1 for share in found)


def test_of_mixup_and_cutmix_each_has_its_turns() -> None:
    torch.manual_seed(0)
    augment = Augmentation(replace(CONFIG, mixup=1.0, cutmix=1.0))
    batch = torch.eye(2)[:, :1, None, None].expand(2, 3, 16, 16)
    blended = [bool(((found > 0.01) & (found < 0.99)).any()) for found, _ in (augment(batch) for _ in range(20))]
    assert 4 < sum(blended) < 16


def test_each_image_is_erased_by_itself_and_the_given_ones_stay() -> None:
    torch.manual_seed(0)
    batch = torch.ones(200, 3, 16, 16)
    found, mixing = Augmentation(replace(CONFIG, random_erasing=0.25))(batch)
    erased = {tuple(map(tuple, (image == 0).nonzero().tolist())) for image in found if (image == 0).any()}
    assert mixing is None and batch.all() and len(erased) > 25
    assert 25 < int((found == 0).any(3).any(2).any(1).sum()) < 75


@pytest.mark.slow
def test_the_loss_is_that_of_torchvisions_mixed_labels_and_the_error_counts_the_others() -> None:
    config = replace(CONFIG, epochs=1, batch_size=50, mixup=1.0, label_smoothing=0.1, seed=3)
    (found,) = train(config)
    model, ((batch, labels),) = network().train(), source().train(0, 50)
    torch.manual_seed(batches.seed_of(3, 0, 0, 0))
    torch.multinomial(torch.ones(1), 1)  # which kind of mixing: there is one
    mixed, targets = v2.MixUp(alpha=1.0, num_classes=10)(batch, labels)
    scores = model(mixed)
    expected = F.cross_entropy(scores, targets, label_smoothing=0.1)
    assert found["train_loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert found["train_top1_error"] == pytest.approx(100 * float((scores.argmax(1) != labels).double().mean()))


@pytest.mark.slow
def test_averaged_weights_are_tested_kept_and_given_back(tmp_path: Path) -> None:
    """Weights and running statistics follow their equation from step to step."""
    config, model, found = replace(CONFIG, epochs=2, ema=0.9), network(), dict[str, Tensor]()

    def follow(_: int) -> None:
        for name, value in model.state_dict().items():
            found[name] = 0.9 * found[name] + 0.1 * value if name in found else value.clone()

    metrics = train(config, model, checkpoints=Checkpoints(tmp_path, {}, keep=[1]), on_step=follow)
    averaged = model.state_dict()
    for name in [name for name, value in averaged.items() if value.is_floating_point()]:
        torch.testing.assert_close(averaged[name], found[name], msg=name)
    tested, *_ = loop.evaluate(model.eval(), source(), Group(CPU), config)
    assert tested == {key: metrics[-1][key] for key in tested}
    last, first = read(tmp_path / "checkpoint.pt"), read(kept(tmp_path, 1))
    assert same(weights_of(last), averaged) and not same(last["model"], averaged)
    model.load_state_dict(weights_of(first))
    tested, *_ = loop.evaluate(model.eval(), source(), Group(CPU), config)
    assert tested == {key: metrics[0][key] for key in tested}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cos"}, "schedule='cos': allowed: step, cosine, onecycle, linear"),
        ({"optimizer": "adam"}, "optimizer='adam': allowed: sgd, adamw"),
        ({"warmup": 3.0}, "warmup=3.0: allowed: a number from 0, below epochs=3"),
        ({"warmup": 1.0, "schedule": "onecycle"}, "warmup=1.0: allowed: 0, since schedule=onecycle rises by itself"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True: allowed with optimizer=sgd and a momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov=True: allowed with optimizer=sgd"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        replace(CONFIG, **values)
