"""The command `gamlib`: runs and studies of attention mechanisms, and what became of them."""

import os
import sys
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ablation import cli_results, console

app = typer.Typer(
    cls=console.Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Ablations of the Global Attention Mechanism (arXiv 2112.05561): run them, watch them, report them.\n\n"
    "Begin with [bold]gamlib study submodules --dry-run[/bold].",
)


@app.callback()
def main(version: console.Version = False) -> None:
    """The options of the command itself."""


@app.command()
@console.slurm_options
def run(
    slurm: dict[str, Any],
    parameter: console.Parameters = None,
    cluster: console.Cluster = "local",
    no_wait: console.NoWait = False,
    dry_run: console.DryRun = False,
) -> None:
    """One training run, e.g. [bold]gamlib run -p dataset=digits -p attention=gam -p epochs=5[/bold]."""
    from ablation import config, parameters, runs  # late, as in every command: the help waits for none of it

    run = runs.Run(config.RunConfig(**parameters.key_values(parameter or [])))
    if dry_run:
        print(console.in_words(run.config.model_dump()))
        print(f"{run.status().state}: {run.folder}")
        return
    from ablation.execution.dispatch import dispatch

    before = run.result()
    progress = dispatch([run.config], cluster, None, not no_wait, slurm)
    if before is not None:
        print(f"already done: top-1 error {before.top1_error:.2f} %")
    print(run.folder)
    console.exit_if_failed(progress)


@app.command()
@console.slurm_options
def study(
    slurm: dict[str, Any],
    studies: Annotated[list[str], Argument(metavar="STUDY...", help="submodules, max_pooling, benchmark, YAML files.")],
    dataset: Annotated[str | None, Option(help="Where to run; by default the study's own, most often digits.")] = None,
    seeds: Annotated[str | None, Option(help="0-4 or 0,3,7; by default the study's own, most often 0-2.")] = None,
    arms: Annotated[list[str] | None, Option(help="Such as 'ResNet-18*'; may be given many times.")] = None,
    parameter: console.Parameters = None,
    cluster: console.Cluster = "local",
    workers: Annotated[int | None, Option(help="Local runs at once; by default one a core, four at most.")] = None,
    no_wait: console.NoWait = False,
    dry_run: console.DryRun = False,
    and_report: Annotated[bool, Option("--report", help="Report the studies when their runs are done.")] = False,
    rerun_stale: Annotated[bool, Option("--rerun-stale", help="Do again what other code has done.")] = False,
    until_decided: Annotated[bool, Option("--until-decided", help="Look by look, as the study declares.")] = False,
) -> None:
    """Run what is missing of one or more studies, e.g. [bold]gamlib study submodules max_pooling --seeds 0-4[/bold]."""
    from ablation.errors import ConfigError
    from ablation.parameters import key_values
    from ablation.runs import RunFailed
    from ablation.studies import Plan
    from ablation.study_files import find_studies

    overrides = key_values(parameter or [])
    dataset = overrides.pop("dataset", dataset)
    found = [study for name in dict.fromkeys(studies) for study in find_studies(name)]
    plans = [study.plan(dataset, seeds, arms or (), **overrides) for study in found]
    if until_decided:
        from ablation.until_decided import check, run_until_decided

        if rerun_stale:
            raise ConfigError(
                "rerun_stale: not with until_decided, whose looks at other code's runs would be other ones"
            )
        for plan in plans:
            check(plan)
    if dry_run:
        for plan in plans:
            console.show_plan(plan)
        return
    from ablation.execution.dispatch import dispatch
    from ablation.execution.progress import Progress

    def run_all(*plans: Plan) -> Progress:
        def save() -> None:
            for plan in plans:
                plan.save(cluster, slurm)

        configs = [config for plan in plans for config in plan.configs]
        return dispatch(configs, cluster, workers, not no_wait, slurm, save, rerun_stale)

    each = [run_until_decided(plan, run_all, not no_wait) for plan in plans] if until_decided else [run_all(*plans)]
    names = " ".join(plan.study.name for plan in plans)
    if no_wait:
        goes_on = "; the same command goes on from there" if until_decided else ""
        print(f"submitted; watch with `gamlib status {names}`{goes_on}")
        return
    runs, failed = sum(len(of.runs) for of in each), sum(len(of.failed) for of in each)
    print(f"{runs - failed} of {runs} runs done, {sum(of.done_before for of in each)} of them before")
    if not and_report:
        print(f"see `gamlib report {names}`")
    for plan in plans if and_report else ():
        try:
            plan = Plan.load(plan.study.name, plan.dataset)  # with the arms that were asked for before
            console.report_study(plan, anew=any(of.done for of in each))
        except RunFailed as error:  # the other studies are reported all the same
            console.complain(str(error))
    console.exit_if_failed(*each)


@app.command()
def status(
    study: Annotated[str | None, Argument(metavar="[STUDY]", help="A study; by default all runs there are.")] = None,
    dataset: console.LastDataset = None,
    watch: Annotated[bool, Option("--watch", help="Look again and again, until all have ended.")] = False,
    json_: console.AsJson = False,
) -> None:
    """What every run is doing: done, running, queued, failed and why, preempted, lost, or missing."""
    from ablation.runs import all_runs

    if study is not None:
        from ablation import studies, study_files

        runs = {run: arm for run, arm, _ in studies.submitted(study_files.study_name(study), dataset)}
    else:
        found, foreign = all_runs()
        runs = dict.fromkeys(found, "")
        for folder in foreign:
            print(f"not a run of this code, left out: {folder}", file=sys.stderr)
    console.show_statuses(runs, json_, watch)


