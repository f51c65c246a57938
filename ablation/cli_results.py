"""Commands of `gamlib` about results: published data, exported networks, the audit of the paper's numbers."""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

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
@console.slurm_options
def verify(
    slurm: dict[str, Any],
    studies: console.Names = None,
    runs: Annotated[int | None, Option(help="How many, those trained fastest; 0 trains none. By default 1.")] = None,
    all_: Annotated[bool, Option("--all", help="Every published run.")] = False,
    dataset: Annotated[str | None, Option(help="On which data set; by default on any.")] = None,
    from_: Annotated[Path | None, Option("--from", help="The folder of the records; by default figures/data.")] = None,
    cluster: console.Cluster = "local",
    json_: console.AsJson = False,
) -> None:
    """Check published runs: whether their files agree, and whether training again gives the same, to the last bit.

    Code that was published for a mechanism is executed. Exit code 1: something is not reproduced, or contradicts.
    """
    from ablation.errors import ConfigError
    from ablation.results import records, verify

    if all_ and runs is not None:
        raise ConfigError(f"runs={runs}: allowed without --all")
    if runs is not None and runs < 0:
        raise ConfigError(f"runs={runs}: allowed: a whole number from 0")
    with redirect_stdout(sys.stderr if json_ else sys.stdout):
        found, problems = records.records(studies or (), dataset, from_)
        problems += [problem for record in found for problem in records.contradictions(record)]
        for problem in problems:
            console.complain(str(problem))
        print(f"{len(found)} published runs: their files {'contradict each other' if problems else 'agree'}")
        if lacking := records.lacking(found):
            print(f"FLOPs were not compared where images are not here: {', '.join(lacking)}")
        chosen = found if all_ else records.cheapest(found, 1 if runs is None else runs)
        verdicts = verify.verified(chosen, cluster, slurm) if chosen else []
    if json_:
        said = [records.known(vars(problem)) for problem in problems]
        answer = {"problems": said, "runs": [verdict.as_json() for verdict in verdicts]}
        print(json.dumps(answer, indent=2, default=int))  # numpy's numbers are none of JSON's
    if problems or not all(verdict.reproduced for verdict in verdicts):
        raise typer.Exit(console.FAILED)


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
