"""The cells of a notebook of studies, executed here, without a kernel: what it finds, what it draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablation.paths import NOTEBOOKS
from ablation.results import figures
from ablation.results.report import ANY_STUDY
from ablation.studies import Plan


def code(notebook: str) -> list[str]:
    """The texts of a notebook's cells of code, that of its parameters left out."""
    cells = nbformat.read(NOTEBOOKS / notebook, as_version=4).cells
    of_code = [cell for cell in cells if cell.cell_type == "code"]
    return [cell.source for cell in of_code if "parameters" not in cell.metadata.get("tags", [])]


def executed(
    plan: Plan, published: Path | None = None, only: Callable[[str], bool] = bool, **output: Any
) -> dict[str, Any]:
    """The names that the notebook of any study has at its end, given a plan of which nothing is run.

    Args:
        only: says of a cell's text whether to execute it.
        output: the notebook's parameters `formats`, `width` and `out`.
    """
    if published is None:
        plan.save()
    values = {"dataset": plan.dataset, "seeds": plan.seeds, "arms": list(plan.arms), "overrides": plan.overrides}
    namespace: dict[str, Any] = {"In": ["# parameters"], "study": plan.study.name, **values}
    namespace |= {"cluster": None, "workers": None, "published": published}
    namespace |= {"formats": None, "width": None, "out": None, **output}
    with plt.rc_context():
        for text in filter(only, code(ANY_STUDY)):
            exec(text, namespace)
        plt.close("all")
    return namespace


def written(plan: Plan, published: Path | None = None, **output: Any) -> list[Path]:
    """The figures and tables that the notebook writes."""
    paths: list[Path] = executed(plan, published=published, **output)["saved"]
    return paths


def drawn(plan: Plan, width: float | None = None) -> dict[str, Figure]:
    """The figures that the notebook draws, by what stands behind the study's name in theirs; none is written."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, name: str, *_: Any) -> list[Path]:
        found[name.removeprefix(plan.name).removeprefix(plan.study.name)] = figure
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "export", keep)
        executed(
            plan, only=lambda text: "plan = " in text or "found = " in text or "figures.export" in text, width=width
        )
    return found


def outside(figure: Figure) -> list[str]:
    """The texts of a figure that do not lie inside it whole."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    edge = figure.bbox.padded(0.5)
    axis_of_ticks = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    hidden = [
        tick.label1
        for axis in axis_of_ticks
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    found = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent(renderer)
        if (
            text not in hidden
            and text.get_visible()
            and text.get_text()
            and not (edge.contains(*box.min) and edge.contains(*box.max))
        ):
            found.append(text.get_text())
    return found
