"""Trained networks, from the folder of a run or of what was exported of one."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from gamlib.backbones import build_model
from gamlib.backbones.weights import BRANCH_SCORES, EXPORTED, read_weights
from gamlib.names import OPTIONS
from gamlib.sources import own_file, split_hash

ARCHITECTURE = ("backbone", "attention", "stem", "max_pool", "width", "options", "stages", *OPTIONS)  # of `build_model`
SCORES = ("fc.weight", "classifier.1.weight", BRANCH_SCORES)  # [num_classes, …], of every network


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The trained network of a run, in evaluation mode on the CPU: [N, 3, H, W] -> [N, num_classes] scores.

    A mechanism of one's own is built from the file that lies in the folder, so its code is executed.

    Args:
        folder: of a run that is done, or what `gamlib export` wrote.

    Raises:
        ValueError: there is no such network; the message says what is missing, or does not fit.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text())
        chosen = {key: value for key in ARCHITECTURE if (value := values.get(key)) is not None}
        attention = str(chosen["attention"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder} is no run: config.json: {getattr(error, 'strerror', None) or error}") from None
    if not any((folder / name).is_file() for name in ("result.json", EXPORTED)):
        raise ValueError(f"{folder}: the run is not done")
    if (file := own_file(attention)) is not None and (folder / file.name).is_file():
        text, content_hash = split_hash(attention)
        chosen["attention"] = f"{folder / file.name}:{text.rpartition(':')[2]}#{content_hash}"
    weights = next((path for name in (EXPORTED, "checkpoint.pt") if (path := folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"{folder}: its checkpoint.pt is not there; `gamlib gc --checkpoints` removes them")
    state = read_weights(str(chosen["backbone"]), weights)
    try:
        classes = next(len(state[name]) for name in SCORES if name in state)
        network = build_model(**chosen, num_classes=classes)
        network.load_state_dict(state)
    except (RuntimeError, StopIteration) as error:
        raise ValueError(f"{weights} does not fit its config.json: {' '.join(str(error).split())[:200]}") from None
    return network.eval()
