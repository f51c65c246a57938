"""kill -9 at random moments of a run. `make test-faults` kills 25 runs, `make test-all` a few."""

import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from victims import NETWORKS, run_in, same, start

from ablation.runs import Run

KILLS = int(os.environ.get("GAM_KILLS", "6"))


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """Kill a process; whether there was still one."""
    process.join(seconds)
    alive = process.exitcode is None
    process.kill()
    process.join()
    return alive


def kill_while_it_writes(process: BaseProcess, folder: Path, seconds: float) -> bool:
    """Kill a process as soon as the part of a checkpoint lies in its folder, after some seconds at the earliest."""
    process.join(seconds)
    while process.exitcode is None and not any(folder.glob(".checkpoint.pt.*.part")):
        time.sleep(0.0005)
    return kill_after(process, 0)


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_runs_killed_at_random_moments_finish_bit_identical(
    network: str, tmp_path: Path, survives: Callable[[str], None]
) -> None:
    """Half of them are killed while a checkpoint is written, a third twice; each then goes on to its end."""
    undisturbed: list[Run] = []
    for minutes in (10.0, 0.0):  # 0: a checkpoint after every step; what is saved must not change a bit
        folder = tmp_path / f"undisturbed-{minutes}"
        began = time.monotonic()
        process = start(folder, network, minutes)
        process.join()
        seconds = time.monotonic() - began
        undisturbed.append(run_in(folder, network))
        assert process.exitcode == 0 and undisturbed[-1].result() is not None
    assert same(*undisturbed)
    identical, in_a_write, kills = 0, 0, 0
    runs = range(list(NETWORKS).index(network), KILLS, len(NETWORKS))
    for turn, number in enumerate(runs):
        moments = random.Random(number)
        folder = tmp_path / f"killed-{number}"
        run = run_in(folder, network)
        for _ in range(2 if turn % 3 == 0 else 1):
            process, delay = start(folder, network, 0.0), moments.uniform(0, 0.9 * seconds)
            alive = kill_after(process, delay) if turn % 2 else kill_while_it_writes(process, run.folder, delay)
            kills += alive
            in_a_write += any(run.folder.glob(".checkpoint.pt.*.part"))
        process = start(folder, network, 0.0)
        process.join()
        left = {path.name.rpartition(".")[0] for path in run.folder.glob(".*.part")}
        assert not any(name.startswith((".checkpoint", ".progress", ".metrics")) for name in left), left
        identical += process.exitcode == 0 and same(run, undisturbed[0])
    assert identical == len(runs)
    assert kills >= len(runs) * 2 / 3 and in_a_write >= len(runs) / 4
    survives(f"{kills} times kill -9, {in_a_write} in a write: {identical} runs of {network} bit-identical")
