"""Memory of maps [N, C, H, W]: in which order it lies, and memory that is used again and again."""

import math
import threading

import torch
from torch import Tensor

_HELD = threading.local()


def workspace(name: str | None, like: Tensor, *shape: int) -> Tensor:
    """Memory for what is needed no longer than until the next call with this name in this thread.

    The system clears pages that are new to a process, which takes long. Without a name, and on a GPU, where PyTorch
    keeps memory itself, it is new.
    """
    if name is None or like.is_cuda:
        return like.new_empty(shape)
    needed, key = math.prod(shape), f"{name} {like.dtype}"
    held = getattr(_HELD, key, None)
    if held is None or held.numel() < needed:
        with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
            held = torch.empty(needed, dtype=like.dtype, device=like.device)
        setattr(_HELD, key, held)
    return held[:needed].view(shape)


def in_channels_last(x: Tensor, name: str | None = None) -> Tensor:
    """Such memory for a map like x; without a name no view of anything, so that it may be changed in place."""
    batch, channels, height, width = x.shape
    if name is None:
        return x.new_empty_strided(x.shape, (height * width * channels, 1, width * channels, channels))
    return workspace(name, x, batch, height, width, channels).permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C]; the same memory if x is in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps(values: Tensor, like: Tensor) -> Tensor:
    """Rows -> [N, c, H, W] in channels_last, with N, H and W of `like`; the same memory if they are contiguous."""
    batch, _, height, width = like.shape
    return values.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def with_rows(x: Tensor) -> Tensor:
    """x, copied if the channels of a position do not lie one after the other."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """A map in x's order of memory: channels first, or last."""
    channels_first = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous() if channels_first else out
