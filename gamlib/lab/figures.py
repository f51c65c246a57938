"""Figures, all in the style of `gam.mplstyle` and sized for a column of a paper. A figure never trains."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from gamlib.files import write_whole
from gamlib.lab.places import figures_root

# Okabe and Ito's colours, and markers that a grey print tells apart; grey for the plain network, strongest for GAM
MECHANISM_STYLES = {
    "none": ("plain", "#777777", "o", 4.5),
    "se": ("SE", "#E69F00", "s", 4.5),
    "bam": ("BAM", "#56B4E9", "v", 5),
    "cbam": ("CBAM", "#009E73", "^", 5),
    "tam": ("TAM", "#CC79A7", "D", 4),
    "abn": ("ABN", "#000000", "x", 5),
    "gam gc": ("GAM (gc)", "#0072B2", "P", 5.5),
    "gam": ("GAM", "#D55E00", "*", 8),
}
ARMS_OF_A_COLUMN = 6  # more of them need the width of two
CHARACTERS_OF_AN_INCH = 16  # of the names under an axis
STYLE = Path(__file__).with_name("gam.mplstyle")


def learning_curve(metrics: pd.DataFrame) -> Figure:
    """Losses and top-1 errors of one run, epoch by epoch; `metrics` is of `Run.metrics`."""
    with plt.style.context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.9, 2.4))
        for axes, train, test, label in (
            (left, "train_loss", "test_loss", "Cross entropy (nats)"),
            (right, "train_top1_error", "top1_error", "Top-1 error (%)"),
        ):
            axes.plot(metrics["epoch"], metrics[train], linestyle="--", label="training")
            axes.plot(metrics["epoch"], metrics[test], label="test")
            axes.set(xlabel="Epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_yscale("log")
        right.legend()
    plt.close(figure)  # a notebook shows it as the value of its cell, once
    return figure


def error_by_arm(frame: pd.DataFrame, about: str) -> Figure:
    """Top-1 error by arm: every seed a dot, beside it the mean with its 95 % interval.

    Args:
        frame: of `tables.outcomes`.
        about: what was run, under the axis.
    """
    import seaborn as sns

    from gamlib.lab.statistics import mean_interval

    done = _drawable(frame)
    arms = [arm for arm in frame["arm"].unique() if arm in set(done["arm"])]
    longest = max(len(word) for arm in arms for word in arm.split())
    crowded = longest * len(arms) > CHARACTERS_OF_AN_INCH * _width(arms)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(_width(arms), 3.3 if crowded else 2.5))
        sns.stripplot(
            done,
            x="arm",
            y="top1_error",
            order=arms,
            jitter=False,
            color="0.55",
            size=4,
            linewidth=0,
            ax=axes,
            zorder=2,
        )
        for place, arm in enumerate(arms):
            mean, half = mean_interval(done.loc[done["arm"] == arm, "top1_error"])
            axes.errorbar(
                place + 0.2,
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
        axes.set(xlabel=about, ylabel="Top-1 error (%)")
        axes.set_xlim(-0.5, len(arms) - 0.3)
        axes.set_ylim(bottom=0)
        axes.plot([], [], "o", color="0.55", label="one seed")
        axes.errorbar([], [], yerr=[], fmt="D", color="black", markersize=3.5, capsize=2.5, label="mean, 95 % interval")
        figure.legend(loc="outside upper center", ncols=2)
    plt.close(figure)
    return figure


def learning_curves(curves: pd.DataFrame, arms: list[str]) -> Figure:
    """Top-1 error by epoch, a line an arm: the mean over seeds, and a band from the lowest seed to the highest.

    Args:
        curves: of `tables.histories`.
        arms: in the order of the legend.
    """
    import seaborn as sns

    curves = _drawable(curves)
    arms = [arm for arm in arms if arm in set(curves["arm"])]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(_width(arms), max(2.8, 0.155 * len(arms))))  # as high as its legend
        sns.lineplot(
            curves,
            x="epoch",
            y="top1_error",
            hue="arm",
            style="arm",
            hue_order=arms,
            style_order=arms,
            palette=[f"C{index}" for index in range(len(arms))],
            errorbar=("pi", 100),
            err_kws={"alpha": 0.12, "lw": 0},
            ax=axes,
        )
        axes.set(xlabel="Epoch", ylabel="Top-1 error", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
        handles, names = axes.get_legend_handles_labels()
        axes.legend().remove()
        figure.legend(
            handles,
            names,
            loc="outside upper center" if len(arms) <= ARMS_OF_A_COLUMN else "outside right upper",
            ncols=(4 if len(arms) <= 4 else 3) if len(arms) <= ARMS_OF_A_COLUMN else 1,
            handlelength=2.2,
            columnspacing=1,
        )
    plt.close(figure)
    return figure


def cost_against_error(frame: pd.DataFrame) -> Figure:
    """Parameters and FLOPs (both logarithmic) against the top-1 error that the paper reports, a column a network.

    Args:
        frame: printed networks: network (what stands over a column), attention, params, flops, top1_error in percent.
    """
    if unknown := set(frame["attention"]) - MECHANISM_STYLES.keys():
        raise ValueError(f"attention={unknown.pop()!r} has no colour: allowed: {', '.join(MECHANISM_STYLES)}")
    networks = list(frame["network"].unique())
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(2, len(networks), figsize=(6.9, 3.9), sharey="col", squeeze=False)
        for column, network in enumerate(networks):
            part = frame[frame["network"] == network]
            panels[0][column].set_title(network)
            for row, (cost, unit) in enumerate((("params", 1e6), ("flops", 1e9))):
                axes = panels[row][column]
                for attention, (label, colour, marker, size) in MECHANISM_STYLES.items():
                    of_it = part[part["attention"] == attention]
                    axes.plot(
                        of_it[cost] / unit, of_it["top1_error"], marker, color=colour, label=label, markersize=size
                    )
                axes.set_xscale("log")
                axes.margins(x=0.12, y=0.12)
                spread = part[cost].max() / part[cost].min()
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if spread > 3 else MaxNLocator(4))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
                axes.set_xlabel(("Parameters (10⁶)", "FLOPs (10⁹)")[row])
        figure.supylabel("Top-1 error that the paper reports (%)", fontsize=8)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8, columnspacing=1)
    plt.close(figure)
    return figure


def _width(arms: list[str]) -> float:
    """Inches: a column of a paper, or both where there are many arms."""
    return 3.35 if len(arms) <= ARMS_OF_A_COLUMN else 6.9


def _drawable(frame: pd.DataFrame) -> pd.DataFrame:
    done = frame.dropna(subset="top1_error")
    if done.empty:
        raise ValueError("no run of this study is done: there is nothing to draw; `gamlib status` says why")
    return done


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
