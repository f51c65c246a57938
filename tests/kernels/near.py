"""A block and a map with numbers for a type, and the comparison of what computes the block in that type."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gamlib import GAM

Values = dict[str, Tensor]
ON_CPU = ("direct", "fourier", "dense")  # backends


def equations(block: GAM) -> Callable[[Tensor], Tensor]:
    """The plain block, whether accelerated or not."""
    return partial(GAM.forward, block)


def assert_as_near(found: Values, plain: Values, exact: Values) -> None:
    """At most twice as far from the exact numbers as the plain block of this type, or a few roundings of float32.

    A rectifier's input that rounding takes over zero outweighs all other errors of a gradient: in bfloat16 that is
    chance, for maps as small as these, and the numbers drawn are ones where both blocks have the same luck.
    """
    assert found.keys() == plain.keys() == exact.keys()

    def far(values: Values, name: str) -> float:
        assert values[name].shape == exact[name].shape
        return ((values[name].double() - exact[name]).norm() / exact[name].norm().clamp(min=1e-30)).item()

    limits = {name: max(2 * far(plain, name), 1e-6) for name in exact}
    errors = {name: far(found, name) for name in exact}
    assert {name: error for name, error in errors.items() if not error <= limits[name]} == {}, limits


def block_and_map(
    channels: int, reduction: int, submodules: str, size: tuple[int, int, int], dtype: torch.dtype
) -> tuple[GAM, Tensor, Tensor]:
    """A block in which no sigmoid saturates, a map, and a gradient; float64 numbers that `dtype` can hold."""
    torch.manual_seed(0)
    block = GAM(channels, reduction, submodules).double()
    for value in block.parameters():
        torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
        value.data = value.data.to(dtype).double()
    shape = (size[0], channels, *size[1:])
    x, gradient = (torch.randn(shape, dtype=torch.float64).to(dtype).double() for _ in range(2))
    return block, x, gradient


def residual(compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a residual block makes of its input x and of a block's map of it, in place."""

    def computed(x: Tensor) -> Tensor:
        out = compute(x)
        out += x
        return out.relu_()

    return computed


def with_gradients(block: GAM, x: Tensor, gradient: Tensor, compute: Callable[[Tensor], Tensor]) -> Values:
    x = x.detach().requires_grad_()
    inputs = {"x": x, **dict(block.named_parameters())}
    output = compute(x)
    gradients = torch.autograd.grad(output, list(inputs.values()), gradient.to(output.dtype))
    assert all(found.dtype == value.dtype for found, value in zip(gradients, inputs.values(), strict=True))
    return {"output": output.detach()} | {f"gradient of {n}": g for n, g in zip(inputs, gradients, strict=True)}
