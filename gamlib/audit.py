"""The audit: Parameters and FLOPs of the paper's 34 printed rows, computed from our networks, against the print."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

import pandas as pd
import torch

from gamlib import paper
from gamlib.backbones import build_model
from gamlib.complexity import Complexity, complexity

COLUMNS = (
    "table",
    "dataset",
    "backbone",
    "attention",
    "variant",
    "params",
    "flops",
    "params_printed",
    "flops_printed",
    "params_match",
    "flops_match",
)

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


def audit() -> pd.DataFrame:
    """Every printed row with its computed numbers, in the order of print.

    Columns: those of `COLUMNS`, and row, params_note, flops_note. `params` and `flops` are exact counts (FLOPs of one
    image, by the rule of `gamlib.complexity`); `params_printed` (millions) and `flops_printed` (10^9) are the paper's.
    A cell matches if the count, rounded to the digits printed, is the number printed. A note explains a difference.
    """
    rows = []
    for _, printed in paper.table().iterrows():
        side = paper.IMAGE_SIZE[printed["dataset"]]
        found = count(tuple(paper.arguments(printed).items()), (side, side))
        entry = {key: printed[key] for key in ("table", "row", "dataset", "backbone", "attention", "variant")}
        for cell, number in (("params", found.parameters), ("flops", found.flops)):
            digits = printed[f"{cell}_printed"]
            match = rounded(cell, number, digits) == digits
            known, text = EXPLAINED.get((printed["table"], printed["row"], cell), (None, ""))
            note = text if number == known and not match else ""
            entry |= {cell: number, f"{cell}_printed": float(digits), f"{cell}_match": match, f"{cell}_note": note}
        rows.append(entry)
    return pd.DataFrame(rows)


def rounded(cell: str, count: int, printed: str) -> str:
    """A count of "params" or "flops" in the paper's unit, with as many digits as are printed: 23705252 as "23.71"."""
    return str((Decimal(count) / UNITS[cell]).quantize(Decimal(printed), ROUND_HALF_UP))


def differences(frame: pd.DataFrame) -> int:
    """Number of cells of an audit that differ from the print and have no explanation."""
    return sum(int((~frame[f"{cell}_match"] & (frame[f"{cell}_note"] == "")).sum()) for cell in ("params", "flops"))


def verdict(frame: pd.DataFrame) -> str:
    """An audit in one line: how many cells are as printed, how many are explained, and how many differ."""
    cells, matches = 2 * len(frame), int(frame[["params_match", "flops_match"]].to_numpy().sum())
    different = differences(frame)
    return f"{matches} of {cells} cells as printed, {cells - matches - different} explained, {different} different"


def for_reading(frame: pd.DataFrame) -> pd.DataFrame:
    """An audit with every cell as the text that people read, and behind each number what became of it."""
    texts = {
        "Table": [f"{table}.{row}" for table, row in zip(frame["table"], frame["row"], strict=True)],
        "Data": frame["dataset"].map(paper.DATASETS),
        "Network": [paper.name(row) for _, row in frame.iterrows()],
    }
    marks = {"": "DIFFERS"} | {note: f"[{number}]" for number, note in enumerate(notes(frame), 1)}
    for cell, title, letter in (("params", "Parameters", "M"), ("flops", "FLOPs", "G")):
        cells = zip(frame[f"{cell}_match"], frame[f"{cell}_note"], strict=True)
        texts |= {
            title: [f"{count / UNITS[cell]:.3f}{letter}" for count in frame[cell]],
            f"{title} printed": [f"{number:g}{letter}" for number in frame[f"{cell}_printed"]],
            f"{title} agree": ["✓" if match else marks[note] for match, note in cells],
        }
    return pd.DataFrame(texts)


def notes(frame: pd.DataFrame) -> list[str]:
    """The explanations that an audit refers to, in the order in which its cells do."""
    return list(dict.fromkeys(note for row in frame[["params_note", "flops_note"]].to_numpy() for note in row if note))


def benchmark(frame: pd.DataFrame) -> pd.DataFrame:
    """Of an audit the rows of Tables 1 and 2, every network once, with the error that the paper reports.

    Columns: network (backbone and data set), attention (with gc), params, flops, top1_error in percent.
    """
    rows = frame.assign(top1_error=paper.table()["top1_error"])
    rows = rows[rows["table"] <= 2]
    network = rows["backbone"].map(paper.BACKBONES) + "\n" + rows["dataset"].map(paper.DATASETS)
    attention = (rows["attention"] + " " + rows["variant"]).str.strip()
    return rows[["params", "flops", "top1_error"]].assign(network=network, attention=attention)


def economies(backbones: Sequence[str], reduction: int = 16) -> pd.DataFrame:
    """GAM and its parameter-saving variants on ImageNet: gc is the paper's, separable and low rank are ours.

    Columns: backbone, attention, params and flops; params_added and flops_added are shares of what GAM adds to
    the plain backbone.

    Raises:
        ValueError: an unknown backbone, or a reduction that does not divide its channels.
    """
    rows = []
    for backbone in backbones:
        networks = {name: (name, 1) for name in ("none", "gam", "gam_separable", "gam_low_rank")}
        if backbone != "mobilenet_v2":  # which has hidden layers of one channel, and that makes no four groups
            networks["gam gc"] = ("gam", 4)
        counts = {
            name: count(
                (("backbone", backbone), ("attention", attention), ("reduction", reduction), ("groups", groups)),
                (224, 224),
            )
            for name, (attention, groups) in networks.items()
        }
        plain, full = counts["none"], counts["gam"]
        for name, found in counts.items():
            params = (found.parameters - plain.parameters) / (full.parameters - plain.parameters)
            flops = (found.flops - plain.flops) / (full.flops - plain.flops)
            row = {"backbone": backbone, "attention": name, "params": found.parameters, "flops": found.flops}
            rows.append(row | {"params_added": params, "flops_added": flops})
    return pd.DataFrame(rows)


@cache
def count(arguments: tuple[tuple[str, object], ...], size: tuple[int, int]) -> Complexity:
    """The network of some arguments of `build_model` for one image, width by height; each is counted once."""
    with torch.device("meta"):
        model = build_model(**dict(arguments))  # type: ignore[arg-type]
    return complexity(model, (1, 3, *size[::-1]))
