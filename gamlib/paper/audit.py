"""The audit: Parameters and FLOPs of the paper's 34 printed rows, computed from our networks, against the print."""

from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import torch

from gamlib import paper
from gamlib.backbones import build_model
from gamlib.paper.complexity import Complexity, complexity

NETWORK = ("dataset", "backbone", "attention", "variant")
COLUMNS = ("table", *NETWORK, "params", "flops", "params_printed", "flops_printed", "params_match", "flops_match")
UNITS = {"params": 10**6, "flops": 10**9}


def audit() -> list[paper.Row]:
    """Every printed row with its computed numbers, in the order of print.

    Keys: those of `COLUMNS`, and row, params_note, flops_note. `params` and `flops` are exact counts (FLOPs of one
    image, by the rule of `complexity`); `params_printed` (millions) and `flops_printed` (10^9) are the paper's.
    A cell matches if the count, rounded to the digits printed, is the number printed. A note explains a difference.
    """
    rows = []
    for printed in paper.table():
        found = count(paper.IMAGE_SIZE[printed["dataset"]], **paper.arguments(printed))
        entry = {key: printed[key] for key in ("table", "row", *NETWORK)}
        for cell, number in (("params", found.parameters), ("flops", found.flops)):
            digits = printed[f"{cell}_printed"]
            match = rounded(cell, number, digits) == digits
            explained = not match and str(number) == printed[f"{cell}_counted"]
            note = printed[f"{cell}_note"] if explained else ""
            entry |= {cell: number, f"{cell}_printed": float(digits), f"{cell}_match": match, f"{cell}_note": note}
        rows.append(entry)
    return rows


def rounded(cell: str, count: int, printed: str) -> str:
    """A count of "params" or "flops" in the paper's unit, with as many digits as are printed: 23705252 as "23.71"."""
    return str((Decimal(count) / UNITS[cell]).quantize(Decimal(printed), ROUND_HALF_UP))


@cache
def count(size: int = 224, **arguments: Any) -> Complexity:
    """The network of some arguments of `build_model` for one image of so many pixels a side; each is counted once."""
    with torch.device("meta"):
        model = build_model(**arguments)
    return complexity(model, (1, 3, size, size))
