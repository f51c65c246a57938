"""The training loop: one for every network and data set.

It can be stopped at any step, and goes on as if it had not been, to the last bit: every random number follows from the
seed, the epoch and the step, so that weights, momentum and position are the whole state.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gamlib.data.batches import Batches, seed_of, sizes
from gamlib.kernels import accelerate
from gamlib.training.checkpoint import CheckpointError, Checkpoints
from gamlib.training.cpu import exact_gradients, keep_memory
from gamlib.training.evaluation import compiled, evaluate, forward
from gamlib.training.parallel import Group
from gamlib.training.recipes import TrainingConfig

MEASURED = ("seconds", "images_per_second", "peak_memory_mib")  # metrics that another execution gives otherwise
POSITION = ("epoch", "step", "seconds", "metrics")  # of a training: plain values in its checkpoint
CHECK_EVERY = 50  # steps on a GPU between two looks at the losses: each look waits for the GPU


class Stopped(Exception):
    """Training was asked to stop, and its state saved; the message says by what and where."""


def fit(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    *,
    group: Group | None = None,
    checkpoints: Checkpoints | None = None,
    save_seconds: float = 600.0,
    stop: Callable[[], str] = lambda: "",
    on_step: Callable[[int], object] = lambda done: None,
) -> Iterator[dict[str, float]]:
    """Train a network in place, and give the metrics of every epoch when it ends, those before a checkpoint too.

    Losses are cross entropies in nats, errors in percent, `peak_memory_mib` is the GPU's, or the process's on a CPU.
    The test images are looked at once an epoch, for the curve: nothing is chosen by them, and the outcome of a run is
    its last epoch. With one seed, device and number of threads the losses, errors and weights are the same to the last
    bit, however often the training was interrupted; on a GPU as far as its kernels are deterministic.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the device. In training mode it may give a tuple of
            them: the first predict and are what the metrics speak of, the loss is the sum over all.
        group: the processes that train together, each calling this; by default this one alone, where the model is.
        checkpoints: where states are kept, at every epoch's end, every `save_seconds` between, and on a stop; training
            goes on from the last one there is.
        stop: asked after every step; a text that is not empty says by what the training is to be stopped.
        on_step: called after every step with the number of steps since the first epoch began.

    Raises:
        FloatingPointError: a loss or weight is not finite; the message names epoch, step and the last good checkpoint.
        Stopped: `stop` said so.
        CheckpointError: a state cannot be saved, or is of another configuration.
    """
    group = group or Group(next(model.parameters()).device)
    device, on_cpu = group.device, group.device.type == "cpu"
    exact = config.deterministic or on_cpu
    torch.use_deterministic_algorithms(exact)
    torch.backends.cudnn.benchmark = not config.deterministic
    if on_cpu:
        keep_memory()
        if config.amp:
            exact_gradients(model)
        accelerate(model, "plain" if config.compile else "auto")  # what is compiled are the equations
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    steps = sizes(batches.train_size, config.batch_size)  # of an epoch, as their numbers of images
    state = _State(model, optimizer, steps, group, checkpoints)
    wrapped = group.wrap(model, exact)
    trained = compiled(wrapped, config)
    tested = trained if wrapped is model else compiled(model, config)

    def save_if_due() -> None:
        """Save when asked to stop, or when the time has come: all processes at the same step."""
        by = stop()
        asked, due = group.any(bool(by), time.monotonic() - state.saved_at > save_seconds)
        if asked or due:
            state.refuse_divergence()
            state.save()
        if asked:
            where = f"epoch {state.epoch + 1} of {config.epochs} after {state.step} of {len(steps)} steps"
            raise Stopped(f"stopped by {by or 'another process'} in {where}")

    yield from state.metrics
    while state.epoch < config.epochs:
        save_if_due()
        began = time.perf_counter() - state.seconds
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model.train()
        lr = config.lr_at(state.epoch)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        with closing(batches.train(state.epoch, config.batch_size, state.step)) as stream:
            for images, labels in stream:
                torch.manual_seed(seed_of(config.seed, state.epoch, state.step, group.rank))  # for dropout
                outputs = forward(trained, images, config)
                branches = outputs if isinstance(outputs, tuple) else (outputs,)
                losses = [
                    F.cross_entropy(scores.float(), labels, label_smoothing=config.label_smoothing, reduction="sum")
                    for scores in branches
                ]
                share = 1 / steps[state.step]  # of the whole batch, of which this process may have a part
                optimizer.zero_grad()
                # Gradients are averaged over the processes, and the loss is the sum over all.
                (torch.stack(losses).sum() * (share * group.world)).backward()
                optimizer.step()
                state.losses[state.step] = losses[0].detach() * share
                state.wrong += (branches[0].argmax(1) != labels).sum()
                state.step += 1
                state.seconds = time.perf_counter() - began
                on_step(state.epoch * len(steps) + state.step)
                if on_cpu or state.step % CHECK_EVERY == 0:
                    state.refuse_divergence()
                save_if_due()
        state.refuse_divergence()
        train_loss, train_error = state.training_means()
        state.seconds = time.perf_counter() - began

        model.eval()
        # Several processes may have unequally many test batches: those listen again when they are through.
        listen = save_if_due if group.world == 1 else lambda: None
        with closing(batches.test()) as stream:
            test_loss, top1_error, top5_error = evaluate(
                lambda images: forward(tested, images, config), stream, group, listen
            )
        if not math.isfinite(test_loss):
            raise FloatingPointError(f"training diverged: the test loss is {test_loss} {state.place()}")
        state.end_epoch(
            {
                "epoch": state.epoch + 1,
                "lr": lr,
                "train_loss": train_loss,
                "train_top1_error": train_error,
                "test_loss": test_loss,
                "top1_error": top1_error,
                "top5_error": top5_error,
                "seconds": state.seconds,
                "images_per_second": sum(steps) / state.seconds,
                "peak_memory_mib": peak_memory(device),
            }
        )
        yield state.metrics[-1]


class _State:
    """Where a training stands: all that a checkpoint keeps, from which it starts when there is one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: list[int],
        group: Group,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model, self.optimizer, self.steps = model, optimizer, steps
        self.group, self.checkpoints = group, checkpoints
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.losses = torch.zeros(len(steps), device=group.device)  # of this epoch's steps
        self.wrong = torch.zeros((), dtype=torch.int64, device=group.device)  # of the images that were met in it
        self.metrics: list[dict[str, float]] = []
        self.saved_at = time.monotonic()
        if checkpoints is None or (kept := checkpoints.load()) is None:
            return
        for key in POSITION:
            setattr(self, key, kept[key])
        if group.rank == 0:  # the sums over all processes
            self.losses.copy_(kept["losses"])
            self.wrong.copy_(kept["wrong"])
        try:
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this code's network: {error}") from None

    def save(self) -> None:
        """Keep it in a checkpoint, if there are any, unless a weight is not finite."""
        if self.checkpoints is not None:
            state: dict[str, Any] = {key: getattr(self, key) for key in POSITION}
            state |= {
                "losses": self.group.total(self.losses.clone()),
                "wrong": self.group.total(self.wrong.clone()),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            if not all(bool(value.isfinite().all()) for value in state["model"].values()):
                raise FloatingPointError(f"training diverged: a weight is not finite {self.place()}")
            if self.group.rank == 0:
                self.checkpoints.save(state)
            else:
                self.checkpoints.saved(state)
        self.saved_at = time.monotonic()

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Go on to the next epoch, and save."""
        self.metrics.append(metrics)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.losses.zero_()
        self.wrong.zero_()
        self.save()

    def training_means(self) -> tuple[float, float]:
        """Mean loss and top-1 error in percent of the epoch's training images, as they were met."""
        losses, wrong = self.group.total(self.losses.clone()), self.group.total(self.wrong.clone())
        counts, seen = torch.tensor(self.steps, dtype=torch.float64), sum(self.steps)
        return float((losses.cpu().double() * counts).sum()) / seen, 100 * int(wrong) / seen

    def refuse_divergence(self) -> None:
        """Raise FloatingPointError for the first loss of this epoch that is not finite."""
        finite = self.losses[: self.step].isfinite()
        if not bool(finite.all()):
            step = int(finite.int().argmin())
            loss = float(self.losses[step])
            raise FloatingPointError(f"training diverged: the training loss is {loss} {self.place(step + 1)}")

    def place(self, step: int = 0) -> str:
        """In which step, counted from 1; by default after the last one that was taken."""
        last = f"; {self.checkpoints.last}" if self.checkpoints else ""
        epoch, taken = (self.epoch, self.step) if self.step else (self.epoch - 1, len(self.steps))
        return f"{'in' if step else 'after'} epoch {epoch + 1}, step {step or taken}{last}"


def peak_memory(device: torch.device) -> float:
    """In MiB: the most that torch took of the GPU in this epoch, or that this process had of the main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
