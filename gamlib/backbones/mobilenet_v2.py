"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381): torchvision's own, with a choice of stem."""

from typing import Any

from torch import nn
from torchvision.models import mobilenetv2 as tv

# expansion, channels, blocks and first stride of the seven stages: Table 2 of its paper
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(tv.MobileNetV2):
    """torchvision's MobileNetV2 with a choice of stem; `width` is its own width multiplier (channels in eights).

    The CIFAR stem has stride 1 in the first convolution and in stage 2, so that the last maps of a 32x32 image are 4x4.
    There is no max-pooling in either.
    """

    classifier_name = "classifier.1"

    def __init__(self, num_classes: int, stem: str, width: float) -> None:
        stages = [list(stage) for stage in STAGES]
        if stem == "cifar":
            stages[1][3] = 1
        super().__init__(num_classes, width, stages)
        if stem == "cifar":
            first: Any = self.features[0]
            first[0].stride = (1, 1)

    def split(self) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
        """The same modules in three parts: up to stage 5, the stages of the last resolution, and the classifier."""
        trunk, stage, last = self.features[:14], self.features[14:18], self.features[18]
        return trunk, stage, nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.classifier)
