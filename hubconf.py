"""Entry points of torch.hub: `torch.hub.load(FOLDER, "resnet18_gam", source="local", num_classes=10)`.

`torch.hub.list` names them: every network with a mechanism, `build_model`, and the block alone, `gam`.
"""

from gamlib import GAM as gam
from gamlib import build_model
from gamlib.backbones.entry_points import entry_points as _entry_points

__all__ = ["build_model", "dependencies", "gam"]

dependencies = ["torch", "torchvision"]
globals().update(_entry_points(__name__))
