import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from gamlib import files
from gamlib.training import checkpoint
from gamlib.training.checkpoint import CheckpointError, Checkpoints

IDENTITY = {"lr": 0.1, "drops": [0.5], "weights": None}


def state(epoch: int, step: int = 0) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": step,
        "model": {"weight": torch.full((1000,), float(epoch))},
        "metrics": [{"a": 1.0}],
    }


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_state_comes_back_whole_and_the_one_before_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.load() is None
    for epoch in range(3):
        checkpoints.save(state(epoch))
    found = Checkpoints(tmp_path, IDENTITY).load()
    assert found is not None
    assert found["epoch"] == 2 and torch.equal(found["model"]["weight"], torch.full((1000,), 2.0))
    assert kept(tmp_path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.previous.pt", weights_only=True)["epoch"] == 1


def test_the_weights_of_the_epochs_to_keep_stay_and_only_those(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=(1, 2))
    for epoch, step in ((0, 0), (0, 5), (1, 0), (1, 5), (2, 3), (3, 0)):
        checkpoints.save(state(epoch, step))
    assert kept(tmp_path) == ["checkpoint.epoch1.pt", "checkpoint.previous.pt", "checkpoint.pt"]
    found = checkpoint.read(checkpoint.kept(tmp_path, 1))
    assert torch.equal(found["model"]["weight"], torch.full((1000,), 1.0)) and "metrics" not in found
    assert (found["epoch"], found["identity"]) == (1, IDENTITY)


def test_a_run_that_was_killed_between_the_two_files_makes_up_for_it(tmp_path: Path) -> None:
    Checkpoints(tmp_path, IDENTITY, keep=(1,)).save(state(1))
    path = checkpoint.kept(tmp_path, 1)
    whole = path.read_bytes()
    path.rename(path.with_name(f".{path.name}.1.2.part"))
    Checkpoints(tmp_path, IDENTITY, keep=(1,)).load()
    assert path.read_bytes() == whole and kept(tmp_path) == [path.name, "checkpoint.pt"]


def test_without_room_for_weights_to_keep_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_whole", full)
    Checkpoints(tmp_path, IDENTITY, told.append, keep=(1,)).save(state(1))
    assert kept(tmp_path) == ["checkpoint.pt"]
    assert told == [f"{checkpoint.kept(tmp_path, 1)} cannot be saved: No space left on device; the run goes on without"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_checkpoint_is_told_of_and_the_previous_used(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(state(0))
    checkpoints.save(state(1))
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(torch.full((1000,), 1.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(bytes({"cut": content[:-100], "flipped": content, "emptied": b"", "foreign": b"none"}[damage]))
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, IDENTITY, told.append)
    found = checkpoints.load()
    assert found is not None and found["epoch"] == 0
    assert len(told) == 1 and str(path) in told[0] and "damaged" in told[0]
    checkpoints.save(state(2))  # the damaged one must not take the good one's place
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "checkpoint.previous.pt", weights_only=True)["epoch"] == 0
    assert (tmp_path / "checkpoint.damaged").exists()


def test_what_cannot_be_read_now_is_neither_damaged_nor_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that is away for a minute must not cost a night."""
    Checkpoints(tmp_path, IDENTITY).save(state(3))

    def away(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot be read: Stale file handle"):
        patch.setattr(checkpoint, "read", away)
        Checkpoints(tmp_path, IDENTITY).load()
    found = Checkpoints(tmp_path, IDENTITY).load()
    assert found is not None and found["epoch"] == 3


def test_a_damaged_one_that_another_process_has_put_aside_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, IDENTITY).save(state(0))
    Checkpoints(tmp_path, IDENTITY).save(state(1))
    read = checkpoint.read

    def beaten(path: Path) -> dict[str, Any]:
        if path.name == "checkpoint.pt":
            path.rename(tmp_path / "checkpoint.damaged")
            raise ValueError("cut")
        return read(path)

    monkeypatch.setattr(checkpoint, "read", beaten)
    found = Checkpoints(tmp_path, IDENTITY).load()
    assert found is not None and found["epoch"] == 0


def test_with_both_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, lambda _: None)
    checkpoints.save(state(0))
    checkpoints.save(state(1))
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"")
    assert checkpoints.load() is None


def test_a_file_of_torch_save_that_is_no_checkpoint_is_damage(tmp_path: Path) -> None:
    told: list[str] = []
    torch.save(torch.ones(3), tmp_path / "checkpoint.pt")
    assert Checkpoints(tmp_path, IDENTITY, told.append).load() is None
    assert "it holds something else" in told[0]


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({**state(0), "identity": IDENTITY, "evil": Evil()}, tmp_path / "checkpoint.pt")
    assert Checkpoints(tmp_path, IDENTITY, lambda _: None).load() is None
    assert not (tmp_path / "harm").exists()


def test_another_configuration_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    Checkpoints(tmp_path, IDENTITY).save(state(0))
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is of another configuration: lr=0.1 there, 0.2 here$"):
        Checkpoints(tmp_path, IDENTITY | {"lr": 0.2}).load()
    assert Checkpoints(tmp_path, IDENTITY).load() is not None


@pytest.mark.parametrize("at", ["write", "flush"])
def test_without_room_the_last_good_one_stays_and_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(state(0))
    checkpoints.save(state(1, step=4))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    @contextmanager
    def unwritable(path: Path) -> Iterator[IO[bytes]]:
        with files.replacing(path) as file:
            file.write(b"half")
            full()
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replacing", unwritable) if at == "write" else patch.setattr(os, "fsync", full)
        message = (
            r"checkpoint.pt cannot be saved: No space left on device; the last good checkpoint is of epoch 2, step 4"
        )
        with pytest.raises(CheckpointError, match=message):
            checkpoints.save(state(2))
    assert kept(tmp_path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    found = Checkpoints(tmp_path, IDENTITY).load()
    assert found is not None and (found["epoch"], found["step"]) == (1, 4)


@pytest.mark.parametrize("names", [["checkpoint.previous.pt"], ["checkpoint.previous.pt", ".checkpoint.pt.1.2.part"]])
def test_killed_between_two_names_the_previous_is_found(tmp_path: Path, names: list[str]) -> None:
    Checkpoints(tmp_path, IDENTITY).save(state(0))
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").unlink()
    for name in names:
        (tmp_path / name).write_bytes(content)
    found = Checkpoints(tmp_path, IDENTITY).load()
    assert found is not None and found["epoch"] == 0
    assert kept(tmp_path) == ["checkpoint.previous.pt"]  # what a killed writer left is gone
