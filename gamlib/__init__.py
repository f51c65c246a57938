"""Ablations of the Global Attention Mechanism (GAM, arXiv 2112.05561).

`GAM` is the block, `build_model` a network with it (or a rival) in every slot, `attach` puts it into a network of your
own, `accelerate` has the GAM blocks of a network computed faster, `load` gives the trained network of a run. They are
imported on first use, so that a command which needs no network does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamlib.attention import GAM
    from gamlib.backbones import attach, build_model
    from gamlib.backbones.load import load
    from gamlib.kernels import accelerate

__all__ = ["GAM", "accelerate", "attach", "build_model", "load"]
_MODULES = {"attach": "backbones", "build_model": "backbones", "load": "backbones.load"}
_MODULES |= {"GAM": "attention", "accelerate": "kernels"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"gamlib.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'gamlib' has no attribute {name!r}; it has {', '.join(__all__)}")
