"""What only a GPU can show. Where there is none these are skipped."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gamlib import build_model
from gamlib.data import batches
from gamlib.data import images as data
from gamlib.training import loop
from gamlib.training.checkpoint import Checkpoints
from gamlib.training.parallel import Group, join, launch
from gamlib.training.recipes import RECIPES, TrainingConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CONFIG = replace(RECIPES["digits"], epochs=3, batch_size=32)
CHOICES: dict[str, Any] = {"schedule": "onecycle", "optimizer": "adamw", "lr": 0.001, "ema": 0.9}
CHOICES |= {"mixup": 0.4, "cutmix": 1.0, "random_erasing": 0.5}


def fit(group: Group, config: TrainingConfig, **options: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = build_model("resnet18", "gam", num_classes=10, width=0.5).to(group.device)
    images = data.load("digits")
    assert isinstance(images, data.Images)
    feed = batches.FromMemory(images, group.device, seed=0, pad=2, rank=group.rank, world=group.world)
    metrics = list(loop.fit(model, feed, config, group=group, **options))
    return metrics, {name: value.cpu() for name, value in model.state_dict().items()}


def one_of_one(config: TrainingConfig) -> Any:
    return fit(join(), config)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, amp=True, channels_last=True),
        replace(CONFIG, amp=True, channels_last=True, compile=True),
        replace(CONFIG, amp=True, channels_last=True, compile=True, cuda_graphs=True),
    ],
    ids=["plain", "amp", "compile", "cuda graphs"],
)
def test_every_speed_learns_as_the_cpu_does(config: TrainingConfig) -> None:
    on_cpu, _ = fit(Group(torch.device("cpu")), CONFIG)
    on_gpu, _ = fit(Group(torch.device("cuda")), config)
    assert on_gpu[-1]["train_loss"] == pytest.approx(on_cpu[-1]["train_loss"], abs=0.3)
    assert on_gpu[-1]["peak_memory_mib"] > 10


@pytest.mark.parametrize("choices", [{}, {"amp": True}, CHOICES], ids=["plain", "amp", "choices"])
def test_a_deterministic_training_that_was_stopped_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    group = Group(torch.device("cuda"))
    config = replace(CONFIG, **choices, channels_last=True, deterministic=True)
    expected, weights = fit(group, config)
    moments, stops = random.Random(1), 0
    while True:
        try:
            found, theirs = fit(
                group,
                config,
                checkpoints=Checkpoints(tmp_path, {}),
                stop=lambda: "a test" * (moments.random() < 0.2),
            )
            break
        except loop.Stopped:
            stops += 1
    assert stops > 1
    assert [epoch["train_loss"] for epoch in found] == [epoch["train_loss"] for epoch in expected]
    assert all(torch.equal(theirs[name], weights[name]) for name in weights)


def test_nccl_and_its_batch_statistics_have_the_losses_of_one_process() -> None:
    """On one GPU there is one process; on several this takes them all."""
    expected, _ = fit(Group(torch.device("cuda")), CONFIG)
    found, _ = launch(one_of_one, torch.cuda.device_count(), CONFIG)
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=1e-3)
