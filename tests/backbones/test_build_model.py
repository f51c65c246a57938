import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from gamlib import GAM, build_model, names, paper
from gamlib.attention import CBAM, MECHANISMS, options

PRINTED = [  # table, attention, variant, and the arguments that make it
    (2, "none", "", {"attention": "none"}),
    (2, "cbam", "", {"attention": "cbam"}),
    (2, "gam", "", {"attention": "gam"}),
    (3, "gam", "sp", {"attention": "gam", "submodules": "sp"}),
    (3, "gam", "ch", {"attention": "gam", "submodules": "ch"}),
    (4, "cbam", "wmp", {"attention": "cbam", "max_pool": False}),
    (4, "gam", "wmp", {"attention": "gam", "max_pool": False}),
]


@pytest.mark.parametrize(("table", "attention", "variant", "arguments"), PRINTED)
def test_resnet18_has_the_printed_parameters(
    table: int, attention: str, variant: str, arguments: dict[str, str]
) -> None:
    with torch.device("meta"):
        model = build_model("resnet18", **arguments)  # type: ignore[arg-type]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{millions:.2f}" == f"{paper.row(table, 'resnet18', attention, variant)['params_m']:.2f}"


def test_without_attention_it_is_torchvisions_network() -> None:
    theirs, ours = resnet18().eval(), build_model("resnet18", attention="none").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_the_block_stands_between_the_last_norm_and_the_addition() -> None:
    model: Any = build_model("resnet18", attention="gam", width=0.5).eval()
    block = model.layer1[0]
    x = torch.randn(2, 32, 8, 8).relu()
    norm, attention = block.bn2.children()
    assert isinstance(attention, GAM)
    inner = norm(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(attention(inner) + x))


def test_every_residual_block_has_one() -> None:
    model = build_model("resnet18", attention="gam")
    assert sum(isinstance(module, GAM) for module in model.modules()) == 8


@pytest.mark.parametrize(
    ("arguments", "first_map"),
    [
        ({"stem": "imagenet"}, 8),
        ({"stem": "imagenet", "max_pool": False}, 8),
        ({"stem": "cifar"}, 32),
    ],
)
def test_size_of_the_maps_of_stage_1(arguments: dict[str, object], first_map: int) -> None:
    model = build_model("resnet18", width=0.25, **arguments)  # type: ignore[arg-type]
    sizes: list[torch.Size] = []
    model.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))  # type: ignore[union-attr]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    assert sizes == [(2, 16, first_map, first_map)]


@pytest.mark.parametrize(
    ("attention", "groups"), [("gam", 1), ("gam", 4), ("gam_separable", 1), ("gam_separable", 4), ("gam_low_rank", 2)]
)
def test_initial_weights_are_those_of_cbams_authors(attention: str, groups: int) -> None:
    """By the outputs that an input reaches: in a grouped convolution those of its group."""
    model = build_model("resnet18", attention, groups=groups)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            chance = 4 / (2 * module.weight.numel()) ** 0.5  # four standard errors of a standard deviation
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=chance), name
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all()), name
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name


def test_cbams_gates_start_at_one_half() -> None:
    gates = [m.norm.weight for m in build_model("resnet18", attention="cbam").modules() if isinstance(m, CBAM)]
    assert len(gates) == 8
    assert not any(weight.detach().any() for weight in gates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, "backbone='resnet19': allowed: resnet18"),
        ({"attention": "games"}, "attention='games': .* none, se, bam, cbam, tam, gam"),
        ({"stem": "vgg"}, "stem='vgg': allowed: imagenet, cifar"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": "10"}, "num_classes='10': allowed: whole numbers from 1"),
        ({"width": -1.0}, "width=-1.0"),
        ({"width": float("inf")}, "width=inf: allowed: numbers above 0"),
        ({"max_pool": "false"}, "max_pool='false': allowed: True, False"),
        ({"gate_max_pool": "false"}, "gate_max_pool='false': allowed: True, False"),
        ({"gate_max_pool": True, "attention": "se"}, "gate_max_pool=True: attention=se has none"),
        ({"attention": "se", "submodules": "both"}, r"submodules='both': allowed: ch\+sp, ch, sp"),
        ({"attention": "none", "groups": -3}, "groups=-3: allowed: whole numbers from 1"),
        ({"backbone": "mobilenet_v2", "reduction": 7}, "reduction=7: allowed in MobileNetV2: powers of two"),
        ({"reduction": 3}, "reduction=3 does not divide the 64 channels"),
    ],
)
def test_a_bad_value_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**{"backbone": "resnet18", **arguments})  # type: ignore[arg-type]


def test_the_table_that_needs_no_torch_is_what_the_classes_say() -> None:
    assert [*names.ATTENTIONS] == [*build_model.attentions()]
    for attention, table in names.ATTENTIONS.items():
        known = options(attention) if attention in MECHANISMS else {}
        assert known == {**table, **names.MORE_OPTIONS.get(attention, {})}, attention
        assert table.keys() <= {*names.OPTIONS}
    assert build_model.backbones() == names.BACKBONES
    for backbone, stem in itertools.product(names.BACKBONES, names.STEMS):
        pooled = any(isinstance(m, nn.MaxPool2d) for m in build_model(backbone, "none", stem=stem, width=0.1).modules())
        assert names.has_max_pool(backbone, stem) == pooled


def test_build_models_defaults_are_those_of_gam_or_the_mechanisms_own() -> None:
    defaults = {key: value.default for key, value in inspect.signature(build_model).parameters.items()}
    gam = names.ATTENTIONS[defaults["attention"]]
    assert {key: defaults[key] for key in gam} == gam | {"reduction": None, "gate_max_pool": None}


@pytest.mark.parametrize(("attention", "reduction"), [("gam", 16), ("se", 16), ("gam_copied", 4)])
def test_the_reduction_that_is_left_out_is_the_mechanisms_own(attention: str, reduction: int) -> None:
    with torch.device("meta"):
        own, given, other = (build_model("resnet18", attention, reduction=r) for r in (None, reduction, 8))
    assert str(own) == str(given) != str(other)
    if attention == "gam_copied":  # its file says so, beside the paper's 16.04M
        assert f"{sum(parameter.numel() for parameter in own.parameters()) / 1e6:.2f}" == "29.11"
