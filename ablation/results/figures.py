"""What all figures share: the style of `gam.mplstyle`, the looks of arms, sizes for a column of a paper, their files.

The notebooks draw. What stands here lays a figure out so that every word lies inside it, with two arms or twenty.
"""

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import cycle
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

from ablation.paths import figures_root
from gamlib.files import write_whole

ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
ARMS_OF_A_COLUMN = 6  # more of them need the width of two
LONG = 16  # letters: names beside a figure beyond it need the width of two columns
CHARACTERS_OF_AN_INCH = 16  # of a text under an axis
STYLE = Path(__file__).with_name("gam.mplstyle")
SEED: dict[str, Any] = {"color": "0.55", "linewidth": 0, "warn_thresh": 1}  # the dot of one seed, for seaborn
MEAN: dict[str, Any] = {"marker": "D", "markersize": 3.5, "color": "black", "linestyle": "none"}
MEAN |= {"capsize": 0.12, "err_kws": {"linewidth": 1}, "native_scale": True}
COST: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.4, "elinewidth": 0.8}
COST |= {"capsize": 2, "capthick": 0.8}  # an arm among costs, for errorbar
# A grey print tells the arms apart by these. As there are more markers than colours, 8 x 11 arms differ.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p")
DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.5), (1, 1), (3, 1.25, 1.5, 1.25), (5, 1, 1, 1), (2, 2), (6, 1, 2, 1), (8, 2, 1, 2, 1, 2),
)  # fmt: skip


def palette(arms: Iterable[str]) -> dict[str, str]:
    """The colours of a study's arms, by their order in it, whichever of them are drawn."""
    colours = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
    return dict(zip(arms, cycle(f"#{colour.lstrip('#')}" for colour in colours), strict=False))


def markers(arms: Iterable[str]) -> dict[str, str]:
    """The markers of a study's arms, likewise."""
    return dict(zip(arms, cycle(MARKERS), strict=False))


def dashes(arms: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """The dashes of a study's arms, likewise; empty for a whole line."""
    return dict(zip(arms, cycle(DASHES), strict=False))


def learning_curve(metrics: pd.DataFrame, images: str = "test") -> Figure:
    """Losses and top-1 errors of one run, epoch by epoch.

    Args:
        metrics: of `Run.metrics`.
        images: those it was evaluated on, `evaluate_on` of its configuration.
    """
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.4))
        for axes, train, test, label in (
            (left, "train_loss", "test_loss", "Cross entropy (nats)"),
            (right, "train_top1_error", "top1_error", "Top-1 error (%)"),
        ):
            axes.plot(metrics["epoch"], metrics[train], linestyle="--", label="training")
            axes.plot(metrics["epoch"], metrics[test], label=images)
            axes.set(xlabel="Epoch", ylabel=label)
            whole_ticks(axes.xaxis)
        left.set_yscale("log")
        right.legend()
    plt.close(figure)  # a notebook shows it as the value of its cell, once
    return figure


def columns(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a column a name, at 0, 1, …: one column of a paper or two wide, upright names if they are long."""
    width = width_of(names)
    longest = max(len(word) for name in names for word in name.split())
    crowded = longest * len(names) > CHARACTERS_OF_AN_INCH * width
    figure, axes = plt.subplots(figsize=(width, 3.3 if crowded else 2.5))
    axes.set_xticks(
        range(len(names)),
        names if crowded else [name.replace(" ", "\n") for name in names],
        rotation=90 if crowded else 0,
    )
    axes.set_xlim(-0.5, len(names) - 0.3)
    return figure, axes


def rows(names: Sequence[str], panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with a row a name, the first on top, at 0, 1, …, in panels side by side."""
    lines = [line for name in names for line in name.split("\n")]
    wide = panels > 1 or max(map(len, lines)) > LONG
    height = 0.27 if len(lines) == len(names) else 0.34
    size = (TWO_COLUMNS if wide else ONE_COLUMN, 1.25 + len(names) * height)
    figure, found = plt.subplots(1, panels, figsize=size, sharey=True, squeeze=False)
    found[0][0].set_yticks(range(len(names)), names)
    found[0][0].set_ylim(len(names) - 0.5, -0.5)
    for axes in found[0]:
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(6 if wide and panels == 1 else 5))
    return figure, list(found[0])


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of some panels side by side, with one vertical axis."""
    figure, found = plt.subplots(1, number, figsize=(TWO_COLUMNS, 2.6), sharey=True, squeeze=False)
    return figure, list(found[0])


def write_beside(axes: Axes, row: int, text: str, bold: bool) -> None:
    """A text at the right of a row of a figure, broken where a figure of one column has no place for it."""
    wide = axes.get_figure(root=True).get_figwidth() > ONE_COLUMN  # type: ignore[union-attr]
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 7}
    axes.annotate(text if wide else fill(text, 15), (1.02, row), fontweight="bold" if bold else "normal", **at)


def write_below(figure: Figure, text: str) -> None:
    """Lines of text under a figure, in the middle, broken where they would not fit into its width."""
    width = int(figure.get_figwidth() * CHARACTERS_OF_AN_INCH)
    lines = "\n".join(fill(line, width) for line in text.split("\n"))
    figure.supxlabel(lines, fontsize=plt.rcParams["axes.labelsize"])


def broken(text: str, width: int) -> str:
    """Lines of text broken where they would be longer than so many letters: at commas only."""
    whole = (line.replace(" ", "\xa0").replace(",\xa0", ", ") for line in text.split("\n"))
    return "\n".join(fill(line, width) for line in whole).replace("\xa0", " ")


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
    fitting = min(len(names), max(1, int(figure.get_figwidth() // inches)))
    lines = -(-len(names) // fitting)
    figure.legend(handles, names, loc="outside upper center", ncols=-(-len(names) // lines), columnspacing=1, **options)


def fit_errors(axes: Axes) -> None:
    """Errors are shown from 0 on, unless that would leave more than half of the figure empty."""
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=0 if low < high / 2 else low)


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers, of epochs."""
    axis.set_major_locator(MaxNLocator(integer=True))


def readable_ticks(axis: Axis, values: "pd.Series[float]") -> None:
    """Ticks of a logarithmic axis that are numbers one reads."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if values.max() > 3 * values.min() else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def cost_axis(axes: Axes, costs: "pd.Series[float]") -> None:
    """Logarithmic, with room at its ends."""
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    readable_ticks(axes.xaxis, costs)


def spread_markers(lines: Sequence[Line2D], epochs: int) -> None:
    """Markers at some of the epochs, those of one line not over those of another."""
    for number, line in enumerate(lines):
        line.set_markevery((number % 4 * max(1, epochs // 20), max(1, epochs // 5)))


def width_of(arms: Sequence[str]) -> float:
    """Inches: a column of a paper, or both where there are many arms."""
    return ONE_COLUMN if len(arms) <= ARMS_OF_A_COLUMN else TWO_COLUMNS


def export(figure: Figure, name: str) -> list[Path]:
    """Write a figure as PDF and PNG to the folder of figures; the same data give the same bytes."""
    paths = []
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = BytesIO()
        with plt.style.context(STYLE):
            figure.savefig(buffer, format=kind, metadata=metadata)
        paths.append(figures_root() / f"{name}.{kind}")
        write_whole(paths[-1], buffer.getvalue())
    return paths
