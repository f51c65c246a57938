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
        if callable(init_weights := getattr(module, "init_weights", None)):
            init_weights()


def load_weights(model: Any, backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> None:
    """Load pretrained weights of torchvision's plain backbone, in place.

    Args:
        model: the backbone before any attention is in it. Its last layer, which `classifier_name` names, keeps its
            initial weights where the number of classes differs.
        backbone: its name at torchvision.
        weights: a file with a state dictionary, a checkpoint of a run, a member of torchvision's enumeration for this
            backbone, or the name of one, e.g. "IMAGENET1K_V1"; torchvision downloads these unless its cache has them.

    Raises:
        ValueError: the file cannot be read or is of another network; the message names what does not fit.
    """
    found = dict(_read(backbone, weights))
    wanted = model.state_dict()
    head = {name: value for name, value in wanted.items() if name.startswith(f"{model.classifier_name}.")}
    if all(name in found and found[name].shape[1:] == value.shape[1:] for name, value in head.items()):
        found |= {name: value for name, value in head.items() if found[name].shape != value.shape}
    wrong = []
    if found and all(name.startswith("module.") for name in found):
        wrong.append("all names begin with 'module.', as DataParallel saves them")
    for name, value in wanted.items():
        if name not in found:
            if not name.endswith("num_batches_tracked"):  # files older than torch 0.4 do not count batches
                wrong.append(f"{name} is missing")
        elif found[name].shape != value.shape:
            wrong.append(f"{name} has shape {list(found[name].shape)} and not {list(value.shape)}")
        elif found[name].is_floating_point() != value.is_floating_point():
            wrong.append(f"{name} is of type {found[name].dtype}")
    wrong += [f"{name} is not of this network" for name in found if name not in wanted]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"weights={str(weights)!r} do not fit this {backbone}: {'; '.join(wrong[:3])}{more}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict(found, strict=False)


def is_file(weights: str | os.PathLike[str] | WeightsEnum) -> bool:
    """Whether this names a file: not what is written like a member of torchvision's enumerations, unless it exists.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(weights, WeightsEnum):
        return False
    if not isinstance(weights, str | os.PathLike) or not os.fspath(weights):
        raise ValueError(f"weights={weights!r}: allowed: a file, or a name of torchvision's such as IMAGENET1K_V1")
    return Path(weights).is_file() or not re.fullmatch(r"(\w+_Weights\.)?[A-Z0-9_]+", os.fspath(weights))


def member(backbone: str, weights: str | WeightsEnum) -> WeightsEnum:
    """The member of torchvision's enumeration for a backbone, by itself or by its name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    enumeration = get_model_weights(backbone)
    found = enumeration.__members__.get(str(weights).removeprefix(f"{enumeration.__name__}."))
    if found is None:
        names = ", ".join(enumeration.__members__)
        raise ValueError(f"weights={str(weights)!r}: allowed for {backbone}: a file, or of torchvision {names}")
    return found


def _read(backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> Mapping[str, Tensor]:
    if not is_file(weights):
        known = member(backbone, weights)
        try:
            return known.get_state_dict(progress=False, check_hash=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise ValueError(
                f"weights={str(weights)!r}: not in {cache}, and could not be downloaded: {error}; put "
                f"{Path(known.url).name} there"
            ) from None
    try:
        content: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # not a file, not torch's, or with more in it than tensors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"weights={str(weights)!r} cannot be read: {reason}") from None
    if isinstance(content, Mapping) and {"identity", "model"} <= content.keys():  # a checkpoint of a run
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        what = f"a dictionary of {keys}"[:80] if isinstance(content, Mapping) else "something else"
        raise ValueError(f"weights={str(weights)!r}: the file holds no state dictionary of tensors but {what}")
    return content
