"""Tables of an audit of the paper's printed numbers, see `gamlib.paper.audit`."""

from typing import Any

import pandas as pd

from gamlib import paper
from gamlib.paper.audit import UNITS

Rows = list[dict[str, Any]]  # of `gamlib.paper.audit.audit`


def differences(rows: Rows) -> int:
    """Number of cells that differ from the print and have no explanation."""
    return sum(not row[f"{cell}_match"] and not row[f"{cell}_note"] for row in rows for cell in UNITS)


def verdict(rows: Rows) -> str:
    """An audit in one line: how many cells are as printed, how many are explained, and how many differ."""
    matches, different = [row[f"{cell}_match"] for row in rows for cell in UNITS], differences(rows)
    explained = len(matches) - sum(matches) - different
    return f"{sum(matches)} of {len(matches)} cells as printed, {explained} explained, {different} different"


def notes(rows: Rows) -> list[str]:
    """The explanations that an audit refers to, in the order in which its cells do."""
    return [note for note in dict.fromkeys(row[f"{cell}_note"] for row in rows for cell in UNITS) if note]


def for_reading(rows: Rows) -> pd.DataFrame:
    """An audit with every cell as the text that people read, and behind each number what became of it."""
    marks = {"": "DIFFERS"} | {note: f"[{number}]" for number, note in enumerate(notes(rows), 1)}
    found = []
    for row in rows:
        texts = {"Table": f"{row['table']}.{row['row']}", "Data": paper.DATASETS[row["dataset"]]}
        texts["Network"] = paper.name(row)
        for cell, title, letter in (("params", "Parameters", "M"), ("flops", "FLOPs", "G")):
            texts[title] = f"{row[cell] / UNITS[cell]:.3f}{letter}"
            texts[f"{title} printed"] = f"{row[f'{cell}_printed']:g}{letter}"
            texts[f"{title} agree"] = "✓" if row[f"{cell}_match"] else marks[row[f"{cell}_note"]]
        found.append(texts)
    return pd.DataFrame(found)
