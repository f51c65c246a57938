"""The published tables as data: `tables.csv` holds the 34 rows that Tables 1 to 4 of arXiv 2112.05561 print.

Where our networks count otherwise, it holds their exact count and a note that explains the difference.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE_SIZE = {"cifar100": 32, "imagenet": 224}  # pixels a side
DATASETS = {"cifar100": "CIFAR-100", "imagenet": "ImageNet-1K"}
BACKBONES = {"resnet18": "ResNet 18", "resnet50": "ResNet 50", "mobilenet_v2": "MobileNet V2"}
OF_DATASET = {  # arguments of `build_model`, as in VARIANTS
    "cifar100": {"num_classes": 100, "stem": "cifar"},
    "imagenet": {"num_classes": 1000, "stem": "imagenet"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "gc": {"groups": 4},
    "wmp": {"max_pool": False},
    "sp": {"submodules": "sp"},
    "ch": {"submodules": "ch"},
    "ch+sp": {},
}
NUMBERS = ("params_m", "flops_g", "top1_error", "top5_error")

Row = dict[str, Any]


def table() -> list[Row]:
    """The printed rows in the order of print.

    Keys: table and row (its source: the number of the table, and of the row in it, from 1), dataset, backbone,
    attention (none, se, bam, cbam, tam, abn, gam), variant (empty, gc, sp, ch, ch+sp, wmp), params_m (millions),
    flops_g (10^9), top1_error and top5_error in percent; params_printed and flops_printed are the texts as printed,
    without their M and G; params_counted, params_note, flops_counted, flops_note (texts, most of them empty).
    """
    with Path(__file__).with_name("tables.csv").open(newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for texts in rows:
        texts |= {"params_printed": texts["params_m"], "flops_printed": texts["flops_g"]}
        texts |= {key: int(texts[key]) for key in ("table", "row")} | {key: float(texts[key]) for key in NUMBERS}
    return rows


def row(table_number: int, backbone: str, attention: str, variant: str = "") -> Row:
    """One printed row.

    Raises:
        LookupError: no such row, or several.
    """
    wanted = {"table": table_number, "backbone": backbone, "attention": attention, "variant": variant}
    found = [printed for printed in table() if wanted.items() <= printed.items()]
    if len(found) != 1:
        raise LookupError(f"{len(found)} printed rows are {wanted}; one was asked for")
    return found[0]


def name(printed: Mapping[str, Any]) -> str:
    """A printed row as the paper writes it: "ResNet 50 + GAM (gc)"."""
    backbone = BACKBONES[printed["backbone"]]
    if printed["attention"] == "none":
        return backbone
    variant = f" ({printed['variant']})" if printed["variant"] else ""
    return f"{backbone} + {printed['attention'].upper()}{variant}"


def arguments(printed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `build_model` that make the network of a printed row."""
    network = {"backbone": printed["backbone"], "attention": printed["attention"]}
    return network | OF_DATASET[printed["dataset"]] | VARIANTS[printed["variant"]]
