"""Several processes that train one network: here two, on the CPU, over gloo."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sync_batchnorm  # noqa: F401
import torch
from double import Double

from gamlib import build_model
from gamlib.data import batches
from gamlib.data import images as data
from gamlib.training import loop
from gamlib.training.checkpoint import Checkpoints
from gamlib.training.parallel import Group, join, launch
from gamlib.training.recipes import RECIPES

# 100 training images: three batches of 33, which two processes share unevenly.
# A small learning rate: at a large one the rounding of the first steps is another path by the tenth.
CONFIG = replace(RECIPES["digits"], epochs=2, batch_size=33, lr=0.001)

CHOICES = {"schedule": "cosine", "warmup": 0.5, "nesterov": True, "ema": 0.5}

ALONE = Group(torch.device("cpu"))


def fit(
    group: Group, attention: str, double: bool, choices: dict[str, Any] | None = None, **options: Any
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("resnet18", attention, num_classes=10, width=0.25)
    images = data.load("digits", 0.5)
    assert isinstance(images, data.Images)
    images = replace(images, test=images.test[:897], test_labels=images.test_labels[:897])
    kind = Double if double else batches.FromMemory
    feed = kind(images, group.device, seed=0, pad=2, rank=group.rank, world=group.world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "EVALUATION_BATCH", 448)  # one process has a test batch more than the other
        config = replace(CONFIG, **choices or {})
        metrics = list(loop.fit(model.double() if double else model, feed, config, group=group, **options))
    return metrics, {name: value.clone() for name, value in model.state_dict().items()}


COMPARED = [("gam", False), ("gam", True), ("bam", True), ("abn", True)]  # at float64, or not


def one_of_two(folder: Path) -> Any:
    group = join()
    return {
        **{(attention, double): fit(group, attention, double) for attention, double in COMPARED},
        "bfloat16": fit(group, "gam", False, {"amp": True}),
        "choices": fit(group, "gam", True, CHOICES),
        "stopped": stopped(group, folder),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the checkpoint of the training that was stopped."""
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def by_two(folder: Path) -> Any:
    """What two processes have found, one training after the other."""
    return launch(one_of_two, 2, folder)


def stopped(group: Group, folder: Path) -> str:
    """Only the second process hears of the stop; both must end, after the same step."""
    asked: list[int] = []

    def stop() -> str:
        asked.append(1)
        return "a signal" if group.rank == 1 and len(asked) == 3 else ""

    try:
        fit(group, "gam", False, checkpoints=Checkpoints(folder, {}), stop=stop)
    except loop.Stopped as error:
        return str(error)
    return "never stopped"


def fails() -> None:
    if join().rank == 1:
        raise ValueError("the second has failed")


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "double"), COMPARED)
def test_two_processes_have_the_losses_of_one(by_two: Any, attention: str, double: bool) -> None:
    """GAM to 1e-5; at float64 weights and buffers too, and where a normalisation over few values magnifies rounding."""
    expected, weights = fit(ALONE, attention, double)
    found, theirs = by_two[attention, double]
    assert len(found) == len(expected) == 2
    for ours, others in zip(expected, found, strict=True):
        for key in ("train_loss", "test_loss"):
            assert others[key] == pytest.approx(ours[key], abs=1e-6 if double else 1e-5), key
        for key in ("train_top1_error", "top1_error", "top5_error"):
            assert others[key] == pytest.approx(ours[key], abs=1e-9 if double else 0.12), key  # one of 897 images
    for name, value in weights.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-9 if double else 1e-3, msg=name)


@pytest.mark.slow
def test_two_processes_in_bfloat16_have_about_the_losses_of_one(by_two: Any) -> None:
    expected, _ = fit(ALONE, "gam", False, {"amp": True})
    found, _ = by_two["bfloat16"]
    assert [epoch["train_loss"] for epoch in found] == pytest.approx([e["train_loss"] for e in expected], abs=0.15)


@pytest.mark.slow
def test_two_processes_have_the_averaged_weights_of_one(by_two: Any) -> None:
    """And its rates; but what mixup, cutmix and random erasing draw is each process's own."""
    (expected, weights), (found, theirs) = fit(ALONE, "gam", True, CHOICES), by_two["choices"]
    assert [epoch["lr"] for epoch in found] == [epoch["lr"] for epoch in expected]
    assert [epoch["test_loss"] for epoch in found] == pytest.approx([e["test_loss"] for e in expected], abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
def test_a_stop_that_one_process_hears_ends_both_and_one_goes_on(by_two: Any, folder: Path) -> None:
    """Also: what two have begun, one can end, with the same losses."""
    assert by_two["stopped"] == "stopped by another process in epoch 1 of 2 after 2 of 3 steps"
    expected, _ = fit(ALONE, "gam", False)
    found, _ = fit(ALONE, "gam", False, checkpoints=Checkpoints(folder, {}))
    assert [epoch["train_loss"] for epoch in found] == pytest.approx([e["train_loss"] for e in expected], abs=1e-5)


@pytest.mark.long
def test_the_failure_of_one_process_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"process 1 of 2 failed: .*the second has failed"):
        launch(fails, 2)
