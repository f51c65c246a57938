"""Figures of gates, in the style of `gam.mplstyle` and as wide as a page of a paper. A figure never trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from gamlib.gates import Gates
from gamlib.lab.figures import STYLE
from gamlib.lab.maps import Picture, View

WIDTH, ROW = 6.9, 0.95  # inches: both columns of a paper, and a row
COLOURS = "cividis"  # its brightness rises all along: readable in grey, and the same to the colour-blind
CHANNEL, SPATIAL = "0.45", "#0072B2"  # a grey area and a blue line
BINS = 25  # between 0 and 1
HEADS = (
    "Input, and\nclass found",
    "Gates:\nvalues",
    "Channel gate\nby channel",
    "Spatial gate,\nmean",
    "Spatial gate,\none channel",
    "Grad-CAM\nbefore",
    "Grad-CAM\nafter",
)


def side_by_side(views: Sequence[View]) -> Figure:
    """A row for each view: the input, its gates as a distribution and by channel, over the image, and Grad-CAM.

    The mean over channels of the spatial gates has one scale for all rows, and its range stands under each; the one
    channel is the gate's that varies most over the image, shown from 0 to 1. Grad-CAM is stretched map by map. Outlines
    are the image's.
    """
    limits = scale([view.gates for view in views])
    with plt.style.context(STYLE):
        figure, rows = _grid(len(views), HEADS, (1, 1.25, 1.6, 1, 1, 1, 1), 1.3)
        for row, view in zip(rows, views, strict=True):
            _row(row, view, limits)
        for axes in rows[:-1, 1:3].flat:
            axes.set_xlabel("")
        for columns, (low, high) in (
            (rows[:, 3], limits),
            (rows[:, 4], (0.0, 1.0)),
            (rows[:, 5:], ("least", "greatest")),
        ):
            _bar(figure, columns, low, high)
        layers = ", ".join(dict.fromkeys(view.layer.removesuffix(".attention") for view in views))
        figure.suptitle(f"{views[0].picture.name}, behind {layers}", fontsize=7, color="0.4")
        _legend(figure, "mean over positions", "their range")
    plt.close(figure)
    return figure


def along_training(histories: Mapping[str, Mapping[int, Gates]], picture: Picture) -> Figure:
    """How the gates of one block change: a row an arm, with the spread of their values by epoch, and the spatial gate.

    Args:
        histories: gates by arm and number of epochs, of `maps.histories`.
        picture: for which they are.
    """
    epochs = sorted({epoch for along in histories.values() for epoch in along})
    heads = ("Channel gate\nby epoch", "Spatial gate\nby epoch", *(f"epoch {epoch}" for epoch in epochs))
    limits = scale([gates for along in histories.values() for gates in along.values()])
    with plt.style.context(STYLE):
        figure, rows = _grid(len(histories), heads, (1.7, 1.7, *(1 for _ in epochs)), 1.2)
        for row, (arm, along) in zip(rows, histories.items(), strict=True):
            _spread(row[0], {epoch: gates.channel for epoch, gates in along.items()}, CHANNEL, "no channel gate")
            _spread(row[1], {epoch: gates.spatial for epoch, gates in along.items()}, SPATIAL, "no spatial gate")
            row[0].set_ylabel(arm, fontweight="bold")
            for axes, epoch in zip(row[2:], epochs, strict=True):
                _mean(axes, picture, along[epoch].spatial if epoch in along else None, limits, "")
        for axes in rows[:-1, :2].flat:
            axes.set_xlabel("")
        _bar(figure, rows[:, 2:], *limits, "mean over channels of the spatial gate")
        figure.suptitle(picture.name, fontsize=7, color="0.4")
        _legend(figure, "median", "90 % of the values")
    plt.close(figure)
    return figure


def _grid(number: int, heads: Sequence[str], ratios: Sequence[float], rest: float) -> tuple[Figure, Any]:
    size = (WIDTH, ROW * number + rest)
    figure, rows = plt.subplots(number, len(heads), figsize=size, squeeze=False, width_ratios=ratios)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore
    for axes, head in zip(rows[0], heads, strict=True):
        axes.set_title(head)
    return figure, rows


def scale(several: Sequence[Gates]) -> tuple[float, float]:
    """The range of all mean spatial gates, never so narrow that what is rounded to one number shows as a pattern."""
    means = [gates.spatial.mean(0) for gates in several if gates.spatial is not None]
    low, high = (float(min(m.min() for m in means)), float(max(m.max() for m in means))) if means else (0.0, 1.0)
    return (low, high) if high - low >= 0.02 else ((low + high) / 2 - 0.01, (low + high) / 2 + 0.01)


def _row(row: Sequence[Axes], view: View, limits: tuple[float, float]) -> None:
    picture, gates = view.picture, view.gates
    row[0].imshow(picture.pixels.permute(1, 2, 0).numpy())
    _bare(row[0])
    row[0].set_ylabel(view.arm, fontweight="bold")
    row[0].set_xlabel(f"{view.predicted} ({100 * view.confidence:.0f} %)", fontsize=7)
    _distribution(row[1], gates)
    _by_channel(row[2], gates.channel)
    _mean(row[3], picture, gates.spatial, limits, "no spatial\ngate")
    if gates.spatial is None or len(gates.spatial) == 1:
        _nothing(row[4], "" if gates.spatial is None else "one for all\nchannels")
    else:
        channel = int(gates.spatial.flatten(1).std(1).argmax())
        _over(row[4], picture, gates.spatial[channel])
        row[4].set_xlabel(f"channel {channel}", fontsize=7)
    for axes, found in zip(row[5:], (view.before, view.after), strict=True):
        if found is None:
            _nothing(axes, "ABN is\nno block")
        else:
            _over(axes, picture, found)
            axes.set_xlabel(f"class {view.label}", fontsize=7)


def _mean(axes: Axes, picture: Picture, spatial: Tensor | None, limits: tuple[float, float], why: str) -> None:
    if spatial is None:
        _nothing(axes, why)
        return
    mean = spatial.mean(0)
    _over(axes, picture, mean, *limits)
    axes.set_xlabel(f"{mean.min():.2f}–{mean.max():.2f}", fontsize=7)


def _over(axes: Axes, picture: Picture, found: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """A map [h, w], brought to the picture's size by interpolation, and on it the picture's outlines.

    The picture itself beneath would change the map's colours, and be taken for a pattern of the gate.
    """
    height, width = picture.pixels.shape[1:]
    corners = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(found.numpy(), COLOURS, vmin=low, vmax=high, extent=corners, interpolation="bilinear")
    size = max(1, min(height, width) // 16) | 1
    grey = F.avg_pool2d(picture.pixels.float().mean(0)[None], size, 1, size // 2, count_include_pad=False)[0].numpy()
    if grey.min() < grey.max():
        for colour, thickness in (("black", 1.4), ("white", 0.7)):  # to be seen on bright and on dark
            axes.contour(grey, [float(grey.min() + grey.max()) / 2], colors=colour, linewidths=thickness)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")  # level with the plots beside it


def _distribution(axes: Axes, gates: Gates) -> None:
    styles: tuple[dict[str, Any], ...] = ({"color": CHANNEL, "alpha": 0.6}, {"color": SPATIAL, "histtype": "step"})
    for gate, style in zip((gates.channel, gates.spatial), styles, strict=True):
        if gate is not None:
            weights = [100 / gate.numel()] * gate.numel()
            axes.hist(gate.flatten().numpy(), bins=BINS, range=(0, 1), weights=weights, **style)
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "½", "1"), xlabel="Gate", ylabel="Share (%)")
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))


def _by_channel(axes: Axes, channel: Tensor | None) -> None:
    if channel is None:
        _nothing(axes, "no channel gate")
        return
    values = channel.reshape(len(channel), -1).numpy()
    numbers = range(len(values))
    axes.fill_between(numbers, values.min(1), values.max(1), color=CHANNEL, alpha=0.45, linewidth=0, step="mid")
    axes.step(numbers, values.mean(1), color="black", linewidth=0.8, where="mid")
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 1), yticks=(0, 0.5, 1), xlabel="Channel")
    axes.set_yticks((0, 0.5, 1), ("0", "½", "1"))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _nothing(axes: Axes, why: str) -> None:
    _bare(axes)
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=7, color="0.4", transform=axes.transAxes)


def _spread(axes: Axes, along: Mapping[int, Tensor | None], colour: str, why: str) -> None:
    known = {epoch: gate.flatten() for epoch, gate in along.items() if gate is not None}
    if not known:
        _nothing(axes, why)
        return
    low, middle, high = ([float(torch.quantile(gate, share)) for gate in known.values()] for share in (0.05, 0.5, 0.95))
    axes.fill_between(list(known), low, high, color=colour, alpha=0.35, linewidth=0)
    axes.plot(list(known), middle, color="black", linewidth=0.8, marker="o", markersize=2, clip_on=False)
    axes.set_yticks((0, 0.5, 1), ("0", "½", "1"))
    last = max(1, *known)
    axes.set(ylim=(0, 1), xlim=(0, last), xlabel="Epoch", xticks=sorted({0, last // 2, last}))


def _bar(figure: Figure, columns: Any, low: float | str, high: float | str, label: str = "") -> None:
    """The scale of colours under some columns, by its two ends."""
    ends = (low, high) if isinstance(low, float) and isinstance(high, float) else (0.0, 1.0)
    colours = plt.cm.ScalarMappable(Normalize(*ends), COLOURS)
    aspect = 14 * (1 if columns.ndim == 1 else columns.shape[1])
    bar = figure.colorbar(colours, ax=columns, location="bottom", fraction=0.05, aspect=aspect, pad=0.02)
    bar.set_label(label, fontsize=7)
    bar.outline.set_visible(False)
    bar.set_ticks(ends, labels=[end if isinstance(end, str) else f"{end:.2g}" for end in (low, high)])
    first, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _legend(figure: Figure, line: str, band: str) -> None:
    """What lines and areas mean, below."""
    drawn = [
        Patch(color=CHANNEL, alpha=0.6, label="channel gate"),
        Line2D([], [], color=SPATIAL, label="spatial gate"),
        Line2D([], [], color="black", linewidth=0.8, label=line),
        Patch(color=CHANNEL, alpha=0.35, label=band),
    ]
    figure.legend(handles=drawn, loc="outside lower left", ncols=4, handlelength=1.5)
