"""Pretrained weights of torchvision's plain backbones."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import ResNet18_Weights, get_model

from gamlib import build_model, load


@pytest.fixture
def pretrained(tmp_path: Path) -> Any:
    def save(backbone: str) -> tuple[Path, dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        state = get_model(backbone).state_dict()
        torch.save(state, tmp_path / f"{backbone}.pth")
        return tmp_path / f"{backbone}.pth", state

    return save


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2"])
def test_without_attention_the_network_is_torchvisions(backbone: str, pretrained: Any) -> None:
    path, state = pretrained(backbone)
    theirs = get_model(backbone).eval()
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(build_model(backbone, "none", weights=path).eval()(x), theirs(x))


@pytest.mark.parametrize("attention", build_model.attentions())
def test_the_weights_are_there_before_the_attention_is(attention: str, pretrained: Any) -> None:
    path, state = pretrained("resnet18")
    model = build_model("resnet18", attention, num_classes=10, weights=str(path))
    parameters = list(model.parameters())
    for name in ("conv1.weight", "layer4.1.conv2.weight", "layer3.0.bn2.weight"):
        assert any(torch.equal(parameter, state[name]) for parameter in parameters), name
    # The classifier for another number of classes is a new one.
    (classifier,) = (parameter for parameter in parameters if tuple(parameter.shape) == (10, 512))
    assert float(classifier.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.1)


def test_a_member_of_torchvisions_enumeration_is_read_from_its_cache(
    pretrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = pretrained("resnet18")
    asked = []

    def cached(member: ResNet18_Weights, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(member.name)
        return state

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", cached)
    for weights in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", ResNet18_Weights.IMAGENET1K_V1, "DEFAULT"):
        model = build_model("resnet18", "none", weights=weights)
        assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert asked == ["IMAGENET1K_V1"] * 4


def test_weights_that_are_neither_cached_nor_to_be_had_say_what_belongs_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"not in .*checkpoints, and could not be downloaded: .* put resnet18-\w+.pth there"
    ):
        build_model("resnet18", "gam", weights="IMAGENET1K_V1")


@pytest.mark.parametrize("kind", ["format", "counts", "DataParallel"])
def test_files_of_torchs_old_formats_and_of_data_parallel_are_read(kind: str, pretrained: Any, tmp_path: Path) -> None:
    _, state = pretrained("resnet18")
    prefix = "module." * (kind == "DataParallel")
    saved = {prefix + key: value for key, value in state.items() if kind != "counts" or "num_batches" not in key}
    torch.save(saved, tmp_path / "OLD", _use_new_zipfile_serialization=kind != "format")
    found = build_model("resnet18", "none", weights=tmp_path / "OLD").state_dict()
    assert found.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in found.items())


def test_a_classifier_of_another_network_or_type_is_refused(pretrained: Any, tmp_path: Path) -> None:
    _, state = pretrained("resnet18")
    for change, message in (
        ({"fc.weight": torch.zeros(1000, 17)}, r"fc.weight: copying a param with shape .*\[1000, 17\].*\[10, 512\]"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.long)}, "conv1.weight is of type torch.int64"),
    ):
        torch.save(state | change, tmp_path / "changed.pth")
        with pytest.raises(ValueError, match=message):
            build_model("resnet18", "gam", num_classes=10, weights=tmp_path / "changed.pth")


@pytest.mark.parametrize("weights", ["", 123])
def test_what_is_neither_a_file_nor_a_name_is_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=f"weights={weights!r}: allowed: a file, or a name of torchvision's"):
        build_model("resnet18", weights=weights)


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet50"}, r'do not fit this resnet50: Missing .* "layer1.0.conv3.weight", .* and \d+ more'),
        (
            {"backbone": "mobilenet_v2"},
            'this mobilenet_v2: Missing .* "features.0.0.weight", .*Unexpected .* "conv1',
        ),
        ({"stem": "cifar"}, r"conv1.weight: copying a param with shape .*\[64, 3, 7, 7\].*\[64, 3, 3, 3\]"),
        ({"width": 0.5}, r"conv1.weight: copying a param with shape .*\[64, 3, 7, 7\].*\[32, 3, 7, 7\]"),
        ({"max_pool": False}, 'Missing .* "layer1.0.downsample.0.weight"'),
        ({"weights": "missing.pth"}, "weights='missing.pth' cannot be read: .*No such file"),
        ({"weights": "IMAGENET1K_V9"}, "weights='IMAGENET1K_V9': allowed for resnet18: a file, or .* IMAGENET1K_V1"),
        ({"weights": "ResNet50_Weights.IMAGENET1K_V1"}, "allowed for resnet18"),
        ({"weights": ResNet18_Weights.DEFAULT, "backbone": "resnet34"}, "allowed for resnet34"),
    ],
)
def test_a_wrong_file_is_refused_by_name(arguments: dict[str, Any], message: str, where: str, pretrained: Any) -> None:
    path, _ = pretrained("resnet18")
    with pytest.raises(ValueError, match=message), torch.device(where):
        build_model(**{"backbone": "resnet18", "weights": path, **arguments})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of torch", "cannot be read"),
        (b"", "cannot be read"),
        (
            {"model": {"conv1.weight": torch.zeros(1)}, "epoch": 3},
            "no state dictionary of tensors but a dictionary of model, epoch",
        ),
        ({"fc.weight": torch.zeros(()), "fc.bias": torch.zeros(10)}, 'Missing .* "conv1.weight"'),
        ([torch.zeros(1)], "holds no state dictionary of tensors"),
        ({}, 'Missing .* "conv1.weight"'),
    ],
)
def test_a_file_that_is_no_state_dictionary_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        build_model("resnet18", weights=path)


def test_the_checkpoint_of_a_run_is_a_file_of_weights(pretrained: Any, tmp_path: Path) -> None:
    _, state = pretrained("resnet18")
    torch.save({"identity": {"seed": 0}, "epoch": 1, "step": 0, "model": state}, tmp_path / "checkpoint.pt")
    model = build_model("resnet18", "gam", weights=tmp_path / "checkpoint.pt")
    assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])


def run_of(folder: Path, network: torch.nn.Module, inner: bool = False, **values: Any) -> Path:
    """A folder as a finished run leaves it, with keys as those before 2026-11-28 have them if `inner`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"stem": "cifar", "width": 0.25, "submodules": None, **values}))
    (folder / "result.json").write_text("{}")
    state = network.state_dict()
    if inner:
        blocks = {name.removesuffix(".attention") for name, _ in network.named_modules() if name.endswith(".attention")}
        wrapped = [block for block in blocks if not isinstance(network.get_submodule(block), torch.nn.Sequential)]
        assert wrapped
        for name in [*state]:
            block = next((block for block in wrapped if name.startswith(f"{block}.")), None)
            if block and not name.startswith(f"{block}.attention."):
                state[f"{block}.inner.{name.removeprefix(block)[1:]}"] = state.pop(name)
    torch.save({"identity": {}, "epoch": 1, "step": 0, "model": state}, folder / "checkpoint.pt")
    return folder


