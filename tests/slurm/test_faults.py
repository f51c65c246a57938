"""What a study on a real SLURM survives. Every run here that ends has the bits of one that nothing happened to,
and none has two jobs at once, or one that cannot be seen and cancelled.

One cluster for all tests; where it cannot be had they are skipped with the reason.
"""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
from cluster import NODES, Cluster
from debian import missing
from filelock import FileLock
from on_slurm import (
    LONG,
    SHORT,
    Survives,
    assert_undisturbed,
    begun,
    command,
    curve,
    ended,
    gamlib,
    kernels,
    now,
    steps,
    submit,
    trains,
    wait_for,
)
from started import of_test
from submitit.core.utils import DelayedSubmission

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution import arrays, slurm, slurm_options
from ablation.execution.dispatch import dispatch
from ablation.execution.housekeeping import cancel, leftovers
from ablation.paths import runs_root
from ablation.provenance import source_hash
from ablation.runs import Run
from ablation.study_files import find_study
from gamlib.files import write_whole

pytestmark = pytest.mark.slow
FAULTS = 100
BURST = 10
ARMS = 24


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := missing("slurm") if os.environ.get("GAM_SLURM") else "make test-slurm runs it":
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="gam-slurm-", dir="/tmp"))  # sockets lie in it: its path must be short
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, counted: None) -> Iterator[None]:
    """Commands of this test go to the cluster, which is empty and whole before and after it."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    yield
    cluster.recover()


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, shared: Path) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        together = shared / "undisturbed"  # of all workers, each with its own cluster
        patch.setenv("GAM_RUNS", str(together))
        together.mkdir(exist_ok=True)
        with FileLock(together / ".lock"):
            run = submit(LONG)
            assert ended(run).state == "done" and run.status().attempts == 1
        return curve(run)


@cache
def runs_of(job: Path) -> list[Run]:
    """What a job was submitted for."""
    given = DelayedSubmission.load(job).args[0]
    return [given] if isinstance(given, Run) else list(given)


def jobs(cluster: Cluster) -> dict[str, list[str]]:
    """The runs of each job that is not over, by their signatures; of one with several, those that have not left it."""
    ids = cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
    files = {job_id: runs_root() / "submitit" / f"{job_id}_submitted.pkl" for job_id in ids}
    found = {job_id: runs_of(file) for job_id, file in files.items() if file.exists()}
    return {
        job_id: [run.signature for run in runs if len(runs) == 1 or run.status().job_id == job_id]
        for job_id, runs in found.items()
    }


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


SHARED = ["--runs-per-job", "4", "--at-once", "2"]


def submitted(study: str, values: dict[str, Any], *more: str) -> list[str]:
    own = {key: value for key, value in values.items() if key != "train_fraction"}
    options = ["--seeds", "0", "--cluster", "slurm", "--cpus", "1", "--no-wait", *more]
    return command("study", study, *options, values=own)


@contextmanager
def watched(cluster: Cluster) -> Iterator[list[dict[str, str]]]:
    """Moments at which a run had several jobs, with those."""
    several: list[dict[str, str]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            found = [(job_id, run[:8]) for job_id, runs in jobs(cluster).items() for run in runs]
            twice = [run for run, number in Counter(run for _, run in found).items() if number > 1]
            if twice:
                several.append({job_id: run for job_id, run in found if run in twice})
                print(several[-1], cluster.run("squeue", "-h", "-r", "-o", "%i %T %r %M").stdout.replace("\n", "; "))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield several
    finally:
        over.set()
        watcher.join()


def test_mayhem(tmp_path: Path, cluster: Cluster, survives: Survives) -> None:
    """Random faults on many runs: each is done once, bit for bit, and has never had two jobs at once.

    Half of them share a job with three others, half have one each; what is submitted again shares. Faults come in
    bursts, each when a run has come as far as training. It is the first test since it takes the longest: other workers
    do the others meanwhile, and those that come next are short, since a worker keeps two of its own.
    """
    values = LONG | {"epochs": 12}
    chance = random.Random(number := int(os.environ.get("GAM_MAYHEM", random.randrange(1000))))
    print(f"GAM_MAYHEM={number}")
    other = submit(values | {"seed": 0})
    study, runs = arms(tmp_path, ARMS, values)
    assert ended(other).state == "done"  # arm r0 is this very run
    alone = ["--partition", "narrow"]  # with fewer at a time more of them come as far as training
    shared = [*alone, *SHARED]
    asked: list[subprocess.Popen[str]] = []
    done: Counter[str] = Counter()
    in_training = 0

    def ask() -> None:
        both = (command("retry", "own", "--no-wait", *shared), submitted(study, values, *shared))
        for each in both:
            asked.append(subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))

    def one_that_trains() -> str:
        """The job of a run that has just ended an epoch, if there is one."""
        since = time.time() - 2
        found = [file.parent for file in runs_root().glob("*/*/metrics.jsonl") if file.stat().st_mtime > since]
        open_ = [run.status() for run in runs if run.folder in found and run.result() is None]
        return next((status.job_id for status in open_ if status.state == "running"), "")

    def calm() -> None:
        """Let a run come as far as training, or nearly all faults would meet what only starts."""
        until = time.monotonic() + 90
        while not one_that_trains() and jobs(cluster) and time.monotonic() < until:
            cluster.mend()
            time.sleep(0.5)

    def over() -> bool:
        cluster.mend()
        return {status.state for status in slurm.statuses(runs).values()}.isdisjoint(("queued", "running"))

    def restart(name: str) -> None:
        cluster.kill(name, chance.choice([signal.SIGTERM, signal.SIGKILL]))
        time.sleep(chance.uniform(0, 2))
        cluster.start_daemon(name)

    def pause(stop: Callable[[], object], go_on: Callable[[], object]) -> None:
        stop()
        time.sleep(chance.uniform(0.1, 1.5))
        go_on()

    def send(number: signal.Signals, to: list[psutil.Process]) -> None:
        for process in to:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def disturb(job_id: str, number: str) -> str:
        """Do something to a job that runs, given both ways in which SLURM numbers it; what it was."""
        slurm = partial(cluster.run, timeout=3)  # scancel waits while a job is just being started
        words = ("submitit.core._submit", "gamlib-server", "gamlib-job", "ipykernel", "gamlib-kernel")
        job, server, of_run, new, forked = (of_test(word, f"SLURM_JOB_ID={number}") for word in words)
        kernel = [chance.choice(new + forked)] if new + forked else []
        faults: dict[str, Callable[[], object]] = {
            "scontrol requeue": lambda: slurm("scontrol", "requeue", job_id),
            "USR2": lambda: slurm("scancel", "--signal=USR2", job_id),
            "TERM": lambda: slurm("scancel", "--signal=TERM", job_id),
            "scancel": lambda: slurm("scancel", job_id),
            "suspend and resume": lambda: pause(
                lambda: slurm("scontrol", "suspend", job_id), lambda: cluster.run("scontrol", "resume", job_id)
            ),
            "requeue and scancel": lambda: [slurm("scontrol", "requeue", job_id), slurm("scancel", job_id)],
        }
        if job:
            faults["kill -9 of the job"] = lambda: send(signal.SIGKILL, job)
        if server:
            faults["kill -9 of the server"] = lambda: send(signal.SIGKILL, server)
        if of_run:
            faults["kill -9 of a run's process"] = lambda: send(signal.SIGKILL, [chance.choice(of_run)])
        if kernel:
            faults["kill -9 of a kernel"] = lambda: send(signal.SIGKILL, kernel)
            faults["STOP and CONT"] = lambda: pause(
                lambda: send(signal.SIGSTOP, kernel), lambda: send(signal.SIGCONT, kernel)
            )
        name = chance.choice(list(faults))
        print(f"{time.monotonic():.1f} {name}: {job_id}")
        faults[name]()
        return name

    with watched(cluster) as several:
        names = [f"r{arm}" for arm in range(ARMS)]
        for half, options in ((names[ARMS // 2 :], shared), (names[: ARMS // 2], alone)):
            of_half = [text for arm in half for text in ("--arms", arm)]
            line = submitted(study, values, *of_half, *options)
            assert subprocess.run(line, stdout=subprocess.DEVNULL).returncode == 0
        while done.total() < FAULTS:
            if done.total() % BURST == 0:
                calm()
            if done.total() % 16 == 8:
                ask()
                done["retry and study at once"] += 1
            elif done.total() % 25 == 10:
                restart(name := chance.choice(["slurmctld", "slurmd-n0", "slurmd-n1"]))
                print(f"{time.monotonic():.1f} restart of {name}")
                done[f"restart of {name}"] += 1
            elif found := cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i %A").stdout.splitlines():
                trains = one_that_trains()
                job = next((line for line in found if line.split()[0] == trains), chance.choice(found))
                in_training += job.split()[0] == trains
                done[disturb(*job.split())] += 1
            else:
                assert not all(run.result() for run in runs), f"all are done after {done.total()} faults"
                cluster.mend()
                if not jobs(cluster):
                    ask()
                    time.sleep(5)
            time.sleep(chance.uniform(0, 0.6))
        for process in asked:
            output = process.communicate(timeout=120)[0]
            assert process.returncode in (0, 2) and "Traceback" not in output, output  # 2: the controller was away
        for _ in range(10):
            wait_for(over, 900, every=2)
            if all(run.result() for run in runs):
                break
            again = gamlib("retry", "own", "--no-wait", *shared)
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
    parts = [path for path in runs_root().rglob(".*") if path.name not in (".lock", ".parameters.txt")]
    assert not parts and not kernels()
    kinds = ", ".join(f"{number} {what}" for what, number in done.items())
    survives(f"{done.total()} random faults on {ARMS} runs, {in_training} where one trained: {kinds}")


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


def test_a_run_gets_as_many_gpus_as_it_has_devices(cluster: Cluster, survives: Survives) -> None:
    with pytest.raises(ConfigError, match="node configuration is not available"):  # each node has one
        submit(SHORT | {"devices": 2}, gpus=1)
    with pytest.raises(ConfigError, match="gpus=2: allowed: 1"):
        submit(SHORT, gpus=2)
    assert not jobs(cluster)
    survives("more and fewer GPUs than a run has devices")


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


def test_a_bad_parameter_in_one_of_fifty_is_refused_before_any_is_submitted(
    tmp_path: Path, cluster: Cluster, survives: Survives
) -> None:
    study = tmp_path / "fifty.yaml"
    arms = "\n".join(f"  r{n}: {{lr: {n if n < 49 else -1}e-4}}" for n in range(1, 51))
    study.write_text(f"arms:\n{arms}\n")
    done = gamlib("study", str(study), "--seeds", "0", "--cluster", "slurm", "--no-wait")
    assert done.returncode == 2 and "lr=" in done.stderr
    assert not cluster.run("squeue", "-h").stdout.strip()
    survives("a bad parameter in one of fifty runs")


def under_way(folder: Path, submission: "subprocess.Popen[bytes]") -> bool:
    return any(folder.glob("*.submitting")) or submission.poll() is not None


def test_a_submission_that_was_killed_is_made_good_by_the_next(
    tmp_path: Path, cluster: Cluster, survives: Survives
) -> None:
    """Each run has one job after that, wherever the first submission had got to."""
    file = tmp_path / "many.yaml"
    arms = "\n".join(f"  r{width}: {{lr: {width}e-4}}" for width in range(1, 41))
    file.write_text(f"arms:\n{arms}\n")
    held = command("study", str(file), "--cluster", "slurm", "--no-wait", "--slurm", "hold", values=SHORT)
    folder, half_way, queued = Path(os.environ["GAM_RUNS"]) / "submitit", 0, 0
    for seed, delay in enumerate((0.0, 0.05)):
        process = subprocess.Popen([*held, "--seeds", str(seed)], stdout=subprocess.DEVNULL)
        wait_for(partial(under_way, folder, process), every=0.001)
        time.sleep(delay)
        process.kill()
        process.wait()
        half_way += any(folder.glob("*.submitting"))
        time.sleep(1)  # its sbatch may still be under way
        configs = find_study(str(file)).plan(seeds=str(seed), **SHORT).configs
        for _ in range(2):
            dispatch(configs, "slurm", wait=False, slurm={"slurm": ["hold"]})
            runs, queued = list(map(Run, configs)), 40 * (seed + 1)
            jobs = cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
            assert len(jobs) == queued and {run.status().job_id for run in runs} <= set(jobs)
            assert {status.state for status in slurm.statuses(runs).values()} == {"queued"}
    assert half_way
    survives(f"a submission killed half-way, {half_way} of 2 times before the jobs were known")


def remove(folder: Path) -> None:
    while folder.exists():  # others write into it
        shutil.rmtree(folder, ignore_errors=True)


def kernel_of(run: Run) -> psutil.Process:
    """The kernel of a run that has a job of its own."""
    (kernel,) = of_test("ipykernel_launcher", f"GAM_JOB={run.signature}")
    return kernel


def test_cancel_and_retry_from_every_state(
    tmp_path: Path, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    study, runs = arms(tmp_path, 8, LONG)
    assert subprocess.run(submitted(study, LONG), stdout=subprocess.DEVNULL).returncode == 0
    killed, failed, preempted, put_back, removed, signalled, trained, queued = runs
    for run in (killed, failed, preempted, put_back):
        trains(run)
    psutil.Process(killed.status().pid).kill()
    kernel_of(failed).kill()
    cluster.run("scancel", preempted.status().job_id)
    job_id = put_back.status().job_id
    assert cluster.run("scontrol", "requeue", job_id).returncode == 0
    assert cluster.run("scancel", job_id).returncode == 0
    wait_for(lambda: now(failed).state == "failed")
    assert "the kernel died by signal 9" in now(failed).error

    for run in (removed, signalled, trained):
        trains(run)
    of_removed = removed.status().job_id
    remove(removed.folder)
    cluster.run("scancel", "--signal=USR2", signalled.status().job_id)
    wait_for(lambda: signalled.status().state == "queued", every=0.05)
    kernel = kernel_of(trained)
    kernel.suspend()  # or the run might be done before it is cancelled
    wait_for(lambda: of_removed not in jobs(cluster), 60)
    assert removed.result() is None and not of_test("ipykernel_launcher", f"GAM_JOB={removed.signature}")
    assert "its folder was removed while it ran" in slurm.log_of(of_removed).read_text()
    wait_for(lambda: not cluster.run("squeue", "-h", "-t", "all", "-j", job_id).stdout, 60)  # it has forgotten the job
    assert now(put_back).state in ("preempted", "failed", "lost")
    kernel.resume()
    left = gamlib("cancel", "own")
    assert left.returncode == 0, left.stderr
    assert " runs stopped" in left.stdout and "preempted" in left.stdout, left.stdout
    assert "stopped by SIGTERM in epoch " in left.stdout, left.stdout
    wait_for(lambda: not jobs(cluster), 30)
    states = {run: now(run).state for run in runs}
    assert not {"queued", "running"} & set(states.values()), states
    again = gamlib("retry", "own", "--no-wait", "--mem", "1.5", *SHARED)
    assert again.returncode == 0 and "runs submitted" in again.stdout, again.stdout + again.stderr
    assert "1.50G" in cluster.run("squeue", "-h", "-o", "%m").stdout
    for run in runs:
        if states[run] != "done":
            assert_undisturbed(run, undisturbed)
    assert queued.result() is not None
    wait_for(lambda: not kernels(), 60)
    survives("a kernel killed by SIGKILL")
    survives("scontrol requeue, and scancel at once")
    survives("a folder that is removed while its run trains")
    survives("cancel and retry, from every state")


def test_a_node_that_dies_under_a_run(cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives) -> None:
    """Without SLURM's own requeueing, which would hide it."""
    run = submit(LONG, slurm=["no-requeue", "nodelist=n1"])
    trains(run)
    cluster.kill("slurmd-n1")
    assert len(steps(cluster)) == 2
    on_it = [*steps(cluster), psutil.Process(run.status().pid), *kernels()]
    for process in on_it:  # all at once, so that none tells of another's end
        process.suspend()
    for process in on_it:
        process.kill()
    wait_for(lambda: "down" in cluster.run("sinfo", "-h", "-n", "n1", "-o", "%T").stdout, 120)
    wait_for(lambda: now(run).error.startswith("NODE_FAIL: "), 60)
    assert now(run).state == "failed"
    submit(LONG)
    assert_undisturbed(run, undisturbed)
    survives("a node that dies")