@app.command()
@console.slurm_options
def retry(
    slurm: dict[str, Any],
    study: console.Submitted,
    dataset: console.LastDataset = None,
    cluster: Annotated[str | None, Option(help="By default the one it was submitted to.")] = None,
    no_wait: console.NoWait = False,
) -> None:
    """Submit what failed, was lost, stopped or removed of a study again; each goes on from its last checkpoint.

    SLURM's options are those it was submitted with, but for what is given here, e.g. [bold]--mem 64[/bold].
    """
    from ablation import studies, study_files
    from ablation.execution.dispatch import dispatch
    from ablation.execution.slurm import statuses
    from ablation.execution.slurm_options import merged
    from ablation.status import UNDER_WAY

    entries = studies.submitted(study_files.study_name(study), dataset)
    now = statuses(run for run, _, _ in entries)
    ended = [(run, plan) for run, _, plan in entries if now[run].state not in (*UNDER_WAY, "done")]
    if not ended:
        print("nothing to retry: no run has failed, was lost, stopped or removed")
    plans = {id(plan): plan for _, plan in reversed(ended)}  # the last one's runs are those that are waited for
    progresses = []
    for number, plan in enumerate(plans.values(), 1):
        where = cluster or plan.cluster
        options = merged(plan.slurm, slurm) if where == "slurm" else slurm
        wait = where != "slurm" or (number == len(plans) and not no_wait)
        configs = [run.config for run, of in ended if of is plan]
        progresses.append(dispatch(configs, where, None, wait, options, partial(plan.save, where, options)))
    console.exit_if_failed(*progresses)


@app.command()
def cancel(study: console.Submitted, dataset: console.LastDataset = None) -> None:
    """Stop what is queued or running of a study, and say what that left; [bold]gamlib retry[/bold] goes on."""
    from ablation import studies, study_files
    from ablation.execution.housekeeping import cancel

    left = cancel([run for run, _, _ in studies.submitted(study_files.study_name(study), dataset)])
    for run, now in left.items():
        print(f"{run.folder.name}: {now.state}, {now.error}")
    print(f"{len(left)} runs stopped" if left else "nothing is queued or running")


@app.command()
def gc(
    checkpoints: Annotated[bool, Option("--checkpoints", help="Checkpoints of finished runs, too.")] = False,
    failed: Annotated[bool, Option("--failed", help="Failed runs, too, with all that they left.")] = False,
    yes: Annotated[bool, Option("--yes", help="Remove them; without this they are only shown.")] = False,
) -> None:
    """Remove what submission left of finished runs: shows it first, and removes it with --yes."""
    from ablation.execution.housekeeping import leftovers

    paths = leftovers(checkpoints, failed)
    size = sum(path.lstat().st_size for path in paths) / 2**20
    for path in paths if yes else ():
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # of a run that has failed: nothing else lies there
    if not yes:
        console.show_paths(paths)
    how = "removed" if yes else "would be removed with --yes"
    print(f"{len(paths)} files, {size:.1f} MiB {how}" if paths else "nothing to remove")


@app.command()
def report(
    studies: console.Names = None,
    dataset: console.LastDataset = None,
    force: Annotated[bool, Option("--force", help="Has no effect any more: every report is made anew.")] = False,
    published: Annotated[bool, Option("--published", help="Of the runs in figures/data, by default of all.")] = False,
    formats: Annotated[str | None, Option("--format", help="Of figures: pdf, png, svg; by default pdf,png.")] = None,
    width: Annotated[float | None, Option(help="Inches of a figure; by default a paper's column or two.")] = None,
    out: Annotated[str | None, Option(help="A folder; by default figures/, of your own studies figures/NAME/.")] = None,
) -> None:
    """Execute the notebook of a study, which writes its figures and tables. Nothing is trained.

    With [bold]--published[/bold] from figures/data: neither runs nor images are needed.
    """
    from ablation.errors import ConfigError
    from ablation.results import publication
    from ablation.results.report import Output
    from ablation.studies import Plan
    from ablation.study_files import study_name

    output = Output(formats=formats, width=width, out=out)
    if not studies and not published:
        raise ConfigError("STUDY: allowed: names of studies that were submitted, or --published")
    if published:
        plans = publication.published(studies or (), dataset)
    else:
        plans = [Plan.load(study_name(name), dataset) for name in studies or ()]
    for plan in plans:
        console.report_study(plan, publication.data_folder() if published else None, output=output)


@app.command()
def doctor(json_: console.AsJson = False) -> None:
    """Whether this machine has what a study needs, and what to do about what it lacks; trains nothing."""
    from ablation import doctor

    if not doctor.show(json_):
        raise typer.Exit(console.FAILED)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def bench(arguments: Annotated[list[str] | None, Argument(metavar="[OPTIONS]...")] = None) -> None:
    """The tables of benchmarks/README.md, measured on this machine; [bold]gamlib bench --help[/bold] says more."""
    from ablation.paths import ROOT, require

    script = require(ROOT / "benchmarks" / "gam.py", "gamlib bench needs gamlib's repository, see its README")
    os.execv(sys.executable, [sys.executable, str(script), *(arguments or ())])


app.add_typer(cli_results.commands)

if __name__ == "__main__":
    app()
