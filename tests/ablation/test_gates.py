"""Gates as the hooks read them, against what the blocks do; Grad-CAM against its equations written out."""

from collections import OrderedDict
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablation.gates.reading import READERS, blocks, grad_cam, read_gates
from gamlib import attach, build_model
from gamlib.attention import GAM, MECHANISMS


def network_of(attention: str, **options: Any) -> nn.Module:
    """Small, with weights that no gate is trivial for (CBAM starts at one half everywhere)."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"backbone": "resnet18", "num_classes": 10, "stem": "cifar", "width": 0.25}
    model = build_model(**values | options, attention=attention)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


def image(size: int = 32) -> Tensor:
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(1))


def passed(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into every module and what comes out of it, without the batch: a block with hooks inside is plain."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, _: nn.Module, inputs: Any, output: Any) -> None:
        found[name] = inputs[0][0].clone(), output[0].clone()

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model.eval()(image()[None])
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("attention", [name for name in MECHANISMS if name != "gam_no_gate"])
def test_the_input_times_the_factor_is_the_blocks_output(attention: str, backbone: str) -> None:
    model = network_of(attention, backbone=backbone)
    seen, through, varied = read_gates(model, image()), passed(model), 0
    assert list(seen) == list(blocks(model))
    for name, gate in seen.items():
        x, y = through[name]
        assert gate.factor.shape == x.shape
        torch.testing.assert_close(gate.factor * x, y, rtol=1e-5, atol=1e-7)
        parts = [part for part in (gate.channel, gate.spatial) if part is not None]
        assert all(part.min() >= 0 and part.max() <= 1 for part in parts)
        varied += any(part.min() < part.max() for part in parts)
    assert varied  # in some blocks the one hidden unit is dead


def test_the_gates_times_the_input_are_the_very_bits_of_the_output() -> None:
    model = network_of("gam")
    for name, gate in read_gates(model, image()).items():
        x, y = passed(model)[name]
        assert gate.channel is not None and gate.spatial is not None
        assert gate.channel.shape == gate.spatial.shape == x.shape
        assert torch.equal(x * gate.channel * gate.spatial, y)
    for name, gate in read_gates(model := network_of("cbam"), image()).items():
        x, y = passed(model)[name]
        assert gate.channel is not None and gate.spatial is not None
        assert gate.channel.shape == x.shape[:1] and gate.spatial.shape == (1, *x.shape[1:])
        assert torch.equal(gate.spatial * (gate.channel[:, None, None] * x), y)
    for name, gate in read_gates(model := network_of("se"), image()).items():
        x, y = passed(model)[name]
        assert gate.channel is not None and gate.spatial is None
        assert torch.equal(gate.channel[:, None, None] * x, y)


@pytest.mark.parametrize("channel_sigmoid", [False, True])
def test_a_channel_factor_without_a_sigmoid_is_no_gate(channel_sigmoid: bool) -> None:
    """It may be any number, so it is part of the factor and no part of a figure."""
    model = attach(network_of("none"), "gam_copied", channel_sigmoid=channel_sigmoid)
    through = passed(model)
    for name, gate in read_gates(model, image()).items():
        channel = through[f"{name}.channel_attention"][1].movedim(-1, 0)
        assert gate.spatial is not None and gate.spatial.shape == channel.shape
        if channel_sigmoid:
            assert gate.channel is not None and torch.equal(gate.channel, channel.sigmoid())
        else:
            assert gate.channel is None and bool((channel < 0).any())
            torch.testing.assert_close(gate.factor, channel * gate.spatial)


def test_branches_are_no_gates() -> None:
    with pytest.raises(
        ValueError, match=r"layer1.0.bn2.attention is an UngatedGAM: it has branches where GAM has gates"
    ):
        read_gates(network_of("gam_no_gate"), image())


def test_a_submodule_alone_has_one_gate() -> None:
    ch, sp = (
        read_gates(network_of("gam", submodules=part), image())["layer1.0.bn2.attention"] for part in ("ch", "sp")
    )
    assert ch.spatial is None and sp.channel is None
    assert ch.channel is not None and torch.equal(ch.channel, ch.factor)
    assert sp.spatial is not None and torch.equal(sp.spatial, sp.factor)


def test_the_branch_of_abn_is_read_too() -> None:
    model = network_of("abn")
    (found,) = read_gates(model, image()).values()
    through = passed(model)
    assert found.channel is None and found.spatial is not None and found.spatial.shape[0] == 1
    torch.testing.assert_close(found.factor * through["trunk"][1], through["perception_branch"][0])
    with pytest.raises(ValueError, match="layer='attention_branch' follows no module in a Sequential"):
        grad_cam(model, image(), "attention_branch", 0)


def test_of_a_block_that_is_called_twice_the_last_call_counts() -> None:
    block = GAM(4, reduction=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.Tanh(), block)
    last = read_gates(model, image(8))["1"]
    with torch.no_grad():
        inside = model[:3](image(8)[None])
        assert block.channel is not None and last.channel is not None
        torch.testing.assert_close(last.channel, block.channel(inside)[0])


def test_looking_changes_nothing() -> None:
    model = network_of("cbam").train()
    model.layer1.eval()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    read_gates(model, image())
    grad_cam(model, image(), "layer1.0.bn2.attention", 3)
    with pytest.raises(RuntimeError):
        read_gates(model, image().double())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_gates_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="this ResNet has no attention block with gates"):
        read_gates(network_of("none"), image())
    with pytest.raises(ValueError, match=r"image of shape \[1, 3, 32, 32\]: allowed: \[3, H, W\]"):
        read_gates(network_of("se"), image()[None])
    with pytest.raises(ValueError, match=r"layer='layer9': allowed: layer1.0.bn2.attention, layer1.1"):
        grad_cam(network_of("se"), image(), "layer9", 0)

    class Novel(nn.Identity):
        pass

    monkeypatch.setitem(MECHANISMS, "novel", Novel)
    with pytest.raises(ValueError, match=r"0.attention is a Novel, .*reading.py has GAM, SE"):
        read_gates(nn.Sequential(nn.Sequential(OrderedDict(attention=Novel()))), image())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("attention", "layer"),
    [("gam", "layer2.1.bn2.attention"), ("se", "layer1.0.bn2.attention"), ("bam", "layer2.attention")],
)
def test_grad_cam_is_its_equation_before_and_after_the_block(attention: str, layer: str, frozen: bool) -> None:
    """Maps weighted by their mean gradients, summed, positive; the residual block adds to its map in place."""
    model = network_of(attention).eval()
    parent = model.get_submodule(layer.rpartition(".")[0])
    block = model.get_submodule(layer)
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        maps.append(output)
        return output.clone()  # what is added in place is added to this

    handles = [part.register_forward_hook(keep) for part in list(parent.children())[-2:]]
    assert list(parent.children())[-1] is block
    model(image()[None])[0, 7].backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    found = grad_cam(model, image(), layer, 7)
    assert attention != "gam" or not torch.allclose(found[0], found[1])
    for part, mapped in zip(maps, found, strict=True):
        assert part.grad is not None
        cam = (part.grad.mean((2, 3), keepdim=True) * part).sum(1)[0].detach().clamp(min=0).numpy()
        cam = cv2.resize((cam - cam.min()) / (cam.max() - cam.min()), (32, 32))
        np.testing.assert_allclose(mapped, cam / cam.max(), atol=1e-4)
        assert mapped.shape == (32, 32) and mapped.min() >= 0 and mapped.max() == 1


def test_grad_cam_of_nothing_is_nothing() -> None:
    model = network_of("gam")
    nn.init.zeros_(model.fc.weight)  # type: ignore[union-attr, arg-type]
    before, after = grad_cam(model, image(), "layer1.0.bn2.attention", 0)
    assert not before.any() and not after.any()


def test_a_block_with_a_share_is_read_and_seen_as_part_of_what_it_follows() -> None:
    network = attach(network_of("none"), "gam", initial="identity", reduction=8)
    layer = "layer1.0.bn2.attention.block"
    assert layer in read_gates(network, image())
    before, after = grad_cam(network, image(), layer, 0)
    assert before.any() and torch.equal(before, after)  # the share is zero
    with torch.no_grad():
        network.get_parameter("layer1.0.bn2.attention.share").fill_(1)
    assert not torch.equal(*grad_cam(network, image(), layer, 0))


def test_every_mechanism_has_a_reader() -> None:
    for name, kind in MECHANISMS.items():
        assert issubclass(kind, tuple(READERS)), name


@pytest.mark.parametrize("which", ["channel", "spatial", "both"])
def test_a_block_of_ones_own_tells_its_gates_by_a_method(which: str) -> None:
    class Own(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(channels, 1, 1))

        def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
            channel, spatial = (self.scale * x.mean((2, 3), keepdim=True)).sigmoid(), x.mean(1, keepdim=True).sigmoid()
            return (None if which == "spatial" else channel), (None if which == "channel" else spatial)

        def forward(self, x: Tensor) -> Tensor:
            for gate in self.gates(x):
                x = x if gate is None else x * gate
            return x

    model = attach(build_model("resnet18", "none", num_classes=10, stem="cifar", width=0.25), Own)
    seen, through = read_gates(model, image()), passed(model)
    assert len(seen) == 8
    for name, gates in seen.items():
        x, y = through[name]
        torch.testing.assert_close(gates.factor * x, y)
        assert (gates.channel is None) == (which == "spatial") and (gates.spatial is None) == (which == "channel")
        assert gates.channel is None or gates.channel.shape == (len(x),)
        assert gates.spatial is None or gates.spatial.shape == (1, *x.shape[1:])
