"""The book-keeping of jobs: one a run at any moment, and none that cannot be seen or cancelled, whatever happens."""

import errno
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
from cluster import NODES, Cluster
from on_slurm import (
    LONG,
    SHORT,
    Survives,
    assert_undisturbed,
    begun,
    cluster,
    command,
    curve,
    ended,
    gamlib,
    kernels,
    now,
    on_cluster,
    processes,
    submit,
    trains,
    undisturbed,
    wait_for,
)
from submitit.core.utils import DelayedSubmission

from gamlib.lab import arrays, slurm, slurm_options
from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.housekeeping import cancel, leftovers
from gamlib.lab.places import runs_root
from gamlib.lab.runs import Run
from gamlib.lab.study_files import find_study

__all__ = ["cluster", "on_cluster", "undisturbed"]  # fixtures
pytestmark = pytest.mark.slow
FAULTS = 100
ARMS = 24


@cache
def signature(job: Path) -> str:
    """Of the run of a job."""
    return str(DelayedSubmission.load(job).args[0].signature)


def jobs(cluster: Cluster) -> dict[str, str]:
    """The run of each job that is not over, by its signature."""
    ids = cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
    files = {job_id: runs_root() / "submitit" / f"{job_id}_submitted.pkl" for job_id in ids}
    return {job_id: signature(file) for job_id, file in files.items() if file.exists()}


def arms(folder: Path, number: int, values: dict[str, Any]) -> tuple[str, list[Run]]:
    """A study of many runs that have the same bits: their parts of the images differ by less than one of them."""
    path = folder / "own.yaml"
    fractions = [values["train_fraction"] + 1e-9 * arm for arm in range(number)]
    lines = [f"  r{arm}: {{train_fraction: {fraction!r}}}\n" for arm, fraction in enumerate(fractions)]
    path.write_text("arms:\n" + "".join(lines))
    runs = [Run(RunConfig(**(values | {"train_fraction": fraction}))) for fraction in fractions]
    own = {key: value for key, value in values.items() if key != "train_fraction"}
    assert [run.signature for run in runs] == [c.signature for c in find_study(str(path)).plan(seeds=0, **own).configs]
    return str(path), runs


def submitted(study: str, values: dict[str, Any]) -> list[str]:
    own = {key: value for key, value in values.items() if key != "train_fraction"}
    options = ["--seeds", "0", "--cluster", "slurm", "--cpus", "1", "--no-wait"]
    return command("study", study, *options, values=own)


