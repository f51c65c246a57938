"""The command `gamlib`: runs and studies of attention mechanisms, and what became of them."""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gamlib.lab.config import ConfigError, RunConfig, key_values

if TYPE_CHECKING:
    import pandas as pd

    from gamlib.lab.dispatch import Tally
    from gamlib.lab.studies import Plan

BAD_INPUT, FAILED, STOPPED = 2, 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Ablations of the Global Attention Mechanism (arXiv 2112.05561): run them, watch them, report them.\n\n"
    "Begin with [bold]gamlib study submodules --dry-run[/bold].",
)
WIDTH = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
out = Console(soft_wrap=True, width=WIDTH)
err = Console(stderr=True, soft_wrap=True, width=WIDTH)

Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--parameter", metavar="KEY=VALUE", help="A value of the configuration; may be given many times."
    ),
]
Studies = Annotated[list[str], typer.Argument(metavar="STUDY...", help="submodules, max_pooling, or a YAML file.")]
Dataset = Annotated[str, typer.Option(help="The data set to run on.")]
LastDataset = Annotated[str | None, typer.Option(help="Of which data set; by default the one last submitted.")]
Seeds = Annotated[str, typer.Option(help="Seeds, such as 0-4 or 0,3,7.")]
Cluster = Annotated[
    str, typer.Option(help="local: a queue on this machine. slurm: submitit jobs. debug: in this process.")
]
Workers = Annotated[int | None, typer.Option(help="Local runs at once; by default one for every core, four at most.")]
Partition = Annotated[str | None, typer.Option(help="SLURM partition.")]
Gpus = Annotated[int | None, typer.Option(help="GPUs for each SLURM job.")]
Cpus = Annotated[int | None, typer.Option(help="Cores for each SLURM job.")]
Timeout = Annotated[int | None, typer.Option(help="Minutes that a SLURM job may take.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the SLURM jobs are submitted.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which runs exist and which would run, with all values.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def speaks_plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input, failures and Ctrl-C end a command with one line and an exit code, not with a traceback."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        # A terminated command stops as one that got Ctrl-C: it stops its jobs and says where every run stands.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            from gamlib.lab.runs import RunFailed  # takes a second or two, in which Ctrl-C must end as plainly

            command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            _complain(str(stop) or "stopped; what is done stays done, and the same command goes on from here", STOPPED)
        except ConfigError as error:
            _complain(str(error), BAD_INPUT)
        except RunFailed as error:
            _complain(str(error), FAILED)
        except OSError as error:
            _complain(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)

    return wrapper


def _complain(text: str, code: int) -> None:
    err.print(text, style="red", markup=False, highlight=False)
    raise typer.Exit(code)


@app.command()
@speaks_plainly
def run(
    parameter: Parameters = None,
    cluster: Cluster = "local",
    partition: Partition = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    timeout: Timeout = None,
    no_wait: NoWait = False,
    dry_run: DryRun = False,
) -> None:
    """One training run, e.g. [bold]gamlib run -p dataset=digits -p attention=gam -p epochs=5[/bold]."""
    from gamlib.lab.dispatch import dispatch
    from gamlib.lab.runs import Run

    config = RunConfig(**key_values(parameter or []))
    if dry_run:
        _show_values(config)
        out.print(f"{Run(config).status().state}: {Run(config).folder}", markup=False, highlight=False)
        return
    before = Run(config).result()
    tally = dispatch([config], cluster, None, not no_wait, _slurm(partition, gpus, cpus, timeout))
    if before is not None:
        out.print(f"already done: top-1 error {before.top1_error:.2f} %", highlight=False)
    out.print(str(Run(config).folder), markup=False, highlight=False)
    _name_failures(tally)
    if tally.failed:
        raise typer.Exit(FAILED)


@app.command()
@speaks_plainly
def study(
    studies: Studies,
    dataset: Dataset = "digits",
    seeds: Seeds = "0-2",
    parameter: Parameters = None,
    cluster: Cluster = "local",
    workers: Workers = None,
    partition: Partition = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    timeout: Timeout = None,
    no_wait: NoWait = False,
    dry_run: DryRun = False,
    and_report: Annotated[bool, typer.Option("--report", help="Report the studies when their runs are done.")] = False,
) -> None:
    """Run what is missing of one or more studies, e.g. [bold]gamlib study submodules max_pooling --seeds 0-4[/bold]."""
    from gamlib.lab.dispatch import dispatch
    from gamlib.lab.runs import RunFailed
    from gamlib.lab.studies import find_study

    overrides = key_values(parameter or [])
    if "dataset" in overrides:
        dataset = overrides.pop("dataset")
    plans = [find_study(name).plan(dataset, seeds, **overrides) for name in dict.fromkeys(studies)]
    if dry_run:
        for plan in plans:
            _show_plan(plan)
        return
    configs = [config for plan in plans for config in plan.configs]
    slurm = _slurm(partition, gpus, cpus, timeout)

    def save() -> None:
        for plan in plans:
            plan.save()

    tally = dispatch(configs, cluster, workers, not no_wait, slurm, before=save)
    names = " ".join(plan.study.name for plan in plans)
    if no_wait:
        out.print(f"submitted; watch with `gamlib status {names}`", markup=False, highlight=False)
        return
    done = len(tally.runs) - len(tally.failed)
    out.print(f"{done} of {len(tally.runs)} runs done, {tally.done_before} of them before", highlight=False)
    _name_failures(tally)
    if not and_report:
        out.print(f"see `gamlib report {names}`", markup=False, highlight=False)
    for plan in plans if and_report else ():
        try:
            _report(plan, force=False)
        except RunFailed as error:  # the other studies are reported all the same
            err.print(str(error), style="red", markup=False, highlight=False)
    if tally.failed:
        raise typer.Exit(FAILED)


@app.command()
@speaks_plainly
def status(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; by default all runs there are.")
    ] = None,
    dataset: LastDataset = None,
    json_: AsJson = False,
) -> None:
    """What every run is doing: done, running, queued, failed and why, preempted, lost, or missing."""
    from gamlib.lab.runs import Run, all_runs, row
    from gamlib.lab.studies import Plan

    if study is None:
        runs, foreign = all_runs()
        rows = [row(run) for run in runs]
        for folder in foreign:
            err.print(f"not a run of this code, left out: {folder}", markup=False, highlight=False)
    else:
        arms = Plan.load(study, dataset).arms
        rows = [{"arm": arm} | row(Run(config)) for arm, configs in arms.items() for config in configs]
    if json_:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        out.print("no runs yet; see `gamlib study --help`", markup=False)
        return
    table = Table(box=None, header_style="bold")
    shown = [key for key in ("arm", "seed", "state", "attempts", "top1_error", "error", "name") if key in rows[0]]
    for key in shown:
        table.add_column(
            key.replace("top1_error", "top-1 error (%)"), justify="right" if key == "top1_error" else "left"
        )
    for entry in rows:
        table.add_row(
            *(f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in map(entry.get, shown))
        )
    out.print(table)
    counts = {
        state: sum(entry["state"] == state for entry in rows) for state in dict.fromkeys(e["state"] for e in rows)
    }
    out.print(", ".join(f"{number} {state}" for state, number in counts.items()), highlight=False)


@app.command()
@speaks_plainly
def report(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies that were submitted.")],
    dataset: LastDataset = None,
    force: Annotated[bool, typer.Option("--force", help="Even if nothing has changed since the last report.")] = False,
) -> None:
    """Execute the notebook of a study, and write its figures and tables to figures/. Nothing is trained."""
    from gamlib.lab.studies import Plan

    for plan in [Plan.load(name, dataset) for name in studies]:
        _report(plan, force)


def _report(plan: "Plan", force: bool) -> None:
    import pandas as pd

    from gamlib.lab import report as reports
    from gamlib.lab.tables import for_reading, note, outcomes

    paths = reports.report(plan, force)
    table = pd.read_csv(next(path for path in paths if path.suffix == ".csv"))
    out.print(f"\n{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    _print_frame(for_reading(table))
    out.print(note(plan, outcomes(plan)), markup=False, highlight=False)
    for path in paths:
        out.print(os.path.relpath(path), markup=False, highlight=False)


def _print_frame(frame: "pd.DataFrame") -> None:
    table = Table(box=None, header_style="bold")
    for index, column in enumerate(frame.columns):
        table.add_column(str(column), justify="right" if index else "left", no_wrap=True)
    for values in frame.itertuples(index=False):
        table.add_row(*map(str, values))
    out.print(table)


def _show_values(config: RunConfig) -> None:
    out.print("  ".join(f"{key}={value}" for key, value in config.model_dump().items()), markup=False, highlight=False)


def _show_plan(plan: "Plan") -> None:
    """Which runs exist, which would run, and with which values: first what all share, then what makes each arm."""
    from gamlib.lab.runs import Run

    every = [config.model_dump(exclude={"seed"}) for configs in plan.arms.values() for config in configs]
    shared = {key: value for key, value in every[0].items() if all(values[key] == value for values in every)}
    out.print(f"{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    out.print("all runs: " + "  ".join(f"{k}={v}" for k, v in shared.items()), markup=False, highlight=False)
    for arm, configs in plan.arms.items():
        own = "  ".join(f"{k}={v}" for k, v in configs[0].model_dump(exclude={"seed"}).items() if k not in shared)
        out.print(f"{arm}: {own}", markup=False, highlight=False)
        for run in map(Run, configs):
            state = run.status().state
            what = "done" if state == "done" else f"would run (is {state})"
            out.print(f"    seed {run.config.seed}: {what}  {run.folder.name}", markup=False, highlight=False)


def _slurm(partition: str | None, gpus: int | None, cpus: int | None, timeout: int | None) -> dict[str, Any]:
    values = {"slurm_partition": partition, "gpus_per_node": gpus, "cpus_per_task": cpus, "timeout_min": timeout}
    return {key: value for key, value in values.items() if value is not None}


def _name_failures(tally: "Tally") -> None:
    """What failed, why, and where its log is."""
    for failed, reason in tally.failed.items():
        err.print(f"{failed.folder.name} failed: {reason}; see {failed.folder / 'log.txt'}", style="red", markup=False)


if __name__ == "__main__":
    app()
