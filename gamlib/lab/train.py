"""Training of one run, as `notebooks/run.ipynb` calls it."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from tqdm.auto import tqdm

from gamlib.attention.ways import native
from gamlib.backbones import build_model
from gamlib.complexity import complexity
from gamlib.lab.by_image import write_predictions
from gamlib.lab.places import share_of_cores
from gamlib.lab.provenance import processor, provenance
from gamlib.lab.runs import BATCH, JOB, Result, Run, RunFailed, RunStopped
from gamlib.lab.stops import signals_ask
from gamlib.training import data, loop
from gamlib.training.batches import Batches, FromFiles, FromMemory, sizes
from gamlib.training.checkpoint import Checkpoints
from gamlib.training.datasets import describe
from gamlib.training.parallel import Group, join, launch
from gamlib.training.predictions import predict

MINUTES = "GAM_CHECKPOINT_MINUTES"  # between two checkpoints within an epoch
DEFAULT_MINUTES = 10.0


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
    owned = os.environ.get(JOB) == run.signature
    if not owned:  # as a job would: one share of the cores, and so the same bits
        torch.set_num_threads(share_of_cores())
    with nullcontext(True) if owned else run.claim() as mine:
        if mine:
            with signals_ask(_patiently(run)):
                _train(run, quiet=BATCH in os.environ)
    return run


def _patiently(run: Run) -> Any:
    """What a signal calls: the first asks, a second Ctrl-C does not wait for the step to end."""

    def ask(by: str) -> None:
        if by == "SIGINT" and run.asked_to_stop() and BATCH not in os.environ:
            raise KeyboardInterrupt
        run.ask_to_stop(by)

    return ask


def _train(run: Run, quiet: bool) -> None:
    devices, gpus = run.config.devices, torch.cuda.device_count()
    if gpus and devices > gpus:
        raise RunFailed(f"devices={devices}: this machine shows {gpus} GPU{'s' * (gpus > 1)}")
    began = time.perf_counter()
    if devices == 1:
        steps = sizes(_training_size(run), run.config.batch_size)
        with tqdm(total=run.config.epochs * len(steps), unit="step", disable=quiet, desc=run.config.name) as bar:
            group = Group(torch.device("cuda" if gpus else "cpu"))
            stopped = _fit(
                run, group, lambda done: bar.update(done - bar.n), lambda metrics: _tell(run, metrics, bar, quiet)
            )
    else:
        with (
            tqdm(total=run.config.epochs, unit="epoch", disable=quiet, desc=run.config.name) as bar,
            _following(run, bar, quiet),
        ):
            stopped = _launched(run)
    if stopped:
        raise RunStopped(stopped)
    if quiet:
        print(f"done in {time.perf_counter() - began:.0f} s", flush=True)


def _launched(run: Run) -> str:
    threads = max(1, torch.get_num_threads() // run.config.devices)
    try:
        return str(launch(_one_of_several, run.config.devices, run, threads))
    except RuntimeError as error:
        raise RunFailed(str(error)) from None


def _one_of_several(run: Run, threads: int) -> str:
    """What each process of a run on several devices does; why it was stopped, or nothing."""
    torch.set_num_threads(threads)
    with signals_ask(run.ask_to_stop):
        return _fit(run, join())


def _fit(
    run: Run,
    group: Group,
    on_step: Callable[[int], object] = lambda done: None,
    on_epoch: Callable[[dict[str, float]], object] = lambda metrics: None,
) -> str:
    """Train in a group of processes, of which the first one writes; why it was stopped, or nothing."""
    config, first = run.config, group.rank == 0
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    batches = _batches(run, group)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture()).to(group.device)
    report, keep = (print, kept_epochs(config.epochs)) if first else (lambda _: None, ())
    checkpoints = Checkpoints(run.folder, config.model_dump(), report, keep)
    continued = checkpoints.path.exists() or checkpoints.previous.exists()
    source = _provenance(run, group, continued) if first else ""
    speed = loop.Speed(config.amp, config.channels_last, config.compile, config.cuda_graphs, config.deterministic)
    lines: list[str] = []
    metrics: dict[str, float] = {}
    try:
        for metrics in loop.fit(
            model,
            batches,
            config.training_recipe(),
            seed=config.seed,
            group=group,
            speed=speed,
            checkpoints=checkpoints,
            save_seconds=60 * checkpoint_minutes(),
            stop=run.asked_to_stop,
            on_step=on_step,
        ):
            lines.append(json.dumps(metrics))
            if first and len(lines) >= checkpoints.epochs:  # those before the checkpoint are there already
                run.write("metrics.jsonl", "\n".join(lines) + "\n")
            if first and len(lines) > checkpoints.epochs:
                on_epoch(metrics)
    except loop.Stopped as stopped:
        return str(stopped)
    network = speed.compiled(model)
    predicted, label = predict(network, batches, group, amp=config.amp, channels_last=config.channels_last)
    if first:
        write_predictions(run.folder, predicted.numpy(), label.numpy())
        width, height = describe(config.dataset).image_size
        costs = complexity(model, (1, 3, height, width))
        result = Result(
            signature=run.signature,
            parameters=costs.parameters,
            flops=costs.flops,
            seconds=sum(json.loads(line)["seconds"] for line in lines),
            source=source,
            epochs=config.epochs,
            **{key: metrics[key] for key in Result.model_fields.keys() & metrics.keys() - {"epochs", "seconds"}},
        )
        run.write("result.json", result.model_dump_json(indent=2))
        checkpoints.finish()
    return ""


def kept_epochs(epochs: int) -> tuple[int, ...]:
    """After which epochs a run keeps its weights beside those of the last: the first, a quarter and half of them."""
    return tuple(sorted({1, round(epochs / 4), round(epochs / 2)} - {0, epochs}))


def checkpoint_minutes() -> float:
    """Minutes between two checkpoints within an epoch: $GAM_CHECKPOINT_MINUTES, by default 10.

    Raises:
        RunFailed: that is no number from 0.
    """
    text = os.environ.get(MINUTES) or str(DEFAULT_MINUTES)
    with suppress(ValueError):
        if (minutes := float(text)) >= 0:
            return minutes
    raise RunFailed(f"{MINUTES}={text!r}: allowed: a number from 0")


def _batches(run: Run, group: Group) -> Batches:
    config = run.config
    images = data.load(config.dataset, config.train_fraction, config.evaluate_on)
    ranks: dict[str, Any] = {"seed": config.seed, "flip": config.flip, "rank": group.rank, "world": group.world}
    if isinstance(images, data.Images):
        return FromMemory(images, group.device, pad=config.pad, **ranks)
    return FromFiles(images, group.device, workers=config.workers, **ranks)


def _training_size(run: Run) -> int:
    return describe(run.config.dataset).training_size(run.config.train_fraction, run.config.evaluate_on)


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
            earlier = [*before.pop("earlier", []), before]
            earlier = [one for one in earlier if one != now]
    run.write("provenance.json", json.dumps({**now, "earlier": earlier}, indent=2))
    return "+".join(dict.fromkeys(one["source"] for one in [*earlier, now]))


def _tell(run: Run, metrics: dict[str, float], bar: Any, quiet: bool) -> None:
    bar.set_postfix(loss=f"{metrics['train_loss']:.3f}", error=f"{metrics['top1_error']:.2f} %")
    if quiet:
        print(
            f"epoch {metrics['epoch']:3.0f}/{run.config.epochs}  loss {metrics['train_loss']:.4f}  "
            f"top-1 error {metrics['top1_error']:.2f} %  {metrics['images_per_second']:.0f} images/s",
            flush=True,
        )


@contextmanager
def _following(run: Run, bar: Any, quiet: bool) -> Iterator[None]:
    """Show the epochs that other processes write."""
    ended, told = threading.Event(), len(run.metrics())

    def follow() -> None:
        nonlocal told
        last = False
        while not last:
            last = ended.wait(1)
            epochs = run.metrics().to_dict("records")
            for metrics in epochs[told:]:
                _tell(run, metrics, bar, quiet)  # type: ignore[arg-type]
            told = max(told, len(epochs))
            bar.update(len(epochs) - bar.n)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
