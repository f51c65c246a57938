"""The audit: Parameters and FLOPs of the paper's 34 printed rows, computed from our networks, against the print."""

from collections.abc import Mapping
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

# The cells that our networks do not reproduce: table, row and column; what they count, and what is to be said of it.
EXPLAINED = {
    (1, 6, "params"): (
        57_044_308,
        "57.044M is printed as 57.05M; a bias in the first 7x7 convolution of every GAM would print that and change no "
        "other cell",
    ),
    (2, 7, "flops"): (2_461_293_568, "2.461G is printed as 2.45G here and in Table 3, and as 2.46G in Table 4"),
    (2, 16, "params"): (3_504_872, "3.505M (3,504,872) is the usual value, and papers print it as 3.50M or 3.51M"),
    (2, 17, "flops"): (314_731_232, "0.3147G is printed as 0.32G; it would have to be 0.315G"),
    (3, 4, "flops"): (2_461_293_568, "2.461G again, the network of Table 2, row 7"),
}


def audit() -> list[paper.Row]:
    """Every printed row with its computed numbers, in the order of print.

    Keys: those of `COLUMNS`, and row, params_note, flops_note. `params` and `flops` are exact counts (FLOPs of one
    image, by the rule of `complexity`); `params_printed` (millions) and `flops_printed` (10^9) are the paper's.
    A cell matches if the count, rounded to the digits printed, is the number printed. A note explains a difference.
    """
    rows = []
    for printed in paper.table():
        found = count(paper.arguments(printed), paper.IMAGE_SIZE[printed["dataset"]])
        entry = {key: printed[key] for key in ("table", "row", *NETWORK)}
        for cell, number in (("params", found.parameters), ("flops", found.flops)):
            digits = printed[f"{cell}_printed"]
            match = rounded(cell, number, digits) == digits
            known, text = EXPLAINED.get((printed["table"], printed["row"], cell), (None, ""))
            note = text if number == known and not match else ""
            entry |= {cell: number, f"{cell}_printed": float(digits), f"{cell}_match": match, f"{cell}_note": note}
        rows.append(entry)
    return rows


def rounded(cell: str, count: int, printed: str) -> str:
    """A count of "params" or "flops" in the paper's unit, with as many digits as are printed: 23705252 as "23.71"."""
    return str((Decimal(count) / UNITS[cell]).quantize(Decimal(printed), ROUND_HALF_UP))


def count(arguments: Mapping[str, Any], size: int = 224) -> Complexity:
    """The network of some arguments of `build_model` for one image of so many pixels a side; each is counted once."""
    return _count(tuple(arguments.items()), size)


@cache
def _count(arguments: tuple[tuple[str, Any], ...], size: int) -> Complexity:
    with torch.device("meta"):
        model = build_model(**dict(arguments))
    return complexity(model, (1, 3, size, size))
