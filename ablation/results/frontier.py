"""The figure of what the paper's networks cost and what they gain."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ablation.results.figures import STYLE, TWO_COLUMNS, cost_axis

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
                cost_axis(axes, part[cost])
                axes.set_xlabel(("Parameters (10⁶)", "FLOPs (10⁹)")[row])
        figure.supylabel("Top-1 error that the paper reports (%)", fontsize=8)
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8, columnspacing=1)
    plt.close(figure)
    return figure
