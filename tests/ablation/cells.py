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
    code = [cell for cell in nbformat.read(NOTEBOOKS / ANY_STUDY, as_version=4).cells if cell.cell_type == "code"]
    with plt.rc_context():
        for cell in code:
            if "parameters" not in cell.metadata.get("tags", []) and only(cell.source):
                exec(cell.source, namespace)
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
