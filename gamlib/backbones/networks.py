"""torchvision's ResNet and MobileNetV2 with a choice of stem. Behind the CIFAR stem the last maps of 32x32 are 4x4."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import mobilenetv2, resnet

# Of MobileNetV2's seven stages expansion, channels, blocks and first stride: Table 2 of its paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class ResNet(resnet.ResNet):
    """ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385), with a `width` factor on all channels.

    The CIFAR stem is 3x3 of stride 1 without max-pooling. `max_pool=False` takes that of the ImageNet stem out.
    """

    classifier_name = "fc"

    def __init__(
        self, block: Any, layers: list[int], num_classes: int, stem: str, max_pool: bool, width: float
    ) -> None:
        self._width = width
        # Without max-pooling the first block of stage 1 takes stride 2, so that the sizes of the maps stay: the reading
        # that Table 4 of the paper implies (+0.004M parameters, +0.013G FLOPs).
        self._first_stride = 2 if stem == "imagenet" and not max_pool else 1
        super().__init__(block, layers, num_classes)
        channels, (size, stride) = self._scaled(64), (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = nn.Conv2d(3, channels, size, stride, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        if stem == "cifar" or not max_pool:
            self.maxpool = nn.Identity()
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _scaled(self, planes: int) -> int:
        return max(1, round(planes * self._width))

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:  # stage 1: torchvision has just set inplanes to an unscaled 64
            self.inplanes, stride = self._scaled(64), self._first_stride
        return super()._make_layer(block, self._scaled(planes), blocks, stride, dilate)

    def split(self) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
        """The same modules in three parts: up to stage 3, stage 4, and the classifier."""
        trunk = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool, self.layer1, self.layer2, self.layer3)
        return trunk, self.layer4, nn.Sequential(self.avgpool, nn.Flatten(), self.fc)


class MobileNetV2(mobilenetv2.MobileNetV2):
    """MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381); `width` is its own (channels in eights).

    The CIFAR stem has stride 1 in the first convolution and in stage 2. Neither stem has max-pooling.
    """

    classifier_name = "classifier.1"

    def __init__(self, num_classes: int, stem: str, max_pool: bool, width: float) -> None:
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


NETWORKS: dict[str, Callable[[int, str, bool, float], ResNet | MobileNetV2]] = {
    "resnet18": partial(ResNet, resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": partial(ResNet, resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": partial(ResNet, resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": partial(ResNet, resnet.Bottleneck, [3, 4, 23, 3]),
    "mobilenet_v2": MobileNetV2,
}
