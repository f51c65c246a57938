"""Reports: a study's notebook executed into `runs/studies/`, which writes its figures and tables to `figures/`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ablation.errors import Checked
from ablation.execution.kernel import execute_notebook
from ablation.paths import NOTEBOOKS, ROOT, figures_root, require, runs_root, write_changed
from ablation.provenance import changed
from ablation.results.frames import Results
from ablation.runs import Run, RunFailed, first_line
from ablation.studies import Plan
from ablation.study_files import OF_THE_PROJECT
from gamlib.files import write_whole

if TYPE_CHECKING:
    from ablation.execution.forked_kernel import ForkedKernel

ANY_STUDY = "4_study.ipynb"  # the notebook of studies that name none
TABLES = ("csv", "tex")


def _listed(formats: Any) -> Any:
    return [kind.strip() for kind in formats.split(",")] if isinstance(formats, str) else formats


def _folder(path: Path) -> Path:
    if (path := path.expanduser().absolute()).exists() and not path.is_dir():
        raise ValueError("a file")
    return path


class Output(Checked):
    """Where the figures and tables of a study go, and how.

    Raises:
        ConfigError: another format, or a width beyond its bounds.
    """

    formats: Annotated[list[Literal["pdf", "png", "svg"]], BeforeValidator(_listed)] = Field(
        ["pdf", "png"], min_length=1, description="pdf, png, svg"
    )
    width: float | None = Field(None, ge=3, le=20, description="inches from 3 to 20")
    out: Annotated[Path, AfterValidator(_folder)] | None = Field(None, description="a folder")

    def __init__(self, **values: Any) -> None:
        """Values of the fields; of one that is None the default."""
        super().__init__(**{key: value for key, value in values.items() if value is not None})

    def folder(self, plan: Plan) -> Path:
        """The folder: `out`, or that of figures, or for a study that is not the project's its own folder in that."""
        if self.out is not None:
            return self.out
        return figures_root() / ("" if plan.study.name in OF_THE_PROJECT else plan.study.name)


USUAL = Output()


def report(
    plan: Plan,
    folder: Path | None = None,
    anew: bool = True,
    output: Output = USUAL,
    kernel: "ForkedKernel | None" = None,
) -> list[Path]:
    """Execute the notebook of a study; the figures and tables that it wrote. Nothing is trained.

    Args:
        plan: the study.
        folder: of published results; by default the runs are reported as they stand now.
        anew: or else the files stay that a report has written after the last result, with the code as it is.
        output: where figures and tables go, in which formats and how wide.
        kernel: what becomes the notebook's kernel, if that is not to be a new process.

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
    given |= output.model_dump(mode="json", exclude_defaults=True)
    notebook = plan.study.notebook or ANY_STUDY
    if anew or not _stands(plan, notebook, given, exported(plan, output)):
        _execute(notebook, plan.name, given, kernel)
    return exported(plan, output)


def _stands(plan: Plan, notebook: str, given: dict[str, Any], files: list[Path]) -> bool:
    """Whether the last report has these parameters and files, and is younger than what it was made from."""
    output, code = _executed(plan.name), [*(ROOT / "ablation").rglob("*"), *(ROOT / "gamlib").rglob("*")]
    made_from = [NOTEBOOKS / notebook, *(path for path in code if path.suffix in (".py", ".mplstyle", ".csv"))]
    made_from += [folder for config in plan.configs if (folder := Run(config).folder).exists()]
    try:
        papermill = json.loads(output.read_text())["metadata"]["papermill"]
        same = papermill["parameters"] == json.loads(json.dumps(given)) and not papermill["exception"]
        there = all(path.exists() for path in files)  # older than it, where their bytes had not changed
        return same and there and all(path.stat().st_mtime < output.stat().st_mtime for path in made_from)
    except (OSError, ValueError, KeyError):
        return False


def complexity_report() -> list[Path]:
    """Execute `1_complexity.ipynb` into `runs/studies/`, which exports its figure and tables; their paths.

    Raises:
        RunFailed: the notebook failed; the message says where its log is.
    """
    output = _execute("1_complexity.ipynb", "complexity", {})
    return [output, *(figures_root() / f"complexity.{kind}" for kind in ("pdf", "png", "csv", "tex"))]


def _execute(notebook: str, name: str, parameters: dict[str, Any], kernel: "ForkedKernel | None" = None) -> Path:
    path, output = require(NOTEBOOKS / notebook), _executed(name)
    log_path = output.with_suffix(".txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", buffering=1) as log:
        try:
            execute_notebook(path, output, parameters, log, {}, kernel)
        except Exception as error:
            raise RunFailed(f"{notebook}: {first_line(error)}; see {output} and {log_path}") from None
    return output


def _executed(name: str) -> Path:
    return runs_root() / "studies" / f"{name}.ipynb"


def export_tables(results: Results, folder: Path | None = None) -> list[Path]:
    """Write `<name>.csv` and `<name>-differences.csv` with the numbers, and `<name>.tex`; their paths.

    They go to a folder, by default that of figures. The CSV files have the names of the arms, and LaTeX their labels.
    """
    from ablation.results import tables, typeset  # late: who executes a notebook needs neither

    name, digits = results.plan.name, "%.10g"  # ten of sixteen, since the last ones are the processor's
    compared = tables.differences(results).drop(columns="gaps")
    texts = {
        f"{name}.csv": tables.summary(results).to_csv(index=False, float_format=digits),
        f"{name}.tex": typeset.latex(results),
        f"{name}-differences.csv": compared.to_csv(index=False, float_format=digits),
    }
    return [write_changed((folder or figures_root()) / file, text) for file, text in texts.items()]


def record(plan: Plan, paths: list[Path], output: Output = USUAL) -> list[Path]:
    """Remember what was written of a study, and remove what was before and is no more; the same paths.

    What was written before to another folder, or in other formats, stays.
    """
    before = exported(plan, output)
    for path in {*before} - {*paths}:
        path.unlink(missing_ok=True)
    others = [path for path in _recorded(plan) if path not in before and path.exists()]
    root, known = figures_root(), dict.fromkeys([*paths, *others])
    lines = [path.relative_to(root) if path.is_relative_to(root) else path for path in known]
    write_whole(_files(plan), "".join(f"{line}\n" for line in lines))
    return paths


def exported(plan: Plan, output: Output = USUAL) -> list[Path]:
    """What the last export of a study wrote to its folder, in its formats."""
    folder, kinds = output.folder(plan), {*output.formats, *TABLES}
    return [path for path in _recorded(plan) if path.parent == folder and path.suffix[1:] in kinds]


def said_of_changes(paths: list[Path]) -> str:
    """A line that says so if files differ from those that are committed, else nothing."""
    if not (number := len(changed(paths))):
        return ""
    what = f"{number} of these files differ{'s' * (number == 1)} from the committed one{'s' * (number > 1)}"
    return f"{what}: another processor rounds otherwise, and other code or values give other numbers"


def _recorded(plan: Plan) -> list[Path]:
    lines = _files(plan).read_text().splitlines() if _files(plan).exists() else []
    return [figures_root() / line for line in lines]


def _files(plan: Plan) -> Path:
    return runs_root() / "studies" / f"{plan.name}.files"
