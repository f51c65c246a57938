"""What a study on a real SLURM survives. Every run here that ends has the bits of one that nothing happened to.

One cluster for all tests; where it cannot be had they are skipped with the reason.
"""

import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
from cluster import Cluster
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
    steps,
    submit,
    trains,
    undisturbed,
    wait_for,
)

from gamlib.files import write_whole
from gamlib.lab import slurm
from gamlib.lab.config import RunConfig
from gamlib.lab.dispatch import dispatch
from gamlib.lab.provenance import source_hash
from gamlib.lab.runs import Run
from gamlib.lab.study_files import find_study

__all__ = ["cluster", "on_cluster", "undisturbed"]  # fixtures
pytestmark = pytest.mark.slow


def test_a_time_limit_three_times_over(
    cluster: Cluster, places: Path, monkeypatch: pytest.MonkeyPatch, survives: Survives
) -> None:
    """SLURM's own signal, some seconds before a limit of a minute; the same job, again and again."""
    values = LONG | {"epochs": 500}
    run = submit(values, timeout=1)
    with monkeypatch.context() as patch:
        patch.setenv("GAM_RUNS", str(places / "undisturbed"))
        other = submit(values)
    begun(run, 1)
    job_id = run.status().job_id
    begun(run, 4)
    assert cluster.run("scontrol", "update", f"jobid={job_id}", "timelimit=60").returncode == 0  # enough of it
    with monkeypatch.context() as patch:
        patch.setenv("GAM_RUNS", str(places / "undisturbed"))
        assert ended(other).state == "done"
    assert_undisturbed(run, curve(other))
    assert run.status().job_id == job_id
    survives(f"{run.status().attempts - 1} time-outs of one run, in one job")


def test_a_signal_three_times_over(cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives) -> None:
    """What SLURM sends before a time limit, sent by hand in the middle of an epoch."""
    run = submit(LONG)
    for attempt in (1, 2, 3):
        trains(run)
        assert run.status().attempts == attempt
        assert cluster.run("scancel", "--signal=USR2", run.status().job_id).returncode == 0
        begun(run, attempt + 1)
    assert_undisturbed(run, undisturbed)
    assert run.status().attempts == 4
    survives("scancel --signal=USR2, three times over")


@pytest.mark.parametrize("how", ["requeue", "preemption"])
def test_a_run_that_slurm_takes_away_goes_on(
    how: str, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    if how == "requeue":
        assert cluster.run("scontrol", "requeue", run.status().job_id).returncode == 0
    else:
        both = ["sbatch", "-p", "urgent", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
        assert cluster.run(*both).returncode == 0
    wait_for(lambda: run.status().attempts == 2)
    assert_undisturbed(run, undisturbed)
    survives({"requeue": "scontrol requeue", "preemption": "preemption by a job of higher priority"}[how])


def test_a_cancelled_study_says_what_it_left_and_is_retried(
    tmp_path: Path, cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    study = tmp_path / "one.yaml"
    study.write_text("arms:\n  only: {}\n")
    options = ["--cluster", "slurm", "--cpus", "1", "--no-wait"]
    assert gamlib("study", str(study), "--seeds", "0", *options, values=LONG).returncode == 0
    run = Run(RunConfig(**LONG))
    trains(run)
    left = gamlib("cancel", "one")
    assert left.returncode == 0 and "1 runs stopped" in left.stdout, left.stdout + left.stderr
    assert "preempted" in left.stdout and "stopped by SIGTERM in epoch " in left.stdout
    assert not cluster.run("squeue", "-h").stdout.strip()
    again = gamlib("retry", "one", "--no-wait", "--mem", "1.5")
    assert again.returncode == 0 and "1 runs submitted" in again.stdout, again.stdout + again.stderr
    assert "1.50G" in cluster.run("squeue", "-h", "-o", "%m").stdout
    assert_undisturbed(run, undisturbed)
    survives("scancel and gamlib retry")


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


def test_a_killed_kernel_is_a_failure_with_its_reason(survives: Survives) -> None:
    run = submit(LONG)
    trains(run)
    (kernel,) = kernels()
    kernel.kill()
    status = ended(run)
    assert status.state == "failed"
    assert "the kernel died by signal 9" in status.error
    survives("a kernel killed by SIGKILL")


def test_a_memory_limit_is_a_failure_with_its_reason(cluster: Cluster, survives: Survives) -> None:
    run = submit(LONG, mem=0.2)
    status = ended(run)
    assert status.state == "failed" and run.result() is None
    assert "memory limit" in status.error or "OUT_OF_MEMORY" in status.error, status.error
    survives("a memory limit exceeded")


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
    for seed, delay in enumerate((0.0, 0.03, 0.06)):
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
    survives(f"a submission killed half-way, {half_way} of 3 times before the jobs were known")


def test_nothing_is_lost_while_accounting_and_controller_are_away(
    cluster: Cluster, undisturbed: pd.DataFrame, survives: Survives
) -> None:
    run = submit(LONG)
    trains(run)
    cluster.kill("slurmdbd")
    assert now(run).state == "running"
    cluster.kill("slurmctld", signal.SIGTERM)
    assert now(run).state == "running"  # by its folder alone
    cluster.start_daemon("slurmctld")
    wait_for(lambda: cluster.run("scontrol", "ping").returncode == 0)
    assert now(run).state == "running"
    assert_undisturbed(run, undisturbed)
    survives("accounting away, controller restarted")


def test_two_studies_at_once_train_each_run_once(tmp_path: Path, cluster: Cluster, survives: Survives) -> None:
    study = tmp_path / "twice.yaml"
    study.write_text("arms:\n  one: {}\n  other: {attention: none}\n")
    twice = command("study", str(study), "--seeds", "0", "--cluster", "slurm", "--cpus", "1", values=SHORT)
    both = [subprocess.Popen(twice, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("2 runs submitted" in output for output in outputs) == [False, True]
    for values in (SHORT, SHORT | {"attention": "none"}):
        assert Run(RunConfig(**values)).status().attempts == 1
    survives("two identical studies at once")


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


def test_code_that_differs_from_the_submitters_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a GPU that is asked for is one that SLURM counts."""
    with monkeypatch.context() as patch:
        patch.setattr("gamlib.lab.dispatch.source_hash", lambda: "0123456789abcdef")
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
