"""Memory that a backend uses again and again: the system clears pages that are new to a process, which takes long."""

import math
import threading

import torch
from torch import Tensor

_HELD = threading.local()


def workspace(name: str, like: Tensor, *shape: int) -> Tensor:
    """Memory for what is needed no longer than until the next call with this name in this thread."""
    needed, key = math.prod(shape), f"{name} {like.dtype}"
    held = getattr(_HELD, key, None)
    if held is None or held.numel() < needed:
        with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
            held = torch.empty(needed, dtype=like.dtype, device=like.device)
        setattr(_HELD, key, held)
    return held[:needed].view(shape)


def workspace_in_channels_last(name: str, x: Tensor) -> Tensor:
    """Such memory for a map like x [N, C, H, W]."""
    batch, channels, height, width = x.shape
    return workspace(name, x, batch, height, width, channels).permute(0, 3, 1, 2)
