"""The training loop: one for every network and data set.

It can be stopped at any step, and goes on as if it had not been, to the last bit: every random number follows from the
seed, the epoch and the step, so that weights, momentum and position are the whole state.
"""

import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib.training.batches import Batches, seed_of, sizes
from gamlib.training.checkpoint import CheckpointError, Checkpoints
from gamlib.training.cpu import exact_gradients, keep_memory
from gamlib.training.parallel import Group
from gamlib.training.predictions import forward, ranked
from gamlib.training.recipes import Recipe

MEASURED = ("seconds", "images_per_second", "peak_memory_mib")  # metrics that another execution gives otherwise
CHECK_EVERY = 50  # steps on a GPU between two looks at the losses: each look waits for the GPU


class Stopped(Exception):
    """Training was asked to stop, and its state saved; the message says by what and where."""


@dataclass(frozen=True)
class Speed:
    """How steps are computed; none of it changes what is computed, but for rounding."""

    amp: bool = False  # bfloat16 autocast
    channels_last: bool = False
    compile: bool = False  # torch.compile
    cuda_graphs: bool = False  # of the compiled network: fewer launches where kernels are short
    deterministic: bool = False  # on a GPU too, where it costs some speed; a CPU always is

    def compiled(self, model: nn.Module) -> Any:
        """What is called in a model's place: the model, or what torch.compile makes of it."""
        mode = "reduce-overhead" if self.cuda_graphs else "default"
        return torch.compile(model, dynamic=False, mode=mode) if self.compile else model


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    *,
    seed: int,
    group: Group | None = None,
    speed: Speed = Speed(),
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
        seed: of dropout, in the batches' order and augmentation see their own (not of the initial weights).
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
    training = _Training(model, batches, recipe, seed, group, speed, checkpoints, save_seconds, stop, on_step)
    return training.epochs()


