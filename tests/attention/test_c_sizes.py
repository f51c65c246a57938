"""Each C function refuses arrays whose sizes do not fit each other, and nothing is read or written then."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from test_native import compiled
from torch import Tensor, nn

from gamlib import GAM
from gamlib.attention.ways import native

SIZE = 2, 32, 3, 4
HIDDEN = 5
MAP = torch.channels_last


def a_map(*shape: int) -> Tensor:
    return torch.randn(shape or SIZE).contiguous(memory_format=MAP)


def an_mlp(channels: int = 32) -> list[Tensor]:
    return [torch.randn(HIDDEN, channels), torch.randn(HIDDEN), torch.randn(channels, HIDDEN), torch.randn(channels)]


def kernels() -> list[Tensor]:
    return [torch.randn(HIDDEN, 32, 7, 7), torch.randn(32, HIDDEN, 7, 7)]


def gates(x: Tensor, *given: Tensor) -> Any:
    mlp, maps = given[:4], given[4:]
    return native.channel_gate(x, mlp, *maps)  # type: ignore[arg-type]


def gate_gradients(x: Tensor, *given: Tensor) -> Any:
    return native.channel_gate_gradients(x, given[:4], *given[4:])  # type: ignore[arg-type]


def dense(x: Tensor, *given: Tensor) -> Any:
    return native.dense(x, given[:4], given[4:], differentiates=True)  # type: ignore[arg-type]


def dense_gradients(x: Tensor, *given: Tensor) -> Any:
    return native.dense_gradients(x, given[:4], given[4:6], *given[6:])  # type: ignore[arg-type]


def kept(x: Tensor) -> Tensor:
    return x.new_zeros(native.library().dense_keeps(native._size(x), HIDDEN)) if native.library() else x


CALLS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "products": (native.products, [torch.randn(3, 4, 5), torch.randn(3, 5, 6), torch.zeros(3, 4, 6)]),
    "gate": (native.gate, [a_map(), a_map(), a_map()]),
    "gate_gradient": (native.gate_gradient, [a_map(), a_map(), a_map(), a_map()]),
    "channel_gate": (gates, [a_map(), *an_mlp(), *(a_map() for _ in range(4))]),
    "channel_gate_gradients": (
        gate_gradients,
        [a_map(), *an_mlp(), torch.zeros(24, 16), a_map(), a_map(), a_map()],
    ),
    "transform": (
        native.transform,
        [torch.randn(3, 4, 2, 32), torch.randn(6, 3), torch.randn(3, 10, 8), torch.zeros(3, 10, 64)],
    ),
    "restore": (
        native.restore,
        [torch.zeros(3, 10, 64), torch.randn(6, 3), torch.randn(3, 10, 8), torch.randn(3, 4, 2, 32)],
    ),
    "dense": (dense, [a_map(), *an_mlp(), *kernels()]),
    "dense_gradients": (dense_gradients, [a_map(), *an_mlp(), *kernels(), kept(a_map()), a_map()]),
}
PLACES = [(name, place) for name, (_, given) in CALLS.items() for place in range(len(given))]


@compiled
@pytest.mark.parametrize("name", CALLS)
def test_what_fits_is_computed(name: str) -> None:
    compute, given = CALLS[name]
    compute(*given)


@compiled
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_one_more_or_one_less_along_any_axis_is_refused(name: str, place: int) -> None:
    compute, given = CALLS[name]
    axes = [1] if (name, place) == ("dense", 0) else range(given[place].ndim)  # other batches and sizes are right there
    for axis, change in product(axes, (1, -1, 16)):
        shape = [*given[place].shape]
        shape[axis] += change
        wrong = given[place].new_zeros(shape)
        wrong = wrong.contiguous(memory_format=MAP) if wrong.ndim == 4 and given[place].stride()[1] == 1 else wrong
        before = [value.clone() for value in given]
        with pytest.raises(ValueError, match="do not fit"):
            compute(*given[:place], wrong, *given[place + 1 :])
        assert all(map(torch.equal, given, before))


@compiled
def test_channels_that_do_not_fill_vectors_are_refused() -> None:
    x = a_map(2, 24, 3, 4)
    with pytest.raises(ValueError, match="do not fit"):
        native.gate(x, x, x)
    with pytest.raises(ValueError, match="do not fit"):
        native.channel_gate(x, an_mlp(24), x)  # type: ignore[arg-type]


@compiled
def test_a_map_whose_channels_do_not_lie_one_after_the_other_is_refused() -> None:
    x = a_map()
    with pytest.raises(ValueError, match="do not fit"):
        native.gate(x, x, torch.empty(SIZE))


@compiled
@pytest.mark.parametrize("implementation", ["auto", "dense", "direct", "fourier"])
def test_a_block_whose_submodules_have_other_hidden_channels_is_computed_by_its_equations(implementation: str) -> None:
    """The patch of an ablation: memory for the one width would not hold the other one."""
    block = GAM(32, 4, implementation=implementation)
    block.spatial = GAM(32, 16).spatial
    assert isinstance(block.spatial, nn.Module)
    x = torch.randn(8, 32, 2, 2, requires_grad=True)
    out = block(x)
    torch.testing.assert_close(out, block.plain(x))
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
