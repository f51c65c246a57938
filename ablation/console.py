"""What the commands of `gamlib` share: how they end when something is wrong, SLURM's options, and what they show."""

import inspect
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Argument, Option
from typer.core import TyperGroup

from ablation.execution import FORMER

if TYPE_CHECKING:
    import pandas as pd

    from ablation.execution.progress import Progress
    from ablation.results.report import Output
    from ablation.runs import Run
    from ablation.studies import Plan

BAD_INPUT, FAILED, STOPPED = 2, 1, 130  # exit codes
POLL_SECONDS = 5.0
MOST = 500  # runs in a table; of more, those that need a look come first
URGENT = ("failed", "lost", "preempted", "running", "queued", "missing", "done")
WIDTH = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
out = Console(soft_wrap=True, width=WIDTH, emoji=False)  # rich would import its names of them, and none is printed

Parameters = Annotated[
    list[str] | None,
    Option("-p", "--parameter", metavar="KEY=VALUE", help="A value of the configuration; may be given many times."),
]
Cluster = Annotated[str, Option(help="local: a queue on this machine. slurm: submitit jobs. debug: in this process.")]
NoWait = Annotated[bool, Option("--no-wait", help="Return when the SLURM jobs are submitted.")]
DryRun = Annotated[bool, Option("--dry-run", help="Show which runs exist and which would run, with all values.")]
AsJson = Annotated[bool, Option("--json", help="As JSON, for programs.")]
Submitted = Annotated[str, Argument(metavar="STUDY", help="The name of a study that was submitted.")]
Names = Annotated[list[str] | None, Argument(metavar="STUDY...", help="Names of studies.")]
LastDataset = Annotated[str | None, Option(help="Of which data set; by default the one last submitted.")]


def _show_version(asked: bool) -> None:
    if asked:
        from ablation.doctor import version

        print(f"gamlib {version()}")
        raise typer.Exit


