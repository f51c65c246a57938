"""Reports: a study's notebook executed into `runs/studies/`, which writes its figures and tables to `figures/`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.execution.execute import execute_notebook
from ablation.paths import NOTEBOOKS, figures_root, require, runs_root
from ablation.results.frames import Results
from ablation.runs import Run, RunFailed, first_line
from ablation.studies import Plan
from gamlib.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

ANY_STUDY = "4_study.ipynb"  # the notebook of studies that name none


def report(plan: Plan, folder: Path | None = None) -> list[Path]:
    """Execute the notebook of a study; the figures and tables that it wrote. Nothing is trained.

    Args:
        plan: the study.
        folder: of published results; by default the runs are reported as they stand now.

    Raises:
        RunFailed: no run is done, or the notebook failed; the message says where its log is.
    """
    if folder is None and not any(Run(config).result() for config in plan.configs):
        raise RunFailed(
            f"no run of {plan.name} is done: there is nothing to report; see `gamlib status {plan.study.name}`"
        )
    given: dict[str, Any] = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms)}
    given["overrides"] = plan.overrides
    given |= {"cluster": None} | ({} if plan.study.notebook else {"study": plan.study.name})
    given |= {} if folder is None else {"published": str(folder)}
    _execute(plan.study.notebook or ANY_STUDY, runs_root() / "studies" / f"{plan.name}.ipynb", given)
    return _exported(plan)


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


def export_tables(results: Results) -> list[Path]:
    """Write `<name>.csv` and `<name>-differences.csv` with the numbers, and `<name>.tex`; their paths."""
    from ablation.results import tables, typeset  # late: who executes a notebook needs neither

    name = results.plan.name
    texts = {"csv": _csv(tables.summary(results)), "tex": typeset.latex(results)}
    return _write(name, texts) + _write(f"{name}-differences", {"csv": _csv(tables.differences(results))})


def _csv(frame: "pd.DataFrame") -> str:
    """A table of results as text; ten digits, since the last of sixteen are the processor's."""
    return frame.to_csv(index=False, float_format="%.10g")


def _write(name: str, texts: dict[str, str]) -> list[Path]:
    paths = []
    for kind, text in texts.items():
        paths.append(figures_root() / f"{name}.{kind}")
        write_whole(paths[-1], text)
    return paths


def export_complexity(rows: list[dict[str, Any]]) -> list[Path]:
    """Write the figure of the paper's networks and the table of an audit; the paths that were written."""
    import pandas as pd

    from ablation.results import audits, figures, frontier, typeset

    paths = figures.export(frontier.cost_against_error(audits.benchmark(rows)), "complexity")
    title = "Parameters and FLOPs of the paper's networks, counted and as printed."
    about = " ".join(f"[{number}] {note}." for number, note in enumerate(audits.notes(rows), 1))
    table = audits.for_reading(rows).replace("✓", "yes")
    texts = {
        "csv": pd.DataFrame(rows).to_csv(index=False),
        "tex": typeset.to_latex(table, title, "complexity", "lllrrlrrl", about),
    }
    return paths + _write("complexity", texts)


def complexity_report() -> list[Path]:
    """Execute `1_complexity.ipynb` into `runs/studies/`, which exports its figure and tables; their paths.

    Raises:
        RunFailed: the notebook failed; the message says where its log is.
    """
    output = runs_root() / "studies" / "complexity.ipynb"
    _execute("1_complexity.ipynb", output, {})
    return [output, *(figures_root() / f"complexity.{kind}" for kind in ("pdf", "png", "csv", "tex"))]


def _execute(notebook: str, output: Path, parameters: dict[str, Any]) -> None:
    path, log_path = require(NOTEBOOKS / notebook), output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", buffering=1) as log:
        try:
            execute_notebook(path, output, parameters, log, {})
        except Exception as error:
            raise RunFailed(f"{notebook}: {first_line(error)}; see {output} and {log_path}") from None
