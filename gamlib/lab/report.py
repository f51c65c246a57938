"""Reports: a study's notebook executed into `runs/studies/`, its figures and its tables written to `figures/`."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamlib.files import write_whole
from gamlib.lab.execute import execute_notebook
from gamlib.lab.places import NOTEBOOKS, figures_root, runs_root
from gamlib.lab.provenance import source_hash
from gamlib.lab.runs import Run, RunFailed, first_line
from gamlib.lab.studies import Plan

if TYPE_CHECKING:
    import pandas as pd


def export(plan: Plan) -> list[Path]:
    """Write the figures and the tables of a study as its runs stand now; the paths that were written.

    Raises:
        RunFailed: no run of the study is done.
    """
    from gamlib.lab import figures, tables  # late: a report that is current draws nothing

    frame = tables.outcomes(plan)
    if frame["top1_error"].isna().all():
        raise RunFailed(f"no run of {plan.name} is done: there is nothing to report")
    table, about = tables.summary(plan, frame), tables.note(plan, frame)
    paths = figures.export(figures.error_by_arm(frame, tables.label(plan, frame)), plan.name)
    paths += figures.export(figures.learning_curves(tables.histories(plan), list(plan.arms)), f"{plan.name}-curves")
    texts = {"csv": table.to_csv(index=False), "tex": tables.latex(table, f"{plan.study.question} {about}", plan.name)}
    return paths + _write(plan.name, texts)


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
    paths = [figures_root() / f"{plan.name}{part}.{kind}" for part in ("", "-curves") for kind in ("pdf", "png")]
    paths += [figures_root() / f"{plan.name}.{kind}" for kind in ("csv", "tex")]
    output = runs_root() / "studies" / f"{plan.name}.ipynb"
    if not force and _noted(output) == _fingerprint(plan, paths):
        return paths
    given = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms), "overrides": plan.overrides}
    _execute(plan.study.notebook, output, given | {"cluster": None})
    _note(output, _fingerprint(plan, paths))
    return paths


def export_complexity(frame: "pd.DataFrame") -> list[Path]:
    """Write the figure of the paper's networks and the table of an audit; the paths that were written."""
    from gamlib import audit
    from gamlib.lab import figures, tables

    paths = figures.export(figures.cost_against_error(audit.benchmark(frame)), "complexity")
    about = "Parameters and FLOPs of the paper's networks, counted and as printed. " + " ".join(
        f"[{number}] {note}." for number, note in enumerate(audit.notes(frame), 1)
    )
    table = audit.for_reading(frame).replace("✓", "yes")
    texts = {"csv": frame.to_csv(index=False), "tex": tables.to_latex(table, about, "complexity", "lllrrlrrl")}
    return paths + _write("complexity", texts)


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
    log_path = output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", buffering=1) as log:
        try:
            execute_notebook(NOTEBOOKS / notebook, output, parameters, log, {})
        except Exception as error:
            raise RunFailed(f"{notebook}: {first_line(error)}; see {output} and {log_path}") from None


def _fingerprint(plan: Plan, paths: list[Path]) -> str:
    """Hash of all that a report depends on (the plan, the results, the notebook, the code) and of what it wrote."""
    results = [(config.signature, repr(Run(config).result())) for config in plan.configs]
    notebook = (NOTEBOOKS / plan.study.notebook).read_text()
    written = [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None for path in paths]
    everything = [plan.model_dump(), results, notebook, source_hash(), written]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


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