Version = Annotated[bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")]


def _of_slurm(kind: Any, text: str = "", **more: Any) -> Any:
    panel = "SLURM jobs (defaults: ~/.config/gamlib.toml or pyproject.toml)"
    return Annotated[kind | None, Option(help=text, rich_help_panel=panel, hidden=not text, **more)]


SLURM = {  # ablation.execution.slurm_options reads them
    "partition": _of_slurm(str, "SLURM partition."),
    "gpus": _of_slurm(int, "GPUs of a job."),
    "cpus": _of_slurm(int, "Cores of a job."),
    "mem": _of_slurm(float, "Memory of a job in GB."),
    "timeout": _of_slurm(int, "Minutes before a job saves and queues again."),
    "runs_per_job": _of_slurm(int, "Runs of a job, each with its own process and folder: for many small ones."),
    "at_once": _of_slurm(int, "Of these, runs that share its GPUs and cores at a time."),
    "slurm": _of_slurm(
        list[str],
        "Any other option of sbatch, such as account=mine; setup=COMMAND, run before each job; python=COMMAND, that "
        "starts Python in it; and array-parallelism=N, jobs of an array at once. May be given many times.",
        metavar="KEY=VALUE",
    ),
} | {key: _of_slurm(list[str] if key == "setup" else str) for key in FORMER}


def slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of SLURM's jobs for a command, which gets those that were given as its keyword `slurm`."""

    @wraps(command)
    def wrapper(**values: Any) -> None:
        given = {key: value for key in SLURM if (value := values.pop(key)) not in (None, [])}
        command(**values, slurm=given)

    parameters = [one for one in inspect.signature(command).parameters.values() if one.name != "slurm"]
    for key, kind in SLURM.items():
        parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
    return wrapper


@contextmanager
def plain_errors() -> Iterator[None]:
    """Bad input, failures and Ctrl-C end a command with one line and an exit code, not with a traceback."""
    from ablation.errors import ConfigError  # late: who asks for help needs no pydantic
    from ablation.runs import RunFailed

    # A terminated command stops as one that got Ctrl-C: it stops its jobs and says where every run stands.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as stop:
        code, text = STOPPED, str(stop) or "stopped; what is done stays done, and the same command goes on from here"
    except ConfigError as error:
        code, text = BAD_INPUT, str(error)
    except RunFailed as error:
        code, text = FAILED, str(error)
    except OSError as error:
        code, text = FAILED, f"{error.filename or 'system'}: {error.strerror or error}"
    else:
        return
    complain(text)
    raise typer.Exit(code)


class Commands(TyperGroup):
    """Commands that end with one line when something is wrong."""

    def invoke(self, ctx: Any) -> Any:
        """Execute the command that was asked for."""
        with plain_errors():
            return super().invoke(ctx)


def complain(text: str) -> None:
    """Say what is wrong."""
    typer.secho(text, fg=typer.colors.RED, err=True)


def exit_if_failed(*progresses: "Progress") -> None:
    """Say which runs failed, why, and where their logs are.

    Raises:
        typer.Exit: one has.
    """
    failed = {run: reason for progress in progresses for run, reason in progress.failed.items()}
    for run, reason in failed.items():
        complain(f"{run.folder.name} failed: {reason}; see {run.folder / 'log.txt'}")
    if failed:
        raise typer.Exit(FAILED)


def in_words(values: Mapping[str, Any]) -> str:
    """Values in one line."""
    return "  ".join(f"{key}={value}" for key, value in values.items())


def show_paths(paths: Iterable[Path]) -> None:
    """Files, seen from here."""
    for path in paths:
        print(os.path.relpath(path))


def _table(columns: Iterable[Any], rows: Sequence[Sequence[Any]], no_wrap: bool = False) -> Table:
    """Rows of texts; columns of numbers to the right, others to the left."""
    table = Table(box=None, header_style="bold")
    for number, column in enumerate(columns):
        cells = [str(row[number]) for row in rows if str(row[number])]
        numbers = bool(cells) and all(cell[0] in "0123456789–+−<" for cell in cells)
        table.add_column(str(column), justify="right" if numbers else "left", no_wrap=no_wrap)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def print_frame(frame: "pd.DataFrame") -> None:
    """A frame whose cells are texts, none of them cut."""
    table = _table(frame.columns, frame.to_numpy().tolist(), no_wrap=True)
    Console(soft_wrap=True, width=10_000).print(table, crop=False)


def show_plan(plan: "Plan") -> None:
    """Which runs exist, which would run, and with which values: first what all share, then what makes each arm."""
    from ablation.runs import Run

    shared, own = plan.values()
    typer.secho(f"{plan.name}: {plan.study.question}", bold=True)
    print("all runs:", in_words(shared))
    for arm, configs in plan.arms.items():
        ratio = ""
        if (other := plan.study.arms[arm].parameters_of) in plan.arms:
            size = configs[0].parameters() / plan.arms[other][0].parameters()
            ratio = f"  ({size:.4f} times the parameters of {other})"
        print(f"{arm}: {in_words(own[arm])}{ratio}")
        for run in map(Run, configs):
            state = run.status().state
            what = "done" if state == "done" else f"would run (is {state})"
            print(f"    seed {run.config.seed}: {what}  {run.folder.name}")


def show_statuses(runs: "Mapping[Run, str]", as_json: bool = False, watch: bool = False) -> None:
    """What each run does, and how many are in which state: once, or again until all have ended."""
    from ablation.status import UNDER_WAY

    rows, left = _status_rows(runs)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not watch:
        out.print(_statuses(rows, left), highlight=False)
    else:
        with Live(_statuses(rows, left), console=out, auto_refresh=False) as live:
            while any(row["state"] in UNDER_WAY for row in rows):
                time.sleep(POLL_SECONDS)
                rows, left = _status_rows(runs)
                live.update(_statuses(rows, left), refresh=True)


def _status_rows(runs: "Mapping[Run, str]") -> tuple[list[dict[str, Any]], str]:
    """A row for every run, and the time left of all in words, if it is known."""
    from ablation.execution.progress import seconds_left
    from ablation.execution.slurm import statuses
    from ablation.provenance import source_hash
    from ablation.status import duration

    rows, running, ended = [], [], []
    for run, status in statuses(runs).items():
        row: dict[str, Any] = {"arm": runs[run]} if runs[run] else {}
        row |= {"name": run.folder.name, "dataset": run.config.dataset, "seed": run.config.seed}
        row |= {"state": status.state, "attempts": status.attempts, "top1_error": None, "code": None}
        if (result := run.result()) is not None:
            made = "present" if result.source == source_hash() else "other"
            row |= {"top1_error": result.top1_error, "code": made}
            ended.append(run.took(result))
        progress = run.progress() if status.state == "running" else None
        if status.state == "running":
            running.append(progress)
        row |= {"progress": progress and str(progress)}
        row |= {key: getattr(progress, key, None) for key in ("epoch", "epochs", "seconds_left")}
        row |= {"error": status.error, "heartbeat": status.heartbeat, "job_id": status.job_id}
        rows.append(row | {"signature": run.signature, "folder": str(run.folder)})
    waiting = sum(row["state"] == "queued" for row in rows)
    left = seconds_left(running, waiting, ended) if running else None
    return rows, "" if left is None else f"; {duration(left)} left"


def _statuses(rows: Sequence[dict[str, Any]], left: str) -> Group:
    if not rows:
        return Group("no runs yet; see `gamlib study --help`")
    columns = ("arm", "seed", "state", "progress", "attempts", "top1_error", "error", "name")
    shown = [key for key in columns if key in rows[0] and (key != "progress" or any(row[key] for row in rows))]
    texts = []
    for row in sorted(rows, key=lambda row: URGENT.index(row["state"]))[:MOST] if len(rows) > MOST else rows:
        error = "" if row["top1_error"] is None else f"{row['top1_error']:.2f}"
        state = row["state"] + " by other code" * (row["code"] == "other")
        changed = {"top1_error": error, "state": state, "progress": row["progress"] or ""}
        texts.append([(row | changed)[key] for key in shown])
    counts = Counter(row["state"] for row in rows)
    counts["done by other code"] = sum(row["code"] == "other" for row in rows)
    more = f"; {MOST} of {len(rows)} are shown, --json gives all" if len(rows) > MOST else ""
    table = _table([key.replace("top1_error", "top-1 error (%)") for key in shown], texts)
    return Group(table, ", ".join(f"{number} {state}" for state, number in counts.items() if number) + left + more)


def report_study(plan: "Plan", folder: Path | None = None, anew: bool = True, output: "Output | None" = None) -> None:
    """Execute the notebook of a study; then show its tables, their note, what was damaged, and what was written.

    `folder` is of published results; for it, `anew` and `output` see `results.report.report`. Errors are of that, and
    of `results.load`.
    """
    from ablation import results
    from ablation.results import tables, typeset
    from ablation.results.report import USUAL, report, said_of_changes

    published = results.load(plan, folder) if folder else None  # found whole before its notebook starts
    paths = report(plan, folder, anew, output or USUAL)
    found = (published or results.load(plan)).labelled()
    typer.secho(f"\n{plan.name}: {plan.study.question}", bold=True)
    if any(path.name == f"{plan.name}.csv" for path in paths):  # a notebook may export figures alone
        print_frame(typeset.for_reading(tables.summary(found)))
        if not (compared := tables.differences(found)).empty:
            print()
            print_frame(typeset.comparisons(compared))
        print(f"\n{tables.note(found)}")
        if said := tables.outdated(found):
            print(said)
    for problem in found.problems:
        complain(problem)
    show_paths(paths)
    if said := said_of_changes(paths):
        print(said)
