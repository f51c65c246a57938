"""GAM's kernels on a GPU. Where there is none these are skipped; `test_triton.py` interprets them."""

import pytest
import torch
from near import assert_as_near, block_and_map, equations, with_gradients

from gamlib import accelerate
from gamlib.kernels import FastGAM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
SIZES = [(64, 16, 56), (256, 16, 14), (512, 16, 7), (2048, 16, 7), (96, 4, 13), (512, 4, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("submodules", ["ch+sp", "ch", "sp"])
@pytest.mark.parametrize(("channels", "reduction", "side"), SIZES)
def test_values_and_gradients_are_as_near_as_those_of_the_plain_block(
    channels: int, reduction: int, side: int, submodules: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    block, x, gradient = block_and_map(channels, reduction, submodules, (3, side, side), dtype)
    block, x, gradient = block.cuda(), x.cuda().to(memory_format=torch.channels_last), gradient.cuda()
    accelerate(block, "triton")
    exact = with_gradients(block, x, gradient, equations(block))
    block, x = block.to(dtype), x.to(dtype)
    assert isinstance(block, FastGAM) and block.backend_for(x) == "triton"
    found, again = (with_gradients(block, x, gradient, block) for _ in range(2))
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    assert_as_near(found, with_gradients(block, x, gradient, equations(block)), exact)


def test_autocast_takes_the_kernels_for_maps_of_its_type() -> None:
    block, x, gradient = block_and_map(64, 16, "ch+sp", (3, 14, 14), torch.bfloat16)
    block, x, gradient = block.cuda(), x.cuda().to(memory_format=torch.channels_last), gradient.cuda()
    accelerate(block, "triton")
    exact = with_gradients(block, x, gradient, equations(block))
    block, x = block.float(), x.bfloat16()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert isinstance(block, FastGAM)
        assert (block.backend_for(x), block.backend_for(x.float())) == ("triton", "plain")
        found, plain = (with_gradients(block, x, gradient, compute) for compute in (block, equations(block)))
    assert_as_near(found, plain, exact)
