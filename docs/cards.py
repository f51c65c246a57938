"""The numbers of the method cards: `python docs/cards.py` writes them anew into docs/mechanisms/*.md.

In a card a comment names each computed block: `<!-- options -->` (of the class), `cost` (of the networks with it) and
`measured` (in the published studies that have it). The rest is prose and equations; the prose has no numbers (tested).
"""

import re
from functools import cache

import pandas as pd

from ablation.paths import ROOT, write_changed
from ablation.results import load, publication, tables, typeset
from gamlib import paper
from gamlib.attention import options
from gamlib.names import ATTENTIONS, BACKBONES, WITHOUT_BLOCKS
from gamlib.paper.audit import count

CARDS, DATA = ROOT / "docs" / "mechanisms", ROOT / "figures" / "data"
NAMES = [name for name in ATTENTIONS if name != "none"]
BLOCK = re.compile(r"<!-- (\w+) -->(?:\n\n[^#].*?)?(?=\n\n|\s*\Z)", re.S)


def filled(name: str) -> str:
    """The text of a mechanism's card with every computed block as it is now."""
    made = {"options": options_table, "cost": cost, "measured": measured}
    text = (CARDS / f"{name}.md").read_text()
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n\n{made[block[1]](name)}", text)


def options_table(name: str) -> str:
    """Its options and their defaults."""
    known = {} if name in WITHOUT_BLOCKS else options(name)
    if not known:
        return "It has no options."
    texts = {"Option": [f"`{key}`" for key in known], "Default": [f"`{default!r}`" for default in known.values()]}
    return typeset.markdown(pd.DataFrame(texts))


def cost(name: str) -> str:
    """Parameters and FLOPs of every backbone with it, for ImageNet-1K, and what the paper prints where it does."""
    printed = {(row["backbone"], row["dataset"], row["attention"], row["variant"]): row for row in paper.table()}
    rows = []
    for backbone in BACKBONES:
        plain, found = (count(backbone=backbone, attention=attention) for attention in ("none", name))
        of_paper = printed.get((backbone, "imagenet", name, ""), {})
        row = {"Backbone": f"`{backbone}`"}
        for title, number, without, unit, letter, key in (
            ("Parameters", found.parameters, plain.parameters, 1e6, "M", "params_printed"),
            ("FLOPs", found.flops, plain.flops, 1e9, "G", "flops_printed"),
        ):
            row[title] = f"{number / unit:.3f}{letter}"
            row[f"{title} added"] = f"{100 * (number / without - 1):+.1f} %".replace("-", "−")
            row[f"{title} printed"] = f"{of_paper[key]}{letter}" if of_paper else typeset.NOTHING
        rows.append(row)
    return typeset.markdown(pd.DataFrame(rows))


@cache
def comparisons() -> pd.DataFrame:
    """Of all published studies on test images, as texts; and the mechanisms of both arms."""
    found = []
    for plan in publication.published(folder=DATA):
        if plan.configs[0].evaluate_on != "test":
            continue
        results = load(plan, DATA)
        compared = tables.compared(results)
        errors = typeset.for_reading(tables.summary(results)).set_index("Arm")["Top-1 error"]
        texts = typeset.comparisons(compared)
        texts.insert(0, "Study", f"[{plan.study.name}](../../figures/data/{plan.name}-runs.csv)")
        texts.insert(2, "Top-1 error", texts["Arm"].map(errors))
        of = {arm: configs[0].attention for arm, configs in plan.arms.items()}
        found.append(texts.assign(first=compared["arm"].map(of), second=compared["reference"].map(of)))
    texts = pd.concat(found).fillna(typeset.NOTHING)  # some studies have columns that others lack
    return texts.assign(Verdict=texts.pop("Verdict"))  # the last one


def measured(name: str) -> str:
    """The comparisons in which it is the arm or the reference."""
    of = comparisons()
    mine = of[(of["first"] == name) | (of["second"] == name)].drop(columns=["first", "second"])
    if mine.empty:
        return "Nothing: no published study has it."
    return typeset.markdown(mine.loc[:, (~mine.isin([typeset.NOTHING])).any()])


if __name__ == "__main__":
    for name in NAMES:
        write_changed(CARDS / f"{name}.md", filled(name))
