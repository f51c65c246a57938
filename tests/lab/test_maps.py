"""The gates of a run that was trained: its weights along training, pictures, figures, and the widgets."""

import math
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from gamlib import build_model
from gamlib.gates import Gates
from gamlib.lab import figures, gate_figures, maps
from gamlib.lab.config import RunConfig
from gamlib.lab.explorer import Explorer
from gamlib.lab.runs import Run, RunFailed
from gamlib.lab.studies import STUDIES, Study
from gamlib.lab.study_files import find_study
from gamlib.lab.train import kept_epochs, train
from gamlib.training import data
from gamlib.training.batches import FromFiles, mean_and_std
from gamlib.training.datasets import DatasetError

LAYER = "layer1.1.bn2.attention"
SMALL: dict[str, Any] = {"epochs": 4, "width": 0.25, "train_fraction": 0.25, "batch_size": 10}
ARMS = {"ch+sp": {"attention": "gam"}, "SE": {"attention": "se"}, "plain": {"attention": "none"}}
STUDY = Study(name="two", base=SMALL, arms=ARMS)


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
    model = maps.network(trained)
    fed = torch.stack([maps.picture(trained.config, index).fed for index in range(maps.test_size(trained.config))])
    labels = data.load("digits").test_labels
    with torch.no_grad():
        error = 100 * float((model(fed).argmax(1) != labels).double().mean())
    result = trained.result()
    assert result is not None and error == pytest.approx(result.top1_error)
    assert [maps.picture(trained.config, index).label for index in range(9)] == labels[:9].tolist()


def test_the_networks_along_training_are_there_and_differ(trained: Run) -> None:
    assert maps.epochs(trained) == [0, 1, 2, 4]
    weights = [model.state_dict()["conv1.weight"] for model in maps.networks(trained).values()]
    assert len(weights) == 4
    assert not any(torch.equal(one, other) for one, other in pairwise(weights))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    maps.network(trained, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_of_epoch_0_is_the_one_that_training_began_with() -> None:
    still = Run(RunConfig(**SMALL | {"epochs": 2}, lr=1e-30, weight_decay=0, momentum=0, seed=7))
    train(still)
    first, moved = maps.network(still, 0), dict(maps.network(still, 1).named_parameters())
    assert all(torch.allclose(value, moved[name], atol=1e-20) for name, value in first.named_parameters())
    torch.manual_seed(8)
    other = build_model(**still.config.architecture())
    assert not torch.equal(other.state_dict()["conv1.weight"], first.state_dict()["conv1.weight"])


def test_what_cannot_be_loaded_is_refused_with_its_path(trained: Run) -> None:
    waiting = Run(RunConfig(**SMALL, seed=5))
    for call in (maps.network, maps.epochs, maps.networks):
        with pytest.raises(RunFailed, match=f"{waiting.folder.name} is missing: only the gates of a run that is done"):
            call(waiting)
    with pytest.raises(RunFailed, match=r"checkpoint.epoch3.pt is not there: .* there are those after 0, 1, 2, 4"):
        maps.network(trained, 3)
    path = trained.folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"identity": state["identity"] | {"seed": 1}}, path)
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: it is of another run or epoch"):
        maps.network(trained)
    (trained.folder / "checkpoint.epoch2.pt").replace(path)
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: it is of another run or epoch"):
        maps.network(trained)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match=r"checkpoint.pt cannot be used: "):
        maps.network(trained)
    assert len(maps.finished()) == 2
    path.unlink()
    with pytest.raises(RunFailed, match=r"checkpoint.pt is not there: .* are removed; there are those after 0, 1\."):
        maps.network(trained)
    assert [run.config.attention for run in maps.finished("digits")] == ["se"]
    assert maps.finished("cifar10") == []


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
    found = maps.picture(RunConfig(), save(pixels, tmp_path / f"own.{kind}", mode))
    assert found.pixels.shape == (3, 32, 32) and found.pixels.dtype == torch.uint8
    assert (found.label, found.name) == (None, f"own.{kind}")
    assert found.pixels[:, :14].max() < 20 and found.pixels[:, 18:].min() > 235
    mean, std = mean_and_std(data.load("digits").train)  # type: ignore[arg-type]
    torch.testing.assert_close(found.fed, (found.pixels - mean[:, None, None]) / std[:, None, None])


