"""Figures, all in the style of `gam.mplstyle` and sized for a column of a paper. A figure never trains.

Here are errors and learning curves, and what the figures of `contrasts` and `frontier` share with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gamlib.files import write_whole
from gamlib.lab.places import figures_root

ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
ARMS_OF_A_COLUMN = 6  # more of them need the width of two
CHARACTERS_OF_AN_INCH = 16  # of the names under an axis
STYLE = Path(__file__).with_name("gam.mplstyle")
# A grey print tells the arms apart by these. As there are more markers than colours, 8 x 11 arms differ.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p")
DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.5), (1, 1), (3, 1.25, 1.5, 1.25), (5, 1, 1, 1), (2, 2), (6, 1, 2, 1), (8, 2, 1, 2, 1, 2),
)  # fmt: skip


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every figure: a colour of the cycle, a marker, and dashes (empty for a whole line)."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """The looks of a study's arms, by their order in it, whichever of them are drawn.

    The colours are named: a notebook draws a figure when the style of its making is over, and "C1" is another then.
    """
    colours = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
    looks = zip(cycle(f"#{colour.lstrip('#')}" for colour in colours), cycle(MARKERS), cycle(DASHES), strict=False)
    return {arm: ArmStyle(*look) for arm, look in zip(arms, looks, strict=False)}


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
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_yscale("log")
        right.legend()
    plt.close(figure)  # a notebook shows it as the value of its cell, once
    return figure


def error_by_arm(frame: pd.DataFrame, about: str) -> Figure | None:
    """Top-1 error by arm: every seed a dot, equal ones side by side, beside them the mean with its 95 % interval.

    Args:
        frame: of `tables.outcomes`.
        about: what was run, under the axis.

    Returns:
        None where no run is done.
    """
    import seaborn as sns

    from gamlib.lab.statistics import mean_interval

    done = frame.dropna(subset="top1_error")
    if done.empty:
        return None
    arms = [arm for arm in frame["arm"].unique() if arm in set(done["arm"])]
    longest = max(len(word) for arm in arms for word in arm.split())
    crowded = longest * len(arms) > CHARACTERS_OF_AN_INCH * width_of(arms)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(width_of(arms), 3.3 if crowded else 2.5))
        sns.swarmplot(
            done,
            x="arm",
            y="top1_error",
            order=arms,
            color="0.55",
            size=3.5,
            linewidth=0,
            ax=axes,
            zorder=2,
            warn_thresh=1,
        )
        for place, arm in enumerate(arms):
            mean, half = mean_interval(done.loc[done["arm"] == arm, "top1_error"])
            axes.errorbar(
                place + 0.27,
                mean,
                yerr=half,
                fmt="D",
                color="black",
                markersize=3.5,
                capsize=2.5,
                elinewidth=1,
                zorder=3,
            )
        names = arms if crowded else [arm.replace(" ", "\n") for arm in arms]
        axes.set_xticks(range(len(arms)), names, rotation=90 if crowded else 0)
        axes.set(xlabel="", ylabel="Top-1 error (%)")
        write_below(figure, about)
        axes.set_xlim(-0.5, len(arms) - 0.3)
        fit_errors(axes)
        axes.plot([], [], "o", color="0.55", label="one seed")
        axes.errorbar([], [], yerr=[], fmt="D", color="black", markersize=3.5, capsize=2.5, label="mean, 95 % interval")
        figure.legend(loc="outside upper center", ncols=2)
    plt.close(figure)
    return figure


def learning_curves(curves: pd.DataFrame, arms: Sequence[str], about: str) -> Figure | None:
    """Top-1 error by epoch, a line an arm: the mean over seeds, and a band from the lowest seed to the highest.

    Args:
        curves: of `tables.histories`.
        arms: all of the study, in the order of the legend; those without a run are not drawn.
        about: what was run, under the axis.

    Returns:
        None where no run is done whose epochs can be read.
    """
    import seaborn as sns

    if curves.empty:
        return None
    styles = {arm: style for arm, style in arm_styles(arms).items() if arm in set(curves["arm"])}
    with plt.style.context(STYLE):
        height = max(2.8, 0.155 * len(arms))  # as high as its legend
        figure, axes = plt.subplots(figsize=(width_of(list(styles)), height))
        sns.lineplot(
            curves,
            x="epoch",
            y="top1_error",
            hue="arm",
            style="arm",
            hue_order=list(styles),
            style_order=list(styles),
            palette=[style.colour for style in styles.values()],
            markers=[style.marker for style in styles.values()],
            dashes=[style.dashes for style in styles.values()],
            markersize=4,
            markeredgewidth=0,
            errorbar=("pi", 100),
            err_kws={"alpha": 0.12, "lw": 0},
            ax=axes,
        )
        last = int(curves["epoch"].max())
        for number, line in enumerate(axes.get_lines()[: len(styles)]):  # markers aside, not over each other
            line.set_markevery((number % 4 * max(1, last // 20), max(1, last // 5)))
        write_below(figure, about)
        axes.set(xlabel="Epoch", ylabel="Top-1 error (%)", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        readable_ticks(axes.yaxis, curves["top1_error"])
        axes.legend().remove()
        legend_above(figure, axes, handlelength=3)
    plt.close(figure)
    return figure


def fit_errors(axes: Axes) -> None:
    """Errors are shown from 0 on, unless that would leave more than half of the figure empty."""
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=0 if low < high / 2 else low)


def readable_ticks(axis: Axis, values: "pd.Series[float]") -> None:
    """Ticks of a logarithmic axis that are numbers one reads."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if values.max() > 3 * values.min() else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def write_below(figure: Figure, text: str) -> None:
    """Lines of text under a figure, in the middle, broken where they would not fit into its width."""
    width = int(figure.get_figwidth() * CHARACTERS_OF_AN_INCH)
    lines = "\n".join(fill(line, width) for line in text.split("\n"))
    figure.supxlabel(lines, fontsize=plt.rcParams["axes.labelsize"])


def legend_above(figure: Figure, axes: Axes, **options: float) -> None:
    """A legend over the figure, in as many columns as its width holds."""
    handles, names = axes.get_legend_handles_labels()
    inches = 0.058 * max(map(len, names)) + 0.5
    columns = min(len(names), max(1, int(figure.get_figwidth() // inches)))
    rows = -(-len(names) // columns)
    figure.legend(handles, names, loc="outside upper center", ncols=-(-len(names) // rows), columnspacing=1, **options)


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
