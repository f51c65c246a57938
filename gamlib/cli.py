"""The command `gamlib`: runs and studies of attention mechanisms, and what became of them."""

import json
import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gamlib.lab import screen
from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.parameters import key_values
from gamlib.lab.screen import err, out

if TYPE_CHECKING:
    from gamlib.lab.board import Tally
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
        screen.show_values(config)
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
            screen.show_plan(plan)
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
    screen.show_statuses(rows)


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


@app.command()
@speaks_plainly
def audit(
    json_: AsJson = False,
    and_report: Annotated[
        bool,
        typer.Option("--report", help="Execute 1_complexity.ipynb too, which tells the story and exports its figure."),
    ] = False,
) -> None:
    """Parameters and FLOPs of the paper's 34 rows, computed from our networks, against the print. Trains nothing."""
    from gamlib import audit as audits

    frame = audits.audit()
    if json_:
        print(frame[list(audits.COLUMNS)].to_json(orient="records", indent=2))
    else:
        screen.print_frame(audits.for_reading(frame))
        for number, note in enumerate(audits.notes(frame), 1):
            out.print(f"[{number}] {note}", markup=False, highlight=False)
        out.print(audits.verdict(frame), highlight=False)
    if and_report:
        from gamlib.lab.report import complexity_report

        for path in complexity_report():
            err.print(os.path.relpath(path), markup=False, highlight=False)
    if audits.differences(frame):
        raise typer.Exit(FAILED)


def _report(plan: "Plan", force: bool) -> None:
    import pandas as pd

    from gamlib.lab import report as reports
    from gamlib.lab.tables import for_reading, note, outcomes

    paths = reports.report(plan, force)
    table = pd.read_csv(next(path for path in paths if path.suffix == ".csv"))
    out.print(f"\n{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    screen.print_frame(for_reading(table))
    out.print(note(plan, outcomes(plan)), markup=False, highlight=False)
    for path in paths:
        out.print(os.path.relpath(path), markup=False, highlight=False)


def _slurm(partition: str | None, gpus: int | None, cpus: int | None, timeout: int | None) -> dict[str, Any]:
    values = {"slurm_partition": partition, "gpus_per_node": gpus, "cpus_per_task": cpus, "timeout_min": timeout}
    return {key: value for key, value in values.items() if value is not None}


def _name_failures(tally: "Tally") -> None:
    """What failed, why, and where its log is."""
    for failed, reason in tally.failed.items():
        err.print(f"{failed.folder.name} failed: {reason}; see {failed.folder / 'log.txt'}", style="red", markup=False)


if __name__ == "__main__":
    app()
