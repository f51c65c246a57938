"""The command `gamlib`: runs and studies of attention mechanisms, and what became of them."""

import json
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gamlib.lab import screen
from gamlib.lab.config import RunConfig
from gamlib.lab.parameters import key_values
from gamlib.lab.screen import err, out
from gamlib.options import (
    FAILED,
    Arms,
    AsJson,
    Cluster,
    Dataset,
    DryRun,
    LastDataset,
    NoWait,
    Parameters,
    Seeds,
    Studies,
    Submitted,
    Workers,
    speaks_plainly,
    takes_slurm_options,
)
from gamlib.reporting import commands

if TYPE_CHECKING:
    from gamlib.lab.board import Tally

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Ablations of the Global Attention Mechanism (arXiv 2112.05561): run them, watch them, report them.\n\n"
    "Begin with [bold]gamlib study submodules --dry-run[/bold].",
)


@app.command()
@takes_slurm_options
@speaks_plainly
def run(
    slurm: dict[str, Any],
    parameter: Parameters = None,
    cluster: Cluster = "local",
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
    tally = dispatch([config], cluster, None, not no_wait, slurm)
    if before is not None:
        out.print(f"already done: top-1 error {before.top1_error:.2f} %", highlight=False)
    out.print(str(Run(config).folder), markup=False, highlight=False)
    _name_failures(tally)
    if tally.failed:
        raise typer.Exit(FAILED)


@app.command()
@takes_slurm_options
@speaks_plainly
def study(
    slurm: dict[str, Any],
    studies: Studies,
    dataset: Dataset = None,
    seeds: Seeds = None,
    arms: Arms = None,
    parameter: Parameters = None,
    cluster: Cluster = "local",
    workers: Workers = None,
    no_wait: NoWait = False,
    dry_run: DryRun = False,
    and_report: Annotated[bool, typer.Option("--report", help="Report the studies when their runs are done.")] = False,
    rerun_stale: Annotated[bool, typer.Option("--rerun-stale", help="Do again what other code has done.")] = False,
) -> None:
    """Run what is missing of one or more studies, e.g. [bold]gamlib study submodules max_pooling --seeds 0-4[/bold]."""
    from gamlib.lab import report as reports
    from gamlib.lab.dispatch import dispatch
    from gamlib.lab.runs import RunFailed
    from gamlib.lab.studies import Plan
    from gamlib.lab.study_files import find_studies

    overrides = key_values(parameter or [])
    if "dataset" in overrides:
        dataset = overrides.pop("dataset")
    found = [study for name in dict.fromkeys(studies) for study in find_studies(name)]
    plans = [study.plan(dataset, seeds, arms or (), **overrides) for study in found]
    if dry_run:
        for plan in plans:
            screen.show_plan(plan)
        return
    configs = [config for plan in plans for config in plan.configs]

    def save() -> None:
        for plan in plans:
            plan.save(cluster, slurm)

    tally = dispatch(configs, cluster, workers, not no_wait, slurm, save, rerun_stale)
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
            asked = Plan.load(plan.study.name, plan.dataset)  # with the arms asked for before
            screen.show_report(asked, reports.report(asked))
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
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until all have ended.")] = False,
    json_: AsJson = False,
) -> None:
    """What every run is doing: done, running, queued, failed and why, preempted, lost, or missing."""
    from gamlib.lab.runs import Run, all_runs
    from gamlib.lab.study_files import study_name
    from gamlib.lab.submitted import submitted

    runs: dict[Run, str] = {}
    if study is None:
        found, foreign = all_runs()
        runs = dict.fromkeys(found, "")
        for folder in foreign:
            err.print(f"not a run of this code, left out: {folder}", markup=False, highlight=False)
    else:
        runs = {run: arm for run, arm, _ in submitted(study_name(study), dataset)}
    if json_:
        print(json.dumps(screen.status_rows(runs), indent=2))
    elif watch:
        screen.watch(runs)
    else:
        screen.show_statuses(screen.status_rows(runs))


@app.command()
@takes_slurm_options
@speaks_plainly
def retry(
    slurm: dict[str, Any],
    study: Submitted,
    dataset: LastDataset = None,
    cluster: Annotated[str | None, typer.Option(help="By default the one it was submitted to.")] = None,
    no_wait: NoWait = False,
) -> None:
    """Submit what failed, was lost, stopped or removed of a study again; each goes on from its last checkpoint.

    SLURM's options are those it was submitted with, but for what is given here, e.g. [bold]--mem 64[/bold].
    """
    from gamlib.lab.dispatch import dispatch
    from gamlib.lab.slurm import statuses
    from gamlib.lab.study_files import study_name
    from gamlib.lab.submitted import submitted

    entries = submitted(study_name(study), dataset)
    now = statuses(run for run, _, _ in entries)
    ended = [(run, plan) for run, _, plan in entries if now[run].state not in ("queued", "running", "done")]
    if not ended:
        out.print("nothing to retry: no run has failed, was lost, stopped or removed", highlight=False)
        return
    failed = False
    plans = {id(plan): plan for _, plan in reversed(ended)}  # the last one's runs are those that are waited for
    for number, plan in enumerate(plans.values(), 1):
        where = cluster or plan.cluster
        options = {**(plan.slurm if where == "slurm" else {}), **slurm}
        remember = partial(plan.save if plan is entries[0][2] else plan.keep, cluster=where, slurm=options)
        wait = where != "slurm" or (number == len(plans) and not no_wait)
        tally = dispatch([run.config for run, of in ended if of is plan], where, None, wait, options, remember)
        _name_failures(tally)
        failed = failed or bool(tally.failed)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
@speaks_plainly
def cancel(study: Submitted, dataset: LastDataset = None) -> None:
    """Stop what is queued or running of a study, and say what that left; [bold]gamlib retry[/bold] goes on."""
    from gamlib.lab.housekeeping import cancel
    from gamlib.lab.study_files import study_name
    from gamlib.lab.submitted import submitted

    left = cancel([run for run, _, _ in submitted(study_name(study), dataset)])
    for run, now in left.items():
        out.print(f"{run.folder.name}: {now.state}, {now.error}", markup=False, highlight=False)
    out.print(f"{len(left)} runs stopped" if left else "nothing is queued or running", highlight=False)


@app.command()
@speaks_plainly
def gc(
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Checkpoints of finished runs, too.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Failed runs, too, with all that they left.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this they are only shown.")] = False,
) -> None:
    """Remove what submission left of finished runs: shows it first, and removes it with --yes."""
    from gamlib.lab.housekeeping import leftovers

    paths = leftovers(checkpoints, failed)
    size = sum(path.lstat().st_size for path in paths) / 2**20
    for path in paths:
        if yes:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # of a run that has failed: nothing else lies there
        else:
            out.print(os.path.relpath(path), markup=False, highlight=False)
    how = "removed" if yes else "would be removed with --yes"
    out.print(f"{len(paths)} files, {size:.1f} MiB {how}" if paths else "nothing to remove", highlight=False)


def _name_failures(tally: "Tally") -> None:
    """What failed, why, and where its log is."""
    for failed, reason in tally.failed.items():
        err.print(f"{failed.folder.name} failed: {reason}; see {failed.folder / 'log.txt'}", style="red", markup=False)


app.add_typer(commands)

if __name__ == "__main__":
    app()
