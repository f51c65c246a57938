"""The studies of this project, as data: each is written as a YAML file of one's own would be."""

from typing import Any

Values = dict[str, Any]


def _arm(attention: str, table: int, variant: str = "", **values: Any) -> Values:
    """An arm that the paper prints: a row of a table."""
    return {
        "values": {"attention": attention, **values},
        "paper": {"table": table, "attention": attention, "variant": variant},
    }


SUBMODULES: Values = {
    "question": "Which submodule of GAM helps: channel attention, spatial attention, or both? (Table 3) "
    "And is it the attention or the size?",
    "notebook": "2_submodules.ipynb",
    "note": "no gate and wider (ours): the parameters of ch+sp without its attention, as the same layers in residual "
    "branches, and as the plain network widened until it has as many within 1 %.",
    "compare": [
        ("ch", "baseline"),
        ("sp", "baseline"),
        ("ch+sp", "baseline"),
        ("no gate", "baseline"),
        ("wider", "baseline"),
        ("ch+sp", "no gate"),
        ("ch+sp", "wider"),
    ],
    "arms": {
        "baseline": _arm("none", 3),
        "ch": _arm("gam", 3, "ch", submodules="ch"),
        "sp": _arm("gam", 3, "sp", submodules="sp"),
        "ch+sp": _arm("gam", 3, "ch+sp", submodules="ch+sp"),
        "no gate": {"attention": "gam_no_gate", "submodules": "ch+sp"},
        "wider": {"attention": "none", "parameters_of": "ch+sp"},
    },
}

MAX_POOLING: Values = {
    "question": "What does max-pooling do to the plain network, to CBAM and to GAM? (Table 4)",
    "notebook": "3_max_pooling.ipynb",
    "note": "(ours): our interpretation, max-pooling inside the gates, without (wmp) or with (mp).",
    "base": {"stem": "imagenet"},
    "compare": [
        ("baseline wmp", "baseline"),
        ("CBAM wmp", "CBAM"),
        ("GAM wmp", "GAM"),
        ("GAM", "CBAM"),
        ("CBAM gate wmp (ours)", "CBAM"),
        ("GAM", "GAM gate mp (ours)"),
    ],
    "arms": {
        "baseline": _arm("none", 2, max_pool=True),
        "baseline wmp": {"attention": "none", "max_pool": False},
        "CBAM": _arm("cbam", 4, max_pool=True),
        "CBAM wmp": _arm("cbam", 4, "wmp", max_pool=False),
        "GAM": _arm("gam", 4, max_pool=True),
        "GAM wmp": _arm("gam", 4, "wmp", max_pool=False),
        "CBAM gate wmp (ours)": {"attention": "cbam", "max_pool": True, "gate_max_pool": False},
        "GAM gate mp (ours)": {"attention": "gam", "max_pool": True, "gate_max_pool": True},
    },
}

# Table 2, and with it the networks of Table 1; behind a name the paper's variant.
PRINTED = {
    "ResNet-18": ("resnet18", ["none", "se", "bam", "cbam", "tam", "abn", "gam"]),
    "ResNet-50": ("resnet50", ["none", "se", "bam", "cbam", "tam", "abn", "gam", "gam gc"]),
    "MobileNetV2": ("mobilenet_v2", ["none", "se", "bam", "cbam", "gam"]),
}


def _benchmark() -> Values:
    arms, compare = {}, []
    for network, (backbone, mechanisms) in PRINTED.items():
        for mechanism in mechanisms:
            attention, _, variant = mechanism.partition(" ")
            groups = {"groups": 4} if variant == "gc" else {}
            label = f"{network} + {attention.upper()}" + f" ({variant})" * bool(variant)
            label = network if attention == "none" else label
            arms[label] = _arm(attention, 2, variant, backbone=backbone, **groups)
            if attention != "none":
                compare.append((label, network))
    return {
        "question": "Which mechanism helps which network? (Tables 1 and 2)",
        "notebook": "4_benchmark.ipynb",
        "compare": compare,
        "arms": arms,
    }


CATALOGUE: dict[str, Values] = {
    "submodules": SUBMODULES,
    "max_pooling": MAX_POOLING,
    "benchmark": _benchmark(),
}
