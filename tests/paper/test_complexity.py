"""Parameters and FLOPs by the paper's rule, on modules small enough to count by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchvision.models import get_model, get_model_weights
from torchvision.ops import DeformConv2d, roi_align

from gamlib import build_model
from gamlib.attention import MECHANISMS, SE
from gamlib.paper.complexity import Complexity, complexity


class Scaled(nn.Module):
    """What users do: a constant that is no buffer, and a tensor made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((4,), 2.0)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.scale + torch.arange(4)) @ torch.ones(3, 5)


@pytest.mark.parametrize(
    ("module", "inputs", "parameters", "macs", "extra"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 5, 4), 3 * 8 * 9 + 8, 20 * 3 * 8 * 9, 0),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), (1, 4, 7, 7), 2 * 8 * 9, 9 * 2 * 8 * 9, 0),
        (nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False), (1, 4, 3, 3), 32, 9 * 4 * 2 * 4, 0),
        (nn.Linear(6, 5), (1, 7, 2, 6), 35, 14 * 30, 0),
        (nn.BatchNorm2d(3), (1, 3, 5, 4), 6, 0, 2 * 60),
        (nn.BatchNorm1d(3, affine=False), (1, 3), 0, 0, 2 * 3),
        (SE(16, reduction=4), (1, 16, 3, 3), 128, 128, 16 * 9),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.InstanceNorm2d(4), nn.Sigmoid()), (1, 4, 8, 8), 0, 0, 0),
        (nn.MultiheadAttention(8, 2, batch_first=True), None, 8 * 32 + 32, 5 * 8 * 32 + 2 * 5 * 5 * 8, 0),
        (Scaled(), (1, 4), 15, 12 + 15, 0),
        (nn.Embedding(10, 4), torch.zeros(1, 3, dtype=torch.long), 40, 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_rule_by_hand(module: nn.Module, inputs: Any, parameters: int, macs: int, extra: int) -> None:
    if isinstance(module, nn.MultiheadAttention):
        attention, inputs = module, (1, 5, 8)
        module = type("Own", (nn.Module,), {"forward": lambda self, x: self.inner(x, x, x, need_weights=False)[0]})()
        module.inner = attention
    assert complexity(module, inputs) == Complexity(parameters, macs, macs + extra)


@pytest.mark.parametrize("attention", ["se", "bam", "tam", "abn", "gam"])
def test_it_is_of_one_image_whatever_the_batch_and_wherever_the_network_lies(attention: str) -> None:
    model = build_model("resnet18", attention, num_classes=10, width=0.25, stem="cifar", reduction=8)
    one = complexity(model, (1, 3, 32, 32))
    assert complexity(model, (7, 3, 32, 32)) == complexity(model, torch.zeros(3, 3, 32, 32)) == one
    assert complexity(model.half(), (2, 3, 32, 32)) == complexity(model.to("meta"), (2, 3, 32, 32)) == one
    assert complexity(model, (1, 3, 64, 64)).macs > 3.5 * one.macs


def test_the_network_is_left_as_it_was() -> None:
    model: Any = build_model("resnet18", "bam", num_classes=10, width=0.25, reduction=4)
    model.layer1.eval()
    model.seen = []
    model.register_forward_hook(lambda module, inputs, output: module.seen.append(output))
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    complexity(model, (2, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        complexity(model, (1, 4, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert not torch.nn.modules.module._global_forward_hooks and model.seen == []


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "efficientnet_b0", "densenet121", "resnext50_32x4d"])
def test_macs_are_those_that_torchvision_publishes(name: str) -> None:
    with torch.device("meta"):
        model = get_model(name)
    found = complexity(model)
    assert round(found.macs / 1e9, 3) == get_model_weights(name).DEFAULT.meta["_ops"]
    assert found.uncounted == ()


class Products(nn.Module):
    """Those with vectors, of a matrix [4, 6] and what else they need."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Any:
        a, u, v = x[0], x[0, :, 0], x[0, 0]
        return {
            "mv": lambda: a @ v,
            "dot": lambda: v.dot(v),
            "vdot": lambda: torch.vdot(v, v),
            "addmv": lambda: torch.addmv(u, a, v),
            "addr": lambda: torch.addr(a, u, v),
            "addbmm": lambda: torch.addbmm(torch.zeros(4, 4), x, x.mT),
        }[self.name]()


@pytest.mark.parametrize(
    ("name", "macs"), [("mv", 24), ("dot", 6), ("vdot", 6), ("addmv", 24), ("addr", 24), ("addbmm", 96)]
)
def test_products_with_vectors_are_counted(name: str, macs: int) -> None:
    assert complexity(Products(name), (1, 4, 6)).macs == macs


def test_bilinear_layers_and_deformable_convolutions_are_counted() -> None:
    assert complexity(nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4))).macs == 3 * 4 * 5
    offset = torch.zeros(2, 2 * 9, 5, 6)
    found = complexity(DeformConv2d(4, 8, 3, padding=1), (torch.zeros(2, 4, 5, 6), offset))
    assert found.macs == 5 * 6 * 8 * 4 * 9


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "uncounted"),
    [
        (torch.fft.rfft2, ("aten._fft_r2c",)),
        (lambda x: torch.cdist(x, x), ("aten._cdist_forward",)),
        (torch.linalg.inv, ("aten.linalg_inv_ex",)),
        (torch.linalg.matrix_exp, ("aten.linalg_matrix_exp",)),
        (lambda x: roi_align(x, x.new_zeros(1, 5), 3), ("torchvision.roi_align",)),
        (lambda x: torch.einsum("nchw,nciw->nhi", x, x), ()),
    ],
)
def test_what_has_no_formula_is_named(function: Any, uncounted: tuple[str, ...]) -> None:
    assert complexity(Of(function), (1, 3, 4, 4)).uncounted == uncounted


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.layer_norm(F.group_norm(x, 2), (4, 4)),
        lambda x: F.hardswish(F.leaky_relu(F.elu(x)), inplace=True),
        lambda x: F.softmax(x, 1).cumsum(1).sort(1).values.topk(2, 1).indices,
        lambda x: F.unfold(F.pixel_shuffle(x, 2), 2),
        lambda x: F.adaptive_max_pool2d(F.lp_pool2d(x, 2, 2), 1),
        lambda x: torch.stack([x.tril(), x.flip(1), x.roll(1, 1)]).argmax(0),
        lambda x: torch.gather(x, 1, torch.zeros(1, 1, 4, 4, dtype=torch.long)).index_select(2, torch.arange(2)),
        lambda x: torch.where(x > 0, x.std((2, 3), keepdim=True), x.var()).norm(),
    ],
)
def test_what_multiplies_no_matrices_is_not_named(function: Any) -> None:
    found = complexity(Of(function), (1, 4, 4, 4))
    assert (found.macs, found.uncounted) == (0, ())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "convnext_tiny",
        "maxvit_t",
        "swin_v2_t",
        "shufflenet_v2_x1_0",
        "squeezenet1_0",
    ],
)
def test_of_torchvisions_networks_everything_is_counted(name: str) -> None:
    with torch.device("meta"):
        model = get_model(name)
    assert complexity(model).uncounted == ()


@pytest.mark.parametrize("attention", ["none", "abn", *MECHANISMS])
def test_of_every_mechanism_everything_is_counted(attention: str) -> None:
    model = build_model("resnet18", attention, num_classes=10, width=0.25, stem="cifar", reduction=4)
    assert complexity(model, (1, 3, 32, 32)).uncounted == ()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "parametrized", "pruned", "attribute"])
def test_weights_that_are_computed_are_no_hindrance_and_stay(wrap: str) -> None:
    model: Any = nn.Conv2d(3, 8, 3, padding=1)
    if wrap == "pruned":
        prune.l1_unstructured(model, "weight", 0.5)
    elif wrap == "attribute":
        model.held = [model.weight * 2]
    else:
        of_name: dict[str, Any] = {
            "weight_norm": nn.utils.weight_norm,
            "spectral_norm": nn.utils.spectral_norm,
            "parametrized": nn.utils.parametrizations.weight_norm,
        }
        of_name[wrap](model)
    x = torch.randn(1, 3, 5, 4)
    before, wanted = {name: value.clone() for name, value in model.state_dict().items()}, model.eval()(x)
    own = 8 * 27 + 8 if wrap == "spectral_norm" else 0  # u W v, in every call
    assert complexity(model, (1, 3, 5, 4)).macs == 20 * 3 * 8 * 9 + own
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), wanted) and model.weight.device.type == "cpu"


def test_nothing_is_computed() -> None:
    """A map of 10^14 elements would not fit anywhere."""
    found = complexity(nn.Conv2d(1, 10**6, 1, bias=False), (1, 1, 10**4, 10**4))
    assert found.macs == 10**14


def test_wrapped_networks_several_inputs_and_weights_that_are_products() -> None:
    network = build_model("resnet18", "gam", num_classes=10, width=0.25, reduction=4)
    assert complexity(nn.DataParallel(network)) == complexity(network)
    assert complexity(nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4))).parameters == 65

    class Factored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.zeros(8, 2)), nn.Parameter(torch.zeros(2, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.left @ self.right)

    assert complexity(Factored(), (7, 8)) == complexity(Factored(), (1, 8)) == Complexity(48, 8 * 2 * 16 + 8 * 16, 384)


@pytest.mark.parametrize(
    "inputs", [(), (0, 3, 8, 8), (1, 3, -8, 8), (1, 3.5), 3, torch.zeros(0, 3), (1, torch.zeros(1))]
)
def test_what_is_no_shape_is_refused(inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs=.*: allowed: a shape"):
        complexity(nn.ReLU(), inputs)
