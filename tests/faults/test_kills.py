"""kill -9 at random moments of a run. `make test-faults` kills 25 runs, `make test-all` a few."""

import os
import random
import time
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
def test_runs_killed_at_random_moments_finish_bit_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of them are killed while a checkpoint is written, a third twice; each then goes on to its end."""
    undisturbed: dict[str, Run] = {}
    seconds: dict[str, float] = {}
    for network in NETWORKS:
        for minutes in (10.0, 0.0):  # 0: a checkpoint after every step; what is saved must not change a bit
            folder = tmp_path / f"undisturbed-{network}-{minutes}"
            began = time.monotonic()
            process = start(folder, network, minutes)
            process.join()
            seconds[network] = time.monotonic() - began
            run = run_in(folder, network)
            assert process.exitcode == 0 and run.result() is not None
            assert same(run, undisturbed.setdefault(network, run))
    identical, in_a_write, kills = 0, 0, 0
    for number in range(KILLS):
        moments = random.Random(number)
        network = list(NETWORKS)[number % 2]
        folder = tmp_path / f"killed-{number}"
        run = run_in(folder, network)
        for _ in range(2 if number % 3 == 0 else 1):
            process, delay = start(folder, network, 0.0), moments.uniform(0, 0.9 * seconds[network])
            alive = kill_while_it_writes(process, run.folder, delay) if number % 4 < 2 else kill_after(process, delay)
            kills += alive
            in_a_write += any(run.folder.glob(".checkpoint.pt.*.part"))
        process = start(folder, network, 0.0)
        process.join()
        left = {path.name.rpartition(".")[0] for path in run.folder.glob(".*.part")}
        assert not any(name.startswith((".checkpoint", ".progress", ".metrics")) for name in left), left
        identical += process.exitcode == 0 and same(run, undisturbed[network])
    with capsys.disabled():
        print(f"\nkill -9: {identical} of {KILLS} runs bit-identical after {kills} kills, {in_a_write} in a write")
    assert identical == KILLS
    assert kills >= KILLS * 2 / 3 and in_a_write >= KILLS / 4
