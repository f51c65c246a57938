import pytest
import torch
from torch import Tensor, nn

from gamlib import build_model
from gamlib.training.loop import exact_gradients


def gradient(conv: nn.Conv2d, images: Tensor, amp: bool) -> Tensor:
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        conv(images).square().sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad.clone()


@pytest.mark.parametrize("pixels", [1, 2, 4])
@pytest.mark.parametrize("kernel", [5, 7, 9])
def test_a_kernel_larger_than_what_it_goes_over_has_the_gradient_of_float32(pixels: int, kernel: int) -> None:
    """Without `exact_gradients` this fails on a CPU with bfloat16 instructions: the junk shows in the gradient."""
    torch.manual_seed(0)
    conv, images = nn.Conv2d(128, 8, kernel, padding=kernel // 2), torch.randn(18, 128, pixels, pixels)
    expected = gradient(conv, images, amp=False)
    exact_gradients(conv)
    for factor in (1, 2, 4):  # of the size of the gradient: memory that the next one finds
        torch.full((factor * conv.weight.numel(),), float("nan"))
    torch.testing.assert_close(gradient(conv, images, amp=True), expected, rtol=0.05, atol=0.05 * float(expected.std()))


def test_the_network_stays_the_same() -> None:
    model = build_model("resnet18", "gam", 10, width=0.25).eval()
    names, images = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    before = model(images)
    exact_gradients(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(images), before)  # GAM's blocks are computed plainly then


@pytest.mark.parametrize(("pixels", "is_guarded"), [(8, True), (9, False)])
def test_a_dilated_kernel_is_as_large_as_what_it_spans(pixels: int, is_guarded: bool) -> None:
    """Three taps with a dilation of 4 span 9 pixels."""
    conv = nn.Conv2d(4, 4, 3, padding=4, dilation=4)
    exact_gradients(conv)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(torch.randn(1, 4, pixels, pixels))
    assert (found.dtype == torch.float32) == is_guarded
