"""What every network of the paper can do: five backbones with every mechanism, narrow and on small images."""

import copy
import itertools
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib import build_model
from gamlib.attention import MECHANISMS

NETWORKS = list(itertools.product(build_model.backbones(), build_model.attentions()))
BLOCKS = {"resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 33, "mobilenet_v2": 17}
DEEPER = ("resnet34", "resnet101")  # than resnet18 and resnet50, of the same blocks
STAGES = {"resnet18": 3, "resnet34": 3, "resnet50": 3, "resnet101": 3, "mobilenet_v2": 7}


def small(backbone: str, attention: str, **values: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(backbone, attention, **{"num_classes": 10, "width": 0.25, "reduction": 8, **values})  # type: ignore[arg-type]


def trained_a_little(model: nn.Module) -> nn.Module:
    """Running statistics and gates away from their initial values, so that a mistake would show."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize(
    ("backbone", "attention"),
    [network for network in NETWORKS if network[0] not in DEEPER or network[1] in ("none", "gam", "bam")],
)
@pytest.mark.slow
def test_a_network_learns_and_can_be_saved_and_exported(backbone: str, attention: str) -> None:
    model = small(backbone, attention)
    outputs = model.train()(torch.randn(4, 3, 32, 32))
    branches = outputs if isinstance(outputs, tuple) else (outputs,)
    labels = torch.arange(4)
    sum((F.cross_entropy(branch, labels) for branch in branches), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name

    trained_a_little(model)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted: Tensor = model(x)
        assert wanted.shape == (4, 10)
        one_by_one = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(one_by_one, wanted, rtol=1e-4, atol=1e-4)
        fresh = small(backbone, attention, width=0.25).eval()
        assert not torch.equal(fresh(x), wanted)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), wanted)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), wanted, rtol=1e-4, atol=1e-4)
        if backbone not in DEEPER:
            exported = torch.export.export(model, (x,)).module()
            torch.testing.assert_close(exported(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backbone", "attention"), NETWORKS)
def test_every_slot_has_its_block(backbone: str, attention: str) -> None:
    with torch.device("meta"):
        model = small(backbone, attention)
    blocks = [type(module) for module in model.modules() if type(module) in MECHANISMS.values()]
    wanted = STAGES[backbone] if attention == "bam" else BLOCKS[backbone]
    assert blocks == ([MECHANISMS[attention]] * wanted if attention in MECHANISMS else [])


@pytest.mark.parametrize("backbone", build_model.backbones())
@pytest.mark.parametrize(
    ("arguments", "first", "last"),
    [({"stem": "imagenet"}, 56, 7), ({"stem": "imagenet", "max_pool": False}, 56, 7), ({"stem": "cifar"}, 32, 4)],
)
def test_sizes_of_the_first_and_the_last_maps(
    backbone: str, arguments: dict[str, object], first: int, last: int
) -> None:
    """Of a 224x224 image behind the ImageNet stem, of a 32x32 image behind the CIFAR stem."""
    size = 32 if arguments["stem"] == "cifar" else 224
    with torch.device("meta"):
        model = small(backbone, "none", **arguments).eval()
        sizes = {}
        for name, module in model.named_modules():
            if name in ("layer1", "layer4", "features.2", "features.17"):
                module.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: output.shape[-1]}))
        model(torch.empty(1, 3, size, size))
    assert list(sizes.values()) == [first, last]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "backend"),
    [pytest.param("gam", "inductor", marks=pytest.mark.long), ("gam", "aot_eager"), ("abn", "aot_eager")],
)
def test_a_compiled_network_trains_as_an_eager_one(attention: str, backend: str) -> None:
    """Inductor compiles the first stage alone, which saves most of a minute: the others have the same code."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if backend == "inductor" and not (shutil.which("g++") and headers.exists()):
        pytest.skip("torch.compile needs g++ and the headers of Python")
    model = small("resnet18", attention, groups=2)
    twin = copy.deepcopy(model)
    twin.get_submodule("layer1" if backend == "inductor" else "").compile(backend=backend)
    x = torch.randn(4, 3, 32, 32)
    for network in (model, twin):
        outputs = network(x)
        branches = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.stack([branch.square().mean() for branch in branches]).sum().backward()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
