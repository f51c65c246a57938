"""The gates of a run that was trained: its networks along training, samples, and what the notebook makes of them."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import yaml
from cells import outside
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution.train import kept_epochs, train
from ablation.gates.reading import Gates, grad_cam, read_gates
from ablation.gates.runs import Sample, epochs_of, image_count, load_network, load_sample, runs_by_arm
from ablation.paths import NOTEBOOKS, ROOT
from ablation.results.report import Output
from ablation.runs import Run, RunFailed
from ablation.studies import Study
from ablation.study_files import PAPER_STUDIES, find_study
from gamlib import build_model
from gamlib.data import images as data
from gamlib.data.batches import FromFiles, mean_and_std
from gamlib.data.datasets import DatasetError

pytestmark = pytest.mark.slow

GATES = str(ROOT / "studies" / "gates.yaml")
LAYER = "layer1.1.bn2.attention"
SMALL: dict[str, Any] = {"epochs": 4, "width": 0.25, "train_fraction": 0.25, "batch_size": 10}
ARMS = {"ch+sp": {"attention": "gam"}, "SE": {"attention": "se"}, "plain": {"attention": "none"}}
STUDY = Study(name="two", base=SMALL, arms=ARMS)
CELLS = [cell for cell in nbformat.read(NOTEBOOKS / "5_attention_maps.ipynb", 4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("trained")
        patch.setenv("GAM_RUNS", str(root))
        patch.setenv("GAM_BATCH", "1")
        for arm in ("ch+sp", "SE"):
            train(Run(RunConfig(**SMALL, **ARMS[arm])))
        yield root


@pytest.fixture
def trained(trained_once: Path, places: Path) -> Run:
    """A GAM that was trained for four epochs, in a folder of this test's own; an SE lies beside it."""
    shutil.copytree(trained_once, places / "runs")
    return Run(RunConfig(**SMALL))


def save(pixels: Any, path: Path, mode: str | None = None) -> Path:
    found = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (found.convert(mode) if mode else found).save(path)
    return path


@pytest.mark.parametrize(
    ("epochs", "kept"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 2)), (20, (1, 5, 10)), (200, (1, 50, 100))]
)
def test_three_epochs_on_the_way_are_kept_and_the_last_is_the_checkpoint(epochs: int, kept: tuple[int, ...]) -> None:
    assert kept_epochs(epochs) == kept


def test_the_network_and_the_pictures_are_those_that_gave_the_runs_error(trained: Run) -> None:
    model = load_network(trained)
    fed = torch.stack([load_sample(trained.config, index).input for index in range(image_count(trained.config))])
    labels = data.load("digits").test_labels
    with torch.no_grad():
        error = 100 * float((model(fed).argmax(1) != labels).double().mean())
    result = trained.result()
    assert result is not None and error == pytest.approx(result.top1_error)
    assert [load_sample(trained.config, index).label for index in range(9)] == labels[:9].tolist()


def test_the_networks_along_training_are_there_and_differ(trained: Run) -> None:
    assert epochs_of(trained) == [0, 1, 2, 4]
    weights = [load_network(trained, epoch).state_dict()["conv1.weight"] for epoch in epochs_of(trained)]
    assert not any(torch.equal(one, other) for one, other in pairwise(weights))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    load_network(trained, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_of_epoch_0_is_the_one_that_training_began_with() -> None:
    still = Run(RunConfig(**SMALL | {"epochs": 2}, lr=1e-30, weight_decay=0, momentum=0, seed=7))
    train(still)
    first, moved = load_network(still, 0), dict(load_network(still, 1).named_parameters())
    assert all(torch.allclose(value, moved[name], atol=1e-20) for name, value in first.named_parameters())
    torch.manual_seed(8)
    other = build_model(**still.config.architecture())
    assert not torch.equal(other.state_dict()["conv1.weight"], first.state_dict()["conv1.weight"])


def test_what_cannot_be_loaded_is_refused_with_its_path(trained: Run) -> None:
    waiting = Run(RunConfig(**SMALL, seed=5))
    for call in (load_network, epochs_of):
        with pytest.raises(
            RunFailed, match=f"{waiting.folder.name} is missing: only the gates of a run that is done can be read"
        ):
            call(waiting)
    with pytest.raises(RunFailed, match=r"checkpoint.epoch3.pt is not there: .* there are those after 0, 1, 2, 4"):
        load_network(trained, 3)
    path = trained.folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"identity": state["identity"] | {"seed": 1}}, path)
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: it is of another run or epoch"):
        load_network(trained)
    (trained.folder / "checkpoint.epoch2.pt").replace(path)
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: it is of another run or epoch"):
        load_network(trained)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: "):
        load_network(trained)
    path.unlink()
    with pytest.raises(RunFailed, match=r"checkpoint.pt is not there: .* are removed; there are those after 0, 1\."):
        load_network(trained)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(32, 32), (90, 40), (5, 200)])
