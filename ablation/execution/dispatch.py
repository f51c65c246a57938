"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from filelock import Timeout

from ablation.config import ConfigError, RunConfig
from ablation.execution import arrays, slurm_options
from ablation.execution import slurm as slurm_commands
from ablation.execution.execute import execute
from ablation.execution.local import run_locally
from ablation.execution.progress import Progress
from ablation.paths import cores, require_locks, require_notebook, runs_root, share_of_cores
from ablation.provenance import SOURCE, source_hash
from ablation.runs import Run, RunStopped, first_line, unique
from gamlib.data.datasets import DatasetError

CLUSTERS = ("local", "slurm", "debug")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def dispatch(
    configs: Sequence[RunConfig],
    cluster: str = "local",
    workers: int | None = None,
    wait: bool = True,
    slurm: Mapping[str, Any] | None = None,
    before: Callable[[], object] = lambda: None,
    rerun_stale: bool = False,
) -> Progress:
    """Execute the runs that are not done, each configuration once; the other runs go on when one fails.

    Args:
        configs: what to run, in this order.
        cluster: "local", a queue on this machine; "slurm", one submitit job a run; "debug", in this process.
        workers: local runs at once, each with its share of the cores; by default one for every core, four at most.
            Another number gives a run another number of threads, and its results other last bits.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: options of the jobs: `partition`, `gpus`, `cpus`, `mem` in GB, `timeout` in minutes, and in `slurm` any
            others in sbatch's words, as a table or a list of "key=value" (slurm only).
        before: called once when everything is found in order: just before the first job starts here, or when SLURM
            has taken the first ones.
        rerun_stale: runs that other code than the present has done are done again; what they left is set aside.

    Raises:
        ConfigError: an unknown cluster, an impossible number of workers, no SLURM on this machine, fewer GPUs than a
            run has devices, images that are not there, a package without its notebooks, or a folder without locks.
        KeyboardInterrupt: stopped; local runs save their state and are marked `preempted`, SLURM jobs go on.
    """
    _check(cluster, workers, wait, slurm or {})
    parameters = slurm_options.parameters(slurm or {}) if cluster == "slurm" else {}
    require_notebook("run.ipynb")
    require_locks(runs_root())
    runs = unique(configs)
    stale = [run for run in runs if rerun_stale and run.stale()]
    todo = [run for run in runs if run.result() is None or run in stale]
    progress = Progress(runs, done_before=len(runs) - len(todo))
    for run in runs:
        if run not in todo and run.partial_notebooks():
            with suppress(Timeout), run.lock(timeout=0):  # or its job is still at it
                run.recover_notebook()
    if todo:
        _prepare({run.config.dataset for run in todo})
    devices = max([run.config.devices for run in todo], default=1)
    gpus = _gpus(devices) if todo and cluster == "local" else [""]
    if not todo or cluster != "slurm":
        before()
    for run in stale:
        with suppress(Timeout), run.lock(timeout=0):  # who holds it runs it anew already
            if run.stale():
                run.archive()
    if not todo:
        return progress
    threads = parameters.get("cpus_per_task", share_of_cores(workers))
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    with progress:
        if cluster == "slurm":
            environment = {SOURCE: source_hash()} | (environment if "cpus_per_task" in parameters else {})
            _on_slurm(todo, parameters, environment, before, wait, progress)
        elif cluster == "debug":
            _in_process(todo, environment, progress)
        else:
            at_once = min(workers or min(cores(), 4), len(todo))
            if devices > 1 and gpus != [""]:
                at_once = min(at_once, len(gpus))
            shares = [environment | {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(at_once)]
            run_locally(todo, shares, progress)
    return progress


def _check(cluster: str, workers: int | None, wait: bool, slurm: Mapping[str, Any]) -> None:
    if cluster not in CLUSTERS:
        raise ConfigError(f"cluster={cluster!r}: allowed: {', '.join(CLUSTERS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: allowed: a whole number from 1")
    if workers is not None and cluster != "local":
        raise ConfigError(f"workers={workers}: allowed with cluster='local' only, and this is {cluster!r}")
    if cluster != "slurm" and (slurm or not wait):
        option = next(iter(slurm), "wait=False")
        raise ConfigError(f"{option}: allowed with cluster='slurm' only, and this is {cluster!r}")
    if cluster == "slurm" and not slurm_commands.available():
        raise ConfigError("cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug")


def _on_slurm(
    todo: list[Run],
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    accepted: Callable[[], object],
    wait: bool,
    progress: Progress,
) -> None:
    submitted = arrays.submit(todo, parameters, environment, accepted)
    others = len(todo) - len(submitted)
    progress.write(f"{len(submitted)} runs submitted" + f", {others} were in a queue before" * (others > 0))
    if wait:
        try:
            arrays.watch(todo, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped waiting; the SLURM jobs go on, see `gamlib status`") from None


def _in_process(todo: list[Run], environment: Mapping[str, str], progress: Progress) -> None:
    for run in todo:
        began = time.monotonic()
        progress.show(1)
        reason = ""
        try:
            execute(run, environment)
        except RunStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        progress.show(0)
        progress.ended(run, time.monotonic() - began, reason)


def _gpus(devices: int) -> list[str]:
    """The GPUs that this process may use, in shares of as many as a run has devices, for CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: there are some, but fewer than that.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        gpus = [name for name in visible.split(",") if name]
    else:
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    if 0 < len(gpus) < devices:
        raise ConfigError(f"devices={devices}: allowed: 1 to {len(gpus)}, the GPUs of this machine")
    return [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)] or [""]


def _prepare(datasets: Iterable[str]) -> None:
    """Have all images on the disk before the first job starts: nodes may have no network."""
    for dataset in sorted(set(datasets) - {"digits"}):
        from gamlib.data.images import prepare

        try:
            prepare(dataset)
        except DatasetError as error:
            raise ConfigError(str(error)) from None
