"""GAM's variants: GAM's equations for windows of fewer weights; without gates its own, and GAM in everything else."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from by_hand import Weights, assert_equal_with_gradients, global_attention, grouped, pooled, residual_branches, sizes
from torch import Tensor, nn

from gamlib import GAM, build_model
from gamlib.attention import LowRankGAM, SeparableGAM, UngatedGAM
from gamlib.attention.gam import SUBMODULES
from gamlib.paper.complexity import complexity


def separable(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Windows that are a pointwise times a depthwise weight."""
    depthwise, pointwise = first.squeeze(1).unflatten(0, (groups, -1)), second.flatten(1).unflatten(0, (groups, -1))
    return torch.einsum("goc,gcij->gocij", pointwise, depthwise).flatten(0, 1)


def low_rank(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Windows that are a sum of products of a row and a column."""
    columns, rows = first.squeeze(3).unflatten(0, (groups, -1)), second.squeeze(2).unflatten(0, (groups, -1))
    return torch.einsum("gokj,gkci->gocij", rows, columns).flatten(0, 1)


@sizes
@grouped
@pytest.mark.parametrize("gate_max_pool", [False, True])
@pytest.mark.parametrize(("mechanism", "windows"), [(SeparableGAM, separable), (LowRankGAM, low_rank)])
def test_values_and_gradients_are_gams_for_such_windows(
    mechanism: type[GAM], windows: Any, gate_max_pool: bool, groups: int, size: tuple[int, int]
) -> None:
    def equations(x: Tensor, weights: Weights) -> Tensor:
        for name in ("spatial.squeeze", "spatial.expand"):
            weights[f"{name}.weight"] = windows(weights[f"{name}.0.weight"], weights[f"{name}.1.weight"], groups)
        return global_attention(x, weights, groups=groups, gate_max_pool=gate_max_pool)

    block = mechanism(32, reduction=4, groups=groups, gate_max_pool=gate_max_pool)
    assert_equal_with_gradients(block, 32, size, equations)


@sizes
@grouped
@pooled
def test_without_gates_values_and_gradients_are_those_of_the_equations(
    submodules: str, gate_max_pool: bool, groups: int, size: tuple[int, int]
) -> None:
    options: Any = {"submodules": submodules, "groups": groups, "gate_max_pool": gate_max_pool}
    assert_equal_with_gradients(UngatedGAM(32, reduction=4, **options), 32, size, partial(residual_branches, **options))


@pytest.mark.parametrize("backbone", build_model.backbones())
def test_a_network_without_gates_has_gams_parameters_and_flops(backbone: str) -> None:
    """With all options on a small one, with some on those that have more of the same blocks."""
    options_of_gam = itertools.product(SUBMODULES, (8, 16), (1, 4)) if backbone == "resnet18" else [("ch+sp", 8, 1)]
    for submodules, reduction, groups in options_of_gam:
        options: Any = {"submodules": submodules, "reduction": reduction, "groups": groups}
        with torch.device("meta"):
            gam, ours = (build_model(backbone, name, **options) for name in ("gam", "gam_no_gate"))
        assert complexity(ours) == complexity(gam), options
        shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (gam, ours)]
        assert shapes[0] == shapes[1], options


def test_without_gates_it_begins_with_gams_weights_and_takes_those_it_was_trained_to() -> None:
    states = []
    for attention in ("gam", "gam_no_gate"):
        torch.manual_seed(0)
        states.append(build_model("resnet18", attention, width=0.25, groups=2, reduction=8).state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_for_small_branches_the_one_without_gates_is_what_gam_is_of_a_map_of_ones() -> None:
    """Both have the tangent of the sigmoid: what is left of their difference falls with the cube of the branch."""
    torch.manual_seed(0)
    gam, ours = (kind(32, reduction=4, submodules="sp").double() for kind in (GAM, UngatedGAM))
    ours.load_state_dict(gam.state_dict())
    x = torch.ones(1, 32, 9, 9, dtype=torch.float64)
    gaps = []
    for factor in (0.02, 0.01):
        for block in (gam, ours):
            torch.manual_seed(1)
            for weight in block.parameters():
                nn.init.normal_(weight, std=factor)
        gaps.append(float((gam(x) - ours(x)).abs().max().detach()))
    assert gaps[0] / gaps[1] == pytest.approx(64, rel=0.1)  # a branch of two layers is a quarter


def test_hooks_see_the_branch_that_is_added() -> None:
    block = UngatedGAM(32, submodules="sp")
    assert isinstance(block.spatial, nn.Module)
    seen: list[torch.Tensor] = []
    block.spatial.register_forward_hook(lambda _, __, output: seen.append(output))
    x = torch.randn(1, 32, 9, 9)
    torch.testing.assert_close(block(x), x / 2 + seen[0] / 4)
    assert float(seen[0].min().detach()) < 0  # no gate
