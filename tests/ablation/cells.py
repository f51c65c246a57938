"""The cells of a notebook of studies, executed here, without a kernel: what it finds, what it draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.figure import Figure

from ablation.paths import NOTEBOOKS
from ablation.results import figures
from ablation.results.report import ANY_STUDY
from ablation.studies import Plan


def code(notebook: str) -> list[str]:
    """The texts of a notebook's cells of code, that of its parameters left out."""
    cells = nbformat.read(NOTEBOOKS / notebook, as_version=4).cells
    of_code = [cell for cell in cells if cell.cell_type == "code"]
    return [cell.source for cell in of_code if "parameters" not in cell.metadata.get("tags", [])]


def executed(plan: Plan, published: Path | None = None, only: Callable[[str], bool] = bool) -> dict[str, Any]:
    """The names that the notebook of any study has at its end, given a plan of which nothing is run.

    Args:
        only: says of a cell's text whether to execute it.
    """
    if published is None:
        plan.save()
    values = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms), "overrides": plan.overrides}
    namespace: dict[str, Any] = {"In": ["# parameters"], "study": plan.study.name, **values}
    namespace |= {"cluster": None, "workers": None, "published": published}
    with plt.rc_context():
        for text in filter(only, code(ANY_STUDY)):
            exec(text, namespace)
        plt.close("all")
    return namespace


def written(plan: Plan, published: Path | None = None) -> list[Path]:
    """The figures and tables that the notebook writes."""
    paths: list[Path] = executed(plan, published=published)["saved"]
    return paths


def drawn(plan: Plan) -> dict[str, Figure]:
    """The figures that the notebook draws, by what stands behind the study's name in theirs; none is written."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, name: str) -> list[Path]:
        found[name.removeprefix(plan.name).removeprefix(plan.study.name)] = figure
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "export", keep)
        executed(plan, only=lambda text: "plan = " in text or "found = " in text or "figures.export" in text)
    return found
