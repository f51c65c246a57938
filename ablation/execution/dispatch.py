"""Dispatch: runs become submitit jobs, on this machine or on a SLURM cluster."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from filelock import Timeout

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution import arrays, slurm_options
from ablation.execution.execute import execute
from ablation.execution.forkserver import ForkServer
from ablation.execution.pool import THREAD_VARIABLES, environments_of, execute_all
from ablation.execution.progress import Progress
from ablation.execution.slurm import statuses
from ablation.paths import NOTEBOOKS, cores, require, require_locks, runs_root, share_of_cores
from ablation.provenance import SOURCE, source_hash
from ablation.runs import Run, RunStopped, first_line, unique
from ablation.status import UNDER_WAY
from gamlib.data.datasets import DatasetError

CLUSTERS = ("local", "slurm", "debug")
POLL_SECONDS = 5.0


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
        cluster: "local", a queue on this machine; "slurm", submitit jobs; "debug", in this process.
        workers: local runs at once, each with its share of the cores; by default one for every core, four at most.
            Another number gives a run another number of threads, and its results other last bits.
        wait: False returns when the jobs are submitted (slurm only).
        slurm: options of the jobs, see `slurm_options.SlurmOptions` (slurm only).
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
    require(NOTEBOOKS / "run.ipynb")
    require_locks(runs_root())
    runs = unique(configs)
    todo = [run for run in runs if run.result() is None or (rerun_stale and run.stale())]
    progress = Progress(runs, done_before=len(runs) - len(todo))
    for dataset in sorted({run.config.dataset for run in todo} - {"digits"}):
        from gamlib.data.images import prepare

        try:
            prepare(dataset)  # now: nodes may have no network
        except DatasetError as error:
            raise ConfigError(str(error)) from None
    cpus, at_once = parameters.get("cpus_per_task"), parameters.get("at_once", 1)
    threads = max(1, cpus // at_once) if cpus else share_of_cores(workers)
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if todo and cluster == "local":
        environments = environments_of(todo, workers or min(cores(), 4), environment)
    if not todo or cluster == "debug":
        before()
    for run in runs:
        if run.result() is not None and ((rerun_stale and run.stale()) or any(run.folder.glob(".run.*.ipynb"))):
            with suppress(Timeout), run.lock(timeout=0):  # or its job is still at it
                run.recover_notebook()
                if rerun_stale and run.stale():
                    run.archive()
    if not todo:
        return progress
    with progress:
        if cluster == "slurm":
            environment = {SOURCE: source_hash(), "GAM_RUNS": str(runs_root())} | (environment if cpus else {})
            submitted = arrays.submit(todo, parameters, environment, before)
            others = len(todo) - len(submitted)
            progress.write(f"{len(submitted)} runs submitted" + f", {others} were in a queue before" * (others > 0))
            if wait:
                _watch(todo, progress)
        elif cluster == "debug":
            _in_process(todo, environment, progress)
        else:

            def queue() -> None:
                for run in todo:
                    run.queue()
                before()  # when other submissions can see that its runs wait

            with ForkServer(environment) as server:
                execute_all(todo, environments, progress, server, queue)
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
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("cluster='slurm': there is no sbatch on the PATH of this machine; allowed here: local, debug")


def _in_process(todo: Sequence[Run], environment: Mapping[str, str], progress: Progress) -> None:
    for run in todo:
        began, reason = time.monotonic(), ""
        progress.show([run])
        try:
            execute(run, environment)
        except RunStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        except Exception as error:  # the other runs go on
            reason = first_line(error)
        progress.show([])
        progress.ended(run, time.monotonic() - began, reason)


def _watch(runs: Sequence[Run], progress: Progress) -> None:
    """Wait until the jobs of some runs have ended, and tell of each."""
    began, left = dict.fromkeys(runs, time.monotonic()), set(runs)
    try:
        while left:
            time.sleep(POLL_SECONDS)
            known, now = statuses(left), time.monotonic()
            progress.show([run for run, status in known.items() if status.state == "running"])
            for run, status in known.items():
                if status.state == "queued":
                    began[run] = now
                elif status.state not in UNDER_WAY:
                    left.remove(run)
                    progress.ended(run, now - began[run], status.error)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped waiting; the SLURM jobs go on, see `gamlib status`") from None
