"""Ablations of the Global Attention Mechanism (GAM, arXiv 2112.05561).

`GAM` is the block, `build_model` a network with it (or a rival) in every slot. Both are imported on first use,
so that a command which needs no network does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamlib.attention import GAM
    from gamlib.backbones import build_model

__all__ = ["GAM", "build_model"]


def __getattr__(name: str) -> Any:
    if name == "GAM":
        from gamlib.attention import GAM

        return GAM
    if name == "build_model":
        from gamlib.backbones import build_model

        return build_model
    raise AttributeError(f"module 'gamlib' has no attribute {name!r}; it has {', '.join(__all__)}")
