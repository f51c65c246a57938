"""What only a network can say: whether it can be built, and how many parameters it has. It is asked once."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ablation.paths import runs_root
from ablation.provenance import source_hash


def count_parameters(architecture: Mapping[str, Any], weights: str | None = None) -> int:
    """Parameters of the network that `build_model` makes of these arguments.

    It is built without memory, and its number kept in the folder of runs, where there is one: who asks again, in this
    process or in another that has the same code, need not wait for torch.

    Args:
        architecture: as `RunConfig.architecture` gives them.
        weights: as `RunConfig.weights` has them, with the hash of a file: of another content they are asked about anew.

    Raises:
        ValueError: `build_model` says what does not fit.
    """
    return _count(json.dumps(architecture, sort_keys=True), weights)


@lru_cache(maxsize=1024)
def _count(architecture: str, weights: str | None) -> int:
    known, question = runs_root() / ".parameters.jsonl", [source_hash(), architecture, weights]
    lines = known.read_text(errors="replace").splitlines() if known.is_file() else []
    for line in lines:
        with suppress(ValueError, TypeError):  # of a line that was cut short
            *asked, number = json.loads(line)
            if asked == question:
                return int(number)
    import torch

    from gamlib.backbones import build_model

    with torch.device("meta"):
        number = sum(value.numel() for value in build_model(**json.loads(architecture)).parameters())
    if known.parent.is_dir():
        with suppress(OSError), known.open("a") as file:
            file.write(f"\n{json.dumps([*question, number])}")  # which ends a line that was cut short
    return number