def network_of(backbone: str, attention: str, stages: list[int] | None = None) -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_model(backbone, attention, num_classes=7, stem="cifar", width=0.25, stages=stages)
    for value in network.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.1, 0.5)
    return network.eval()


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("attention", ["none", "gam", "bam", "abn"])
def test_the_network_of_a_run_is_loaded_and_gone_on_from(backbone: str, attention: str, tmp_path: Path) -> None:
    network = network_of(backbone, attention)
    folder = run_of(tmp_path / "run", network, backbone=backbone, attention=attention)
    x = torch.randn(2, 3, 32, 32)
    loaded = load(folder)
    assert not loaded.training and torch.equal(loaded(x), network(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = build_model(backbone, attention, num_classes=7, stem="cifar", width=0.25, weights=folder)
    assert torch.equal(same.eval()(x), network(x))


def test_a_run_of_earlier_code_is_loaded_too(tmp_path: Path) -> None:
    network = network_of("resnet18", "gam")
    folder = run_of(tmp_path / "run", network, inner=True, backbone="resnet18", attention="gam")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(folder)(x), network(x))
    assert torch.equal(build_model("resnet18", "gam", 7, "cifar", width=0.25, weights=folder).eval()(x), network(x))


class Inner(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_mechanism_may_have_a_part_called_inner(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = build_model("resnet18", Inner, num_classes=7, stem="cifar", width=0.25).eval()
    folder = run_of(tmp_path / "run", network, backbone="resnet18", attention="of_somebody:Inner")
    x = torch.randn(2, 3, 32, 32)
    same = build_model("resnet18", Inner, num_classes=7, stem="cifar", width=0.25, weights=folder)
    assert torch.equal(same.eval()(x), network(x))


def test_blocks_that_a_runs_weights_do_not_fit_are_listed(tmp_path: Path) -> None:
    network = network_of("resnet18", "gam")
    folder = run_of(tmp_path / "run", network, backbone="resnet18", attention="gam")
    for attention, message in (
        ("abn", "behind layer1.0.bn2, layer1.1.bn2, layer2.0.bn2, layer2.1.bn2 and 4 more have no place"),
        ("none", "behind layer1.0.bn2, layer1.1.bn2, layer2.0.bn2, layer2.1.bn2 and 4 more have no place"),
        ("se", "behind layer1.0.bn2, layer1.1.bn2, layer2.0.bn2, layer2.1.bn2 and 4 more keep their initial weights"),
    ):
        with pytest.warns(UserWarning, match=message):
            model = build_model("resnet18", attention, num_classes=10, stem="cifar", width=0.25, weights=folder)
        weight = network.state_dict()["layer1.0.bn2.weight"]
        assert any(torch.equal(weight, value) for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no run: config.json: No such file or directory"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no run: config.json: Expecting"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no run: config.json: "),
        (lambda folder: (folder / "result.json").unlink(), "the run is not done"),
        (
            lambda folder: (folder / "checkpoint.pt").unlink(),
            r"its checkpoint.pt is not there; `gamlib gc",
        ),
        (lambda folder: (folder / "checkpoint.pt").write_bytes(b"x"), r"checkpoint.pt' cannot be read"),
        (lambda folder: torch.save({"a": torch.ones(1)}, folder / "checkpoint.pt"), "does not fit its config.json"),
    ],
)
def test_what_is_no_trained_network_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", network_of("resnet18", "se"), backbone="resnet18", attention="se")
    change(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)