def test_pictures_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    for image in (898, -1, "898"):
        with pytest.raises(ValueError, match=f"image={image}: allowed: 0 to 897, or the path of a file"):
            maps.picture(RunConfig(), image)
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png", tmp_path):
        with pytest.raises(DatasetError, match=f"{path} cannot be read as an image"):
            maps.picture(RunConfig(), path)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(deep)
    with pytest.raises(DatasetError, match=r"deep.png has pixels of mode I;16; allowed: 8 bits a channel"):
        maps.picture(RunConfig(), deep)
    assert maps.picture(RunConfig(), "7").name == "test image 7"


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
    found = maps.picture(config, 4)
    torch.testing.assert_close(found.fed, images[4])
    assert (found.pixels.shape, found.label) == ((3, 224, 224), int(labels[4]))
    own = maps.picture(config, tmp_path / "large" / "test" / "b" / "1.png")
    assert torch.equal(own.pixels, found.pixels) and own.label is None


def gates_of(channels: int, side: int) -> Gates:
    return Gates(None, None, torch.ones(channels, side, side))


def test_the_default_layer_is_the_deepest_legible_one() -> None:
    sides = {"a": 32, "b": 8, "c": 4}
    assert maps.default_layer({name: gates_of(2, side) for name, side in sides.items()}) == "b"
    assert maps.default_layer({name: gates_of(2, side) for name, side in {"a": 2, "b": 4, "c": 4}.items()}) == "b"


def test_a_view_is_what_one_network_makes_of_a_picture(trained: Run) -> None:
    picture = maps.picture(trained.config, 3)
    view = maps.look(trained, picture)
    with torch.no_grad():
        scores = maps.network(trained)(picture.fed[None])[0].softmax(0)
    assert (view.arm, view.layer) == (trained.config.name, LAYER)
    assert (view.predicted, view.label) == (int(scores.argmax()), picture.label)
    assert view.confidence == pytest.approx(float(scores.max()))
    assert view.gates.spatial is not None and view.gates.spatial.shape == (16, 8, 8)
    assert view.before is not None and view.before.shape == (32, 32)
    other = maps.look(trained, picture, "layer2.0.bn2.attention", "mine")
    assert other.arm == "mine" and other.gates.factor.shape == (32, 4, 4)
    with pytest.raises(ValueError, match=r"layer='layer9': allowed: layer1.0.bn2.attention, "):
        maps.look(trained, picture, "layer9")


def test_an_image_of_unknown_class_is_explained_by_the_class_found(trained: Run, tmp_path: Path) -> None:
    own = maps.picture(trained.config, save(np.eye(40) * 255, tmp_path / "own.png"))
    view = maps.look(trained, own)
    assert view.label == view.predicted


def test_the_views_of_a_study_are_of_its_arms_with_attention_that_are_done(trained: Run) -> None:
    plan = STUDY.plan(seeds=[3, 0])
    found = maps.views(plan, 1)
    assert [view.arm for view in found] == ["ch+sp", "SE"]
    assert found[1].gates.spatial is None and found[0].gates.spatial is not None
    along = maps.histories(plan, 1, LAYER)
    assert {arm: list(gates) for arm, gates in along.items()} == {"ch+sp": [0, 1, 2, 4], "SE": [0, 1, 2, 4]}
    assert torch.equal(along["ch+sp"][4].factor, found[0].gates.factor)
    with pytest.raises(ValueError, match="layer='fc': allowed: "):
        maps.histories(plan, 1, "fc")


def test_an_arm_is_shown_by_a_run_whose_weights_are_there_and_the_others_are_named(trained: Run) -> None:
    plan = STUDY.plan(seeds=[0])
    (trained.folder / "checkpoint.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"not shown: .*checkpoint.pt cannot be used"):
        assert [view.arm for view in maps.views(plan, 1)] == ["SE"]


def test_a_study_of_which_nothing_is_done_says_which_command_runs_it() -> None:
    study = find_study(maps.STUDY)
    with pytest.raises(RunFailed, match=r"`gamlib study studies/gates.yaml --dataset digits --seeds 0,3 -p epochs=2`"):
        maps.views(study.plan(seeds="0,3", epochs=2))
    with pytest.raises(RunFailed, match=r"`gamlib study submodules --dataset digits --seeds 1`"):
        maps.histories(STUDIES["submodules"].plan(seeds="1"))
    assert maps.figure_name(study.plan()) == "attention_maps-digits"
    assert maps.figure_name(STUDIES["max_pooling"].plan()) == "attention_maps-max_pooling-digits"


def test_the_runs_of_the_study_are_runs_of_the_papers_studies() -> None:
    own = {config.signature for config in find_study(maps.STUDY).plan().configs}
    papers = {config.signature for study in STUDIES.values() for config in study.plan().configs}
    assert len(own) == 12 and own <= papers


def test_the_figures_have_two_columns_width_and_the_same_bytes(trained: Run, places: Path) -> None:
    plan = STUDY.plan(seeds="0")
    views, along = maps.views(plan, 2), maps.histories(plan, 2)

    def exported() -> list[bytes]:
        paths = figures.export(gate_figures.side_by_side(views), "maps")
        paths += figures.export(gate_figures.along_training(along, views[0].picture), "along")
        return [path.read_bytes() for path in paths]

    first = exported()
    assert exported() == first
    for name in ("maps", "along"):
        assert imread(places / "figures" / f"{name}.png").shape[1] == 2070  # 175 mm at 300 dots an inch
        assert b"FontFile2" in (places / "figures" / f"{name}.pdf").read_bytes()


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]


