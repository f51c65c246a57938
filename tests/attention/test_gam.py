"""GAM against its equations, written out here without torch's own layers: einsum for the MLP, loops for the window."""

import itertools

import pytest
import torch
from torch import Tensor

from gamlib import GAM


def window(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A 7x7 convolution with zero padding: every tap of the window is an einsum over the channels of a group."""
    n, channels, height, width = x.shape
    inside = torch.zeros(n, channels, height + 6, width + 6, dtype=x.dtype)
    inside[:, :, 3 : 3 + height, 3 : 3 + width] = x
    grouped = inside.reshape(n, groups, channels // groups, height + 6, width + 6)
    taps = weight.reshape(groups, -1, channels // groups, 7, 7)
    total = torch.zeros(n, groups, taps.shape[1], height, width, dtype=x.dtype)
    for row, column in itertools.product(range(7), range(7)):
        part = grouped[..., row : row + height, column : column + width]
        total = total + torch.einsum("goc,ngchw->ngohw", taps[..., row, column], part)
    return total.reshape(n, -1, height, width)


def equations(block: GAM, x: Tensor, submodules: str, groups: int) -> Tensor:
    """F2 = Mc(F1) * F1, F3 = Ms(F2) * F2, from the weights of a block."""
    weights = dict(block.named_parameters())
    if "ch" in submodules:
        first, second = (weights[f"channel.mlp.{layer}.weight"] for layer in (0, 2))
        hidden = torch.einsum("kc,nchw->nkhw", first, x) + weights["channel.mlp.0.bias"][None, :, None, None]
        scores = torch.einsum("ck,nkhw->nchw", second, hidden.clamp(min=0))
        x = x / (1 + torch.exp(-scores - weights["channel.mlp.2.bias"][None, :, None, None]))
    if "sp" in submodules:
        hidden = window(x, weights["spatial.squeeze.weight"], groups).clamp(min=0)
        count = hidden.shape[1]  # channel shuffle: the output lists the first of every group, then the second, ...
        order = [group * (count // groups) + index for index in range(count // groups) for group in range(groups)]
        x = x / (1 + torch.exp(-window(hidden[:, order], weights["spatial.expand.weight"], groups)))
    return x


@pytest.mark.parametrize("size", [(9, 9), (7, 5), (3, 2), (1, 1)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("submodules", ["ch+sp", "ch", "sp"])
def test_values_and_gradients_are_those_of_the_equations(submodules: str, groups: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = GAM(32, reduction=4, submodules=submodules, groups=groups).double()
    x = torch.randn(2, 32, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 32, *size, dtype=torch.float64)
    wanted = equations(block, x, submodules, groups)
    found = block(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    inputs = [x, *block.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_shuffle_mixes_the_groups() -> None:
    """Without it an input channel would reach only the outputs of its own group."""
    torch.manual_seed(0)
    block = GAM(32, reduction=2, submodules="sp", groups=4).double()
    x = torch.randn(1, 32, 8, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[:, 0].sum(), x)
    assert gradient.abs().sum((0, 2, 3)).count_nonzero() == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 64, "groups": 3}, "groups=3 does not divide the 4 hidden channels.*allowed: 1, 2, 4"),
        ({"channels": 64, "reduction": 5}, "reduction=5 does not divide the 64 channels.*allowed: 1, 2, 4, 8"),
        ({"channels": 64, "reduction": 0}, "reduction=0"),
        ({"channels": 64, "submodules": "chsp"}, r"submodules='chsp': allowed: ch\+sp, ch, sp"),
    ],
)
def test_a_bad_value_is_refused_with_the_numbers(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GAM(**values)  # type: ignore[arg-type]
