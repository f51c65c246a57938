"""Initial weights, and pretrained ones: torchvision's of a plain backbone."""

import os
import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import WeightsEnum, get_model_weights

EXPORTED = "model.safetensors"  # what `gamlib export` writes beside config.json
BRANCH_SCORES = "attention_branch.scores.weight"  # of ABN
BLOCK = ".attention."  # in the names of an attention block's weights


def initialise(model: nn.Module) -> None:
    """Initial weights as CBAM's authors set them, in place.

    Kaiming-normal by fan-out for convolutions, one and zero for BatchNorm, zero for every bias. Linear layers inside a
    block keep torch's weights. What a block does differently stands in its `init_weights`.
    """
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


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], problem: str) -> dict[str, Tensor]:
    """Load weights into a backbone that has no attention yet, in place, as `build_model` describes it.

    Returns:
        What is left: the weights of attention blocks, by the names that they have in a network with attention.

    Raises:
        ValueError: they are of another network; the message begins with the problem, and names what does not fit.
    """
    device, known = next(model.parameters()).device, model.state_dict()
    classifier = f"{getattr(model, 'classifier_name', '')}."
    found = {name: value.to(device) for name, value in weights.items()}
    blocks = {name: found.pop(name) for name in [*found] if name not in known and BLOCK in name}
    wrong = []
    for name, value in known.items():
        given = found.get(name, value)
        if given.is_floating_point() != value.is_floating_point():  # torch would convert it
            wrong.append(f"{name} is of type {given.dtype}")
        other_classes = given.shape != value.shape and given.shape[1:] == value.shape[1:]
        if other_classes and name.startswith(classifier):
            found[name] = value
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        wrong += [textwrap.shorten(line, 200, placeholder=" …") for line in str(error).splitlines()[1:]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{problem}: {'; '.join(wrong[:3])}{more}")
    return blocks


def load_blocks(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of attention blocks that fit, in place; warnings list those that do not, or have none."""
    there = {name: value for name, value in model.state_dict().items() if BLOCK in name}
    shapes: dict[str, list[dict[str, torch.Size]]] = {}
    for number, state in enumerate((there, weights)):
        for name, value in state.items():
            block, _, rest = name.partition(BLOCK)
            shapes.setdefault(block, [{}, {}])[number][rest] = value.shape
    fitting = {block for block, (own, given) in shapes.items() if own == given}
    model.load_state_dict({name: v for name, v in weights.items() if name.partition(BLOCK)[0] in fitting}, strict=False)
    for what, missing in (("keep their initial weights", False), ("have no place in this network", True)):
        if others := [block for block, (own, _) in shapes.items() if block not in fitting and (not own) is missing]:
            listed = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
            warnings.warn(f"weights: the attention blocks behind {listed} {what}", stacklevel=3)


def locate(backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> Path | WeightsEnum:
    """Where weights are: a file, or a member of torchvision's enumeration for a backbone, by itself or by its name.

    What is written like a member is a file only if it is there. Of a run's folder it is the last checkpoint.

    Raises:
        ValueError: it is neither; the message lists the members.
    """
    if not isinstance(weights, WeightsEnum):
        if not isinstance(weights, str | os.PathLike) or not os.fspath(weights):
            raise ValueError(f"weights={weights!r}: allowed: a file, or a name of torchvision's such as IMAGENET1K_V1")
        for name in (EXPORTED, "checkpoint.pt"):
            if (Path(weights) / name).is_file():
                return Path(weights) / name
        if Path(weights).is_file() or not re.fullmatch(r"(\w+_Weights\.)?[A-Z0-9_]+", os.fspath(weights)):
            return Path(weights)
    enumeration = get_model_weights(backbone)
    name = str(weights).removeprefix(f"{enumeration.__name__}.")
    if name not in enumeration.__members__:
        names = ", ".join(enumeration.__members__)
        raise ValueError(f"weights={str(weights)!r}: allowed for {backbone}: a file, or of torchvision {names}")
    return enumeration[name]


def read_weights(backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> dict[str, Tensor]:
    """A state dictionary of torchvision's, of a file, or of a run, with the names that `attach` leaves as they are.

    Raises:
        ValueError: it cannot be read.
    """
    found = dict(_read(backbone, weights))
    consume_prefix_in_state_dict_if_present(found, "module.")  # as DataParallel saves it
    return {_without_inner(name): value for name, value in found.items()}


def _without_inner(name: str) -> str:
    """A name as it is now; runs before 2026-11-28 have `inner` in those of what is not an attention block."""
    place, block, rest = name.partition(BLOCK)
    return place.replace(".inner", "") + block + rest


def _read(backbone: str, weights: str | os.PathLike[str] | WeightsEnum) -> Mapping[str, Tensor]:
    source = locate(backbone, weights)
    if not isinstance(source, Path):
        try:
            return source.get_state_dict(progress=False, check_hash=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise ValueError(
                f"weights={str(weights)!r}: not in {cache}, and could not be downloaded: {error}; put "
                f"{Path(source.url).name} there"
            ) from None
    try:
        if source.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source)
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # not a file, not torch's, or with more in it than tensors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"weights={str(weights)!r} cannot be read: {reason}") from None
    if isinstance(content, Mapping) and {"identity", "model"} <= content.keys():  # a checkpoint of a run
        content = content.get("ema", content["model"])
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        return content
    what = f"a dictionary of {', '.join(map(str, content))}"[:80] if isinstance(content, Mapping) else "something else"
    raise ValueError(f"weights={str(weights)!r}: the file holds no state dictionary of tensors but {what}")