def test_a_panel_says_which_gate_there_is_not_and_what_range_a_map_has(trained: Run) -> None:
    gam, se = maps.views(STUDY.plan(seeds="0"), 2)
    found = texts(gate_figures.side_by_side([gam, se]))
    assert gam.gates.spatial is not None
    mean = gam.gates.spatial.mean(0)
    assert f"{mean.min():.2f}–{mean.max():.2f}" in found and found.count("no spatial\ngate") == 1
    assert f"{gam.predicted} ({100 * gam.confidence:.0f} %)" in found and {"ch+sp", "SE"} <= set(found)
    channel = int(gam.gates.spatial.flatten(1).std(1).argmax())
    assert f"channel {channel}" in found


@pytest.mark.parametrize("attention", ["bam", "cbam", "tam", "abn"])
def test_other_mechanisms_can_be_drawn(attention: str, places: Path) -> None:
    """Also without outlines, of a picture that is grey all over."""
    config = RunConfig(**SMALL | {"epochs": 1}, attention=attention)
    grey = maps.picture(config, save(np.full((32, 32), 99), places / "grey.png"))
    run, model = Run(config), build_model(**config.architecture()).eval()
    view = maps.look(run, grey, model=model)
    along = {"one": maps.history({0: model}, grey)}
    paths = figures.export(gate_figures.side_by_side([view]), "one")
    paths += figures.export(gate_figures.along_training(along, grey), "along")
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert (view.before is None) == (attention == "abn")


def test_what_is_rounded_to_one_number_does_not_show_as_a_pattern() -> None:
    flat = torch.full((1, 8, 8), 0.5)
    flat[0, 0, 0] = 0.501
    low, high = gate_figures.scale([Gates(None, flat, flat), Gates(None, None, flat)])
    assert math.isclose(high - low, 0.02, rel_tol=1e-4) and low < 0.5 < high
    assert gate_figures.scale([Gates(None, None, flat)]) == (0.0, 1.0)


def test_the_widgets_draw_what_is_chosen(trained: Run, tmp_path: Path) -> None:
    explorer = Explorer("digits", 1)
    assert explorer.run.value.config.attention == "gam" and explorer.layer.value == LAYER
    assert len(explorer.run.options) == 2 and explorer.index.max == 897 and explorer.message.value == ""
    seen = [bytes(explorer.view.value)]
    assert seen[0].startswith(b"\x89PNG") and bytes(explorer.training.value).startswith(b"\x89PNG")

    def changed() -> bool:
        seen.append(bytes(explorer.view.value))
        return seen[-1] not in seen[:-1] and explorer.message.value == ""

    explorer.index.value = 2
    assert changed()
    explorer.layer.value = "layer2.0.bn2.attention"
    assert changed()
    explorer.run.index = 1 - explorer.run.index
    assert changed() and explorer.layer.value == "layer2.0.bn2.attention"
    explorer.file.value = str(save(np.eye(40) * 255, tmp_path / "own.png"))
    assert changed()
    explorer.file.value = "/nowhere/<b>.png"
    assert explorer.view.value == seen[-1] and "/nowhere/&lt;b&gt;.png cannot be read" in explorer.message.value
    explorer.file.value = ""
    assert explorer.message.value == ""
    explorer.run.index = 1 - explorer.run.index
    (trained.folder / "checkpoint.epoch1.pt").write_bytes(b"damaged")
    explorer.run.index = 1 - explorer.run.index
    explorer.run.value = next(run for _, run in explorer.run.options if run.config.attention == "gam")
    assert "checkpoint.epoch1.pt cannot be used" in explorer.message.value


def test_the_widgets_begin_with_a_file_and_need_a_run(trained: Run, tmp_path: Path) -> None:
    path = save(np.eye(40) * 255, tmp_path / "own.png")
    assert Explorer("digits", str(path)).view.value != Explorer("digits", 0).view.value
    shutil.rmtree(trained.folder.parent)
    with pytest.raises(RunFailed, match="no run with attention on digits is done"):
        Explorer("digits")
