"""What a network keeps when attention is attached: keys, weights, attributes, outputs, and the ways it leaves torch."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import (
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    get_model,
    regnet_y_400mf,
    resnet18,
)
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from gamlib import GAM, attach, build_model
from gamlib.attention import BAM, CBAM, MECHANISMS, SE
from gamlib.backbones.attached import Attended, ReZero


class Unit(nn.Module):
    """A convolution whose channels only a run shows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm(x))
        return torch.cat([x.relu(), x.neg().relu()], 1)


class Concat(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(maps, 1)


class Detector(nn.Module):
    """Layers that say from which ones they take their input (`f`), and which they are (`i`), as YOLO's do."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[Any, nn.Module]] = [
            (-1, Unit(3, 16)),
            (-1, nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())),
            ([-1, 0], Concat()),
            (-1, nn.Conv2d(32, 6, 1)),
        ]
        self.layers = nn.ModuleList(layer for _, layer in layers)
        for index, (source, layer) in enumerate(layers):
            layer.f, layer.i = source, index  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for layer in self.layers:
            x = layer(x if layer.f == -1 else [x if f == -1 else outputs[f] for f in layer.f])  # type: ignore[union-attr]
            assert layer.i == len(outputs)
            outputs.append(x)
        return x


CONVNEXT = [CNBlockConfig(64, 128, 1), CNBlockConfig(128, 256, 2), CNBlockConfig(256, None, 1)]
EFFICIENTNET = [MBConvConfig(1, 3, 1, 32, 16, 1), MBConvConfig(6, 3, 2, 16, 24, 2), MBConvConfig(6, 5, 2, 24, 40, 2)]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {  # how, what attach is told, blocks
    "resnet18": (resnet18, {}, 8),
    "convnext": (lambda: ConvNeXt(CONVNEXT), {}, 4),
    "efficientnet": (lambda: EfficientNet(EFFICIENTNET, 0.2), {"round_reduction": True}, 5),
    "densenet": (lambda: DenseNet(block_config=(2, 2, 2, 2)), {}, 4),
    "resnet_fpn": (lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None), {}, 8),
    "detector": (Detector, {"after": ["layers.0", "layers.1", "layers.2"], "reduction": 4}, 3),
}


def made(name: str) -> nn.Module:
    """A network as it is before training, in evaluation mode, with running statistics of its own."""
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network.eval()


def attended(name: str) -> nn.Module:
    return attach(made(name), "gam", initial="identity", **{"reduction": 16, **NETWORKS[name][1]})


def scores(network: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    leaves: list[Tensor] = tree_leaves(network(x))
    return leaves


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_its_keys_and_outputs_and_learns_with_its_blocks(name: str) -> None:
    plain, network, x = made(name), attended(name), torch.randn(2, 3, 64, 64)
    assert sum(isinstance(module, GAM) for module in network.modules()) == NETWORKS[name][2]
    state = plain.state_dict()
    assert [key for key in network.state_dict() if ".attention." not in key] == [*state]
    with torch.no_grad():
        for ours, theirs in zip(scores(network, x), scores(plain, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    after, _ = made(name), torch.manual_seed(1)
    attach(after, "gam", **{"reduction": 16, **NETWORKS[name][1]})
    missing, unexpected = after.load_state_dict(state, strict=False)
    assert not unexpected and missing and all(".attention." in key for key in missing)

    before = {key: value.clone() for key, value in network.named_parameters() if ".attention." in key}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)  # ConvNeXt's layer scale makes its gradients tiny
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([score.square().mean() for score in scores(network, x)]).sum().backward()
        optimizer.step()
    moved = [key for key, value in network.named_parameters() if key in before and not torch.equal(value, before[key])]
    assert any(key.endswith(".share") for key in moved) and any(".block.spatial." in key for key in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name != "detector" else ()) for name in NETWORKS]
)
def test_a_network_can_be_exported_and_the_detector_compiled(name: str, tmp_path: Path) -> None:
    network, x = attended(name), torch.randn(2, 3, 64, 64)
    for part in network.modules():
        if isinstance(part, ReZero):
            nn.init.constant_(part.share, 0.1)
    with torch.no_grad():
        wanted = scores(network, x)
        exported = torch.export.export(network, (x,))
        forms: list[Callable[[Tensor], Any]] = [exported.module()]
        if name == "detector":
            forms.append(torch.compile(network, backend="eager", fullgraph=True))
        for form in forms:
            for ours, theirs in zip(scores(form, x), wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.onnx.export(exported, (x,), str(tmp_path / "network.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for theirs, ours in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), wanted, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-3, atol=1e-4)


def test_copies_and_synchronised_norms_keep_the_attention() -> None:
    for network, x in ((build_model("resnet18", "cbam", width=0.125, reduction=8), 32), (attended("detector"), 8)):
        images = torch.randn(2, 3, x, x)
        wanted = network.eval()(images)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(images), wanted)
            assert [*twin.state_dict()] == [*network.state_dict()]
        kinds = [type(module).__name__ for module in network.modules()]
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert [type(module).__name__ for module in synchronised.modules()] == [
            "SyncBatchNorm" if kind == "BatchNorm2d" else kind for kind in kinds
        ]


@pytest.mark.parametrize("attention", MECHANISMS)
def test_every_mechanism_begins_as_the_identity_and_learns_from_there(attention: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    block, x = ReZero(MECHANISMS[attention](16)).eval(), torch.randn(4, 16, 8, 8)
    assert torch.equal(block(x), x)
    attach(network, attention, after="1", initial="identity").train()
    parameters = dict(network[1].attention.named_parameters())  # type: ignore[union-attr]
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for moving in ({"share"}, {*parameters}):
        optimizer.zero_grad()
        (network(torch.randn(4, 3, 8, 8)) - 1).square().mean().backward()
        assert {name for name, parameter in parameters.items() if parameter.grad.any()} <= moving
        optimizer.step()
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    assert "share" in moved and len(moved) > 1


def test_what_is_read_of_a_layer_is_read_of_the_module_inside() -> None:
    layer: Any = attended("detector").layers[2]  # type: ignore[index]
    assert isinstance(layer, Attended) and (layer.f, layer.i) == ([-1, 0], 2)
    with pytest.raises(AttributeError, match="'Concat' object has no attribute 'stride'"):
        _ = layer.stride


def test_weights_of_the_plain_network_load_before_and_after_and_so_do_those_of_earlier_runs() -> None:
    for backbone in ("resnet18", "mobilenet_v2"):
        model = build_model(backbone, "se")
        missing, unexpected = model.load_state_dict(get_model(backbone).state_dict(), strict=False)
        assert not unexpected and all(".attention." in key for key in missing)
        assert len(missing) == len([key for key in model.state_dict() if ".attention." in key])
    model, other = (
        build_model("resnet18", "se", width=0.125, reduction=8),
        build_model("resnet18", "se", width=0.125, reduction=8),
    )
    earlier = {key.replace(".bn2.", ".bn2.inner."): value for key, value in model.state_dict().items()}
    earlier = {key.replace(".inner.attention.", ".attention."): value for key, value in earlier.items()}
    assert "layer1.0.bn2.inner.weight" in earlier and "layer1.0.bn2.attention.mlp.0.weight" in earlier
    other.load_state_dict(earlier)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_does_not_load_is_named_by_the_key_that_is_saved() -> None:
    model = build_model("resnet18", "se", width=0.125, reduction=8)
    state: dict[str, Any] = dict(model.state_dict())
    state |= {"layer1.0.bn2.bias": torch.zeros(3), "layer1.0.bn2.offset": torch.zeros(3)}
    del state["layer1.0.bn2.weight"]
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    said = str(error.value)
    assert (
        'Missing key(s) in state_dict: "layer1.0.bn2.weight"' in said and "size mismatch for layer1.0.bn2.bias" in said
    )
    assert 'Unexpected key(s) in state_dict: "layer1.0.bn2.offset"' in said and "inner" not in said


def test_a_module_with_an_attention_of_its_own_is_refused() -> None:
    unit = Unit(3, 16)
    unit.attention = nn.Identity()
    with pytest.raises(ValueError, match="0 has an attention block already, or something else with the name attention"):
        attach(nn.Sequential(unit), after="0")


def test_a_sequential_that_does_more_than_call_its_children_is_wrapped() -> None:
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, x], 1))

    network = attach(nn.Sequential(Doubled(nn.Conv2d(6, 16, 1), nn.ReLU())), after="0", example=(1, 3, 8, 8))
    assert isinstance(network[0], Attended)  # type: ignore[index]
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 16, 8, 8)


@pytest.mark.parametrize(
    ("network", "block", "places", "stages"),
    [
        (convnext_tiny, CBAM, "features.1.0.block", ["features.1", "features.3", "features.5"]),
        (efficientnet_b0, CBAM, "features.2.1.block", [f"features.{stage}" for stage in range(1, 7)]),
        (regnet_y_400mf, CBAM, "trunk_output.block2.block2-0.f", [f"trunk_output.block{n}" for n in (1, 2, 3)]),
        (densenet121, CBAM, "features.denseblock4", [f"features.denseblock{n}" for n in (1, 2, 3)]),
        (NETWORKS["resnet_fpn"][0], CBAM, "body.layer4.1.bn2", ["body.layer1", "body.layer2", "body.layer3"]),
        (lambda: timm.create_model("resnet18"), CBAM, "layer4.1.bn2", ["layer1", "layer2", "layer3"]),
        (lambda: timm.create_model("resnet26"), CBAM, "layer4.1.bn3", ["layer1", "layer2", "layer3"]),
    ],
)
def test_places_in_families_of_networks(
    network: Callable[[], nn.Module], block: type[nn.Module], places: str, stages: list[str]
) -> None:
    in_blocks = dict(attach(network(), "cbam", round_reduction=True).named_modules())
    assert isinstance(in_blocks[f"{places}.attention"], block)
    behind = attach(network(), "bam", round_reduction=True)
    found = [name for name, module in behind.named_modules() if isinstance(module, BAM)]
    assert found == [f"{stage}.attention" for stage in stages]


def test_channels_are_those_of_the_output_whatever_is_in_a_module() -> None:
    dense = attach(densenet121(), "se", after="features.denseblock1")
    assert dense.features.denseblock1.attention.mlp[0].in_features == 256  # type: ignore[union-attr, index]
    assert dense.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    # behind the module the network may fail: here its classifier takes other images than the example
    small = nn.Sequential(Unit(3, 16), nn.Flatten(), nn.Linear(16 * 64, 10))
    assert attach(small, "se", after="0")(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"block\.2 \(LayerNorm\) puts out \[1, 56, 56, 96\] and \[1, 64, 64, 96\]"):
        attach(convnext_tiny(), after="features.1.0.block.2")
    fixed = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(2), nn.Unflatten(2, (8, 8)), nn.Threshold(0, 0))
    assert attach(fixed, "se", after="3", example=torch.zeros(1, 3, 8, 8))(torch.randn(2, 3, 8, 8)).ndim == 4
    with pytest.raises(ValueError, match=r"puts out \[1, 8, 8, 16\], which does not show where its channels are"):
        attach(
            nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8, 16)), nn.Flatten(0, 1)),
            after="2",
            example=(1, 1, 32, 32),
        )


def test_channels_can_be_said_where_a_network_cannot_be_run() -> None:
    class Choosing(Unit):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() else x

    network = nn.Sequential(Choosing(3, 16), nn.Conv2d(16, 8, 1))
    with pytest.raises(ValueError, match=r"0 \(Choosing\) cannot be told: .* say channels=, or an example="):
        attach(network, after="*")
    attach(network, after=["0", "1"], channels={"0": 16}, reduction=8)
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 8, 8, 8)


def test_a_reduction_is_rounded_to_the_next_that_divides() -> None:
    network = attach(
        nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 7, 1)), "se", after="*", reduction=5, round_reduction=True
    )
    hidden = [module.mlp[0].out_features for module in network.modules() if isinstance(module, SE)]
    assert hidden == [24 // 6, 7 // 7]
