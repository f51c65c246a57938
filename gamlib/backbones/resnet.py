"""ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385): torchvision's own, with a choice of stem and width."""

from typing import Any

from torch import nn
from torchvision.models import resnet as tv

BLOCKS: dict[str, tuple[type[tv.BasicBlock | tv.Bottleneck], list[int]]] = {
    "resnet18": (tv.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (tv.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (tv.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (tv.Bottleneck, [3, 4, 23, 3]),
}


class ResNet(tv.ResNet):
    """torchvision's ResNet with a choice of stem, a `width` factor on all channels, and with or without pooling.

    The CIFAR stem is 3x3 of stride 1 without max-pooling, so that the last maps of a 32x32 image are 4x4.
    """

    classifier_name = "fc"

    def __init__(self, backbone: str, num_classes: int, stem: str, max_pool: bool, width: float) -> None:
        self._width = width
        # Without max-pooling the first block of stage 1 takes stride 2, so that the sizes of the maps stay: the reading
        # that Table 4 of the paper implies (+0.004M parameters, +0.013G FLOPs).
        self._first_stride = 2 if stem == "imagenet" and not max_pool else 1
        block, layers = BLOCKS[backbone]
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
