"""The published tables as data: `paper.csv` holds the 34 rows that Tables 1 to 4 of arXiv 2112.05561 print."""

from pathlib import Path
from typing import Any

import pandas as pd

CLASSES = {"cifar100": 100, "imagenet": 1000}
IMAGE_SIZE = {"cifar100": 32, "imagenet": 224}  # pixels a side
STEM = {"cifar100": "cifar", "imagenet": "imagenet"}
DATASETS = {"cifar100": "CIFAR-100", "imagenet": "ImageNet-1K"}
BACKBONES = {"resnet18": "ResNet 18", "resnet50": "ResNet 50", "mobilenet_v2": "MobileNet V2"}


def table() -> pd.DataFrame:
    """The printed rows in the order of print.

    Columns: table and row (its source: the number of the table, and of the row in it, from 1), dataset, backbone,
    attention (none, se, bam, cbam, tam, abn, gam), variant (empty, gc, sp, ch, ch+sp, wmp), params_m (millions),
    flops_g (10^9), top1_error and top5_error in percent; params_printed and flops_printed are the texts as printed,
    without their M and G.
    """
    path = Path(__file__).with_suffix(".csv")
    texts = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = pd.read_csv(path, keep_default_na=False)
    frame.insert(1, "row", frame.groupby("table").cumcount() + 1)
    return frame.assign(params_printed=texts["params_m"], flops_printed=texts["flops_g"])


def row(table_number: int, backbone: str, attention: str, variant: str = "") -> "pd.Series[Any]":
    """One printed row.

    Raises:
        LookupError: no such row, or several.
    """
    rows = table()
    wanted = {"table": table_number, "backbone": backbone, "attention": attention, "variant": variant}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} printed rows are {wanted}; one was asked for")
    return rows.iloc[0]


def name(printed: "pd.Series[Any]") -> str:
    """A printed row as the paper writes it: "ResNet 50 + GAM (gc)"."""
    backbone = BACKBONES[printed["backbone"]]
    if printed["attention"] == "none":
        return backbone
    variant = f" ({printed['variant']})" if printed["variant"] else ""
    return f"{backbone} + {printed['attention'].upper()}{variant}"


def arguments(printed: "pd.Series[Any]") -> dict[str, Any]:
    """The arguments of `build_model` that make the network of a printed row."""
    variants: dict[str, dict[str, Any]] = {
        "": {},
        "gc": {"groups": 4},
        "wmp": {"max_pool": False},
        "sp": {"submodules": "sp"},
        "ch": {"submodules": "ch"},
        "ch+sp": {},
    }
    dataset = printed["dataset"]
    network = {"backbone": printed["backbone"], "attention": printed["attention"]}
    return network | {"num_classes": CLASSES[dataset], "stem": STEM[dataset]} | variants[printed["variant"]]
