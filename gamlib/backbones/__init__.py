"""Backbones: torchvision's networks with an attention block in every slot.

A network maps [N, 3, H, W] to scores [N, num_classes]. In training mode it may give a tuple of them (ABN does): the
first predict, and the loss is the sum of the losses of all.
"""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum

from gamlib import attention as mechanisms
from gamlib.attention import MECHANISMS
from gamlib.attention.checks import one_of, whole, yes_or_no
from gamlib.attention.gam import SUBMODULES
from gamlib.backbones.attention_branch import AttentionBranchNetwork
from gamlib.backbones.networks import NETWORKS
from gamlib.backbones.slots import HINT, attach, slots_in
from gamlib.backbones.weights import BRANCH_SCORES, initialise, load_blocks, load_weights, read_weights
from gamlib.names import OPTIONS, STEMS, WITHOUT_BLOCKS, chosen_stages

__all__ = ["attach", "build_model"]


class _BuildModel:
    """The type of `build_model`: a function that can also list what its names may be."""

    def backbones(self) -> tuple[str, ...]:
        """Names that `backbone` may take."""
        return tuple(NETWORKS)

    def attentions(self) -> tuple[str, ...]:
        """Names that `attention` may take."""
        return ("none", *MECHANISMS, "abn")

    def __call__(
        self,
        backbone: str,
        attention: str | Callable[..., nn.Module] = "gam",
        num_classes: int = 1000,
        stem: str = "imagenet",
        max_pool: bool = True,
        width: float = 1.0,
        submodules: str = "ch+sp",
        reduction: int | None = None,
        groups: int = 1,
        gate_max_pool: bool | None = None,
        weights: str | os.PathLike[str] | WeightsEnum | None = None,
        options: Mapping[str, Any] | None = None,
        stages: Sequence[int] | None = None,
    ) -> nn.Module:
        """A backbone with attention, initialised: [N, 3, H, W] -> [N, num_classes] scores.

        With "abn" it gives two tensors of scores in training mode, see `AttentionBranchNetwork`.

        Args:
            backbone: a name from `build_model.backbones()`.
            attention: a name from `build_model.attentions()`, "none" being the plain backbone; or a mechanism of one's
                own, as a class or by its place, see `gamlib.sources`.
            num_classes: outputs.
            stem: "imagenet", or "cifar" for small images: stride 1 and no max-pooling, see the backbones.
            max_pool: False takes the ImageNet stem's max-pooling out (the paper's wmp) and gives its stride to stage 1.
                Without effect where there is none: in the CIFAR stem and in MobileNetV2.
            width: factor on the channels of the backbone; MobileNetV2 rounds them to eights, and leaves its last
                convolution at 1280 below 1.
            submodules: of the mechanism, see `GAM`; without effect where it has none, as the next two are.
            reduction: None is the mechanism's own, 16, of "gam_copied" 4. In MobileNetV2, whose channels are multiples
                of eight, it is a power of two, and where it does not divide the channels the next ratio that does takes
                its place.
            groups: of the mechanism's convolutions, see `GAM`.
            gate_max_pool: max-pooling inside the block, see `GAM` and `CBAM`; None is what the mechanism's paper says.
            weights: pretrained weights of torchvision's plain backbone, loaded before the attention comes in, as a file
                or as a member of torchvision's enumeration or its name, e.g. "IMAGENET1K_V1"; or the folder of a run,
                with this mechanism, another one or none: a warning lists the blocks that its weights do not fit. The
                classifier keeps its initial weights where the number of classes differs. They load afterwards, too, by
                `load_state_dict(weights, strict=False)`: their keys stay.
            options: of the mechanism, by name; for one of one's own there are no others.
            stages: numbers of the stages that get attention, from 1, e.g. [1] or [1, 3]; None is all. A ResNet has
                four, layer1 to layer4. MobileNetV2 has seven, the rows of inverted residuals in Table 2 of its paper:
                1, 2, 3, 4, 3, 3 and 1 of them. "bam" goes behind a stage, in a ResNet not behind the fourth; "none"
                and "abn" have no blocks, and take no stages.

        Raises:
            ValueError: an unknown name or a value that does not fit; the message names it and what is allowed.
        """
        one_of("backbone", backbone, NETWORKS)
        one_of("stem", stem, STEMS)
        one_of("submodules", submodules, SUBMODULES)
        for name, number in (("num_classes", num_classes), ("groups", groups)):
            whole(name, number)
        if reduction is not None:
            whole("reduction", reduction)
        yes_or_no("max_pool", max_pool)
        if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
            raise ValueError(f"width={width!r}: allowed: numbers above 0")
        known = {} if attention in WITHOUT_BLOCKS else mechanisms.options(attention)
        if gate_max_pool is not None and "gate_max_pool" not in known:
            raise ValueError(f"gate_max_pool={gate_max_pool}: attention={attention} has none")
        if options and attention in WITHOUT_BLOCKS:
            raise ValueError(f"options={options!r}: attention={attention} has none")
        slot = "block" if attention in WITHOUT_BLOCKS else mechanisms.slot_of(attention)
        chosen = None if stages is None else chosen_stages(stages, backbone, attention, slot)
        model = NETWORKS[backbone](num_classes, stem, max_pool, width)
        initialise(model)
        nn.init.kaiming_normal_(model.get_submodule(model.classifier_name).weight)
        found = None if weights is None else read_weights(backbone, weights)
        problem = f"weights={str(weights)!r} do not fit this {backbone}"
        if attention == "abn" and found is not None and BRANCH_SCORES in found:  # of a run
            trained = AttentionBranchNetwork(model, num_classes)
            load_weights(trained, found, f"{problem} with ABN")
            return trained
        blocks = {} if found is None else load_weights(model, found, problem)
        network: nn.Module = model
        if attention == "abn":
            network = AttentionBranchNetwork(model, num_classes, pretrained=weights is not None)
        elif attention != "none":
            given: dict[str, Any] = dict(zip(OPTIONS, (submodules, reduction, groups, gate_max_pool), strict=True))
            if attention in MECHANISMS:
                given = {key: value for key, value in given.items() if key in known and value is not None}
            else:  # of one's own: what is not asked for is its own default
                usual = inspect.signature(self).parameters
                given = {key: value for key, value in given.items() if value != usual[key].default}
            after = [] if chosen is None else slots_in(model, slot, chosen)
            try:
                attach(network, attention, after, options={**given, **(options or {})})
            except ValueError as error:
                raise ValueError(str(error).removesuffix(HINT)) from None
        if blocks:
            load_blocks(network, blocks)
        return network


build_model = _BuildModel()
build_model.__doc__ = _BuildModel.__call__.__doc__  # what torch.hub.help and a notebook's `build_model?` show