@dataclass
class _Training:
    """A training and where it stands; the arguments are those of `fit`."""

    model: nn.Module
    batches: Batches
    recipe: Recipe
    seed: int
    group: Group
    speed: Speed
    checkpoints: Checkpoints | None
    save_seconds: float
    stop: Callable[[], str]
    on_step: Callable[[int], object]

    def __post_init__(self) -> None:
        self.device = self.group.device
        if self.device.type == "cpu":
            keep_memory()
            if self.speed.amp:
                exact_gradients(self.model)
        exact = self.speed.deterministic or self.device.type == "cpu"
        torch.use_deterministic_algorithms(exact)
        torch.backends.cudnn.benchmark = not self.speed.deterministic
        layout = torch.channels_last if self.speed.channels_last else torch.contiguous_format
        self.model = self.model.to(memory_format=layout)  # type: ignore[call-overload]
        values = {key: getattr(self.recipe, key) for key in ("lr", "momentum", "weight_decay")}
        self.optimizer = torch.optim.SGD(self.model.parameters(), **values)
        self.steps = sizes(self.batches.train_size, self.recipe.batch_size)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.losses = torch.zeros(len(self.steps), device=self.device)  # of this epoch's steps
        self.wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        self.metrics: list[dict[str, float]] = []
        if self.checkpoints is not None and (state := self.checkpoints.load()) is not None:
            self._restore(state)
        trained = self.group.wrap(self.model, exact)
        self.trained = self.speed.compiled(trained)
        self.tested = self.trained if trained is self.model else self.speed.compiled(self.model)
        self.saved_at = time.monotonic()

    def epochs(self) -> Iterator[dict[str, float]]:
        """The metrics of every epoch, those before the checkpoint first."""
        yield from self.metrics
        while self.epoch < self.recipe.epochs:
            self._save_if_due()
            began = time.perf_counter() - self.seconds
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self._train(began)
            train_loss, train_error = self._sums()
            self.seconds = time.perf_counter() - began
            lr, seen = self.recipe.lr_at(self.epoch), sum(self.steps)
            test_loss, top1_error, top5_error = self._evaluate()
            self.metrics.append(
                {
                    "epoch": self.epoch + 1,
                    "lr": lr,
                    "train_loss": train_loss,
                    "train_top1_error": train_error,
                    "test_loss": test_loss,
                    "top1_error": top1_error,
                    "top5_error": top5_error,
                    "seconds": self.seconds,
                    "images_per_second": seen / self.seconds,
                    "peak_memory_mib": peak_memory(self.device),
                }
            )
            self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
            self.losses.zero_()
            self.wrong.zero_()
            self._save()
            yield self.metrics[-1]

    def _train(self, began: float) -> None:
        self.model.train()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.recipe.lr_at(self.epoch)
        with closing(self.batches.train(self.epoch, self.recipe.batch_size, self.step)) as batches:
            for images, labels in batches:
                torch.manual_seed(seed_of(self.seed, self.epoch, self.step, self.group.rank))  # for dropout
                self._one_step(images, labels)
                self.step += 1
                self.seconds = time.perf_counter() - began
                self.on_step(self.epoch * len(self.steps) + self.step)
                if self.device.type == "cpu" or self.step % CHECK_EVERY == 0:
                    self._refuse_divergence()
                self._save_if_due()
        self._refuse_divergence()

    def _one_step(self, images: Tensor, labels: Tensor) -> None:
        outputs = self._scores(self.trained, images)
        branches = outputs if isinstance(outputs, tuple) else (outputs,)
        share = 1 / self.steps[self.step]  # of the whole batch, of which this process may have a part
        losses = [
            F.cross_entropy(scores.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="sum")
            for scores in branches
        ]
        self.optimizer.zero_grad()
        # Gradients are averaged over the processes, and the loss is the sum over all.
        (torch.stack(losses).sum() * (share * self.group.world)).backward()
        self.optimizer.step()
        self.losses[self.step] = losses[0].detach() * share
        self.wrong += (branches[0].argmax(1) != labels).sum()

    def _scores(self, network: Any, images: Tensor) -> Any:
        return forward(network, images, amp=self.speed.amp, channels_last=self.speed.channels_last)

    def _sums(self) -> tuple[float, float]:
        """Mean loss and top-1 error in percent of the epoch's training images, as they were met."""
        losses, wrong = self.group.total(self.losses.clone()), self.group.total(self.wrong.clone())
        counts, seen = torch.tensor(self.steps, dtype=torch.float64), sum(self.steps)
        return float((losses.cpu().double() * counts).sum()) / seen, 100 * int(wrong) / seen

    def _evaluate(self) -> tuple[float, float, float]:
        self.model.eval()
        # Several processes may have unequally many test batches: those listen again when they are through.
        listen = self._save_if_due if self.group.world == 1 else lambda: None
        with closing(self.batches.test()) as batches:
            loss, top1, top5 = evaluate(partial(self._scores, self.tested), batches, self.group, listen)
        if not math.isfinite(loss):
            raise FloatingPointError(f"training diverged: the test loss is {loss} {self._place()}")
        return loss, top1, top5

    def _refuse_divergence(self) -> None:
        finite = self.losses[: self.step].isfinite()
        if not bool(finite.all()):
            step = int(finite.int().argmin())
            loss = float(self.losses[step])
            raise FloatingPointError(f"training diverged: the training loss is {loss} {self._place(step + 1)}")

    def _place(self, step: int = 0) -> str:
        """In which step, counted from 1; by default after the last one that was taken."""
        last = f"; {self.checkpoints.last}" if self.checkpoints else ""
        epoch, taken = (self.epoch, self.step) if self.step else (self.epoch - 1, len(self.steps))
        return f"{'in' if step else 'after'} epoch {epoch + 1}, step {step or taken}{last}"

    def _save_if_due(self) -> None:
        """Save when asked to stop, or when the time has come: all processes at the same step."""
        by = self.stop()
        stop, due = self.group.any(bool(by), time.monotonic() - self.saved_at > self.save_seconds)
        if stop or due:
            self._refuse_divergence()
            self._save()
        if stop:
            where = f"epoch {self.epoch + 1} of {self.recipe.epochs} after {self.step} of {len(self.steps)} steps"
            raise Stopped(f"stopped by {by or 'another process'} in {where}")

    def _save(self) -> None:
        if self.checkpoints is not None:
            state = self._state()
            if not all(bool(value.isfinite().all()) for value in state["model"].values()):
                raise FloatingPointError(f"training diverged: a weight is not finite {self._place()}")
            if self.group.rank == 0:
                self.checkpoints.save(state)
            else:
                self.checkpoints.saved(state)
        self.saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.group.total(self.losses.clone()),
            "wrong": self.group.total(self.wrong.clone()),
            "metrics": self.metrics,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        if self.group.rank == 0:  # the sums over all processes
            self.losses.copy_(state["losses"])
            self.wrong.copy_(state["wrong"])
        self.metrics = state["metrics"]
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this code's network: {error}") from None


@torch.no_grad()
def evaluate(
    scores: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    group: Group,
    on_batch: Callable[[], object] = lambda: None,
) -> tuple[float, float, float]:
    """Mean cross entropy in nats, top-1 and top-5 error in percent; every image counts once over the whole group."""
    sums = torch.zeros(4, dtype=torch.float64, device=group.device)  # losses, misses in one, misses in five, images
    for images, labels in batches:
        predicted = scores(images).float()
        hits = ranked(predicted, 5) == labels[:, None]
        sums[0] += F.cross_entropy(predicted, labels, reduction="sum")
        sums[1] += (~hits[:, 0]).sum()
        sums[2] += (~hits.any(1)).sum()
        sums[3] += len(labels)
        on_batch()
    loss, top1, top5, number = group.total(sums).tolist()
    return loss / number, 100 * top1 / number, 100 * top5 / number


def peak_memory(device: torch.device) -> float:
    """In MiB: the most that torch took of the GPU in this epoch, or that this process had of the main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
