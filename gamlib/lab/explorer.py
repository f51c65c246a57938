"""Widgets to look at the gates of finished runs: a run, a layer, a test image or a file of one's own."""

from html import escape
from io import BytesIO
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import nn

from gamlib.gates import read_gates
from gamlib.lab import gate_figures, maps
from gamlib.lab.runs import Run, RunFailed

DOTS = 150  # an inch, on the screen


class Explorer(widgets.VBox):
    """Controls and two pictures, drawn anew whenever one of them changes; what cannot be drawn is said above them.

    `run`, `layer`, `index` and `file` are the controls, `view` and `training` the pictures, `message` the line.

    Args:
        dataset: whose finished runs can be chosen.
        image: index of the test image, or the path of the file, to begin with.

    Raises:
        RunFailed: none of its runs with attention is done.
    """

    def __init__(self, dataset: str = "digits", image: int | str = 0) -> None:
        runs = maps.finished(dataset)
        if not runs:
            raise RunFailed(
                f"no run with attention on {dataset} is done and has its weights: `gamlib study` makes some"
            )
        wide = widgets.Layout(width="98%")
        whole = next((run for run in runs if run.config.submodules == "ch+sp"), runs[0])
        named = [(run.folder.name, run) for run in runs]
        self.run = widgets.Dropdown(options=named, value=whole, description="Run", layout=wide)
        self.layer = widgets.Dropdown(description="Layer", layout=wide)
        last = maps.test_size(runs[0].config) - 1
        index = int(image) if str(image).isdecimal() else 0
        self.index = widgets.IntSlider(index, 0, last, description="Image", continuous_update=False, layout=wide)
        self.file = widgets.Text(
            "" if str(image).isdecimal() else str(image),
            placeholder="path of a file of your own, instead of a test image",
            description="File",
            continuous_update=False,
            layout=wide,
        )
        self.message = widgets.HTML()
        self.view, self.training = (widgets.Image(layout=widgets.Layout(max_width="100%")) for _ in range(2))
        self._models: dict[int, nn.Module] = {}
        super().__init__([self.run, self.layer, self.index, self.file, self.message, self.view, self.training])
        self._choose()
        self.run.observe(self._choose, "value")
        for control in (self.layer, self.index, self.file):
            control.observe(self._draw, "value")

    def _choose(self, _: Any = None) -> None:
        """Another run: its networks, and the layers that it has; the layer stays where it has that one too."""
        run: Run = self.run.value
        self._models = {}  # nothing is drawn while the layers change
        try:
            models = maps.networks(run)
            self.index.max = maps.test_size(run.config) - 1
            gates = read_gates(models[run.config.epochs], maps.picture(run.config, self.index.value).fed)
        except (RunFailed, ValueError) as error:
            self._say(error)
            return
        keep = self.layer.value if self.layer.value in gates else maps.default_layer(gates)
        self.layer.options = [(layer.removesuffix(".attention"), layer) for layer in gates]
        self.layer.value = keep
        self._models = models
        self._draw()

    def _draw(self, _: Any = None) -> None:
        run: Run = self.run.value
        if not self._models:
            return
        try:
            picture = maps.picture(run.config, self.file.value.strip() or self.index.value)
            arm = " ".join(filter(None, (run.config.attention, run.config.submodules)))
            view = maps.look(run, picture, self.layer.value, arm, self._models[run.config.epochs])
            along = {arm: maps.history(self._models, picture, self.layer.value)}
        except (RunFailed, ValueError) as error:
            self._say(error)
            return
        self.message.value = ""
        self.view.value = _png(gate_figures.side_by_side([view]))
        self.training.value = _png(gate_figures.along_training(along, picture))

    def _say(self, error: Exception) -> None:
        self.message.value = f"<b>{escape(str(error))}</b>"


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS)
    return buffer.getvalue()
