"""Backbones: torchvision's networks with an attention block in every slot."""

from torch import nn

from gamlib.attention import MECHANISMS, build_attention, options
from gamlib.backbones import resnet

__all__ = ["STEMS", "build_model"]

STEMS = ("imagenet", "cifar")


class _BuildModel:
    """The type of `build_model`: a function that can also list what its names may be."""

    def backbones(self) -> tuple[str, ...]:
        """Names that `backbone` may take."""
        return tuple(resnet.BLOCKS)

    def attentions(self) -> tuple[str, ...]:
        """Names that `attention` may take."""
        return ("none", *MECHANISMS)

    def __call__(
        self,
        backbone: str,
        attention: str = "gam",
        num_classes: int = 1000,
        stem: str = "imagenet",
        max_pool: bool = True,
        width: float = 1.0,
        submodules: str = "ch+sp",
        reduction: int = 16,
        groups: int = 1,
    ) -> nn.Module:
        """A backbone with an attention block in every slot, initialised: [N, 3, H, W] -> [N, num_classes] scores.

        Args:
            backbone: a name from `build_model.backbones()`.
            attention: a name from `build_model.attentions()`; "none" is the plain backbone.
            num_classes: outputs.
            stem: "imagenet" (7x7 stride 2, then max-pooling) or "cifar" (3x3 stride 1, no max-pooling).
            max_pool: False takes the ImageNet stem's max-pooling out (the paper's wmp) and gives its stride to stage 1.
                The CIFAR stem has none, whatever is said here.
            width: factor on all channels of the backbone.
            submodules, reduction, groups: options of the mechanism, see `GAM`; without effect where it has none.

        Raises:
            ValueError: an unknown name or a value that does not fit; the message names it and what is allowed.
        """
        if backbone not in self.backbones():
            raise ValueError(f"backbone={backbone!r}: allowed: {', '.join(self.backbones())}")
        if stem not in STEMS:
            raise ValueError(f"stem={stem!r}: allowed: {', '.join(STEMS)}")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: allowed: whole numbers from 1")
        if width <= 0:
            raise ValueError(f"width={width}: allowed: numbers above 0")
        options(attention)  # an unknown name ends here, before anything is built
        model = resnet.ResNet(backbone, num_classes, stem, max_pool, width)
        if attention != "none":
            resnet.fill_slots(
                model,
                lambda channels: build_attention(
                    attention, channels, submodules=submodules, reduction=reduction, groups=groups
                ),
            )
        initialise(model)
        return model


def initialise(model: nn.Module) -> None:
    """Initial weights as CBAM's authors set them, in place.

    Kaiming-normal by fan-out for convolutions, Kaiming-normal for the classifier, one and zero for BatchNorm, zero for
    every bias. Linear layers inside a block keep torch's weights. What they do differently for a block of their own
    stands in that block's `init_weights`.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    for module in model.modules():
        own_way = getattr(module, "init_weights", None)
        if callable(own_way):
            own_way()
    if isinstance(classifier := getattr(model, "fc", None), nn.Linear):
        nn.init.kaiming_normal_(classifier.weight)


build_model = _BuildModel()