def test_a_file_of_ones_own_is_cropped_to_the_size_of_the_data_set(
    mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """A white stripe on black, exactly in the middle of the file, is in the middle of the picture."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 :] = 255
    kind = "tiff" if mode == "CMYK" else "png"
    found = load_sample(RunConfig(), save(pixels, tmp_path / f"own.{kind}", mode))
    assert found.image.shape == (3, 32, 32) and found.image.dtype == torch.uint8
    assert (found.label, found.name) == (None, f"own.{kind}")
    assert found.image[:, :14].max() < 20 and found.image[:, 18:].min() > 235
    mean, std = mean_and_std(data.load("digits").train)  # type: ignore[arg-type]
    torch.testing.assert_close(found.input, (found.image - mean[:, None, None]) / std[:, None, None])


def test_pictures_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    for image in (898, -1, "898"):
        with pytest.raises(ValueError, match=f"image={image}: allowed: 0 to 897, or the path of a file"):
            load_sample(RunConfig(), image)
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png", tmp_path):
        with pytest.raises(DatasetError, match=f"{path} cannot be read as an image"):
            load_sample(RunConfig(), path)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(deep)
    with pytest.raises(DatasetError, match=r"deep.png has pixels of mode I;16; allowed: 8 bits a channel"):
        load_sample(RunConfig(), deep)
    assert load_sample(RunConfig(), "7").name == "test image 7"


def test_pictures_of_large_images_are_what_their_test_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAM_DATA", str(tmp_path))
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "large" / part / label).mkdir(parents=True)
            for index in range(3):
                path = tmp_path / "large" / part / label / f"{index}.png"
                save(random.integers(0, 256, (80, 100, 3)), path)
    config = RunConfig(dataset="imagefolder:large", batch_size=2, recipe="cifar")
    files = data.load(config.dataset)
    assert isinstance(files, data.Files)
    images, labels = next(FromFiles(files, torch.device("cpu"), seed=0, workers=0).test())
    found = load_sample(config, 4)
    torch.testing.assert_close(found.input, images[4])
    assert (found.image.shape, found.label) == ((3, 224, 224), int(labels[4]))
    own = load_sample(config, tmp_path / "large" / "test" / "b" / "1.png")
    assert torch.equal(own.image, found.image) and own.label is None


def test_an_arm_is_shown_by_a_run_whose_weights_are_there_and_the_others_are_named(trained: Run) -> None:
    plan = STUDY.plan(seeds=[3, 0])
    found = runs_by_arm(plan)
    assert {arm: (run.config.attention, run.config.seed) for arm, run in found.items()} == {
        "ch+sp": ("gam", 0),
        "SE": ("se", 0),
    }
    (trained.folder / "checkpoint.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"not shown: .*checkpoint.pt cannot be used"):
        assert list(runs_by_arm(plan)) == ["SE"]


def test_a_study_of_which_nothing_is_done_says_which_command_runs_it() -> None:
    plan = find_study(GATES).plan(seeds="0,3", epochs=2)
    with pytest.raises(RunFailed, match=r"`gamlib study studies/gates.yaml --dataset digits --seeds 0,3 -p epochs=2`"):
        runs_by_arm(plan)
    with pytest.raises(RunFailed, match=r"`gamlib study submodules --dataset digits --seeds 1`"):
        runs_by_arm(find_study("submodules").plan(seeds="1"))
    mine = Study(name="mine", arms={"gam": {}}).plan(seeds="0", milestones=[0.3, 0.6])  # whose file may lie anywhere
    with pytest.raises(RunFailed, match=r"`gamlib study mine --dataset digits --seeds 0 -p 'milestones=\[0.3, 0.6\]'`"):
        runs_by_arm(mine)


def test_the_runs_of_the_study_are_runs_of_the_papers_studies() -> None:
    own = {config.signature for config in find_study(GATES).plan().configs}
    papers = {config.signature for name in PAPER_STUDIES for config in find_study(name).plan().configs}
    assert len(own) == 12 and own <= papers


@pytest.fixture(scope="module")
def notebook(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the cells of the notebook leave for a study of one's own, with its figures in `given_folder`."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "two.yaml").write_text(yaml.safe_dump({"base": SMALL, "arms": ARMS}, sort_keys=False))
    given = {"study": str(folder / "two.yaml"), "seeds": "0", "image": 2, "cluster": None}
    left: dict[str, Any] = {"In": [], "given_folder": folder}
    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setenv("GAM_RUNS", str(trained_once))
        patch.setenv("GAM_FIGURES", str(folder))
        patch.setattr(widgets.Output, "append_display_data", lambda *_: None)  # no kernel makes pictures here
        for cell in CELLS:
            left["In"].append(cell.source)
            exec(cell.source, left)
            left |= given if "parameters" in cell.metadata.get("tags", ()) else {}
        yield left
    plt.close("all")


def test_the_notebook_explains_the_arms_of_a_study_of_ones_own(notebook: dict[str, Any]) -> None:
    found, along = notebook["explanations"], notebook["histories"]
    assert list(found) == list(along) == ["ch+sp", "SE"]
    assert {each.layer for each in found.values()} == {LAYER} and found["SE"].sample.name == "test image 2"
    assert {arm: list(history) for arm, history in along.items()} == {"ch+sp": [0, 1, 2, 4], "SE": [0, 1, 2, 4]}
    assert torch.equal(along["ch+sp"][4].factor, found["ch+sp"].gates.factor)
    assert not torch.equal(along["ch+sp"][2].factor, found["ch+sp"].gates.factor)


def test_the_figures_have_two_columns_width_and_the_same_bytes(notebook: dict[str, Any]) -> None:
    paths = notebook["paths"]
    assert [path.name for path in paths] == [
        f"attention_maps-two-digits{part}.{kind}" for part in ("", "-training") for kind in ("pdf", "png")
    ]
    assert {path.parent for path in paths} == {notebook["given_folder"] / "two"}
    first = [path.read_bytes() for path in paths]
    compare, follow, export = notebook["compare"], notebook["follow"], notebook["figures"].export
    again = export(compare(notebook["explanations"]), "maps")
    again += export(follow(notebook["histories"], notebook["sample"]), "along")
    assert [path.read_bytes() for path in again] == first
    assert all(imread(path).shape[1] == 2070 for path in paths[1::2])  # 175 mm at 300 dots an inch
    assert all(b"FontFile2" in content for content in first[::2])


def test_the_figures_have_the_width_that_is_asked_for_unless_that_is_too_narrow(
    notebook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(notebook, "output", Output(width=6))
    drawn = notebook["compare"](notebook["explanations"]), notebook["follow"](notebook["histories"], notebook["sample"])
    assert [(figure.get_figwidth(), outside(figure)) for figure in drawn] == [(6, [])] * 2
    (head,) = (cell.source for cell in CELLS if "report.Output(" in cell.source)
    with pytest.raises(ConfigError, match=r"width=3.5: allowed for maps, .* from 6 inches"):
        exec(head, {"In": ["# parameters"], "formats": None, "width": 3.5, "out": None})


def test_an_explanation_is_of_the_known_class_or_else_of_the_predicted_one(notebook: dict[str, Any]) -> None:
    explain, model = notebook["explain"], load_network(notebook["runs"]["ch+sp"])
    test_image = load_sample(RunConfig(**SMALL), 2)

    def sample(label: int | None) -> Sample:
        return replace(test_image, label=label)

    unknown, known = explain(model, sample(None)), explain(model, sample(3), "layer2.0.bn2.attention")
    with torch.no_grad():
        probabilities = model(test_image.input[None])[0].softmax(0)
    assert unknown.label == unknown.predicted == known.predicted == int(probabilities.argmax())
    assert unknown.confidence == pytest.approx(float(probabilities.max())) and unknown.layer == LAYER
    assert known.label == 3 and known.gates.factor.shape == (32, 4, 4)
    for found, label in ((unknown, unknown.predicted), (known, 3)):
        before, after = grad_cam(model, test_image.input, found.layer, label)
        assert torch.equal(found.before, before) and torch.equal(found.after, after)
    with pytest.raises(ValueError, match=r"layer='layer9': allowed: layer1.0.bn2.attention, "):
        explain(model, test_image, "layer9")


def test_the_default_layer_is_the_deepest_legible_one(notebook: dict[str, Any]) -> None:
    def choose(**sides: int) -> str:
        gates = {name: Gates(None, None, torch.ones(2, side, side)) for name, side in sides.items()}
        return str(notebook["choose_layer"](gates))

    assert choose(a=32, b=8, c=4) == "b"
    assert choose(a=2, b=4, c=4) == "b"


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]


def test_a_figure_says_which_gate_there_is_not_and_what_range_a_map_has(notebook: dict[str, Any]) -> None:
    found, gam = texts(notebook["side_by_side"]), notebook["explanations"]["ch+sp"]
    mean = gam.gates.spatial.mean(0)
    assert f"{mean.min():.2f}–{mean.max():.2f}" in found and found.count("no spatial\ngate") == 1
    assert f"{gam.predicted} ({100 * gam.confidence:.0f} %)" in found and {"ch+sp", "SE"} <= set(found)
    assert f"channel {gam.gates.spatial.flatten(1).std(1).argmax()}" in found
    assert texts(notebook["along_training"]).count("no spatial gate") == 1


@pytest.mark.parametrize("attention", ["bam", "cbam", "tam", "abn"])
def test_other_mechanisms_can_be_drawn(attention: str, notebook: dict[str, Any], places: Path) -> None:
    """Also without outlines, of an image that is grey all over."""
    config = RunConfig(**SMALL | {"epochs": 1}, attention=attention)
    grey = load_sample(config, save(np.full((32, 32), 99), places / "grey.png"))
    found = notebook["explain"](network := build_model(**config.architecture()).eval(), grey)
    drawn = notebook["compare"]({"one": found})
    along = notebook["follow"]({"one": {0: read_gates(network, grey.input)[found.layer]}}, grey)
    paths = notebook["figures"].export(drawn, "one") + notebook["figures"].export(along, "along")
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert texts(drawn).count("ABN is\nno block") == (2 if attention == "abn" else 0)


def test_what_is_rounded_to_one_number_does_not_show_as_a_pattern(notebook: dict[str, Any]) -> None:
    flat = torch.full((1, 8, 8), 0.5)
    flat[0, 0, 0] = 0.501
    mean_limits = notebook["mean_limits"]
    low, high = mean_limits([Gates(None, flat, flat), Gates(None, None, flat)])
    assert math.isclose(high - low, 0.02, rel_tol=1e-4) and low < 0.5 < high
    assert mean_limits([Gates(None, None, flat)]) == (0.0, 1.0)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that an output widget is given: a kernel's formatter makes pictures of them."""
    found: list[Figure] = []
    monkeypatch.setattr(widgets.Output, "append_display_data", lambda _, figure: found.append(figure))
    return found


def explorer(notebook: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The names after the cell of controls, executed once more, with some others than the notebook has before it."""
    (cell,) = (cell for cell in CELLS if "widgets.Output()" in cell.source)
    left = notebook | given
    exec(cell.source, left)
    return left


def test_the_controls_draw_what_is_chosen(
    notebook: dict[str, Any], trained: Run, tmp_path: Path, displayed: list[Figure]
) -> None:
    drawn: list[Any] = []

    def compare(explanations: Any) -> Figure:
        drawn.append(explanations)
        return plt.figure()

    def follow(histories: Any, sample: Any) -> Figure:
        ((arm, history),), ((same, found),) = histories.items(), drawn[-1].items()
        assert arm == same and sample is found.sample and list(history) == [0, 1, 2, 4]
        assert torch.equal(history[4].factor, found.gates.factor)
        return plt.figure()

    plt.close("all")
    left = explorer(notebook, compare=compare, follow=follow, image=1)
    (run, layer, index, file), shown = left["controls"].values(), left["shown"]

    def last() -> tuple[str, str, str]:
        ((arm, found),) = drawn[-1].items()
        assert not shown.outputs and len(displayed) == 2 * len(drawn) and not plt.get_fignums()
        return arm, found.layer, found.sample.name

    assert last() == ("gam ch+sp", LAYER, "test image 1")
    assert len(run.options) == 2 and index.max == 897
    index.value = 2
    assert last() == ("gam ch+sp", LAYER, "test image 2")
    layer.value = "layer2.0.bn2.attention"
    assert last() == ("gam ch+sp", "layer2.0.bn2.attention", "test image 2")
    run.index = 1 - run.index
    assert last() == ("se", "layer2.0.bn2.attention", "test image 2") and len(drawn) == 4
    file.value = str(save(np.eye(40) * 255, tmp_path / "own.png"))
    assert last() == ("se", "layer2.0.bn2.attention", "own.png")
    file.value = "/nowhere/b.png"
    assert "/nowhere/b.png cannot be read" in shown.outputs[0]["text"] and len(drawn) == 5
    file.value = ""
    assert last()[2] == "test image 2"
    left["network_of"].cache_clear()
    (trained.folder / "checkpoint.epoch1.pt").write_bytes(b"damaged")
    run.index = 1 - run.index
    assert "checkpoint.epoch1.pt cannot be used" in shown.outputs[0]["text"] and len(drawn) == 6


@pytest.mark.usefixtures("displayed")
def test_the_controls_begin_with_a_file_and_show_finished_runs_alone(
    notebook: dict[str, Any], trained: Run, tmp_path: Path
) -> None:
    path, drawn = save(np.eye(40) * 255, tmp_path / "own.png"), []

    def draw(explanations: Any, *_: Any) -> Figure:
        drawn.append(explanations)
        return plt.figure()

    train(Run(RunConfig(**SMALL | {"epochs": 1}, attention="none")))
    shutil.copytree(trained.folder, (other := Run(RunConfig(**SMALL, seed=1))).folder)
    other.write_config()  # which is not done: the result is another run's

    def choices(**given: Any) -> list[str]:
        left = explorer(notebook, compare=draw, follow=draw, **given)
        return [run.config.attention for _, run in left["controls"]["run"].options]

    assert choices(image=str(path)) == ["gam", "se"] and drawn[0]["gam ch+sp"].sample.name == "own.png"
    (trained.folder / "checkpoint.pt").unlink()
    assert choices() == ["se"]
    with pytest.raises(RunFailed, match="no run with attention on cifar10 is done"):
        choices(plan=STUDY.plan("cifar10"))
