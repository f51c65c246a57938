"""What trains through GAM's kernels for a GPU, in Triton's interpreter: the loop, and every arm of both ablations."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from interpreter import interpreted
from torch import Tensor, nn

from ablation.study_files import find_study
from gamlib import GAM, build_model
from gamlib.data import batches
from gamlib.data import images as data
from gamlib.kernels import FastGAM, conditions
from gamlib.kernels.direct import Direct
from gamlib.kernels.operators import compute
from gamlib.training import loop
from gamlib.training.parallel import Group
from gamlib.training.recipes import RECIPES, TrainingConfig

pytestmark = pytest.mark.slow

STUDIES = ("submodules", "max_pooling")
ARMS = {
    (study, arm): configs[0].architecture()
    for study in STUDIES
    for arm, configs in find_study(study).plan("digits", [0]).arms.items()
    if configs[0].attention.startswith("gam")
}
SHORT = ("submodules", "ch+sp")  # in `make test`; the others are long
SIZE = {"width": 0.25, "reduction": 8}
CPU = torch.device("cpu")
CONFIG = replace(RECIPES["digits"], epochs=1, batch_size=16, lr=0.05)


def chosen(arms: Iterable[tuple[str, str]]) -> list[Any]:
    return [pytest.param(*arm, marks=() if arm == SHORT else pytest.mark.long) for arm in arms]


def by_kernels(architecture: dict[str, Any]) -> bool:
    return architecture["attention"] == "gam" and not architecture.get("gate_max_pool")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with interpreted() as module:
        yield module


def in_float32(gradients: Any) -> Any:
    """A CPU leaves numbers of convolutions' gradients in bfloat16 unwritten where a window is larger than the map."""

    def computed(engine: Direct, gradient: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        of_x, of_weight = gradients(engine, gradient.float(), x.float(), weight.float(), saved)
        return of_x.to(x.dtype), of_weight.to(weight.dtype)

    return computed


@pytest.fixture
def calls(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the maps that the kernels were given, where a GPU would give them; else the plain block runs."""
    given: list[str] = []
    usual = conditions.usable_weights

    def forward(block: FastGAM, x: Tensor) -> Tensor:
        amp = torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):  # of a CPU's conditions that one does not hold for a GPU
            weights = usual(block, x.float())
        if not weights or x.dtype != (torch.bfloat16 if amp else torch.float32):
            return GAM.forward(block, x)
        given.append(str(x.dtype))
        return compute("triton", x, weights)

    monkeypatch.setattr(FastGAM, "forward", forward)
    monkeypatch.setattr(loop, "exact_gradients", lambda model: None)
    monkeypatch.setattr(Direct, "gradients", in_float32(Direct.gradients))
    return given


def trained(
    architecture: dict[str, Any], config: TrainingConfig, plain: bool
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and weights after one step."""
    torch.manual_seed(0)
    model: nn.Module = build_model(**architecture | SIZE)
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
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(loop, "accelerate", lambda model, backend: model)
        (metrics,) = loop.fit(model, feed, config, group=Group(CPU))
    return metrics, model.state_dict()


@pytest.mark.parametrize(("study", "arm"), chosen(ARMS))
def test_an_arm_trains_through_the_kernels_as_through_the_plain_block(calls: list[str], study: str, arm: str) -> None:
    architecture = ARMS[study, arm]
    wanted, weights = trained(architecture, CONFIG, plain=True)
    assert not calls
    found, ours = trained(architecture, CONFIG, plain=False)
    assert calls == 16 * by_kernels(architecture) * ["torch.float32"], "eight blocks, in training and in the test"
    torch.manual_seed(0)
    before = build_model(**architecture | SIZE).state_dict()
    assert (found["train_loss"], found["test_loss"]) == pytest.approx((wanted["train_loss"], wanted["test_loss"]), 1e-5)
    for name, value in weights.items():
        change = (value - before[name]).double()
        assert (ours[name] - value).double().norm() <= 1e-3 * change.norm(), name


@pytest.mark.parametrize(("study", "arm"), chosen(arm for arm, network in ARMS.items() if by_kernels(network)))
def test_an_arm_trains_through_the_kernels_in_bfloat16(calls: list[str], study: str, arm: str) -> None:
    config = replace(CONFIG, amp=True, channels_last=True)
    wanted, _ = trained(ARMS[study, arm], config, plain=True)
    found, ours = trained(ARMS[study, arm], config, plain=False)
    assert calls == 16 * ["torch.bfloat16"]
    assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=2e-2)
    assert all(value.isfinite().all() for name, value in ours.items() if ".attention." in name)
