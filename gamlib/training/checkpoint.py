"""Checkpoints: the last good state of a run on disk, and the one before it, whatever happens while one is written."""

import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from gamlib.files import remove_parts, replacing, write_whole


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or must not be used; the message is one line."""


class Checkpoints:
    """`checkpoint.pt` of a folder, and `checkpoint.previous.pt`, which a new one leaves until it is on the disk.

    `torch.load(path, weights_only=True)` reads both; the network's weights lie under "model".

    Args:
        folder: where they lie. No other process may write there.
        identity: what decides a run, as plain values; a checkpoint of another identity is refused.
        report: gets in one line what was found damaged.
        keep: numbers of epochs at whose end the weights alone are kept too, each in a file of its own.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        report: Callable[[str], object] = print,
        keep: Collection[int] = (),
    ) -> None:
        self.path, self.previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
        self.identity, self.report, self.keep = dict(identity), report, keep
        self.last = "there is no checkpoint"  # what a message says of the last good state
        self.epochs = 0  # that were over when the state was saved which `load` gave
        for path in (self.path, self.previous):
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
            self._refuse_another(path, state.pop("identity", {}))
            self.saved(state, path)
            self.epochs = state["epoch"]
            self._keep(state)  # a run that was killed between the two files
            return state
        return None

    def saved(self, state: Mapping[str, Any], path: Path | None = None) -> None:
        """Say of a state that it is the last good one on the disk."""
        place = f"epoch {state['epoch'] + 1}, step {state['step']}"
        self.last = f"the last good checkpoint is of {place}: {path or self.path}"

    def finish(self) -> None:
        """Remove what a run that is done has no use for."""
        self.previous.unlink(missing_ok=True)

    def _serialised(self, state: Mapping[str, Any]) -> BytesIO:
        torch.save({**state, "identity": self.identity}, content := BytesIO())
        return content

    def _keep(self, state: Mapping[str, Any]) -> None:
        """The weights, if they are of the end of an epoch to keep. Training needs none of it and goes on without."""
        if state["step"] or state["epoch"] not in self.keep:
            return
        path = kept(self.path.parent, state["epoch"])
        content = self._serialised({key: state[key] for key in ("epoch", "step", "model")})
        try:
            remove_parts(path)
            write_whole(path, content.getvalue())
        except OSError as error:
            self.report(f"{path} cannot be saved: {error.strerror}; the run goes on without")

    def _refuse_another(self, path: Path, theirs: Mapping[str, Any]) -> None:
        differing = [
            f"{key}={theirs.get(key)!r} there, {self.identity.get(key)!r} here"
            for key in {**self.identity, **theirs}
            if theirs.get(key) != self.identity.get(key)
        ]
        if differing:
            raise CheckpointError(f"{path} is of another configuration: {'; '.join(differing)}")


def kept(folder: Path, epoch: int) -> Path:
    """Where the weights lie that were kept at the end of an epoch."""
    return folder / f"checkpoint.epoch{epoch}.pt"


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
