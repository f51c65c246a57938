"""A disk without room for a checkpoint: a small file system in memory."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from victims import run_in, same, start

from gamlib.training.checkpoint import Checkpoints

NETWORK = "resnet18-gam"  # a checkpoint of 8 MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.long
def test_a_run_without_room_stops_with_its_last_good_checkpoint_and_goes_on_with_room(
    small_disk: Path, tmp_path: Path
) -> None:
    whole = start(tmp_path / "undisturbed", NETWORK, 10)
    whole.join()
    process = start(small_disk, NETWORK, 10)
    process.join()
    assert process.exitcode == 1
    run = run_in(small_disk, NETWORK)
    status = run.status()
    assert (status.state, run.result()) == ("failed", None)
    path = run.folder / "checkpoint.pt"
    message = f"{path} cannot be saved: No space left on device; the last good checkpoint is of epoch 2, step 0: {path}"
    assert message in status.error
    state = Checkpoints(run.folder, run.config.identity()).load()
    assert state is not None and (state["epoch"], state["step"]) == (1, 0)
    assert not any(run.folder.glob(".*.part"))
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    process = start(small_disk, NETWORK, 10)
    process.join()
    assert process.exitcode == 0
    assert same(run_in(small_disk, NETWORK), run_in(tmp_path / "undisturbed", NETWORK))
