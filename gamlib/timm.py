"""`import gamlib.timm`, and timm's registry has every network with a mechanism: `timm.create_model("resnet18_gam")`.

Keyword arguments are those of `build_model`, e.g. `num_classes=10`; a ValueError names one that it does not have.
"""

from timm.models import register_model

from gamlib.backbones.entry_points import entry_points

for _entry_point in entry_points(__name__).values():
    register_model(_entry_point)
