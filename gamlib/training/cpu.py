"""What training on a CPU needs: memory that is kept, and convolutions whose bfloat16 gradients are right."""

import ctypes

import torch
from torch import Tensor, nn


def keep_memory() -> None:
    """Have the C library keep what a step frees for the next one: the system would clear every page of it anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    m_trim_threshold, m_mmap_threshold = -1, -3
    # The second is the most that glibc before 2.35 takes.
    if mallopt is not None and (mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)):
        mallopt(m_trim_threshold, 2**31 - 1)


class _Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in float32 where the kernel, dilated, is larger than what it goes over.

    On a CPU with bfloat16 instructions torch 2.11 (oneDNN) does not write all of the weight's gradient of such a
    convolution in bfloat16: where the kernel meets nothing but padding, which is most of a 7x7 one over 1x1 or 2x2
    pixels, whatever lay in memory stays and is taken for a gradient. It should be zero there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As torch's own."""
        extents = (1 + step * (taps - 1) for step, taps in zip(self.dilation, self.kernel_size, strict=True))
        if any(extent > size for extent, size in zip(extents, input.shape[2:], strict=True)):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def exact_gradients(model: nn.Module) -> None:
    """Make a network's convolutions safe for bfloat16 autocast on a CPU, in place: same parameters and names."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = _Conv2d
