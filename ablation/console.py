"""What the commands of `gamlib` share: how they end when something is wrong, SLURM's options, and what they show."""

import inspect
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from typer import Argument, Option
from typer.core import TyperGroup

from ablation.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from ablation.execution.dispatch import Progress
    from ablation.runs import Run
    from ablation.status import Status
    from ablation.studies import Plan

BAD_INPUT, FAILED, STOPPED = 2, 1, 130  # exit codes
MOST = 500  # runs in a table; of more, those that need a look come first
URGENT = ("failed", "lost", "preempted", "running", "queued", "missing", "done")
WIDTH = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
out = Console(soft_wrap=True, width=WIDTH)

Parameters = Annotated[
    list[str] | None,
    Option("-p", "--parameter", metavar="KEY=VALUE", help="A value of the configuration; may be given many times."),
]
Cluster = Annotated[str, Option(help="local: a queue on this machine. slurm: submitit jobs. debug: in this process.")]
NoWait = Annotated[bool, Option("--no-wait", help="Return when the SLURM jobs are submitted.")]
DryRun = Annotated[bool, Option("--dry-run", help="Show which runs exist and which would run, with all values.")]
AsJson = Annotated[bool, Option("--json", help="As JSON, for programs.")]
Submitted = Annotated[str, Argument(metavar="STUDY", help="The name of a study that was submitted.")]
LastDataset = Annotated[str | None, Option(help="Of which data set; by default the one last submitted.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Bad input, failures and Ctrl-C end a command with one line and an exit code, not with a traceback."""
    # A terminated command stops as one that got Ctrl-C: it stops its jobs and says where every run stands.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from ablation.runs import RunFailed  # takes a second or two, in which Ctrl-C must end as plainly

        yield
    except KeyboardInterrupt as stop:
        complain(str(stop) or "stopped; what is done stays done, and the same command goes on from here")
        raise typer.Exit(STOPPED) from None
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except RunFailed as error:
        complain(str(error))
        raise typer.Exit(FAILED) from None
    except OSError as error:
        complain(f"{error.filename or 'system'}: {error.strerror or error}")
        raise typer.Exit(FAILED) from None


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


def slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of SLURM's jobs for a command, which gets those that were given as its keyword `slurm`."""

    def option(kind: type, text: str = "", **more: Any) -> Any:
        panel = "SLURM jobs (defaults: ~/.config/gamlib.toml or pyproject.toml)"
        return Annotated[kind | None, Option(help=text, rich_help_panel=panel, hidden=not text, **more)]

    options = {  # ablation.execution.arrays reads them; those without a help are former ones
        "partition": option(str, "SLURM partition."),
        "gpus": option(int, "GPUs of a job."),
        "cpus": option(int, "Cores of a job."),
        "mem": option(float, "Memory of a job in GB."),
        "timeout": option(int, "Minutes before a job saves and queues again."),
        "slurm": option(
            list[str],
            "Any other option of sbatch, such as account=mine; and setup=COMMAND, run before each job, and "
            "array-parallelism=N, jobs of an array at once. May be given many times.",
            metavar="KEY=VALUE",
        ),
        "account": option(str),
        "qos": option(str),
        "constraint": option(str),
        "array_parallelism": option(int),
        "setup": option(list[str]),
    }

    @wraps(command)
    def wrapper(**values: Any) -> None:
        given = {key: value for key in options if (value := values.pop(key)) not in (None, [])}
        command(**values, slurm=given)

    own = [one for one in inspect.signature(command).parameters.values() if one.name != "slurm"]
    more = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for key, kind in options.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {one.name: one.annotation for one in own} | options
    return wrapper


def print_frame(frame: "pd.DataFrame") -> None:
    """A frame whose cells are texts, none of them cut; columns of numbers to the right, others to the left."""
    table = Table(box=None, header_style="bold")
    for column in frame.columns:
        numbers = all(text[:1] in "0123456789–+−<" for text in frame[column].astype(str))
        table.add_column(str(column), justify="right" if numbers else "left", no_wrap=True)
    for values in frame.itertuples(index=False):
        table.add_row(*map(str, values))
    wanted = Measurement.get(out, out.options.update(width=10_000), table).maximum
    Console(soft_wrap=True, width=max(wanted, out.width)).print(table, crop=False)  # of `out` its width is the most


def show_plan(plan: "Plan") -> None:
    """Which runs exist, which would run, and with which values: first what all share, then what makes each arm."""
    from ablation.runs import Run

    shared, own = plan.values()
    typer.secho(f"{plan.name}: {plan.study.question}", bold=True)
    print("all runs:", in_words(shared))
    for arm, configs in plan.arms.items():
        ratio = ""
        if (other := plan.study.arms[arm].parameters_of) in plan.arms:
            from ablation.widths import parameters

            ratio = (
                f"  ({parameters(configs[0]) / parameters(plan.arms[other][0]):.4f} times the parameters of {other})"
            )
        print(f"{arm}: {in_words(own[arm])}{ratio}")
        for run in map(Run, configs):
            state = run.status().state
            what = "done" if state == "done" else f"would run (is {state})"
            print(f"    seed {run.config.seed}: {what}  {run.folder.name}")


def in_words(values: Mapping[str, Any]) -> str:
    """Values in one line."""
    return "  ".join(f"{key}={value}" for key, value in values.items())


def status_rows(runs: "Mapping[Run, str]") -> list[dict[str, Any]]:
    """What each run does, with its arm where it has one."""
    from ablation.execution.slurm import statuses

    return [({"arm": runs[run]} if runs[run] else {}) | _row(run, status) for run, status in statuses(runs).items()]


def _row(run: "Run", status: "Status") -> dict[str, Any]:
    """What is said of a run; `code` is "other" where the present code did not make the result."""
    from ablation.provenance import source_hash

    result = run.result()
    return {
        "name": run.folder.name,
        "dataset": run.config.dataset,
        "seed": run.config.seed,
        "state": status.state,
        "attempts": status.attempts,
        "top1_error": result.top1_error if result else None,
        "code": ("present" if result.source == source_hash() else "other") if result else None,
        "error": status.error,
        "heartbeat": status.heartbeat,
        "job_id": status.job_id,
        "signature": run.signature,
        "folder": str(run.folder),
    }


def show_statuses(runs: "Mapping[Run, str]", as_json: bool = False, watch: bool = False, seconds: float = 5.0) -> None:
    """What each run does, and how many are in which state; if asked, anew until none is queued or running."""
    rows = status_rows(runs)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not watch:
        out.print(_statuses(rows), highlight=False)
    else:
        with Live(_statuses(rows), console=out, auto_refresh=False) as live:
            while any(row["state"] in ("queued", "running") for row in rows):
                time.sleep(seconds)
                rows = status_rows(runs)
                live.update(_statuses(rows), refresh=True)


def _statuses(rows: Sequence[dict[str, Any]]) -> Group:
    if not rows:
        return Group("no runs yet; see `gamlib study --help`")
    table = Table(box=None, header_style="bold")
    shown = [key for key in ("arm", "seed", "state", "attempts", "top1_error", "error", "name") if key in rows[0]]
    for key in shown:
        title = key.replace("top1_error", "top-1 error (%)")
        table.add_column(title, justify="right" if key == "top1_error" else "left")
    for entry in sorted(rows, key=lambda row: URGENT.index(row["state"]))[:MOST] if len(rows) > MOST else rows:
        texts = {key: f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for key, v in entry.items()}
        texts["state"] += " by other code" if entry["code"] == "other" else ""
        table.add_row(*(Text(texts[key]) for key in shown))
    counts = Counter(entry["state"] for entry in rows)
    counts["done by other code"] = sum(entry["code"] == "other" for entry in rows)
    more = f"; {MOST} of {len(rows)} are shown, --json gives all" if len(rows) > MOST else ""
    return Group(table, ", ".join(f"{number} {state}" for state, number in counts.items() if number) + more)


def report_study(plan: "Plan", folder: "Path | None" = None) -> None:
    """Execute the notebook of a study; then show its tables, their note, what was damaged, and what was written.

    Args:
        plan: the study.
        folder: of published results; by default the runs are reported as they stand now.

    Raises:
        RunFailed, ConfigError: as `results.report.report` and `results.load`.
    """
    from ablation import results
    from ablation.results import tables, typeset
    from ablation.results.report import report

    results.load(plan, folder)  # what is published is found whole before its notebook starts
    paths = report(plan, folder)
    found = results.load(plan, folder)
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


def show_audit(rows: list[dict[str, Any]], as_json: bool) -> None:
    """The paper's rows beside ours, and what stands under them."""
    import pandas as pd

    from ablation.results import audits
    from gamlib.paper.audit import COLUMNS

    if as_json:
        print(pd.DataFrame(rows)[list(COLUMNS)].to_json(orient="records", indent=2))
        return
    print_frame(audits.for_reading(rows))
    for number, note in enumerate(audits.notes(rows), 1):
        print(f"[{number}] {note}")
    print(audits.verdict(rows))


def show_paths(paths: Sequence[Path]) -> None:
    """Files, seen from here."""
    for path in paths:
        print(os.path.relpath(path))
