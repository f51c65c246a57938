"""Controls to look at the gates of finished runs: a run, a layer, a test image or a file of one's own."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ablation.gates.explanation import Explanation, explain
from ablation.gates.networks import finished_runs, load_networks
from ablation.gates.reading import Gates, blocks, read_gates
from ablation.gates.samples import Sample, image_count, load_sample
from ablation.runs import RunFailed
from gamlib.backbones import build_model

Compare: TypeAlias = Callable[[Mapping[str, Explanation]], Figure]
Follow: TypeAlias = Callable[[Mapping[str, Mapping[int, Gates]], Sample], Figure]
DEFAULT_LAYER = ("the deepest whose map has 8x8 positions", "")


def explore(compare: Compare, follow: Follow, dataset: str = "digits", image: int | str = 0) -> widgets.VBox:
    """Two figures of what is chosen, drawn anew whenever that changes; what cannot be drawn is said in their place.

    The figures are put into the output widget as its value. Were they captured, as `interactive` does, papermill could
    wait for ever: nbclient answers every captured output through the socket on which it waits for the end of the cell,
    and pyzmq then misses an end that has arrived just before.

    Args:
        compare: draws explanations by arm; here of one network.
        follow: draws the gates of a block by arm and epoch, for a sample.
        dataset: whose finished runs can be chosen.
        image: index of the test image, or the path of the file, to begin with.

    Raises:
        RunFailed: none of its runs with attention is done.
    """
    runs = finished_runs(dataset)
    if not runs:
        raise RunFailed(f"no run with attention on {dataset} is done and has its weights: `gamlib study` makes some")
    networks_of = lru_cache(maxsize=1)(load_networks)
    given = {"layout": widgets.Layout(width="98%"), "continuous_update": False}
    named = [(run.folder.name, run) for run in runs]
    first = next((run for run in runs if run.config.submodules == "ch+sp"), runs[0])
    index, path = (int(image), "") if str(image).isdecimal() else (0, str(image))
    controls: dict[str, Any] = {
        "run": widgets.Dropdown(options=named, value=first, description="Run", layout=given["layout"]),
        "layer": widgets.Dropdown(options=[DEFAULT_LAYER], description="Layer", layout=given["layout"]),
        "index": widgets.IntSlider(index, 0, index, description="Image", **given),
        "file": widgets.Text(path, placeholder="a file of your own, not a test image", description="File", **given),
    }

    shown = widgets.Output()

    def offer(_: Any = None) -> None:
        """The layers and test images of the run that is chosen; the layer stays where the run has that one too."""
        config, layer = controls["run"].value.config, controls["layer"].value
        controls["index"].max = image_count(config) - 1
        try:
            names = list(blocks(build_model(**config.architecture() | {"weights": None})))
        except ValueError:
            names = []  # `draw` says why
        controls["layer"].options = [DEFAULT_LAYER, *((name.removesuffix(".attention"), name) for name in names)]
        controls["layer"].value = layer if layer in names else ""

    def draw(_: Any = None) -> None:
        run, layer, index, file = (control.value for control in controls.values())
        try:
            networks, sample = networks_of(run), load_sample(run.config, file.strip() or index)
            found = explain(networks[run.config.epochs], sample, layer or None)
            history = {epoch: read_gates(network, sample.input)[found.layer] for epoch, network in networks.items()}
        except (RunFailed, ValueError) as error:
            shown.outputs = ()
            shown.append_stdout(f"{error}\n")
            return
        arm = " ".join(filter(None, (run.config.attention, run.config.submodules)))
        figures = [compare({arm: found}), follow({arm: history}, sample)]
        with shown.hold_sync():  # one message, and nothing flickers
            shown.outputs = ()
            for figure in figures:
                shown.append_display_data(figure)
                plt.close(figure)

    offer()
    draw()
    controls["run"].observe(offer, "value")  # before it draws
    for control in controls.values():
        control.observe(draw, "value")
    return widgets.VBox([*controls.values(), shown])
