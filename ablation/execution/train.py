"""Training of one run, as `notebooks/run.ipynb` calls it."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ablation.execution.execute import forward_signals
from ablation.execution.progress import ProgressFile
from ablation.paths import share_of_cores, usable_gpus
from ablation.provenance import processor, provenance
from ablation.runs import BATCH, JOB, Run, RunFailed, RunStopped
from ablation.status import Result
from gamlib.backbones import build_model
from gamlib.data import images as data
from gamlib.data.batches import Batches, FromFiles, FromMemory, sizes
from gamlib.data.datasets import describe
from gamlib.kernels import native
from gamlib.paper.complexity import complexity
from gamlib.training import loop
from gamlib.training.checkpoint import Checkpoints
from gamlib.training.parallel import Group, join, launch

MINUTES = "GAM_CHECKPOINT_MINUTES"  # between two checkpoints within an epoch, by default 10


def train(run: Run) -> Run:
    """Train a run's network unless that is done, and leave `metrics.jsonl`, `predictions.npz` and `result.json`.

    It goes on from the run's last checkpoint. SIGTERM, SIGUSR2, Ctrl-C and a request in the run's folder save the state
    after the present step and end it. In a terminal or in Jupyter a bar shows the progress; under papermill each epoch
    prints one line.

    Raises:
        RunStopped: it was asked to stop; the same call goes on from there.
        RunFailed: this machine lacks devices, or one of several processes failed.
        FloatingPointError: the training diverged.
        DatasetError, CheckpointError: images or a checkpoint that cannot be used.
    """

    def ask(by: str) -> None:
        """What a signal calls: the first asks, a second Ctrl-C does not wait for the step to end."""
        if by == "SIGINT" and run.asked_to_stop() and BATCH not in os.environ:
            raise KeyboardInterrupt
        run.ask_to_stop(by)

    owned = os.environ.get(JOB) == run.signature
    if not owned:  # as a job would: one share of the cores, and so the same bits
        torch.set_num_threads(share_of_cores())
    with nullcontext(True) if owned else run.claim() as mine:
        if mine:
            with forward_signals(ask):
                _train(run)
    return run


def _train(run: Run) -> None:
    devices, gpus = run.config.devices, usable_gpus()
    if devices == 1:
        stopped = _fit(run, Group(torch.device("cuda" if gpus else "cpu")))
    elif devices > gpus:
        raise RunFailed(f"devices={devices}: this machine shows {gpus or 'no'} GPU{'s' * (gpus > 1)}")
    else:
        threads = max(1, torch.get_num_threads() // devices)
        try:
            stopped = launch(_one_of_several, devices, run, threads)
        except RuntimeError as error:
            raise RunFailed(str(error)) from None
    if stopped:
        raise RunStopped(stopped)


def _one_of_several(run: Run, threads: int) -> str:
    """What each process of a run on several devices does; why it was stopped, or nothing."""
    torch.set_num_threads(threads)
    with forward_signals(run.ask_to_stop):
        return _fit(run, join())


def _fit(run: Run, group: Group) -> str:
    """Train in a group of processes, of which the first one writes; why it was stopped, or nothing."""
    config, training, first = run.config, run.config.training(), group.rank == 0
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    batches = _batches(run, group)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture()).to(group.device)
    report, keep = (print, kept_epochs(config.epochs)) if first else (lambda _: None, ())
    checkpoints = Checkpoints(run.folder, config.identity(), report, keep)
    continued = checkpoints.path.exists() or checkpoints.previous.exists()
    source = _provenance(run, group, continued) if first else ""
    quiet, steps = BATCH in os.environ, len(sizes(batches.train_size, config.batch_size))
    # A test image costs about a third of a training image: the forward pass, and not the two backward.
    position = ProgressFile(run, steps, test_steps=batches.test_size / (3 * config.batch_size))
    history: list[dict[str, float]] = []
    tested: deque[tuple[Tensor, Tensor]] = deque(maxlen=1)  # predicted classes and labels of the last epoch
    with (
        tqdm(total=config.epochs * steps, unit="step", disable=quiet or not first, desc=config.name) as bar,
        _event_files(run, first and config.tensorboard) as write_events,
    ):

        def on_step(done: int) -> None:
            bar.update(done - bar.n)
            if first:
                position.write(done, history)

        epochs = loop.fit(
            model,
            batches,
            training,
            group=group,
            checkpoints=checkpoints,
            save_seconds=60 * _checkpoint_minutes(),
            stop=run.asked_to_stop,
            on_step=on_step,
            on_test=lambda predicted, label: tested.append((predicted, label)),
        )
        try:
            for metrics in epochs:
                history.append(metrics)
                write_events(metrics)
                if first and len(history) >= checkpoints.epochs:  # those before the checkpoint are there already
                    run.write("metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in history))
                if first and len(history) > checkpoints.epochs:
                    _show(metrics, config.epochs, bar, quiet)
        except loop.Stopped as stopped:
            return str(stopped)
    if not tested:  # the last epoch was over when this went on from its checkpoint
        tested.append(loop.evaluate(loop.compiled(model.eval(), training), batches, group, training)[1:])
    if first:
        predicted, label = tested.pop()
        run.write_predictions(predicted.numpy(), label.numpy())
        width, height = describe(config.dataset).image_size
        costs = complexity(model, (1, 3, height, width))
        outcome = {"signature": run.signature, "source": source, "epochs": config.epochs}
        outcome |= {"seconds": sum(epoch["seconds"] for epoch in history)}
        outcome |= {"parameters": costs.parameters, "flops": costs.flops}
        run.write("result.json", Result.model_validate(history[-1] | outcome).model_dump_json(indent=2))
        checkpoints.previous.unlink(missing_ok=True)  # a run that is done has no use for it
    return ""


@contextmanager
def _event_files(run: Run, wanted: bool) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """What writes an epoch's metrics for TensorBoard, if that is wanted; what an earlier execution wrote is removed."""
    if not wanted:
        yield lambda metrics: None
        return
    from torch.utils.tensorboard import SummaryWriter  # late: it is there only where tensorboard is installed

    for path in run.folder.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(str(run.folder)) as writer:

        def write(metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(metrics["epoch"]))
            writer.flush()

        yield write


