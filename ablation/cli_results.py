"""Commands of `gamlib` that run nothing: published data, exported networks, the audit of the paper's numbers."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ablation import console

commands = typer.Typer()


@commands.command()
def plan(
    study: Annotated[str, Argument(metavar="STUDY", help="A study of the paper's, or a YAML file.")],
    dataset: Annotated[str | None, Option(help="By default the study's own.")] = None,
    seeds: Annotated[str | None, Option(help="0-4 or 0,3,7; by default the study's own.")] = None,
    arms: Annotated[list[str] | None, Option(help="Such as 'ResNet-18*'; may be given many times.")] = None,
    parameter: console.Parameters = None,
    effect: Annotated[float | None, Option(help="A difference in points; by default what other seeds show.")] = None,
    sd: Annotated[float | None, Option(help="Spread over seeds in points; by default that of finished runs.")] = None,
) -> None:
    """What the seeds of a study can decide before they run, how many an effect needs, and what they cost.

    Power is simulated, with the test, the correction and the looks that the study declares.
    """
    from ablation.parameters import key_values
    from ablation.results import power
    from ablation.study_files import find_study

    overrides = key_values(parameter or [])
    dataset = overrides.pop("dataset", dataset)
    found, lines = power.power_of_plan(find_study(study).plan(dataset, seeds, arms or (), **overrides), effect, sd)
    console.print_frame(power.for_reading(found))
    for line in lines:
        print(line)


@commands.command()
def publish(studies: console.Names, dataset: console.LastDataset = None) -> None:
    """Write the data behind the report of a study to figures/data: configurations, epochs, predictions, origins."""
    from ablation.results import publication
    from ablation.studies import Plan
    from ablation.study_files import study_name

    for plan in [Plan.load(study_name(name), dataset) for name in studies or ()]:
        console.show_paths(publication.publish(plan))


@commands.command()
def restore(studies: console.Names = None) -> None:
    """Put published runs into runs/, where nothing is done yet: [bold]gamlib study[/bold] goes on from them.

    By default those of all studies.
    """
    from ablation.results import publication

    for plan in publication.published(studies or ()):
        print(f"{plan.name}: {publication.restore(plan)} of {len(plan.configs)} runs restored")


@commands.command()
def export(
    run: Annotated[str, Argument(metavar="RUN", help="The folder of a run, its name, or the beginning of that.")],
    out: Annotated[Path | None, Option(help="The folder to write to; by default exported/ and the run's name.")] = None,
) -> None:
    """A trained network to give away: its weights, configuration and model card. gamlib.load(FOLDER) reads it."""
    from ablation import export

    found = export.find_run(run)
    console.show_paths(export.export(found, out or Path("exported") / found.folder.name))


@commands.command()
def audit(
    json_: console.AsJson = False,
    and_report: Annotated[bool, Option("--report", help="Execute 1_complexity.ipynb too, for its figure.")] = False,
) -> None:
    """Parameters and FLOPs of the paper's 34 rows, computed from our networks, against the print. Trains nothing."""
    import pandas as pd

    from ablation.results import audits
    from gamlib.paper.audit import COLUMNS
    from gamlib.paper.audit import audit as counted

    rows = counted()
    if json_:
        print(pd.DataFrame(rows)[list(COLUMNS)].to_json(orient="records", indent=2))
    else:
        console.print_frame(audits.for_reading(rows))
        for number, note in enumerate(audits.notes(rows), 1):
            print(f"[{number}] {note}")
        print(audits.verdict(rows))
    if and_report:
        from ablation.results.report import complexity_report

        for path in complexity_report():
            print(os.path.relpath(path), file=sys.stderr)
    if audits.differences(rows):
        raise typer.Exit(console.FAILED)
