"""The commands that train nothing: reports of what runs have left, their publication, the audit, the benchmark."""

import os
import sys
from typing import Annotated

import typer

from gamlib.lab import screen
from gamlib.lab.config import ConfigError
from gamlib.lab.places import ROOT
from gamlib.lab.screen import err, out
from gamlib.options import FAILED, AsJson, LastDataset, speaks_plainly

commands = typer.Typer()
Published = Annotated[list[str] | None, typer.Argument(metavar="[STUDY]...", help="Names; by default all.")]


@commands.command()
@speaks_plainly
def report(
    studies: Annotated[list[str] | None, typer.Argument(metavar="STUDY...", help="Names of studies.")] = None,
    dataset: LastDataset = None,
    force: Annotated[bool, typer.Option("--force", help="Even if nothing has changed since the last report.")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Of the published runs in figures/data, by default of all studies.")
    ] = False,
) -> None:
    """Execute the notebook of a study, and write its figures and tables to figures/. Nothing is trained.

    With [bold]--published[/bold] the figures and tables alone, from figures/data: neither runs nor images are needed.
    """
    from gamlib.lab import publication
    from gamlib.lab import report as reports
    from gamlib.lab.studies import Plan
    from gamlib.lab.study_files import study_name

    if not studies and not published:
        raise ConfigError("STUDY: allowed: names of studies that were submitted, or --published")
    if not published:
        for plan in [Plan.load(study_name(name), dataset) for name in studies or ()]:
            screen.show_report(plan, reports.report(plan, force))
        return
    named = publication.published(studies or ())
    if not (plans := [plan for plan in named if dataset in (None, plan.dataset)]):
        there = ", ".join(dict.fromkeys(plan.dataset for plan in named))
        raise ConfigError(f"dataset={dataset!r}: published on {there}")
    for plan in plans:
        with publication.unpacked(publication.published([plan.study.name])):  # on all data sets: a figure has them
            screen.show_report(plan, reports.export(plan))


@commands.command()
@speaks_plainly
def publish(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies that were submitted.")],
    dataset: LastDataset = None,
) -> None:
    """Write the data behind the report of a study to figures/data: configurations, epochs, predictions, origins."""
    from gamlib.lab import publication
    from gamlib.lab.studies import Plan
    from gamlib.lab.study_files import study_name

    for plan in [Plan.load(study_name(name), dataset) for name in studies]:
        for path in publication.publish(plan):
            out.print(os.path.relpath(path), markup=False, highlight=False)


@commands.command()
@speaks_plainly
def restore(studies: Published = None) -> None:
    """Put published runs into runs/, where nothing is done yet: [bold]gamlib study[/bold] goes on from them."""
    from gamlib.lab import publication

    for plan in publication.published(studies or ()):
        number = publication.restore(plan)
        out.print(f"{plan.name}: {number} of {len(plan.configs)} runs restored", markup=False, highlight=False)


@commands.command()
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


@commands.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@speaks_plainly
def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]...")] = None) -> None:
    """The speed tables of the README, measured on this machine; [bold]gamlib bench --help[/bold] says what there is."""
    script = ROOT / "benchmarks" / "gam.py"
    if not script.exists():
        raise ConfigError(f"{script}: not there; gamlib bench needs gamlib's repository, see its README")
    os.execv(sys.executable, [sys.executable, str(script), *(arguments or ())])
