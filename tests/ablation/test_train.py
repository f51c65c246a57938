"""Training of a run in this process, without a notebook around it."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from ablation.config import LATER, RunConfig
from ablation.execution import progress
from ablation.execution.train import train
from ablation.gates.runs import load_network
from ablation.results.frames import read_predictions
from ablation.runs import Run, RunFailed, RunStopped
from ablation.status import TrainingProgress
from gamlib.backbones import build_model
from gamlib.kernels import native
from gamlib.paper.complexity import complexity
from gamlib.training import loop
from gamlib.training.checkpoint import CheckpointError

pytestmark = pytest.mark.slow


def run_of(**values: Any) -> Run:
    return Run(RunConfig(**{"epochs": 3, "width": 0.25, "train_fraction": 0.25, "batch_size": 10, **values}))


def bits(run: Run) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{key: value for key, value in json.loads(line).items() if key not in loop.MEASURED} for line in lines]
    return metrics, torch.load(run.folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same(first: Run, second: Run) -> None:
    (metrics, weights), (others, theirs) = bits(first), bits(second)
    assert metrics == others
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)


@pytest.mark.parametrize("by", ["SIGTERM", "SIGUSR2", "SIGINT", "a request"])
def test_a_stop_saves_the_state_and_the_same_call_goes_on_bit_by_bit(
    by: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(run_of())
    monkeypatch.setenv("GAM_RUNS", str(places / "again"))
    run, save = run_of(), torch.optim.SGD.step
    steps = 0

    def step(optimizer: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 8:  # in the middle of the second epoch
            run.ask_to_stop(by) if by == "a request" else os.kill(os.getpid(), getattr(signal, by))
        return save(optimizer, *arguments)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        with pytest.raises(RunStopped, match=f"^stopped by {by} in epoch 2 of 3 after 3 of 5 steps$"):
            train(run)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)] == before
    assert (run.status().state, run.status().error[:10]) == ("preempted", "stopped by")
    assert run.result() is None and len(run.metrics()) == 1
    train(run)
    assert run.status().state == "done" and run.status().attempts == 2
    assert_same(run, undisturbed)
    assert not (run.folder / "checkpoint.previous.pt").exists()


@pytest.mark.parametrize("amp", [False, True])
def test_predictions_are_those_that_the_error_counts(amp: bool) -> None:
    run = run_of(epochs=1, amp=amp)
    train(run)
    (predicted, label), result = read_predictions(run), run.result()
    right = predicted == label
    assert result is not None
    assert len(right) == 898 and 100 * (1 - right.mean()) == pytest.approx(result.top1_error)


def test_a_run_that_trains_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said, update = run_of(epochs=2), list[TrainingProgress | None](), tqdm.update

    def look(bar: Any, steps: float) -> Any:
        said.append(run.progress())
        return update(bar, steps)

    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(tqdm, "update", look)
    train(run)
    first, *others, last = said  # at each step, of the one before it
    error = run.metrics()["top1_error"][0]
    assert first is None and [one and one.epoch for one in [*others, last]] == [1] * 5 + [2] * 4
    assert last is not None and (last.epochs, last.top1_error) == (2, error)
    assert last.seconds is not None and last.seconds_left is not None and 0 < last.seconds_left < last.seconds / 2
    assert not (run.folder / "progress.json").exists()


def test_a_run_that_goes_on_leaves_one_set_of_event_files(monkeypatch: pytest.MonkeyPatch) -> None:
    class SummaryWriter:
        """As torch's: a file of its own for each, with what was added in it."""

        number = 0

        def __init__(self, folder: str) -> None:
            type(self).number += 1
            self.path = Path(folder) / f"events.out.tfevents.{self.number}"
            self.lines = list[str]()

        def __enter__(self) -> "SummaryWriter":
            return self

        def __exit__(self, *_: object) -> None:
            self.flush()

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.lines.append(json.dumps([name, value, step]))

        def flush(self) -> None:
            self.path.write_text("\n".join(self.lines))

    monkeypatch.setattr("ablation.config.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Mock(SummaryWriter=SummaryWriter))
    run, steps = run_of(tensorboard=True), iter(range(100))
    with monkeypatch.context() as patch, pytest.raises(RunStopped):
        patch.setattr(Run, "asked_to_stop", lambda self: "a test" if next(steps) == 12 else "")
        train(run)
    (before,) = run.folder.glob("events.out.tfevents.*")
    train(run)
    (path,) = run.folder.glob("events.out.tfevents.*")
    metrics = run.metrics().set_index("epoch")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert path != before and len(found) == metrics.size and len(metrics) == 3
    assert all(metrics[name][step] == value for name, value, step in found)
    again = train(run_of(epochs=1))
    assert not [*again.folder.glob("events.*")], "only where it is asked for"


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_was_killed_between_its_last_epoch_and_its_result_gets_both(ema: float) -> None:
    run = train(run_of(epochs=1, ema=ema))
    before, predicted = run.result(), read_predictions(run)[0]
    assert before is not None
    for name in ("result.json", "predictions.npz"):
        (run.folder / name).unlink()
    train(run)
    after = run.result()
    assert after is not None and after.top1_error == before.top1_error
    assert (read_predictions(run)[0] == predicted).all() and len(run.metrics()) == 1


def test_the_network_of_a_run_has_the_averaged_weights_that_were_tested() -> None:
    run = train(run_of(epochs=2, ema=0.9))
    for epoch, name in ((1, "checkpoint.epoch1.pt"), (2, "checkpoint.pt")):
        averaged = torch.load(run.folder / name, weights_only=True)["ema"]
        found = load_network(run, epoch).state_dict()
        assert all(torch.equal(found[key], averaged[key]) for key in found)


def test_a_result_has_the_costs_of_its_network() -> None:
    run = train(run_of(epochs=1, attention="gam"))
    costs, result = complexity(build_model(**run.config.architecture()), (1, 3, 32, 32)), run.result()
    assert result is not None and (result.parameters, result.flops) == (costs.parameters, costs.flops)


def test_a_second_ctrl_c_does_not_wait_for_the_step_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: Any) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(30)

    monkeypatch.setattr(torch.optim.SGD, "step", endless)
    run = run_of()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert run.status().state == "preempted" and time.monotonic() - began < 25


