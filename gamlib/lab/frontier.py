"""Figures of what networks cost and what they gain: of the paper's, and of the arms of a study."""

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gamlib.lab.figures import (
    STYLE,
    TWO_COLUMNS,
    arm_styles,
    fit_errors,
    legend_above,
    readable_ticks,
    write_below,
)

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
COSTS = {
    "parameters": "Parameters",
    "flops": "FLOPs",
    "seconds_per_image": "Training time",
}
UNITS = ((1e9, "10⁹"), (1e6, "10⁶"), (0, "10³"))  # a cost from that size on has the unit
EQUAL = 1.01  # costs within 1 % of the least of them stand side by side,
ASIDE = 0.025  # that part of an axis apart


def frontier(table: pd.DataFrame, about: str) -> Figure | None:
    """Top-1 error against what a network costs, a panel a cost: an arm's mean with its 95 % interval.

    A line joins the arms whose mean no cheaper arm reaches. Which of them differ by more than chance it does not say.
    Arms whose costs are equal within 1 % are moved aside a little, so that all of them can be seen; the line is not.

    Args:
        table: of `tables.summary`; an arm without a run is not drawn, nor is one in a panel whose cost is not known.
        about: what was run, under the axes.

    Returns:
        None where all arms with a run have as many parameters and FLOPs.
    """
    table = table.assign(seconds_per_image=1 / table["images_per_second"])
    styles = arm_styles(table["arm"])
    done = table.dropna(subset="top1_error")
    if done["parameters"].nunique() < 2 and done["flops"].nunique() < 2:
        return None
    costs = [cost for cost in COSTS if done[cost].notna().any()]
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(1, len(costs), figsize=(TWO_COLUMNS, 2.6), sharey=True, squeeze=False)
        for axes, cost in zip(panels[0], costs, strict=True):
            known = done.dropna(subset=cost)
            unit, name = _unit(cost, known[cost].max())
            values = known[cost] / unit
            places = _aside(values)
            order = known.sort_values([cost, "top1_error"], kind="stable")
            best = order[order["top1_error"] < order["top1_error"].cummin().shift(fill_value=math.inf)]
            axes.plot(
                values[best.index], best["top1_error"], color="0.6", linewidth=0.8, drawstyle="steps-post", zorder=1
            )
            for arm, place, mean, half in zip(
                known["arm"], places, known["top1_error"], known["top1_half"], strict=True
            ):
                axes.errorbar(
                    place,
                    mean,
                    yerr=half,
                    fmt=styles[arm].marker,
                    color=styles[arm].colour,
                    markersize=6 if len(styles) <= 8 else 5,
                    markeredgecolor="white",
                    markeredgewidth=0.4,
                    elinewidth=0.8,
                    capsize=2,
                    capthick=0.8,
                    label=arm,
                )
            _cost_axis(axes, values)
            axes.set_xlabel(name)
        panels[0][0].set_ylabel("Top-1 error (%)")
        fit_errors(panels[0][0])
        how = "line: the lowest mean at each cost; arms whose costs are equal within 1 % stand side by side"
        write_below(figure, f"{about}\n{how}")
        legend_above(figure, panels[0][0], handlelength=1.5)
    plt.close(figure)
    return figure


def _unit(cost: str, largest: float) -> tuple[float, str]:
    """What a cost is divided by, and the name of its axis."""
    if cost == "seconds_per_image":
        return 1e-3, f"{COSTS[cost]} (ms per image)"
    unit, name = next((unit, name) for unit, name in UNITS if largest >= unit)
    return unit or 1e3, f"{COSTS[cost]} ({name})"


def _aside(costs: "pd.Series[float]") -> "pd.Series[float]":
    """Costs, those that are equal within 1 % moved apart around where they are."""
    places = costs.map(math.log).sort_values(kind="stable")
    step = ASIDE * max(places.max() - places.min(), math.log(EQUAL))
    firsts: list[float] = []  # the least cost of its group, for every arm
    for place in places:
        firsts.append(firsts[-1] if firsts and place - firsts[-1] < math.log(EQUAL) else place)
    groups = places.groupby(firsts)
    number, of = groups.cumcount(), groups.transform("size")
    return (
        places.where(of == 1, groups.transform("mean") + (number - (of - 1) / 2) * step)
        .map(math.exp)
        .reindex(costs.index)
    )


def cost_against_error(frame: pd.DataFrame) -> Figure:
    """Parameters and FLOPs (both logarithmic) against the top-1 error that the paper reports, a column a network.

    Args:
        frame: printed networks: network (what stands over a column), attention, params, flops, top1_error in percent.
    """
    if unknown := set(frame["attention"]) - MECHANISM_STYLES.keys():
        raise ValueError(f"attention={unknown.pop()!r} has no colour: allowed: {', '.join(MECHANISM_STYLES)}")
    networks = list(frame["network"].unique())
    with plt.style.context(STYLE):
        figure, panels = plt.subplots(2, len(networks), figsize=(TWO_COLUMNS, 3.9), sharey="col", squeeze=False)
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
                _cost_axis(axes, part[cost])
                axes.set_xlabel(("Parameters (10⁶)", "FLOPs (10⁹)")[row])
        figure.supylabel("Top-1 error that the paper reports (%)", fontsize=8)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8, columnspacing=1)
    plt.close(figure)
    return figure


def _cost_axis(axes: Axes, costs: "pd.Series[float]") -> None:
    """Logarithmic, with room at its ends."""
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    readable_ticks(axes.xaxis, costs)
