"""Some hundred of the random cases of `fuzz.py`, and each condition of a fast form by itself."""

import pytest
import torch
from fuzz import failures
from near import ON_CPU, equations
from torchvision.models import densenet121

from gamlib import GAM, accelerate, attach
from gamlib.kernels import FastGAM

pytestmark = pytest.mark.slow

CASES, PART = 300, 60


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_a_fast_form_equals_the_plain_block_or_the_plain_block_runs_or_both_refuse(first: int) -> None:
    wrong = [line for number in range(first, first + PART) for line in failures(number, seed=0)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("engine", ["auto", *ON_CPU])
@pytest.mark.parametrize("shape", [(2, 48, 3, 3), (8, 512, 2, 2), (1, 16, 3, 3), (3, 32)])
def test_a_map_of_other_channels_is_refused(engine: str, shape: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        accelerate(GAM(32), engine)(torch.randn(shape, requires_grad=True)).sum().backward()


def test_a_block_whose_channels_were_said_wrong_refuses_the_map() -> None:
    network = densenet121(num_classes=10)
    accelerate(attach(network, attention="gam", after="features.denseblock1", channels=32))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("size", [(7, 2), (7, 4), (2, 2), (9, 5)])
def test_one_channel_is_computed_by_the_plain_block(size: tuple[int, int]) -> None:
    block, x = accelerate(GAM(1, reduction=1)), torch.randn(2, 1, *size)
    assert isinstance(block, FastGAM) and block.backend_for(x) == "plain"
    torch.testing.assert_close(block(x), equations(block.double())(x.double()).float())


@pytest.mark.parametrize("channels", [65, 72, 100, 120])
def test_wide_maps_that_do_not_fill_vectors_are_transformed(channels: int) -> None:
    block = accelerate(GAM(channels, reduction=5 if channels % 5 == 0 else 4), "fourier")
    x = torch.randn(3, channels, 5, 4)
    assert isinstance(block, FastGAM) and block.backend_for(x) == "fourier"
    torch.testing.assert_close(block(x), equations(block)(x), rtol=1e-5, atol=1e-5)


def test_a_method_that_was_replaced_on_a_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = accelerate(GAM(16, 4)), torch.randn(1, 16, 5, 5)
    monkeypatch.setattr(type(block.spatial), "forward", lambda self, x: torch.full_like(x, 0.25))
    monkeypatch.setattr(type(block.channel), "forward", lambda self, x: torch.full_like(x, 0.5))
    torch.testing.assert_close(block(x), 0.125 * x)


def test_a_lazy_negation_is_read_as_what_it_is() -> None:
    block, x = accelerate(GAM(16, 4)), torch.randn(1, 16, 5, 5)
    torch.testing.assert_close(block(torch._neg_view(x)), equations(block)(-x))


def test_gradients_of_tied_weights_are_those_of_the_plain_block_with_a_graph_too() -> None:
    block, x = accelerate(GAM(16, 1, "ch")), torch.randn(1, 16, 5, 5)
    assert block.channel is not None
    block.channel.mlp[2].weight = block.channel.mlp[0].weight
    found, wanted = (
        torch.autograd.grad(compute(x).square().sum(), [*block.parameters()], create_graph=True)
        for compute in (block, equations(block))
    )
    torch.testing.assert_close(found, wanted)
