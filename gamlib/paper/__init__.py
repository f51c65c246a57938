"""The published tables as data: `tables.csv` holds the 34 rows that Tables 1 to 4 of arXiv 2112.05561 print."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASSES = {"cifar100": 100, "imagenet": 1000}
IMAGE_SIZE = {"cifar100": 32, "imagenet": 224}  # pixels a side
STEM = {"cifar100": "cifar", "imagenet": "imagenet"}
DATASETS = {"cifar100": "CIFAR-100", "imagenet": "ImageNet-1K"}
BACKBONES = {"resnet18": "ResNet 18", "resnet50": "ResNet 50", "mobilenet_v2": "MobileNet V2"}
VARIANTS: dict[str, dict[str, Any]] = {  # arguments of `build_model`
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
    without their M and G.
    """
    rows: list[Row] = []
    of_table: Counter[int] = Counter()
    with Path(__file__).with_name("tables.csv").open(newline="") as file:
        for texts in csv.DictReader(file):
            number = int(texts["table"])
            of_table[number] += 1
            numbers = {key: float(texts[key]) for key in NUMBERS}
            printed = {"params_printed": texts["params_m"], "flops_printed": texts["flops_g"]}
            rows.append({**texts, "table": number, "row": of_table[number], **numbers, **printed})
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
    dataset = printed["dataset"]
    network = {"backbone": printed["backbone"], "attention": printed["attention"]}
    return network | {"num_classes": CLASSES[dataset], "stem": STEM[dataset]} | VARIANTS[printed["variant"]]
