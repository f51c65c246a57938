"""Figures of differences: arms against their references, seed by seed, and the same arms on several data sets."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gamlib.lab.figures import ONE_COLUMN, STYLE, TWO_COLUMNS, arm_styles, write_below
from gamlib.lab.statistics import Comparison, mean_interval
from gamlib.lab.studies import Plan
from gamlib.lab.tables import label, outcomes

LONG = 16  # letters: names of arms beyond it need the width of two columns


def paired_differences(comparisons: Sequence[Comparison], about: str) -> Figure | None:
    """Differences in top-1 error, a row a comparison: every seed a dot, the mean with its 95 % interval, the verdict.

    Args:
        comparisons: of `tables.comparisons`; one that no seed has finished is not drawn.
        about: what was run, under the axis.

    Returns:
        None where no seed has finished both arms of a comparison.
    """
    drawn = [comparison for comparison in comparisons if comparison.seeds]
    if not drawn:
        return None
    one = len({comparison.reference for comparison in comparisons}) == 1
    names = [of.arm if one else f"{of.arm}\nminus {of.reference}" for of in drawn]
    wide = max(len(line) for name in names for line in name.split("\n")) > LONG
    with plt.style.context(STYLE):
        size = (TWO_COLUMNS if wide else ONE_COLUMN, 1.25 + len(drawn) * (0.27 if one else 0.34))
        figure, axes = plt.subplots(figsize=size)
        axes.axvline(0, color="black", linewidth=0.6, zorder=1)
        for place, of in enumerate(drawn):
            _seeds(axes, pd.Series(of.gaps), place - 0.16)
            half = (of.interval[1] - of.mean) if of.seeds > 1 else None
            look: dict[str, Any] = {"markersize": 3.5, "capsize": 2.5, "elinewidth": 1, "zorder": 3}
            axes.errorbar(of.mean, place + 0.12, xerr=half, fmt="D", color="black", **look)
            said = of.verdict if wide else fill(of.verdict, 15)
            told = of.verdict in ("better", "worse")
            axes.annotate(
                said,
                (1.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
                fontweight="bold" if told else "normal",
            )
        axes.set_yticks(range(len(drawn)), names)
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 5))
        what = f"Top-1 error minus that of {drawn[0].reference}" if one else "Difference in top-1 error"
        write_below(figure, f"{what} (points; left of 0 is better)\n{about}")
        axes.plot([], [], "o", color="0.55", markersize=3, label="one seed")
        axes.errorbar(
            [], [], xerr=[], fmt="D", color="black", markersize=3.5, capsize=2.5, label="mean, its own 95 % interval"
        )
        figure.legend(
            loc="outside upper center",
            ncols=2,
            title=f"Verdicts: paired t-test, corrected for {drawn[0].among} by Holm"
            if drawn[0].among > 1
            else "Verdict: paired t-test",
            title_fontsize=7,
        )
    plt.close(figure)
    return figure


def _seeds(axes: Axes, values: "pd.Series[float]", height: float) -> None:
    """A dot for every seed, equal ones on top of each other."""
    heights = height - 0.11 * values.groupby(values).cumcount()
    axes.plot(values, heights, "o", color="0.55", markersize=3, zorder=2)


def across_datasets(plans: Iterable[Plan]) -> Figure | None:
    """The same arms on several data sets, a panel each with its own axis: seeds as dots, means with 95 % intervals.

    Args:
        plans: of one study, each on its data set. A plan or an arm without a run that is done is not drawn.

    Returns:
        None where runs are done on fewer than two data sets.
    """
    frames = {label(plan, frame): frame for plan, frame in ((plan, outcomes(plan)) for plan in plans)}
    order = dict.fromkeys(arm for frame in frames.values() for arm in frame["arm"])
    frames = {about: done for about, frame in frames.items() if len(done := frame.dropna(subset="top1_error"))}
    if len(frames) < 2:
        return None
    there = {arm for frame in frames.values() for arm in frame["arm"]}
    styles = {arm: style for arm, style in arm_styles(order).items() if arm in there}
    with plt.style.context(STYLE):
        size = (TWO_COLUMNS, 1.1 + 0.25 * len(styles))
        figure, panels = plt.subplots(1, len(frames), figsize=size, sharey=True, squeeze=False)
        for axes, (about, frame) in zip(panels[0], frames.items(), strict=True):
            for place, (arm, style) in enumerate(styles.items()):
                errors = frame.loc[frame["arm"] == arm, "top1_error"]
                if errors.empty:
                    continue
                mean, half = mean_interval(errors)
                _seeds(axes, errors, place - 0.16)
                look: dict[str, Any] = {"fmt": style.marker, "color": style.colour, "markersize": 4.5}
                axes.errorbar(mean, place + 0.12, xerr=half, capsize=2.5, elinewidth=1, **look)
            dataset, _, what = about.partition(", ")
            axes.set_title(fill(dataset, 78 // len(frames)))
            parts = what.replace(" ", "\xa0").replace(",\xa0", ", ")  # broken at commas only
            axes.set_xlabel(f"Top-1 error (%)\n{fill(parts, 78 // len(frames))}".replace("\xa0", " "))
            axes.grid(axis="x", visible=True)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        panels[0][0].set_yticks(range(len(styles)), list(styles))
        panels[0][0].set_ylim(len(styles) - 0.5, -0.5)
    plt.close(figure)
    return figure