def test_nothing_is_lost_while_accounting_and_controller_are_away(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    (kernel,) = kernels()
    kernel.suspend()  # or the run might be done before all of this is
    cluster.kill("slurmdbd")
    assert now(run).state == "running"
    cluster.kill("slurmctld", signal.SIGTERM)
    assert now(run).state == "running"  # by its folder alone
    cluster.start_daemon("slurmctld")
    wait_for(lambda: cluster.run("scontrol", "ping").returncode == 0)
    assert now(run).state == "running"
    job_id = run.status().job_id
    cluster.kill("slurmctld", signal.SIGTERM)
    os.kill(run.status().pid, signal.SIGUSR2)
    kernel.resume()
    wait_for(lambda: run.status().state == "queued")
    time.sleep(5)
    assert run.status().state == "queued", "it asks again"
    cluster.start_daemon("slurmctld")
    begun(run, 2)
    assert_undisturbed(run, undisturbed)
    assert run.status().job_id == job_id
    survives("accounting away, controller restarted")
    survives("a controller that is away when a run has itself queued again")


def test_two_studies_at_once_train_each_run_once(tmp_path: Path, cluster: Cluster, survives: Survives) -> None:
    study = tmp_path / "twice.yaml"
    study.write_text("arms:\n  one: {}\n  other: {attention: none}\n")
    twice = command("study", str(study), "--seeds", "0", "--cluster", "slurm", "--cpus", "1", *SHARED, values=SHORT)
    both = [subprocess.Popen(twice, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("2 runs submitted" in output for output in outputs) == [False, True]
    for values in (SHORT, SHORT | {"attention": "none"}):
        assert Run(RunConfig(**values)).status().attempts == 1
    survives("two identical studies at once")


def test_a_study_goes_on_until_it_is_decided(tmp_path: Path, cluster: Cluster, survives: Survives) -> None:
    """Look by look: submitted twice, left while it waits, and asked for again."""
    study = tmp_path / "looks.yaml"
    base = "{" + ", ".join(f"{key}: {value}" for key, value in SHORT.items()) + "}"
    study.write_text(f"looks: [2, 3]\nbase: {base}\narms: {{plain: {{attention: none}}, gam: {{attention: gam}}}}\n")
    runs = [Run(config) for config in find_study(str(study)).plan().configs]
    asked = ["study", str(study), "--until-decided", "--cluster", "slurm", "--cpus", "1", *SHARED]
    assert cluster.run("scontrol", "update", "partitionname=gpu", "state=down").returncode == 0  # nothing starts yet
    try:
        for _ in range(2):
            assert "submitted; watch" in gamlib(*asked, "--no-wait").stdout
        found = Counter(signature for of_job in jobs(cluster).values() for signature in of_job)
        assert found == {run.signature: 1 for run in runs[:4]}, "the others are of the second look"
        waiting = subprocess.Popen(command(*asked), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert waiting.stdout is not None and "4 were in a queue before" in waiting.stdout.readline()
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        assert "the SLURM jobs go on" in waiting.communicate(timeout=60)[0]
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    last = gamlib(*asked)
    assert last.returncode == 0 and "looks-digits, 2 of 3 seeds:\n    gam against plain: undecided by 2" in last.stdout
    assert "looks-digits, 3 of 3 seeds:\n    gam against plain: " in last.stdout and "6 of 6 runs done" in last.stdout
    assert all(run.status().attempts == 1 for run in runs)
    survives("a study that is submitted twice, left, and goes on until it is decided")


def test_arms_that_are_submitted_at_once_are_all_cancelled(
    tmp_path: Path, cluster: Cluster, survives: Survives
) -> None:
    study = tmp_path / "own.yaml"
    study.write_text("arms:\n" + "".join(f"  r{number}: {{lr: {number}e-3}}\n" for number in (1, 2, 3)))
    options = ["--cluster", "slurm", "--no-wait", "--slurm", "hold"]
    held = command("study", str(study), "--seeds", "0", *options, values=SHORT)
    each = [subprocess.Popen([*held, "--arms", f"r{number}"], stdout=subprocess.DEVNULL) for number in (1, 2, 3)]
    assert [process.wait() for process in each] == [0, 0, 0]
    assert gamlib("study", str(study), "--seeds", "1", *held[7:]).returncode == 0
    assert len(jobs(cluster)) == 6
    done = gamlib("cancel", "own")
    assert "6 runs stopped" in done.stdout, done.stdout + done.stderr
    assert not jobs(cluster)
    survives("three arms submitted at once, more seeds later, and all of them cancelled")


def test_a_memory_limit_is_a_failure_with_its_reason(cluster: Cluster, survives: Survives) -> None:
    run = submit(LONG, mem=0.2)
    status = ended(run)
    assert status.state == "failed" and run.result() is None
    assert "memory limit" in status.error or "OUT_OF_MEMORY" in status.error, status.error
    survives("a memory limit exceeded")


def test_a_run_that_is_taken_away_again_and_again_goes_on(
    tmp_path: Path, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    """By SLURM, some seconds before a time limit; by the same signal, by hand; by an operator; by a job of higher
    priority.

    Python is started by another command, as docs/containers.md has it, with a script in place of a container's runtime.
    """
    runtime = tmp_path / "apptainer"
    stays = "trap : USR2"  # the parent, which SLURM signals too: as runtimes do
    runtime.write_text(f'#!/bin/sh\n{stays}\necho "$@" >> {tmp_path}/calls\nshift 4\n"$@"\n')
    runtime.chmod(0o755)
    python = f"{runtime} exec --nv --bind=/etc/slurm gam.sif {sys.executable}"
    run = submit(LONG, timeout=60, slurm={"python": python})
    trains(run)
    job_id = run.status().job_id
    (kernel,) = kernels()
    kernel.suspend()  # or the run might be done before the signal comes
    minutes, _ = cluster.run("squeue", "-h", "-j", job_id, "-o", "%M").stdout.split(":")
    limit = ["scontrol", "update", f"jobid={job_id}"]
    assert cluster.run(*limit, f"timelimit={int(minutes) + 1}").returncode == 0
    wait_for((run.folder / "stop").exists, 120)
    kernel.resume()
    begun(run, 2)
    assert cluster.run(*limit, "timelimit=60").returncode == 0  # enough of it
    how = {
        "scancel --signal=USR2": ["scancel", "--signal=USR2", job_id],
        "scontrol requeue": ["scontrol", "requeue", job_id],
        "preemption by a job of higher priority": [
            *("sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
        ],
    }
    for attempt, command_line in enumerate(how.values(), 2):
        trains(run)
        assert run.status().attempts == attempt
        assert cluster.run(*command_line).returncode == 0
        begun(run, attempt + 1)
    assert_undisturbed(run, undisturbed)
    assert (run.status().attempts, run.status().job_id) == (5, job_id)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 5 and all(call.startswith("exec --nv --bind=/etc/slurm gam.sif") for call in calls)
    for fault in ("a time limit", *how, "USR2 to a job in another command than python"):
        survives(fault)


def test_a_job_of_several_runs(tmp_path: Path, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives) -> None:
    """Two at once, of five: one fails and is retried meanwhile, one is cancelled, all others go on, in the same job."""
    study, runs = arms(tmp_path, 5, LONG)
    assert subprocess.run(submitted(study, LONG, "--runs-per-job", "5", "--at-once", "2")).returncode == 0
    killed, cancelled, third, _, last = runs
    for run in (killed, cancelled):
        trains(run)
    (job_id,) = jobs(cluster)
    assert [now(run).state for run in runs] == ["running"] * 2 + ["queued"] * 3
    assert {run.status().job_id for run in runs} == {job_id}
    psutil.Process(killed.status().pid).children()[0].kill()
    wait_for(lambda: now(killed).state == "failed")
    assert "the kernel died by signal 9" in now(killed).error
    assert cancel([cancelled])[cancelled].error.startswith("stopped by gamlib cancel in epoch ")
    assert cancel([last])[last].error == "cancelled before it began"
    again = gamlib("retry", "own", "--no-wait", "--slurm", "hold")
    assert again.returncode == 0 and "3 runs submitted" in again.stdout, again.stdout + again.stderr
    (new,) = jobs(cluster).keys() - {job_id}
    trains(third)
    assert cluster.run("scancel", "--signal=USR2", job_id).returncode == 0
    begun(third, 2)
    assert cluster.run("scontrol", "release", new).returncode == 0
    for run in runs:
        assert_undisturbed(run, undisturbed)
    assert [run.status().job_id for run in runs] == [new, new, job_id, job_id, new]
    assert not kernels()
    survives("USR2 to a job of several runs")
    survives("runs that fail or are cancelled in a job of several runs")


def test_a_signal_to_a_job_that_waits_for_a_run_ends_that_job_alone(cluster: Cluster, survives: Survives) -> None:
    """Another process trains the run, here; so a second job that SLURM has of it ends by itself."""
    values = LONG | {"epochs": 150}
    run = Run(RunConfig(**values))
    local = subprocess.Popen(command("run", values=values), stdout=subprocess.DEVNULL)
    trains(run)
    with arrays.submission_lock():
        (job_id,), record = arrays._submit([[run]], slurm_options.parameters({"cpus": 1}), {}, 1)
        record.unlink()
    wait_for(lambda: of_test("submitit.core._submit", f"SLURM_JOB_ID={job_id}"))
    time.sleep(6)  # until it waits for the run
    assert run.result() is None and job_id in jobs(cluster)
    assert cluster.run("scancel", "--signal=USR2", job_id).returncode == 0
    wait_for(lambda: job_id not in jobs(cluster))
    assert local.wait() == 0
    assert run.result() is not None and run.status().attempts == 1
    survives("a signal to a job that waits for a run")


def test_a_job_killed_on_its_node_gets_one_job_in_its_place(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    """SLURM takes the dead job back for some time; the run has another by then. That one is seen, and of no effect."""
    run = submit(LONG)
    trains(run)
    status = run.status()
    assert status.host in NODES and status.host != socket.gethostname()
    psutil.Process(status.pid).kill()
    wait_for(lambda: now(run).state == "failed", every=0.05)
    for cancels in (True, False):
        submit(LONG, slurm=["hold"])
        another = run.status().job_id
        assert jobs(cluster) == {another: [run.signature]}
        assert cluster.run("scontrol", "requeue", status.job_id).returncode == 0
        assert jobs(cluster) == {status.job_id: [run.signature], another: [run.signature]}
        assert now(run).state == "queued"
        if cancels:
            assert cancel([run])[run].state == "preempted"
            assert not jobs(cluster)
    wait_for(lambda: status.job_id not in jobs(cluster))
    assert f"job {another} has this run" in slurm.log_of(status.job_id).read_text()
    for _ in range(2):
        submit(LONG, slurm=["hold"])
    assert jobs(cluster) == {another: [run.signature]}
    assert cluster.run("scontrol", "release", another).returncode == 0
    assert_undisturbed(run, undisturbed)
    survives("a job killed by SIGKILL on another host, and submitted three times")
    survives("a dead job that is queued again by hand")


def test_code_that_differs_from_the_submitters_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a GPU that is asked for is one that SLURM counts."""
    with monkeypatch.context() as patch:
        patch.setattr("ablation.execution.dispatch.source_hash", lambda: "0123456789abcdef")
        run = submit(SHORT, gpus=1)
    assert "gres:gpu:1" in cluster.run("squeue", "-h", "-o", "%b").stdout
    wait_for(lambda: now(run).state == "running" and now(run).error)
    assert now(run).error == "its code is not the one that it was submitted with"
    assert ended(run).state == "done"
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert (provenance["submitted_source"], provenance["source"]) == ("0123456789abcdef", source_hash())
    result = run.folder / "result.json"
    write_whole(result, result.read_text().replace(source_hash(), "0123456789abcdef"))
    assert "1 done by other code" in gamlib("status").stdout
