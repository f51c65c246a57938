from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gamlib import build_model
from gamlib.training import data, loop
from gamlib.training.recipes import RECIPES

RECIPE = replace(RECIPES["digits"], epochs=2, batch_size=32, lr=0.05)


def train(seed: int = 0, **options: Any) -> list[dict[str, float]]:
    torch.manual_seed(seed)
    model = build_model("resnet18", num_classes=10, width=0.25)
    images = data.load("digits", 0.25)
    recipe = options.pop("recipe", RECIPE)
    return list(loop.fit(model, images, recipe, seed=seed, **{"pad": 2, "channels_last": True, **options}))


def without_times(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "images_per_second")} for epoch in metrics]


def test_one_seed_gives_the_same_bits_and_another_gives_others() -> None:
    assert without_times(train(0)) == without_times(train(0)) != without_times(train(1))


def test_the_test_images_change_nothing_in_training() -> None:
    """The same training losses with other test images: they choose nothing."""
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10, width=0.25)
    images = data.load("digits", 0.25, evaluate_on="validation")
    other = list(loop.fit(model, images, RECIPE, seed=0, pad=2, channels_last=True))
    assert [epoch["train_loss"] for epoch in other] == [epoch["train_loss"] for epoch in train(0)]


def test_the_test_images_are_looked_at_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = loop.evaluate, []

    def counted(*arguments: Any) -> tuple[float, float, float]:
        calls.append(1)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", counted)
    assert len(train()) == len(calls) == 2


@pytest.mark.slow
def test_the_baseline_is_neither_at_a_ceiling_nor_untrained() -> None:
    """At a test error of 3 to 20 % an ablation can say something."""
    torch.manual_seed(0)
    model = build_model("resnet18", attention="none", num_classes=10, width=0.5)
    *_, last = loop.fit(model, data.load("digits"), RECIPES["digits"], seed=0, pad=2, channels_last=True)
    assert 3 < last["top1_error"] < 20


@pytest.mark.parametrize("options", [{"amp": True}, {"channels_last": False}, {"flip": True}, {"pad": 0}])
def test_every_option_trains(options: dict[str, Any]) -> None:
    metrics = train(**options)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert without_times(metrics) != without_times(train())


def test_a_network_with_two_branches_learns_by_the_sum_of_both_losses() -> None:
    """One step of plain SGD goes along the gradient of the sum; the metrics are of the branch that predicts."""
    images = data.load("digits", 0.1)
    torch.manual_seed(0)
    model: Any = build_model("resnet18", "abn", num_classes=10, width=0.25).double()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    (picked,) = loop.steps(20, 20, torch.Generator().manual_seed(3))
    std, mean = torch.std_mean(images.train.float(), dim=(0, 2, 3))
    batch = data.normalise(images.train[picked], mean, std).double()
    perception, attention = (
        nn.functional.cross_entropy(scores.float(), images.train_labels[picked]) for scores in model.train()(batch)
    )
    gradients = torch.autograd.grad(perception + attention, list(model.parameters()))
    recipe = replace(RECIPE, epochs=1, batch_size=20, lr=0.1, momentum=0.0, weight_decay=0.0)
    model = model.float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(before[name])
    (metrics,) = loop.fit(model, images, recipe, seed=3)
    assert metrics["train_loss"] == pytest.approx(perception.item(), abs=1e-4)
    for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(value.double(), before[name] - 0.1 * gradient, rtol=0, atol=2e-4, msg=name)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"training diverged: the .* loss is .* in epoch 1"):
        train(recipe=replace(RECIPE, lr=1e30))


def test_errors_count_every_image_once() -> None:
    """Scores are the input itself, so what is right is known: 700 images, more than one batch."""
    scores = torch.zeros(700, 8)
    labels = torch.arange(700) % 8
    scores[torch.arange(700), labels] = 1.0
    scores[:70] = torch.arange(8, 0, -1).float()  # the first 70 always rank class 0 first, 5, 6 and 7 last

    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    _, top1, top5 = loop.evaluate(Identity(), scores, labels)
    wrong1 = sum(int(label != 0) for label in labels[:70])
    wrong5 = sum(int(label >= 5) for label in labels[:70])
    assert (top1, top5) == (100 * wrong1 / 700, 100 * wrong5 / 700)


def test_every_image_is_seen_once_an_epoch_but_for_a_last_one_alone() -> None:
    batches = list(loop.steps(65, 32, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [32, 32]
    assert torch.cat(list(loop.steps(66, 32, torch.Generator()))).sort().values.tolist() == list(range(66))


def test_the_learning_rate_drops_in_proportion_to_the_length() -> None:
    recipe = replace(RECIPES["digits"], epochs=10, lr=1.0, drops=(0.5, 0.8), drop_factor=0.1)
    assert [recipe.lr_at(epoch) for epoch in (0, 4, 5, 7, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert replace(recipe, epochs=1).lr_at(0) == 1.0