def test_provenance_and_result_name_all_code_that_made_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(epochs=1)
    run.queue()
    answers = iter(["", "", "a test"])
    with monkeypatch.context() as patch, pytest.raises(RunStopped):
        patch.setattr(Run, "asked_to_stop", lambda self: next(answers))
        train(run)
    path = run.folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "other code"}))
    train(run)
    provenance, result = json.loads(path.read_text()), run.result()
    assert [earlier["source"] for earlier in provenance["earlier"]] == ["other code"]
    if not torch.cuda.is_available():
        assert provenance["c_library"] == (native.library() is not None)
        assert provenance["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert result is not None and result.source == f"other code+{provenance['source']}"


def test_a_checkpoint_of_another_configuration_is_refused_by_name() -> None:
    first, second = train(run_of(epochs=1)), run_of(epochs=1, lr=0.5)
    second.folder.mkdir(parents=True)
    (second.folder / "checkpoint.pt").write_bytes((first.folder / "checkpoint.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"is of another configuration: lr=0.01 there, 0.5 here"):
        train(second)
    assert second.status().state == "failed" and "lr=0.01 there" in second.status().error


def test_a_divergence_fails_the_run_and_names_the_last_good_checkpoint() -> None:
    run = run_of(milestones=[0.5], gamma=1.0, lr=1e18)
    with pytest.raises(FloatingPointError):
        train(run)
    assert run.status().state == "failed"
    assert "training diverged" in run.status().error and "epoch 1, step " in run.status().error
    assert "there is no checkpoint" in run.status().error


@pytest.mark.parametrize("text", ["soon", "-1"])
def test_minutes_between_checkpoints_must_be_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GAM_CHECKPOINT_MINUTES", text)
    with pytest.raises(RunFailed, match=rf"GAM_CHECKPOINT_MINUTES='{text}': allowed: a number from 0"):
        train(run_of())


@pytest.mark.parametrize("size", [24, pytest.param(96, marks=pytest.mark.long)])
def test_a_run_trains_on_an_image_folder(
    size: int, places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Small images from memory, large ones by workers; two classes that differ in brightness are learned."""
    monkeypatch.setenv("GAM_DATA", str(tmp_path / "data"))
    random = np.random.default_rng(0)
    for part, number in (("train", 16), ("test", 8)):
        for label, mean in (("dark", 60), ("light", 190)):
            folder = tmp_path / "data" / "shades" / part / label
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.normal(mean, 20, (size, size, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    values: dict[str, Any] = {"dataset": "imagefolder:shades", "train_fraction": 1, "batch_size": 8, "epochs": 8}
    run = run_of(**values, stem="imagenet", attention="none", **({"workers": 1} if size > 64 else {}))
    train(run)
    result = run.result()
    assert result is not None and result.top1_error < 25 and result.top5_error == 0
    assert run.folder.parent.name == "imagefolder-shades"


def test_predictions_are_those_of_the_compiled_network_as_the_errors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled(torch.nn.Module):
        def __init__(self, model: torch.nn.Module, **_: Any) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if self.inner.training else self.inner(x).neg()

    monkeypatch.setattr(torch, "compile", Compiled)
    run = train(run_of(epochs=1, compile=True))
    label, predicted = (np.load(run.folder / "predictions.npz")[name] for name in ("label", "predicted"))
    result = run.result()
    assert result is not None and result.top1_error == pytest.approx(100 * (label != predicted).mean())
    assert result.top1_error > 90, "the best class of this test's compiled network is the other one's worst"


def test_a_checkpoint_of_the_first_version_goes_on() -> None:
    """Which knew the milestones by another name."""
    run, values = run_of(epochs=2), run_of(epochs=2).config.model_dump()
    names = {"milestones": "drops", "gamma": "drop_factor"}
    old = {names.get(key, key): value for key, value in values.items() if key not in (*LATER, "tensorboard")}
    answers = iter(["", "", "a test"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunStopped):
        patch.setattr(Run, "asked_to_stop", lambda self: next(answers))
        train(run)
    assert torch.load(run.folder / "checkpoint.pt", weights_only=True)["identity"] == old
    assert train(run).status().attempts == 2


def test_a_gpu_whose_driver_is_too_old_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts it, and torch cannot use it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(run_of(epochs=1)).result() is not None
    with pytest.raises(RunFailed, match=r"^devices=2: this machine shows no GPU$"):
        train(run_of(epochs=1, devices=2))


def test_more_devices_than_the_machine_has_are_refused() -> None:
    gpus = torch.cuda.device_count()
    with pytest.raises(RunFailed, match=rf"^devices=10: this machine shows {gpus or 'no'} GPU"):
        train(run_of(devices=10))
