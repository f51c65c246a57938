"""Runs that are trained in processes which can be killed, and how their outcomes are compared."""

import json
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ablation.config import RunConfig
from ablation.execution.train import train
from ablation.runs import Run
from gamlib.training.loop import MEASURED

# Batches of 10 from 50 images, shuffled and cropped; MobileNetV2 has dropout, and all that may be chosen beside a
# recipe: all that a lost generator, schedule or average would change.
VALUES: dict[str, Any] = {"epochs": 3, "train_fraction": 0.25, "batch_size": 10, "lr": 0.005}
CHOICES: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.5, "ema": 0.9}
CHOICES |= {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.25}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18-gam": {"backbone": "resnet18", "attention": "gam", "width": 0.25},
    "mobilenet_v2-se": {"backbone": "mobilenet_v2", "attention": "se", "width": 0.5, **CHOICES},
}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["ablation.execution.train", "gamlib.data.images"])


def run_in(folder: Path, network: str) -> Run:
    os.environ["GAM_RUNS"] = str(folder)
    return Run(RunConfig(**VALUES, **NETWORKS[network]))


def start(folder: Path, network: str, minutes: float) -> BaseProcess:
    """A process that trains the run of this folder, from where it stands."""
    process = processes.Process(target=_train, args=(folder, network, minutes))
    process.start()
    return process


def _train(folder: Path, network: str, minutes: float) -> None:
    os.environ |= {"GAM_CHECKPOINT_MINUTES": str(minutes), "GAM_BATCH": "1"}
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    train(run_in(folder, network))


def outcome(run: Run) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The metrics, times aside, and the weights, the averaged ones too."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    return metrics, state["model"] | {f"ema.{name}": value for name, value in state.get("ema", {}).items()}


def same(first: Run, second: Run) -> bool:
    """Whether two runs are done with the same metrics and weights, to the last bit."""
    if first.result() is None or second.result() is None:
        return False
    (metrics, weights), (others, theirs) = outcome(first), outcome(second)
    return metrics == others and all(torch.equal(weights[name], theirs[name]) for name in weights)