def kept_epochs(epochs: int) -> tuple[int, ...]:
    """After which epochs a run keeps its weights beside those of the last: the first, a quarter and half of them."""
    return tuple(sorted({1, round(epochs / 4), round(epochs / 2)} - {0, epochs}))


def _checkpoint_minutes() -> float:
    text = os.environ.get(MINUTES) or "10"
    with suppress(ValueError):
        if (minutes := float(text)) >= 0:
            return minutes
    raise RunFailed(f"{MINUTES}={text!r}: allowed: a number from 0")


def _batches(run: Run, group: Group) -> Batches:
    config = run.config
    images = data.load(config.dataset, config.train_fraction, config.evaluate_on)
    share = {"seed": config.seed, "rank": group.rank, "world": group.world}
    if isinstance(images, data.Images):
        return FromMemory(images, group.device, pad=config.pad, flip=config.flip, **share)
    return FromFiles(images, group.device, workers=config.workers, flip=config.flip, **share)


def _provenance(run: Run, group: Group, continued: bool) -> str:
    """Write where this run comes from, and what a checkpoint that it goes on from came from; all codes' hashes."""
    name = torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else processor()
    now = provenance(name, torch.get_num_threads())
    if group.device.type == "cpu":  # both decide how GAM rounds
        now |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "c_library": native.library() is not None}
    earlier: list[dict[str, Any]] = []
    if continued:
        with suppress(OSError, ValueError):
            before = json.loads((run.folder / "provenance.json").read_text())
            earlier = [one for one in [*before.pop("earlier", []), before] if one != now]
    run.write("provenance.json", json.dumps({**now, "earlier": earlier}, indent=2))
    return "+".join(dict.fromkeys(one["source"] for one in [*earlier, now]))


def _show(metrics: dict[str, float], epochs: int, bar: Any, quiet: bool) -> None:
    bar.set_postfix(loss=f"{metrics['train_loss']:.3f}", error=f"{metrics['top1_error']:.2f} %")
    if quiet:
        print(
            f"epoch {metrics['epoch']:3.0f}/{epochs}  loss {metrics['train_loss']:.4f}  "
            f"top-1 error {metrics['top1_error']:.2f} %  {metrics['images_per_second']:.0f} images/s",
            flush=True,
        )
