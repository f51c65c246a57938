"""Initial weights, and where others come from: torchvision's own files of a plain backbone."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights


def initialise(model: nn.Module) -> None:
    """Initial weights as CBAM's authors set them, in place.

    Kaiming-normal by fan-out for convolutions, one and zero for BatchNorm, zero for every bias. Linear layers inside a
    block keep torch's weights. What a block does differently stands in its `init_weights`. On the meta device there is
    nothing to do.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    for module in model.modules():
        own_way = getattr(module, "init_weights", None)
        if callable(own_way):
            own_way()


def load_weights(
    model: nn.Module, backbone: str, weights: str | os.PathLike[str] | WeightsEnum, classifier: str
) -> None:
    """Load pretrained weights of torchvision's plain backbone, in place.

    Args:
        model: the backbone before any attention is in it.
        backbone: its name at torchvision.
        weights: a file with a state dictionary, a member of torchvision's enumeration for this backbone, or the name of
            one, e.g. "IMAGENET1K_V1"; torchvision downloads these unless its cache has them.
        classifier: name of the last layer, which keeps its initial weights where the number of classes differs.

    Raises:
        ValueError: the file cannot be read or is of another network; the message names what does not fit.
    """
    found = _read(backbone, weights)
    wanted = model.state_dict()
    if f"{classifier}.weight" in found and len(found[f"{classifier}.weight"]) != len(wanted[f"{classifier}.weight"]):
        found = {**found, **{name: value for name, value in wanted.items() if name.startswith(f"{classifier}.")}}
    # Files older than torch 0.4 do not count batches.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    wrong = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is not of this network" for name in found if name not in wanted),
        *(
            f"{name} has shape {list(value.shape)} and not {list(wanted[name].shape)}"
            for name, value in found.items()
            if name in wanted and value.shape != wanted[name].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"weights={str(weights)!r} do not fit this {backbone}: {'; '.join(wrong[:3])}{more}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict(found, strict=False)


def is_file(weights: str | os.PathLike[str] | WeightsEnum) -> bool:
    """Whether this names a file; what is written like a member of torchvision's enumerations does not."""
    return not isinstance(weights, WeightsEnum) and not re.fullmatch(r"(\w+_Weights\.)?[A-Z0-9_]+", os.fspath(weights))


def _read(backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> Mapping[str, Tensor]:
    enumeration = get_model_weights(backbone)
    if not is_file(weights):
        name = str(weights).removeprefix(f"{enumeration.__name__}.")
        member = enumeration.__members__.get(name)
        if member is None:
            names = ", ".join(enumeration.__members__)
            raise ValueError(f"weights={str(weights)!r}: allowed for {backbone}: a file, or of torchvision {names}")
        try:
            return member.get_state_dict(progress=False, check_hash=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise ValueError(
                f"weights={str(weights)!r}: not in {cache}, and could not be downloaded: {error}; put "
                f"{Path(member.url).name} there"
            ) from None
    try:
        content: Any = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # not a file, not torch's, or with more in it than tensors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"weights={str(weights)!r} cannot be read: {reason}") from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights={str(weights)!r}: the file holds no state dictionary of tensors")
    return content
