import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from double import Double
from torch import Tensor, nn

from gamlib import accelerate, build_model
from gamlib.data import batches
from gamlib.data import images as data
from gamlib.training import loop
from gamlib.training.checkpoint import CheckpointError, Checkpoints
from gamlib.training.parallel import Group
from gamlib.training.recipes import RECIPES, TrainingConfig

pytestmark = pytest.mark.slow

CONFIG = replace(RECIPES["digits"], epochs=2, batch_size=32, lr=0.05, channels_last=True)
IN_ORDER = replace(CONFIG, channels_last=False)
CPU = torch.device("cpu")
Metrics = list[dict[str, float]]


def images(train_fraction: float = 0.25, evaluate_on: str = "test") -> data.Images:
    found = data.load("digits", train_fraction, evaluate_on)
    assert isinstance(found, data.Images)
    return found


def network(attention: str = "gam", backbone: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return build_model(backbone, attention, num_classes=10, width=0.25)


def train(seed: int = 0, model: nn.Module | None = None, **options: Any) -> Metrics:
    feed = {key: options.pop(key) for key in ("pad", "flip") if key in options}
    source = batches.FromMemory(options.pop("images", None) or images(), CPU, seed=seed, **{"pad": 2, **feed})
    config = replace(options.pop("config", CONFIG), seed=seed)
    return list(loop.fit(model or network(), source, config, **options))


def without_times(metrics: Metrics) -> Metrics:
    return [{key: value for key, value in epoch.items() if key not in loop.MEASURED} for epoch in metrics]


def test_one_seed_gives_the_same_bits_and_another_gives_others() -> None:
    assert without_times(train(0)) == without_times(train(0)) != without_times(train(1))


def test_the_test_images_change_nothing_in_training() -> None:
    """The same training losses with other test images: they choose nothing."""
    other = train(images=images(evaluate_on="validation"))
    assert [epoch["train_loss"] for epoch in other] == [epoch["train_loss"] for epoch in train()]


def test_the_test_images_are_looked_at_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, evaluate = [], loop.evaluate

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", counted)
    assert len(train()) == len(calls) == 2


@pytest.mark.long
def test_the_baseline_is_neither_at_a_ceiling_nor_untrained() -> None:
    """At a test error of 3 to 20 % an ablation can say something."""
    torch.manual_seed(0)
    model = build_model("resnet18", attention="none", num_classes=10, width=0.5)
    assert 3 < train(model=model, images=images(1.0), config=RECIPES["digits"])[-1]["top1_error"] < 20


@pytest.mark.parametrize(
    "options", [{"config": replace(IN_ORDER, amp=True)}, {"config": IN_ORDER}, {"flip": True}, {"pad": 0}]
)
def test_every_option_trains(options: dict[str, Any]) -> None:
    metrics = train(**options)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert without_times(metrics) != without_times(train())


def test_a_network_with_two_branches_learns_by_the_sum_of_both_losses() -> None:
    """One step of plain SGD goes along the gradient of the sum; the metrics are of the branch that predicts."""
    source = Double(images(0.1), CPU, seed=3)
    model: Any = network("abn").double()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    ((batch, labels),) = source.train(0, 20)
    perception, attention = (nn.functional.cross_entropy(scores, labels) for scores in model.train()(batch))
    gradients = torch.autograd.grad(perception + attention, list(model.parameters()))
    config = replace(IN_ORDER, epochs=1, batch_size=20, lr=0.1, momentum=0.0, weight_decay=0.0, seed=3)
    (metrics,) = loop.fit(model, source, config)
    assert metrics["train_loss"] == pytest.approx(perception.item(), abs=1e-5)
    for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(value, before[name] - 0.1 * gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_is_torchs_own_sgd_on_the_mean_loss_with_the_recipes_values() -> None:
    """The loop's weights after an epoch, to the last bit, from torch's parts put together by hand."""
    config = replace(IN_ORDER, epochs=1, label_smoothing=0.1)
    trained, model = network(), accelerate(network().train())
    (metrics,) = train(model=trained, config=config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = []
    for batch, labels in batches.FromMemory(images(), CPU, seed=0, pad=2).train(0, 32):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch.contiguous()), labels, label_smoothing=0.1, reduction="sum")
        (loss * (1 / len(labels))).backward()
        optimizer.step()
        losses.append(loss.item())
    for name, value in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 50, abs=1e-6)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("backbone", "attention", "config"),
    [
        ("resnet18", "gam", CONFIG),
        ("mobilenet_v2", "se", IN_ORDER),
        ("resnet18", "abn", replace(IN_ORDER, amp=True, mixup=0.4, ema=0.9, schedule="linear")),
    ],
    ids=["gam", "dropout", "amp"],
)
def test_a_training_stopped_again_and_again_ends_in_the_same_bits(
    tmp_path: Path, seed: int, backbone: str, attention: str, config: TrainingConfig
) -> None:
    """Stopped between epochs, in their middle and in evaluations; with dropout, augmentation and momentum."""
    config = replace(config, epochs=3, batch_size=13, lr=0.01)
    whole = network(attention, backbone)
    expected = train(model=whole, config=config, flip=True)
    moments, stops = random.Random(seed), []
    while True:
        model = network(attention, backbone)
        options: dict[str, Any] = {
            "checkpoints": Checkpoints(tmp_path, {}),
            "stop": lambda: "a test" * (moments.random() < 0.3),
            "config": config,
        }
        try:
            found = train(model=model, flip=True, **options)
            break
        except loop.Stopped as stopped:
            stops.append(str(stopped))
            torch.manual_seed(len(stops))  # the state of the generators is nobody's business
    assert len(stops) >= 2
    assert all(text.startswith("stopped by a test in epoch ") for text in stops)
    assert without_times(found) == without_times(expected)
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_states_are_saved_within_an_epoch_when_the_time_has_come(tmp_path: Path) -> None:
    """Here after every step: what a killed run loses is what came since."""

    class Noted(Checkpoints):
        def save(self, state: Any) -> None:
            saved.append((state["epoch"], state["step"]))
            super().save(state)

    saved: list[tuple[int, int]] = []
    train(checkpoints=Noted(tmp_path, {}), save_seconds=0.0)
    assert list(dict.fromkeys(saved)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    saved.clear()
    train(checkpoints=Noted(tmp_path / "other", {}), save_seconds=600.0)
    assert saved == [(1, 0), (2, 0)]


def test_a_training_that_was_done_gives_its_metrics_and_trains_nothing(tmp_path: Path) -> None:
    expected = train(checkpoints=Checkpoints(tmp_path, {}))
    steps: list[int] = []
    again = train(checkpoints=Checkpoints(tmp_path, {}), on_step=lambda: steps.append(1))
    assert again == expected and not steps


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(checkpoints=Checkpoints(tmp_path, {}))
    with pytest.raises(CheckpointError, match="does not fit this code's network"):
        train(model=network("se"), checkpoints=Checkpoints(tmp_path, {}))


@pytest.mark.parametrize(
    ("values", "finite"),
    [([3e38, 3e38], True), ([math.inf], False), ([math.inf, -math.inf], False), ([math.nan, 0.0], False)],
)
def test_a_weight_that_is_not_finite_is_in_no_checkpoint(values: list[float], finite: bool, tmp_path: Path) -> None:
    """The loss need not see it; and a sum that is too large is no such weight."""
    model = network()
    options: dict[str, Any] = {"checkpoints": Checkpoints(tmp_path, {}), "config": replace(CONFIG, epochs=1)}
    model.register_buffer("values", torch.tensor(values))
    if finite:
        train(model=model, **options)
    else:
        with pytest.raises(FloatingPointError, match="training diverged: a weight is not finite"):
            train(model=model, **options)
    assert (tmp_path / "checkpoint.pt").exists() is finite


def test_a_loss_that_is_not_finite_ends_the_run_with_its_place_and_no_checkpoint_of_it(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=3, milestones=(0.5,), gamma=1e30)  # the third epoch's learning rate
    with pytest.raises(FloatingPointError) as refused:
        train(config=config, checkpoints=Checkpoints(tmp_path, {}), save_seconds=0.0)
    assert str(refused.value).startswith("training diverged: ")
    assert " in epoch 3, step " in str(refused.value)
    assert "; the last good checkpoint is of epoch " in str(refused.value)
    last = Checkpoints(tmp_path, {}).load()
    assert last is not None
    assert f"epoch {last['epoch'] + 1}, step {last['step']}: {tmp_path / 'checkpoint.pt'}" in str(refused.value)
    assert all(value.isfinite().all() for value in last["model"].values())


def test_a_loss_is_found_at_its_very_step() -> None:
    class Spoiled(batches.FromMemory):
        def train(self, epoch: int, batch_size: int, first: int = 0) -> batches.Stream:
            for step, (batch, labels) in enumerate(super().train(epoch, batch_size, first)):
                yield batch * (float("nan") if (epoch, step) == (1, 2) else 1), labels

    source = Spoiled(images(), CPU, seed=0)
    message = r"the training loss is nan in epoch 2, step 3$"
    with pytest.raises(FloatingPointError, match=message):
        list(loop.fit(network(), source, replace(IN_ORDER, batch_size=8)))


def evaluated(network: Any, images: Tensor, labels: Tensor, config: TrainingConfig = CONFIG) -> Any:
    """With the images in batches of 300."""

    class Given:
        test_size = len(labels)

        def test(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from zip(images.split(300), labels.split(300), strict=True)

    return loop.evaluate(network, Given(), Group(CPU), config)  # type: ignore[arg-type]


def test_errors_count_every_image_once() -> None:
    """Scores are the input itself, so what is right is known: 700 images, more than one batch."""
    scores = torch.zeros(700, 8)
    labels = torch.arange(700) % 8
    scores[torch.arange(700), labels] = 1.0
    scores[:70] = torch.arange(8, 0, -1).float()  # the first 70 always rank class 0 first, 5, 6 and 7 last
    errors, predicted, found = evaluated(nn.Flatten(), scores[:, :, None, None], labels)
    wrong1 = sum(int(label != 0) for label in labels[:70])
    wrong5 = sum(int(label >= 5) for label in labels[:70])
    assert (errors["top1_error"], errors["top5_error"]) == (100 * wrong1 / 700, 100 * wrong5 / 700)
    assert errors["test_loss"] == pytest.approx(nn.functional.cross_entropy(scores.double(), labels).item(), rel=1e-6)
    assert torch.equal(found, labels) and int((predicted != labels).sum()) == wrong1


class Ties(nn.Module):
    """Ten scores, all or most of them equal, that depend on the order of the images in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = x.mean((1, 2, 3))[:, None].expand(-1, 10).round(decimals=1).clone()
        scores[:, 3] += float(x.is_contiguous(memory_format=torch.channels_last))
        return scores


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_the_error_of_a_run_is_that_of_its_predictions(amp: bool, channels_last: bool) -> None:
    config = replace(CONFIG, amp=amp, channels_last=channels_last)
    errors, predicted, labels = evaluated(Ties(), torch.randn(700, 3, 4, 4), torch.randint(5, (700,)), config)
    assert errors["top1_error"] == 100 * float((predicted != labels).double().mean())
    assert predicted.unique().tolist() == [3 if channels_last else 0] and errors["top5_error"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_scores_the_lower_class_is_first(dtype: torch.dtype) -> None:
    scores = torch.randn(200, 20, 1, 1).mul(2).round().to(dtype)
    labels = torch.arange(200) % 20
    assert torch.equal(evaluated(nn.Flatten(), scores, labels)[1], scores.flatten(1).argmax(1))
    errors, _, _ = evaluated(nn.Flatten(), torch.zeros(200, 20, 1, 1, dtype=dtype), labels)
    assert (errors["top1_error"], errors["top5_error"]) == (95, 75)  # right are class 0, and classes 0 to 4
    distinct = torch.randn(200, 20, 1, 1)
    missed = (distinct.flatten(1).topk(5).indices != labels[:, None]).all(1)
    assert evaluated(nn.Flatten(), distinct, labels)[0]["top5_error"] == 100 * int(missed.sum()) / 200
    assert evaluated(nn.Flatten(), torch.zeros(8, 4, 1, 1), labels[:8] % 4)[0]["top5_error"] == 0  # four classes


def test_metrics_say_what_a_figure_needs() -> None:
    first, last = train(config=replace(CONFIG, milestones=(0.5,)))
    assert (first["epoch"], last["epoch"]) == (1, 2)
    assert [first["lr"], last["lr"]] == pytest.approx([0.05, 0.005])
    assert first["images_per_second"] == pytest.approx(50 / first["seconds"])
    assert 50 < first["peak_memory_mib"] < 100_000
