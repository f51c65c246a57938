"""How long it takes to submit many runs, to look at them and to report them, and how that grows.

    python tests/debian.py slurm                               once, for a SLURM on this machine; as root, on Debian
    python benchmarks/dispatch.py                              up to 1,000 runs submitted, 10,000 looked at
    python benchmarks/dispatch.py --runs 10 --folders 10       to see that it works

The runs are held in the queue of a real SLURM on this machine, so that nothing trains beside the clock. The folders of
finished runs are written by hand, with the files that a run leaves. Every time is of the whole command, with its start
and its imports, as a user waits for it; the median of the repetitions.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from about import about

from ablation.config import RunConfig
from ablation.paths import ROOT
from ablation.provenance import source_hash
from ablation.runs import Result, Run

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "slurm"))
from cluster import Cluster
from debian import missing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    runs: Annotated[int, typer.Option(help="To submit, at most.")] = 1000,
    folders: Annotated[int, typer.Option(help="Of finished runs, at most.")] = 10_000,
    repetitions: Annotated[int, typer.Option(help="Of every command.")] = 3,
    slurm: Annotated[bool, typer.Option(help="Start a SLURM to submit to.")] = True,
) -> None:
    """Times of submission, status and report."""
    here = Path(tempfile.mkdtemp(prefix="gam-bench-", dir="/tmp"))
    os.environ["GAM_FIGURES"] = str(here / "figures")
    print(f"{'what':34}{'runs':>7}{'seconds':>9}   least and most of {repetitions}")
    try:
        if reason := missing("slurm") if slurm else "--no-slurm":
            print(f"submission is left out: {reason}")
        else:
            cluster = Cluster(here / "slurm")
            try:
                cluster.start()
                os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
                for size in _sizes(runs):
                    _submission(here, size, repetitions, cluster)
            finally:
                cluster.stop()
        for size in _sizes(folders):
            _looking(here, size, repetitions)
    finally:
        shutil.rmtree(here, ignore_errors=True)
    machine = about()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}, commit {machine['commit']}")


def _sizes(most: int) -> list[int]:
    return [size for size in (10, 100, 1000, 10_000, 100_000) if size < most] + [most]


def _submission(here: Path, runs: int, repetitions: int, cluster: Cluster) -> None:
    """New runs in a folder of their own each time: what is in the queue is not submitted again."""
    study, submitted, looks = here / f"many{runs}.yaml", [], []
    study.write_text("arms:\n  this: {}\n")
    for repetition in range(repetitions):
        os.environ["GAM_RUNS"] = str(here / f"submitted-{runs}-{repetition}")
        command = ["study", str(study), "--seeds", f"0-{runs - 1}", "--cluster", "slurm", "--no-wait"]
        submitted.append(_seconds(*command, "--slurm", "hold"))
        looks.append(_seconds("status", study.stem))
        cluster.recover()
    _tell("submit to SLURM, a study", runs, submitted)
    _tell("status, all in SLURM's queue", runs, looks)


def _looking(here: Path, runs: int, repetitions: int) -> None:
    os.environ["GAM_RUNS"] = str(here / f"done-{runs}")
    study = here / f"done{runs}.yaml"
    study.write_text("arms:\n  this: {}\n  other: {attention: none}\n")
    for seed in range(runs // 2):
        for attention in ("gam", "none"):
            _finish(Run(RunConfig(attention=attention, seed=seed)))
    _tell("status, all runs there are", runs, [_seconds("status") for _ in range(repetitions)])
    if runs <= 1000:
        _seconds("study", str(study), "--seeds", f"0-{runs // 2 - 1}")
        reports = [_seconds("report", study.stem, "--force") for _ in range(repetitions)]
        _tell("report", runs, reports)


def _tell(what: str, runs: int, seconds: list[float]) -> None:
    print(f"{what:34}{runs:7}{median(seconds):9.2f}   {min(seconds):.2f} {max(seconds):.2f}", flush=True)


def _finish(run: Run) -> None:
    run.folder.mkdir(parents=True)
    error = 5 + run.config.seed % 7 / 10
    values = {"signature": run.signature, "epochs": 20, "top1_error": error, "top5_error": 0.3, "test_loss": 0.2}
    values |= {"train_loss": 0.1, "train_top1_error": 1.0, "parameters": 1, "seconds": 3.0, "source": source_hash()}
    epochs = [{"epoch": epoch, "top1_error": error + 20 / epoch, "train_loss": 1 / epoch} for epoch in range(1, 21)]
    (run.folder / "config.json").write_text(json.dumps({**run.config.model_dump(), "signature": run.signature}))
    (run.folder / "result.json").write_text(Result.model_validate(values).model_dump_json())
    (run.folder / "status.json").write_text('{"state": "done", "attempts": 1}')
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ablation.cli", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"gamlib {' '.join(arguments)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    app()
