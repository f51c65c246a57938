"""Each C function refuses arrays whose sizes do not fit each other, and nothing is read or written then."""

import ctypes
from collections.abc import Callable
from itertools import product

import pytest
import torch
from near import equations
from test_native import compiled
from torch import Tensor, nn

from gamlib import GAM, accelerate
from gamlib.kernels import BACKENDS, native
from gamlib.kernels.gates import channel_gate, channel_gate_gradients, spatial_gate

SIZE = 2, 32, 3, 4
HIDDEN = 5
MAP = torch.channels_last


def a_map(*shape: int) -> Tensor:
    return torch.randn(shape or SIZE).contiguous(memory_format=MAP)


def an_mlp(channels: int = 32) -> list[Tensor]:
    return [torch.randn(HIDDEN, channels), torch.randn(HIDDEN), torch.randn(channels, HIDDEN), torch.randn(channels)]


def kernels() -> list[Tensor]:
    return [torch.randn(HIDDEN, 32, 7, 7), torch.randn(32, HIDDEN, 7, 7)]


def gates(x: Tensor, *given: Tensor) -> None:
    channel_gate(x, given[:4], given[4], given[5:])  # type: ignore[arg-type]


def gate_gradients(x: Tensor, *given: Tensor) -> None:
    channel_gate_gradients(x, given[:4], *given[4:])  # type: ignore[arg-type]


def dense(x: Tensor, *weights: Tensor) -> None:
    BACKENDS["dense"].forward(x, weights, differentiates=True)


def dense_gradients(x: Tensor, *given: Tensor) -> None:
    BACKENDS["dense"].backward(given[7], x, given[:6], given[6:7])


def transform(*given: Tensor) -> None:
    x, along_h, along_w, known = given
    native.library().transform((along_h, along_w), x, known, False)


def restore(*given: Tensor) -> None:
    known, along_h, along_w, x = given
    native.library().transform((along_h, along_w), x, known, True)


def kept(x: Tensor) -> Tensor:
    return x.new_zeros(native.library().dense_keeps(x, HIDDEN)) if native.library() else x


CALLS: dict[str, tuple[Callable[..., object], list[Tensor]]] = {
    "products": (native.products, [torch.randn(3, 4, 5), torch.randn(3, 5, 6), torch.zeros(3, 4, 6)]),
    "gate": (spatial_gate, [a_map(), a_map(), a_map()]),
    "gate gradient": (spatial_gate, [a_map(), a_map(), a_map(), a_map()]),
    "channel_gate": (gates, [a_map(), *an_mlp(), *(a_map() for _ in range(4))]),
    "channel_gate_gradients": (gate_gradients, [a_map(), *an_mlp(), torch.zeros(24, 16), a_map(), a_map(), a_map()]),
    "transform": (
        transform,
        [torch.randn(3, 4, 2, 32), torch.randn(6, 3), torch.randn(3, 10, 8), torch.zeros(3, 10, 64)],
    ),
    "restore": (
        restore,
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
def test_one_more_or_one_less_along_any_axis_is_refused(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "fits", lambda x: True)  # else torch is given what C refuses
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
        native.library().gate(x, x, x, None, x)
    with pytest.raises(ValueError, match="do not fit"):
        native.library().channel_gate(x, a_map(2, 3, 4, 24), an_mlp(24), x, torch.zeros(24, 16), None, None, None)


@compiled
def test_a_map_whose_channels_do_not_lie_one_after_the_other_is_refused() -> None:
    x = a_map()
    with pytest.raises(ValueError, match="do not fit"):
        spatial_gate(x, x, torch.empty(SIZE))


@compiled
def test_numbers_of_another_type_are_refused() -> None:
    x = a_map()
    with pytest.raises(ctypes.ArgumentError, match="numbers of torch"):
        spatial_gate(x, x.half(), torch.empty_like(x))


@compiled
@pytest.mark.parametrize("backend", ["auto", "dense", "direct", "fourier"])
def test_a_block_whose_submodules_have_other_hidden_channels_is_computed_by_its_equations(backend: str) -> None:
    """The patch of an ablation: memory for the one width would not hold the other one."""
    block = accelerate(GAM(32, 4), backend)
    block.spatial = GAM(32, 16).spatial
    assert isinstance(block.spatial, nn.Module)
    x = torch.randn(8, 32, 2, 2, requires_grad=True)
    out = block(x)
    torch.testing.assert_close(out, equations(block)(x))
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