@contextmanager
def watched(cluster: Cluster) -> Iterator[list[dict[str, str]]]:
    """Moments at which a run had several jobs, with those."""
    several: list[dict[str, str]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            found = jobs(cluster)
            twice = [run for run, number in Counter(found.values()).items() if number > 1]
            if twice:
                several.append({job_id: run[:8] for job_id, run in found.items() if run in twice})
                print(several[-1], cluster.run("squeue", "-h", "-r", "-o", "%i %T %r %M").stdout.replace("\n", "; "))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield several
    finally:
        over.set()
        watcher.join()


def test_mayhem(tmp_path: Path, cluster: Cluster, survives: Survives) -> None:
    """Random faults on many runs: each is done once, bit for bit, and has never had two jobs at once."""
    values = LONG | {"epochs": 20}
    chance = random.Random(number := int(os.environ.get("GAM_MAYHEM", random.randrange(1000))))
    print(f"GAM_MAYHEM={number}")
    other = submit(values | {"seed": 0})
    study, runs = arms(tmp_path, ARMS, values)
    assert ended(other).state == "done"  # arm r0 is this very run
    asked: list[subprocess.Popen[str]] = []
    done: Counter[str] = Counter()

    def ask() -> None:
        retry = command("retry", "own", "--no-wait")
        both = (retry, submitted(study, values))
        for each in both:
            asked.append(subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))

    def restart(name: str) -> None:
        cluster.kill(name, chance.choice([signal.SIGTERM, signal.SIGKILL]))
        time.sleep(chance.uniform(0, 2))
        cluster.start_daemon(name)

    def pause(stop: Callable[[], object], go_on: Callable[[], object]) -> None:
        stop()
        time.sleep(chance.uniform(0.1, 1.5))
        go_on()

    def disturb(run: Run) -> str:
        status = run.status()
        job_id, on_kernel = status.job_id, processes("ipykernel_launcher", f"GAM_JOB={run.signature}")

        def send(number: signal.Signals) -> None:
            for process in on_kernel:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

        faults: dict[str, Callable[[], object]] = {
            "scontrol requeue": lambda: cluster.run("scontrol", "requeue", job_id),
            "USR2": lambda: cluster.run("scancel", "--signal=USR2", job_id),
            "TERM": lambda: cluster.run("scancel", "--signal=TERM", job_id),
            "scancel": lambda: cluster.run("scancel", job_id),
            "kill -9 of the kernel": lambda: send(signal.SIGKILL),
            "kill -9 of the job": lambda: psutil.Process(status.pid).kill(),
            "STOP and CONT": lambda: pause(lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT)),
            "suspend and resume": lambda: pause(
                lambda: cluster.run("scontrol", "suspend", job_id), lambda: cluster.run("scontrol", "resume", job_id)
            ),
            "requeue and scancel": lambda: [cluster.run("scontrol", "requeue", job_id), cluster.run("scancel", job_id)],
        }
        name = chance.choice(list(faults))
        print(f"{time.monotonic():.1f} {name}: {job_id} {run.signature[:8]}")
        with suppress(psutil.NoSuchProcess):
            faults[name]()
        return name

    with watched(cluster) as several:
        assert subprocess.run(submitted(study, values), stdout=subprocess.DEVNULL).returncode == 0
        while done.total() < FAULTS:
            if done.total() % 16 == 8:
                ask()
                done["retry and study at once"] += 1
            elif done.total() % 25 == 10:
                restart(name := chance.choice(["slurmctld", "slurmd-n0", "slurmd-n1"]))
                done[name] += 1
            else:
                found: list[Run] = []
                until = time.monotonic() + 60
                while not found and time.monotonic() < until:
                    found = [run for run in runs if run.status().state == "running"]
                    time.sleep(0.1)
                if not found:
                    if all(run.result() for run in runs):
                        break
                    ask()
                    time.sleep(5)
                    continue
                done[disturb(chance.choice(found))] += 1
            time.sleep(chance.uniform(0, 0.5))
        for process in asked:
            output = process.communicate(timeout=120)[0]
            assert process.returncode in (0, 2) and "Traceback" not in output, output  # 2: the controller was away
        for _ in range(10):
            wait_for(lambda: {now(run).state for run in runs}.isdisjoint(("queued", "running")))
            if all(run.result() for run in runs):
                break
            again = gamlib("retry", "own", "--no-wait")
            assert again.returncode == 0, again.stderr
    assert not several, several[0]
    again = subprocess.run(submitted(study, values), capture_output=True, text=True)  # keeps killed jobs' notebooks
    assert again.returncode == 0, again.stderr
    for run in runs:
        assert_undisturbed(run, curve(other))
    assert "nothing is queued or running" in gamlib("cancel", "own").stdout
    wait_for(lambda: not cluster.run("squeue", "-h").stdout.strip(), 60)
    gamlib("gc", "--yes")
    assert not leftovers(checkpoints=False)
    parts = [path for path in runs_root().rglob(".*") if path.name != ".lock"]
    assert not parts and not kernels()
    survives(f"{done.total()} random faults on {ARMS} runs: " + ", ".join(f"{n} {what}" for what, n in done.items()))


