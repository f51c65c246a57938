"""What all figures share: the style of `gam.mplstyle`, the looks of arms, sizes for a column of a paper, their files.

The notebooks draw. What stands here lays a figure out so that every word lies inside it, with two arms or twenty.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ablation.arms import Arm
from ablation.paths import figures_root, write_changed

ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
ARMS_OF_A_COLUMN = 6  # more of them need the width of two
NARROW = 5  # inches: what is not wider has little room beside a panel
LINES_OF_A_LEGEND = 7  # more of them make a figure higher
CHARACTERS_OF_AN_INCH = 16  # of a text under an axis
STYLE = Path(__file__).with_name("gam.mplstyle")
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
SEED: dict[str, Any] = {"color": "0.55", "linewidth": 0, "warn_thresh": 1}  # the dot of one seed, for seaborn
MEAN: dict[str, Any] = {"marker": "D", "markersize": 3.5, "color": "black", "linestyle": "none"}
MEAN |= {"capsize": 0.12, "err_kws": {"linewidth": 1}, "native_scale": True}
INTERVAL: dict[str, Any] = {"fmt": "D", "markersize": 3.5, "color": "black", "linewidth": 1, "capsize": 3}  # errorbar
# A grey print tells the arms apart by these. As there are more markers than colours, 8 x 11 arms differ.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p")
DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.5), (1, 1), (3, 1.25, 1.5, 1.25), (5, 1, 1, 1), (2, 2), (6, 1, 2, 1), (8, 2, 1, 2, 1, 2),
)  # fmt: skip


def looks(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The palette, markers and dashes of a study's arms, by their order in it, whichever of them are drawn.

    Args:
        arms: names; of `Study.arms`, the colours that they have of their own come before those of the style.
    """
    colours = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
    kinds = {"palette": [f"#{colour.lstrip('#')}" for colour in colours], "markers": MARKERS, "dashes": DASHES}
    found = {kind: dict(zip(arms, cycle(values), strict=False)) for kind, values in kinds.items()}
    of_arms = arms.items() if isinstance(arms, Mapping) else ()
    found["palette"] |= {name: arm.colour for name, arm in of_arms if isinstance(arm, Arm) and arm.colour is not None}
    return found


def width_of(arms: Sequence[str], width: float | None = None) -> float:
    """Inches: the width that is asked for, or a column of a paper, or both where there are many arms."""
    return width or (ONE_COLUMN if len(arms) <= ARMS_OF_A_COLUMN else TWO_COLUMNS)


def columns(names: Sequence[str], width: float | None = None) -> tuple[Figure, Axes]:
    """A figure with a column a name, at 0, 1, …: as wide as `width_of` says, upright names if they are long."""
    width = width_of(names, width)
    longest = max(len(word) for name in names for word in name.split())
    crowded = longest * len(names) > CHARACTERS_OF_AN_INCH * width
    figure, axes = plt.subplots(figsize=(width, 3.3 if crowded else 2.5))
    labels = names if crowded else [name.replace(" ", "\n") for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90 if crowded else 0)
    return figure, axes


def panels(number: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels with one y axis, side by side, or one below the other where the figure is narrow.

    `height` is that of one row of panels, in inches; each of several has three quarters of it.
    """
    rows, columns = (1, number) if width > NARROW else (number, 1)
    size = (width, height * (1 if rows == 1 else 0.75 * rows))
    figure, found = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    return figure, list(found.flat)


def rows(names: Sequence[str], number: int = 1, width: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with a row a name, the first on top, at 0, 1, …, in a number of panels."""
    lines = [line for name in names for line in name.split("\n")]
    wide = number > 1 or max(map(len, lines)) > 16
    height = 0.27 if len(lines) == len(names) else 0.34
    width = width or (TWO_COLUMNS if wide else ONE_COLUMN)
    figure, found = panels(number, width, 1.25 + len(names) * height)
    found[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    for axes in found:
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(6 if number == 1 and width > NARROW else 5))
    return figure, found


def write_below(figure: Figure, text: str) -> None:
    """Lines of text under a figure, in the middle, broken where they would not fit into its width."""
    width = int(figure.get_figwidth() * CHARACTERS_OF_AN_INCH)
    lines = [fill(line, width) for line in text.split("\n")]
    figure.supxlabel("\n".join(lines), fontsize=plt.rcParams["axes.labelsize"])


def seeds_legend(figure: Figure, interval: str, title: str | None = None) -> None:
    """What the dots and the diamonds of `SEED` and `MEAN` are, over the figure."""
    dot = Line2D([], [], marker="o", color=SEED["color"], linestyle="none", markersize=4)
    diamond = Line2D([], [], marker="D", color=MEAN["color"], linestyle="none", markersize=MEAN["markersize"])
    names = ["one seed", interval]
    figure.legend([dot, diamond], names, loc="outside upper center", ncols=2, title=title, title_fontsize=7)


def legend_above(figure: Figure, axes: Axes, **options: float) -> None:
    """The legend of a panel over its figure, in as many columns as the width holds."""
    handles, names = axes.get_legend_handles_labels()
    if (drawn := axes.get_legend()) is not None:
        drawn.remove()
    inches = 0.058 * max(map(len, names)) + 0.5
    lines = ceil(len(names) / max(1, figure.get_figwidth() // inches))
    ncols = ceil(len(names) / lines)
    figure.set_figheight(figure.get_figheight() + 0.14 * max(0, lines - LINES_OF_A_LEGEND))
    figure.legend(handles, names, loc="outside upper center", ncols=ncols, columnspacing=1, **options)


def fit_errors(axes: Axes) -> None:
    """Errors are shown from 0 on, unless that would leave more than half of the figure empty."""
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=0 if low < high / 2 else low)


def readable_ticks(axis: Axis, values: "pd.Series[float]") -> None:
    """Ticks of a logarithmic axis that are numbers one reads."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if values.max() > 3 * values.min() else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def export(
    figure: Figure, name: str, formats: Sequence[str] = ("pdf", "png"), folder: Path | None = None
) -> list[Path]:
    """Write a figure in some of the formats pdf, png and svg; the same data give the same bytes, and their paths.

    It goes to a folder, by default that of figures; a file that has its bytes already stays untouched.
    """
    paths = []
    for kind in formats:
        buffer = BytesIO()
        with plt.style.context(STYLE):
            figure.savefig(buffer, format=kind, metadata=UNDATED[kind])
        paths.append(write_changed((folder or figures_root()) / f"{name}.{kind}", buffer.getvalue()))
    return paths
