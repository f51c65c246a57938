"""Reports: a study's notebook executed into `runs/studies/`, which writes its figures and tables to `figures/`."""

import json
from pathlib import Path
from typing import Any

from ablation.execution.kernel import execute_notebook
from ablation.paths import NOTEBOOKS, ROOT, figures_root, require, runs_root
from ablation.results.frames import Results
from ablation.runs import Run, RunFailed, first_line
from ablation.studies import Plan
from gamlib.files import write_whole

ANY_STUDY = "4_study.ipynb"  # the notebook of studies that name none


def report(plan: Plan, folder: Path | None = None, anew: bool = True) -> list[Path]:
    """Execute the notebook of a study; the figures and tables that it wrote. Nothing is trained.

    Args:
        plan: the study.
        folder: of published results; by default the runs are reported as they stand now.
        anew: or else the files stay that a report has written after the last result, with the code as it is.

    Raises:
        RunFailed: no run is done, or the notebook failed; the message says where its log is.
    """
    if folder is None and not any(Run(config).result() for config in plan.configs):
        raise RunFailed(
            f"no run of {plan.name} is done: there is nothing to report; see `gamlib status {plan.study.name}`"
        )
    given: dict[str, Any] = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms)}
    given |= {"overrides": plan.overrides, "cluster": None}
    given |= {} if plan.study.notebook else {"study": plan.study.name}
    given |= {} if folder is None else {"published": str(folder)}
    notebook = plan.study.notebook or ANY_STUDY
    if anew or not _stands(plan, notebook, given):
        _execute(notebook, plan.name, given)
    return exported(plan)


def _stands(plan: Plan, notebook: str, given: dict[str, Any]) -> bool:
    """Whether the last report has these parameters, and its files are younger than what they were made from."""
    output, package = _executed(plan.name), ROOT / "ablation"
    made_from = [NOTEBOOKS / notebook, *package.rglob("*.py"), *package.rglob("*.mplstyle")]
    made_from += [folder for config in plan.configs if (folder := Run(config).folder).exists()]
    try:
        papermill = json.loads(output.read_text())["metadata"]["papermill"]
        same = papermill["parameters"] == json.loads(json.dumps(given)) and not papermill["exception"]
        oldest = min(path.stat().st_mtime for path in (*exported(plan), output))
        return same and all(path.stat().st_mtime < oldest for path in made_from)
    except (OSError, ValueError, KeyError):
        return False


def complexity_report() -> list[Path]:
    """Execute `1_complexity.ipynb` into `runs/studies/`, which exports its figure and tables; their paths.

    Raises:
        RunFailed: the notebook failed; the message says where its log is.
    """
    output = _execute("1_complexity.ipynb", "complexity", {})
    return [output, *(figures_root() / f"complexity.{kind}" for kind in ("pdf", "png", "csv", "tex"))]


def _execute(notebook: str, name: str, parameters: dict[str, Any]) -> Path:
    path, output = require(NOTEBOOKS / notebook), _executed(name)
    log_path = output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", buffering=1) as log:
        try:
            execute_notebook(path, output, parameters, log, {})
        except Exception as error:
            raise RunFailed(f"{notebook}: {first_line(error)}; see {output} and {log_path}") from None
    return output


def _executed(name: str) -> Path:
    return runs_root() / "studies" / f"{name}.ipynb"


def export_tables(results: Results) -> list[Path]:
    """Write `<name>.csv` and `<name>-differences.csv` with the numbers, and `<name>.tex`; their paths."""
    from ablation.results import tables, typeset  # late: who executes a notebook needs neither

    name, digits = results.plan.name, "%.10g"  # ten of sixteen, since the last ones are the processor's
    compared = tables.differences(results).drop(columns="gaps")
    texts = {
        f"{name}.csv": tables.summary(results).to_csv(index=False, float_format=digits),
        f"{name}.tex": typeset.latex(results),
        f"{name}-differences.csv": compared.to_csv(index=False, float_format=digits),
    }
    for file, text in texts.items():
        write_whole(figures_root() / file, text)
    return [figures_root() / file for file in texts]


def record(plan: Plan, paths: list[Path]) -> list[Path]:
    """Remember what was written of a study, and remove what was before and is no more; the same paths."""
    for path in {*exported(plan)} - {*paths}:
        path.unlink(missing_ok=True)
    write_whole(_files(plan), "".join(f"{path.name}\n" for path in paths))
    return paths


def exported(plan: Plan) -> list[Path]:
    """What the last export of a study wrote."""
    names = _files(plan).read_text().splitlines() if _files(plan).exists() else []
    return [figures_root() / name for name in names]


def _files(plan: Plan) -> Path:
    return runs_root() / "studies" / f"{plan.name}.files"
