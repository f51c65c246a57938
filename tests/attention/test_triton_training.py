"""What trains through GAM's kernels for a GPU, in Triton's interpreter: the loop, and every arm of both ablations."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreter import interpreted
from torch import Tensor, nn

from gamlib import GAM, build_model
from gamlib.attention import ways
from gamlib.attention.ways import conditions
from gamlib.lab.catalogue import CATALOGUE
from gamlib.lab.studies import Study
from gamlib.training import batches, data, loop
from gamlib.training.loop import Speed
from gamlib.training.parallel import Group
from gamlib.training.recipes import RECIPES

STUDIES = ("submodules", "max_pooling")
ARMS = {
    (study, arm): configs[0].architecture()
    for study in STUDIES
    for arm, configs in Study(name=study, **CATALOGUE[study]).plan("digits", [0]).arms.items()
    if configs[0].attention.startswith("gam")
}
SIZE = {"width": 0.25, "reduction": 8}
CPU = torch.device("cpu")
RECIPE = replace(RECIPES["digits"], epochs=1, batch_size=16, lr=0.05)


def by_kernels(architecture: dict[str, Any]) -> bool:
    return architecture["attention"] == "gam" and not architecture.get("gate_max_pool")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with interpreted() as module:
        yield module


def in_float32(backward: Any) -> Any:
    """A CPU leaves numbers of convolutions' gradients in bfloat16 unwritten where a window is larger than the map."""

    def computed(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_weight = backward(gradient.float(), x.float(), weight)
        return of_x.to(x.dtype), of_weight

    return computed


@pytest.fixture
def calls(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the maps that the kernels were given, where a GPU would give them; else the plain block runs."""
    given: list[str] = []
    usual = conditions.usable_weights

    def compute(block: GAM, x: Tensor) -> Tensor:
        amp = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):  # of a CPU's conditions that one does not hold for a GPU
            weights = usual(block, x.float())
        if weights is None or x.dtype != (torch.bfloat16 if amp else torch.float32):
            return block.plain(x)
        given.append(str(x.dtype))
        return gpu.OnGPU.apply(x, *weights)

    monkeypatch.setattr(ways, "compute", compute)
    monkeypatch.setattr(loop, "exact_gradients", lambda model: None)
    monkeypatch.setattr(gpu, "_convolution_backward", in_float32(gpu._convolution_backward))
    return given


def trained(architecture: dict[str, Any], speed: Speed, plain: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and weights after one step."""
    torch.manual_seed(0)
    model: nn.Module = build_model(**architecture | SIZE)
    if plain:
        for module in model.modules():
            if isinstance(module, GAM):
                module.forward = module.plain  # type: ignore[method-assign]
    images = data.load("digits")
    assert isinstance(images, data.Images)
    few = replace(
        images,
        train=images.train[:16],
        train_labels=images.train_labels[:16],
        test=images.test[:16],
        test_labels=images.test_labels[:16],
    )
    feed = batches.FromMemory(few, CPU, seed=0, pad=1)
    (metrics,) = loop.fit(model, feed, RECIPE, seed=0, group=Group(CPU), speed=speed)
    return metrics, model.state_dict()


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_an_arm_trains_through_the_kernels_as_through_the_plain_block(calls: list[str], study: str, arm: str) -> None:
    architecture = ARMS[study, arm]
    wanted, weights = trained(architecture, Speed(), plain=True)
    assert not calls
    found, ours = trained(architecture, Speed(), plain=False)
    assert calls == 16 * by_kernels(architecture) * ["torch.float32"], "eight blocks, in training and in the test"
    torch.manual_seed(0)
    before = build_model(**architecture | SIZE).state_dict()
    assert (found["train_loss"], found["test_loss"]) == pytest.approx((wanted["train_loss"], wanted["test_loss"]), 1e-5)
    for name, value in weights.items():
        change = (value - before[name]).double()
        assert (ours[name] - value).double().norm() <= 1e-3 * change.norm(), name


@pytest.mark.parametrize(("study", "arm"), [key for key, architecture in ARMS.items() if by_kernels(architecture)])
def test_an_arm_trains_through_the_kernels_in_bfloat16(calls: list[str], study: str, arm: str) -> None:
    speed = Speed(amp=True, channels_last=True)
    wanted, _ = trained(ARMS[study, arm], speed, plain=True)
    found, ours = trained(ARMS[study, arm], speed, plain=False)
    assert calls == 16 * ["torch.bfloat16"]
    assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=2e-2)
    assert all(value.isfinite().all() for name, value in ours.items() if ".attention." in name)
