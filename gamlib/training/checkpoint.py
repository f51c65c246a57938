"""Where a training stands, and its checkpoints: the last good state on disk and the one before it, whatever happens."""

import math
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gamlib.files import remove_parts, replacing, write_whole
from gamlib.training.parallel import Group

POSITION = ("epoch", "step", "seconds", "metrics")  # of a training: plain values in its checkpoint


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or must not be used; the message is one line."""


class Checkpoints:
    """`checkpoint.pt` of a folder, and `checkpoint.previous.pt`, which a new one leaves until it is on the disk.

    `torch.load(path, weights_only=True)` reads both; the network's weights lie under "model", their moving average, if
    there is one, under "ema": see `weights_of`.

    Args:
        folder: where they lie. No other process may write there.
        identity: what decides a run, as plain values; a checkpoint of another identity is refused.
        report: gets in one line what was found damaged.
        keep: numbers of epochs at whose end the weights alone are kept too, each in a file of its own.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], report: Callable[[str], object] = print, keep: Sequence[int] = ()
    ) -> None:
        self.path, self.previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
        self.identity, self.report, self.keep = identity, report, keep
        self.last = "there is no checkpoint"  # what a message says of the last good state
        self.epochs = 0  # that were over when the state was saved which `load` gave
        for path in (self.path, self.previous, *(kept(folder, epoch) for epoch in keep)):
            remove_parts(path)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state: plain values and tensors, with "epoch" and "step" among them.

        Raises:
            CheckpointError: there is no room, or no permission; the last good checkpoint is intact.
        """
        content = self._serialised(state)
        try:
            with replacing(self.path) as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
                if self.path.exists():  # it gives way only now that the new one is on the disk
                    self.path.replace(self.previous)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be saved: {error.strerror}; {self.last}") from error
        self.saved(state)
        self._keep(state)

    def load(self) -> dict[str, Any] | None:
        """The last good state, its tensors in main memory; None where there is none.

        Raises:
            CheckpointError: it is of another configuration, or cannot be read now: it may be good.
        """
        for path in (self.path, self.previous):
            try:
                state = read(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            except ValueError as damage:
                self.report(f"{path} is damaged ({damage}); the one before it is used, if there is one")
                with suppress(FileNotFoundError):  # another process of this run may have found it too
                    path.replace(path.with_suffix(".damaged"))
                continue
            theirs = state.pop("identity")
            if differing := [key for key in {**self.identity, **theirs} if theirs.get(key) != self.identity.get(key)]:
                each = (f"{key}={theirs.get(key)!r} there, {self.identity.get(key)!r} here" for key in differing)
                raise CheckpointError(f"{path} is of another configuration: {'; '.join(each)}")
            self.saved(state, path)
            self.epochs = state["epoch"]
            self._keep(state)  # a run that was killed between the two files
            return state
        return None

    def saved(self, state: Mapping[str, Any], path: Path | None = None) -> None:
        """Say of a state that it is the last good one on the disk."""
        place = f"epoch {state['epoch'] + 1}, step {state['step']}"
        self.last = f"the last good checkpoint is of {place}: {path or self.path}"

    def _serialised(self, state: Mapping[str, Any]) -> BytesIO:
        torch.save({**state, "identity": self.identity}, content := BytesIO())
        return content

    def _keep(self, state: Mapping[str, Any]) -> None:
        """The weights, if they are of the end of an epoch to keep. Training needs none of it and goes on without."""
        if state["step"] or state["epoch"] not in self.keep:
            return
        path = kept(self.path.parent, state["epoch"])
        try:
            weights = {key: value for key, value in state.items() if key in ("epoch", "step", "model", "ema")}
            write_whole(path, self._serialised(weights).getvalue())
        except OSError as error:
            self.report(f"{path} cannot be saved: {error.strerror}; the run goes on without")


def kept(folder: Path, epoch: int) -> Path:
    """Where the weights lie that were kept at the end of an epoch."""
    return folder / f"checkpoint.epoch{epoch}.pt"


def weights_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that predictions and test errors are of: the moving average, where training kept one."""
    weights: dict[str, Tensor] = state.get("ema", state["model"])
    return weights


def read(path: Path) -> dict[str, Any]:
    """A file of torch.save: a zip archive, with a checksum for each member that torch itself does not look at.

    Raises:
        ValueError: what is wrong with it.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {member} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, UnpicklingError, KeyError, NotImplementedError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    if not isinstance(state, dict) or not {"identity", "epoch", "step"} <= state.keys():
        raise ValueError("it holds something else")
    return state


@dataclass
class State:
    """Where a training stands: all that a checkpoint keeps, from which it starts when there is one.

    Args:
        parts: what has a `state_dict`, by its name in the checkpoint: "model", "optimizer", perhaps "schedule", "ema".
        steps: of an epoch, as their numbers of images.
    """

    parts: Mapping[str, Any]
    steps: list[int]
    group: Group
    checkpoints: Checkpoints | None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    lr: float = math.nan  # of the last step

    def __post_init__(self) -> None:
        self.losses = torch.zeros(len(self.steps), device=self.group.device)  # of this epoch's steps
        self.wrong = torch.zeros((), dtype=torch.int64, device=self.group.device)  # of the images that were met in it
        self.saved_at = time.monotonic()
        if self.checkpoints is None or (kept := self.checkpoints.load()) is None:
            return
        for key in POSITION:
            setattr(self, key, kept[key])
        if self.group.rank == 0:  # the sums over all processes
            self.losses.copy_(kept["losses"])
            self.wrong.copy_(kept["wrong"])
        self.lr = kept.get("lr", self.lr)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(kept[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit this code's network: {error}") from None

    def save(self) -> None:
        """Keep it in a checkpoint, if there are any, unless a weight is not finite."""
        if self.checkpoints is not None:
            state: dict[str, Any] = {key: getattr(self, key) for key in POSITION}
            state["losses"], state["wrong"] = self.totals()
            state |= {name: part.state_dict() for name, part in self.parts.items()}
            if "schedule" in self.parts:
                state["lr"] = self.lr
            # A finite sum, which is found sooner, has finite terms only.
            if not all(value.sum().isfinite() or value.isfinite().all() for value in state["model"].values()):
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

    def totals(self) -> tuple[Tensor, Tensor]:
        """The losses of this epoch's steps and the number of wrong images, over all processes."""
        return self.group.total(self.losses.clone()), self.group.total(self.wrong.clone())

    def training_metrics(self) -> dict[str, float]:
        """Mean loss and top-1 error in percent of the epoch's training images, as they were met."""
        losses, wrong = self.totals()
        weighted, number = losses.cpu().double() * torch.tensor(self.steps, dtype=torch.float64), sum(self.steps)
        return {"train_loss": float(weighted.sum()) / number, "train_top1_error": 100 * int(wrong) / number}

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
