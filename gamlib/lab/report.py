"""Reports: a study's notebook executed into `runs/studies/`, its figures and its tables written to `figures/`."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamlib.files import write_whole
from gamlib.lab import evidence
from gamlib.lab.execute import execute_notebook
from gamlib.lab.places import NOTEBOOKS, figures_root, require_notebook, runs_root
from gamlib.lab.provenance import source_hash
from gamlib.lab.runs import Run, RunFailed, first_line
from gamlib.lab.studies import Plan

if TYPE_CHECKING:
    import pandas as pd


def export(plan: Plan) -> list[Path]:
    """Write the figures and the tables of a study as its runs stand now.

    Figures, as PDF and PNG, those in which there is something to see: `<name>` (errors by arm), `<name>-differences`,
    `-curves`, `-frontier` and `<study>-datasets`. Tables: `<name>.csv` and `-differences.csv` with the numbers,
    `<name>.tex`.

    Returns:
        The paths that were written; they stand in `runs/studies/<name>.files` too.

    Raises:
        RunFailed: no run of the study is done.
    """
    from gamlib.lab import contrasts, figures, frontier, tables, typeset  # late: a report that is current draws nothing

    frame = tables.outcomes(plan)
    if frame["top1_error"].isna().all():
        raise RunFailed(f"no run of {plan.name} is done: there is nothing to report")
    table, compared = tables.summary(plan, frame), tables.differences(plan, frame)
    about = tables.label(plan, frame)
    drawn = {
        plan.name: figures.error_by_arm(frame, about),
        f"{plan.name}-differences": contrasts.paired_differences(tables.comparisons(plan, frame), about),
        f"{plan.name}-curves": figures.learning_curves(tables.histories(plan), list(plan.arms), about),
        f"{plan.name}-frontier": frontier.frontier(table, about),
        f"{plan.study.name}-datasets": contrasts.across_datasets(across(plan)),
    }
    paths = [path for name, figure in drawn.items() if figure is not None for path in figures.export(figure, name)]
    tex = typeset.latex(table, compared, plan.study.question, tables.note(plan, frame), plan.name)
    paths += _write(plan.name, {"csv": _csv(table), "tex": tex})
    paths += _write(f"{plan.name}-differences", {"csv": _csv(compared)})
    return record(plan, paths)


def record(plan: Plan, paths: list[Path]) -> list[Path]:
    """Remember what was written of a study, and remove what was before and is no more; the same paths."""
    for path in set(_exported(plan)) - set(paths):
        path.unlink(missing_ok=True)
    write_whole(_list_of_files(plan), "".join(f"{path.name}\n" for path in paths))
    return paths


def _exported(plan: Plan) -> list[Path]:
    """What the last export of a study wrote."""
    try:
        return [figures_root() / name for name in _list_of_files(plan).read_text().splitlines()]
    except OSError:
        return []


def _list_of_files(plan: Plan) -> Path:
    return runs_root() / "studies" / f"{plan.name}.files"


def across(plan: Plan) -> list[Plan]:
    """A study's plans on all data sets on which it was submitted, this one among them, by the data set's name."""
    others = {other.dataset: other for other in Plan.saved() if other.study == plan.study}
    return [each for _, each in sorted((others | {plan.dataset: plan}).items())]


def report(plan: Plan, force: bool = False) -> list[Path]:
    """Execute the notebook of a study, which exports its figures and tables, unless nothing has changed since.

    A study without a notebook is exported directly. Nothing is trained.

    Raises:
        RunFailed: no run is done, or the notebook failed; the message says where its log is.
    """
    if not any(Run(config).result() for config in plan.configs):
        raise RunFailed(
            f"no run of {plan.name} is done: there is nothing to report; see `gamlib status {plan.study.name}`"
        )
    if not plan.study.notebook:
        return export(plan)
    output = runs_root() / "studies" / f"{plan.name}.ipynb"
    inputs = _inputs(plan)  # as they were before: a run may finish meanwhile
    if force or _noted(output) != _fingerprint(plan, inputs):
        given = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms), "overrides": plan.overrides}
        _execute(plan.study.notebook, output, given | {"cluster": None})
        _note(output, _fingerprint(plan, inputs))
    return _exported(plan)


def export_complexity(frame: "pd.DataFrame") -> list[Path]:
    """Write the figure of the paper's networks and the table of an audit; the paths that were written."""
    from gamlib import audit
    from gamlib.lab import figures, frontier, typeset

    paths = figures.export(frontier.cost_against_error(audit.benchmark(frame)), "complexity")
    title = "Parameters and FLOPs of the paper's networks, counted and as printed."
    about = " ".join(f"[{number}] {note}." for number, note in enumerate(audit.notes(frame), 1))
    table = audit.for_reading(frame).replace("✓", "yes")
    texts = {"csv": frame.to_csv(index=False), "tex": typeset.to_latex(table, title, "complexity", "lllrrlrrl", about)}
    return paths + _write("complexity", texts)


def _csv(frame: "pd.DataFrame") -> str:
    """A table of results as text; ten digits, since the last of sixteen are the processor's."""
    return frame.to_csv(index=False, float_format="%.10g")


def _write(name: str, texts: dict[str, str]) -> list[Path]:
    paths = []
    for kind, text in texts.items():
        paths.append(figures_root() / f"{name}.{kind}")
        write_whole(paths[-1], text)
    return paths


def complexity_report() -> list[Path]:
    """Execute `1_complexity.ipynb` into `runs/studies/`, which exports its figure and tables; their paths.

    Raises:
        RunFailed: the notebook failed; the message says where its log is.
    """
    output = runs_root() / "studies" / "complexity.ipynb"
    _execute("1_complexity.ipynb", output, {})
    return [output, *(figures_root() / f"complexity.{kind}" for kind in ("pdf", "png", "csv", "tex"))]


def _execute(notebook: str, output: Path, parameters: dict[str, Any]) -> None:
    path, log_path = require_notebook(notebook), output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", buffering=1) as log:
        try:
            execute_notebook(path, output, parameters, log, {})
        except Exception as error:
            raise RunFailed(f"{notebook}: {first_line(error)}; see {output} and {log_path}") from None


def _inputs(plan: Plan) -> list[Any]:
    """All that a report depends on: the plans, the files of their runs, the notebook, the code."""
    plans = [(each.model_dump(), evidence.trace(each)) for each in across(plan)]
    return [plan.dataset, plans, (NOTEBOOKS / plan.study.notebook).read_text(), source_hash()]


def _fingerprint(plan: Plan, inputs: list[Any]) -> str:
    """Hash of what a report depends on and of the files that it wrote."""
    paths = _exported(plan)
    written = [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None for path in paths]
    return hashlib.sha256(json.dumps([inputs, written]).encode()).hexdigest()


def _noted(executed: Path) -> str | None:
    try:
        return json.loads(executed.read_text())["metadata"].get("gamlib_report")
    except (OSError, ValueError, KeyError):
        return None


def _note(executed: Path, fingerprint: str) -> None:
    import nbformat  # late: a second, and a study without a notebook needs none

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata["gamlib_report"] = fingerprint
    write_whole(executed, nbformat.writes(notebook))