def test_a_job_killed_on_its_node_gets_one_job_in_its_place(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    status = run.status()
    assert status.host in NODES and status.host != socket.gethostname()
    psutil.Process(status.pid).kill()
    wait_for(lambda: now(run).state == "failed", every=0.05)
    for _ in range(3):
        submit(LONG, slurm=["hold"])
    assert jobs(cluster) == {run.status().job_id: run.signature}
    assert cluster.run("scontrol", "release", run.status().job_id).returncode == 0
    assert_undisturbed(run, undisturbed)
    survives("a job killed by SIGKILL on another host, and submitted three times")


def test_a_job_that_is_cancelled_while_it_is_put_back_is_not_waited_for(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    job_id = run.status().job_id
    assert cluster.run("scontrol", "requeue", job_id).returncode == 0
    assert cluster.run("scancel", job_id).returncode == 0
    wait_for(lambda: "Invalid job id" in cluster.run("squeue", "-j", job_id).stderr, 120)
    assert ended(run).state in ("preempted", "failed", "lost")
    submit(LONG)
    assert_undisturbed(run, undisturbed)
    survives("scontrol requeue, and scancel at once")


def test_the_users_environment_changes_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, survives: Survives
) -> None:
    users = {"SQUEUE_PARTITION": "urgent", "SQUEUE_FORMAT": "%j", "SQUEUE_STATES": "R", "LOGNAME": "nobody"}
    users |= {"SBATCH_PARTITION": "urgent", "SBATCH_TIMELIMIT": "7", "SBATCH_NO_REQUEUE": "1"}
    for key, value in users.items():
        monkeypatch.setenv(key, value)
    for _ in range(2):
        run = submit(SHORT, partition="gpu", slurm=["hold"])
        assert now(run).state == "queued"
    assert list(jobs(cluster)) == [run.status().job_id]
    said = cluster.run("scontrol", "show", "job", run.status().job_id).stdout
    assert "TimeLimit=1-00:00:00" in said and "Requeue=1" in said and "Partition=gpu" in said, said
    assert cancel([run])[run].state == "preempted"
    assert not cluster.run("squeue", "-h").stdout.strip()
    survives("variables of the user's by which SLURM's commands do other than told")


def test_a_signal_to_a_second_job_of_a_run_ends_that_job_alone(cluster: Cluster, survives: Survives) -> None:
    run = submit(LONG | {"epochs": 150})
    trains(run)
    second = arrays._submit([run], slurm_options.options({"cpus": 1}), {})
    second.record.unlink()
    (job_id,) = second.ids
    wait_for(lambda: processes("submitit", f"SLURM_JOB_ID={job_id}"))
    time.sleep(6)  # until it waits for the run
    assert run.result() is None
    assert cluster.run("scancel", "--signal=USR2", job_id).returncode == 0
    wait_for(lambda: job_id not in jobs(cluster))
    assert ended(run).state == "done" and run.status().attempts == 1
    survives("a signal to a second job of a run")


def test_arms_that_are_submitted_at_once_are_all_cancelled(
    tmp_path: Path, cluster: Cluster, survives: Survives
) -> None:
    study = tmp_path / "own.yaml"
    study.write_text("arms:\n" + "".join(f"  r{number}: {{lr: {number}e-3}}\n" for number in (1, 2, 3)))
    held = command("study", str(study), "--seeds", "0", "--cluster", "slurm", "--no-wait", "--slurm", "hold")
    each = [subprocess.Popen([*held, "--arms", f"r{number}"], stdout=subprocess.DEVNULL) for number in (1, 2, 3)]
    assert [process.wait() for process in each] == [0, 0, 0]
    assert gamlib("study", str(study), "--seeds", "1", *held[7:]).returncode == 0
    assert len(jobs(cluster)) == 6
    done = gamlib("cancel", "own")
    assert "6 runs stopped" in done.stdout, done.stdout + done.stderr
    assert not jobs(cluster)
    survives("three arms submitted at once, more seeds later, and all of them cancelled")


def test_a_controller_that_is_away_when_a_run_is_put_back(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    job_id = run.status().job_id
    cluster.kill("slurmctld", signal.SIGTERM)
    os.kill(run.status().pid, signal.SIGUSR2)
    wait_for(lambda: run.status().state == "queued")
    time.sleep(5)
    assert run.status().state == "queued", "it asks again"
    cluster.start_daemon("slurmctld")
    begun(run, 2)
    assert_undisturbed(run, undisturbed)
    assert run.status().job_id == job_id
    survives("a controller that is away when a run has itself queued again")


def remove(folder: Path) -> None:
    while folder.exists():  # others write into it
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_whose_folder_is_removed_stops_and_says_why(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    job_id = run.status().job_id
    remove(run.folder)
    wait_for(lambda: job_id not in jobs(cluster), 60)
    assert run.result() is None and not kernels()
    assert "its folder was removed while it ran" in slurm.log_of(job_id).read_text()
    submit(LONG)
    assert_undisturbed(run, undisturbed)
    survives("a folder that is removed while its run trains")


def test_a_file_system_without_locks_gets_no_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, survives: Survives
) -> None:
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
            with pytest.raises(ConfigError, match="has no file locks"):
                submit(SHORT)
    assert not jobs(cluster)
    survives("a file system without locks")


def test_what_waits_and_what_failed_say_why(cluster: Cluster, survives: Survives) -> None:
    assert cluster.run("scontrol", "update", "partitionname=gpu", "state=down").returncode == 0
    try:
        run = submit(SHORT)
        wait_for(lambda: now(run).error == "waits: PartitionDown", 60)
        assert now(run).state == "queued"
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    cluster.run("scontrol", "hold", run.status().job_id)
    wait_for(lambda: now(run).error.startswith("waits: JobHeld"), 60)
    assert cancel([run])[run].state == "preempted"
    submit(SHORT, setup=["echo 'cp: cannot create x: No space left on device' >&2; srun --nope; exit 1"])
    wait_for(lambda: now(run).state == "failed")
    assert "cannot create x: No space left on device" in now(run).error, now(run)
    survives("a partition that is down, a job that is held, a full disk of a node")


def test_a_run_gets_as_many_gpus_as_it_has_devices(cluster: Cluster, survives: Survives) -> None:
    with pytest.raises(ConfigError, match="node configuration is not available"):  # each node has one
        submit(SHORT | {"devices": 2}, gpus=1)
    with pytest.raises(ConfigError, match="gpus=2: allowed: 1"):
        submit(SHORT, gpus=2)
    assert not jobs(cluster)
    survives("more and fewer GPUs than a run has devices")


def test_cancel_and_retry_from_every_state(
    tmp_path: Path, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    study, runs = arms(tmp_path, 8, LONG)
    assert subprocess.run(submitted(study, LONG), stdout=subprocess.DEVNULL).returncode == 0
    killed, failed, preempted, put_back, removed, signalled, trained, queued = runs
    for run in (killed, failed, preempted, put_back):
        trains(run)
    psutil.Process(killed.status().pid).kill()
    (kernel,) = processes("ipykernel_launcher", f"GAM_JOB={failed.signature}")
    kernel.kill()
    cluster.run("scancel", preempted.status().job_id)
    cluster.run("scontrol", "requeue", put_back.status().job_id)
    cluster.run("scancel", put_back.status().job_id)
    for run in (removed, signalled, trained):
        trains(run)
    remove(removed.folder)
    cluster.run("scancel", "--signal=USR2", signalled.status().job_id)
    wait_for(lambda: signalled.status().state == "queued", every=0.05)
    left = gamlib("cancel", "own")
    assert left.returncode == 0, left.stderr
    wait_for(lambda: not jobs(cluster), 30)
    states = {run: now(run).state for run in runs}
    assert not {"queued", "running"} & set(states.values()), states
    again = gamlib("retry", "own", "--no-wait")
    assert again.returncode == 0 and "runs submitted" in again.stdout, again.stdout + again.stderr
    for run in runs:
        if states[run] != "done":
            assert_undisturbed(run, undisturbed)
    assert queued.result() is not None
    survives("cancel and retry, from every state")
