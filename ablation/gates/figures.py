"""Parts of the figures that 5_attention_maps.ipynb draws: a grid of small plots, and maps over an image."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ablation.gates.reading import Gates
from ablation.gates.samples import Sample

WIDTH, ROW = 6.9, 0.95  # inches: both columns of a paper, and a row
COLOURS = "cividis"  # its brightness rises all along: readable in grey, and the same to the colour-blind


def grid(rows: int, columns: Mapping[str, float], margin: float) -> tuple[Figure, Any]:
    """A figure as wide as a page of a paper, and its axes [rows, columns].

    Args:
        columns: relative widths by title.
        margin: inches of height for titles, scales and legend.
    """
    size, widths = (WIDTH, ROW * rows + margin), list(columns.values())
    figure, axes = plt.subplots(rows, len(columns), figsize=size, squeeze=False, width_ratios=widths)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore
    for first, title in zip(axes[0], columns, strict=True):
        first.set_title(title)
    return figure, axes


def show_image(axes: Axes, sample: Sample, label: str) -> None:
    """A sample's image, and a label under it."""
    axes.imshow(sample.image.permute(1, 2, 0).numpy())
    axes.set_xlabel(label, fontsize=7)
    _bare(axes)


def show_map(axes: Axes, values: Tensor, sample: Sample, label: str, limits: tuple[float, float] = (0.0, 1.0)) -> None:
    """A map [h, w], brought to the image's size by interpolation, on it the image's outlines, and a label under it.

    The image itself beneath would change the map's colours, and be taken for a pattern of the map.
    """
    height, width = sample.image.shape[1:]
    corners = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(values.numpy(), COLOURS, norm=Normalize(*limits), extent=corners, interpolation="bilinear")
    size = max(1, min(height, width) // 16) | 1
    grey = F.avg_pool2d(sample.image.float().mean(0)[None], size, 1, size // 2, count_include_pad=False)[0].numpy()
    if grey.min() < grey.max():
        for colour, thickness in (("black", 1.4), ("white", 0.7)):  # to be seen on bright and on dark
            axes.contour(grey, [float(grey.min() + grey.max()) / 2], colors=colour, linewidths=thickness)
    axes.set_xlabel(label, fontsize=7)
    _bare(axes)


def show_note(axes: Axes, text: str) -> None:
    """A few words in the place of a plot."""
    _bare(axes)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, color="0.4", transform=axes.transAxes)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")  # level with the plots beside it


def mean_limits(gates: Iterable[Gates]) -> tuple[float, float]:
    """The range of all mean spatial gates, never so narrow that what is rounded to one number shows as a pattern."""
    means = [each.spatial.mean(0) for each in gates if each.spatial is not None]
    low, high = (float(min(m.min() for m in means)), float(max(m.max() for m in means))) if means else (0.0, 1.0)
    return (low, high) if high - low >= 0.02 else ((low + high) / 2 - 0.01, (low + high) / 2 + 0.01)


def add_scale(figure: Figure, columns: Any, low: float | str, high: float | str, label: str = "") -> None:
    """The colours of maps under some columns of axes, and what their two ends are."""
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
