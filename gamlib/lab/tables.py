"""Tables: the runs of a study as a frame, and the summary that goes into a paper, beside what the paper prints."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from gamlib import paper
from gamlib.lab.provenance import source_hash
from gamlib.lab.runs import Result, Run
from gamlib.lab.statistics import mean_interval
from gamlib.lab.studies import Plan


def outcomes(plan: Plan) -> pd.DataFrame:
    """The runs of a study, one row each: arm, seed, state, and the fields of `Result`, NaN where a run is not done."""
    rows = []
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            result = run.result()
            row = {"arm": arm, "seed": run.config.seed, "state": "done" if result else run.status().state}
            rows.append(row | (result.model_dump() if result else {}))
    return pd.DataFrame(rows, columns=["arm", "seed", "state", *Result.model_fields])


def histories(plan: Plan) -> pd.DataFrame:
    """The epochs of the finished runs of a study: arm, seed, and the columns of `metrics.jsonl`."""
    frames = [
        run.metrics().assign(arm=arm, seed=run.config.seed)
        for arm, configs in plan.arms.items()
        for run in map(Run, configs)
        if run.result() is not None
    ]
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "epoch", "top1_error"])
    )


def summary(plan: Plan, frame: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: errors in percent as mean and half of the 95 % interval over seeds, and the paper's numbers.

    Columns: arm, done and runs (numbers of runs), parameters, top1_error, top1_half, top5_error, top5_half,
    paper_imagenet_top1_error, paper_imagenet_top5_error (one run; NaN where the paper has no such row), on CIFAR-100
    paper_cifar100_... where Table 1 has some of the arms.
    """
    rows = []
    source, printed = _printed(plan)
    for label in plan.arms:
        of_arm = frame[frame["arm"] == label]
        top1, top1_half = mean_interval(of_arm["top1_error"])
        top5, top5_half = mean_interval(of_arm["top5_error"])
        row = {
            "arm": label,
            "done": int(of_arm["top1_error"].notna().sum()),
            "runs": len(of_arm),
            "parameters": of_arm["parameters"].max(),
            "top1_error": top1,
            "top1_half": top1_half,
            "top5_error": top5,
            "top5_half": top5_half,
        }
        for key in ("top1_error", "top5_error"):
            row[f"paper_{source}_{key}"] = printed[label][key] if label in printed else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _printed(plan: Plan) -> "tuple[str, dict[str, pd.Series[Any]]]":
    """The data set of the paper's numbers, and the printed row of every arm that has one with its backbone.

    ImageNet, or CIFAR-100 where the study runs on it and Table 1 has any of its arms; never some of each.
    """
    found: dict[str, pd.Series[Any]] = {}
    for source in ("cifar100", "imagenet") if plan.dataset == "cifar100" else ("imagenet",):
        for label, arm in plan.study.arms.items():
            if (row := arm.paper) is not None:
                table, backbone = 1 if source == "cifar100" else row.table, plan.arms[label][0].backbone
                with suppress(LookupError):
                    found[label] = paper.row(table, backbone, row.attention, row.variant)
        if found:
            break
    return source, found


def note(plan: Plan, frame: pd.DataFrame) -> str:
    """The line under a table or a figure: what was run, and what made the numbers."""
    configs = plan.configs
    found = {arm: runs[0].width for arm, runs in plan.arms.items() if plan.study.arms[arm].parameters_of is not None}
    usual = [runs[0] for arm, runs in plan.arms.items() if arm not in found]

    def each(key: str) -> str:
        values = dict.fromkeys(getattr(config, key) for config in usual)
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    sources = sorted(frame["source"].dropna().unique())
    present = "" if sources in ([], [source_hash()]) else f", and the present code is {source_hash()}"
    code = ", ".join(sources) + (" (several versions of the code)" if len(sources) > 1 else "") if sources else "none"
    overrides = "".join(f", {k}={v}" for k, v in plan.overrides.items() if k not in ("epochs", "backbone", "width"))
    where = {"test": "", "validation": ", measured on validation images"}[configs[0].evaluate_on]
    own = f" ({', '.join(f'{arm}: {width:g}' for arm, width in found.items())})" if found else ""
    made = (
        f"{plan.dataset}, {each('backbone')} at width {each('width')}{own}, {each('epochs')} epochs{overrides}{where}; "
        f"errors in percent, mean ± 95 % interval over seeds {_ranges(plan.seeds)}; gamlib {code}{present}."
    )
    source, printed = _printed(plan)
    said = f"Paper: full width, {paper.DATASETS[source]}, one run each." if printed else ""
    return " ".join(filter(None, (made, said, plan.study.note)))


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2 and 5 as "0–2, 5"; one or two in a row are named."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def label(plan: Plan, frame: pd.DataFrame) -> str:
    """What stands under the axis of a figure: the data set and its part, the number of seeds, and what is missing."""
    done = int(frame["top1_error"].notna().sum())
    missing = "" if done == len(frame) else f", {done} of {len(frame)} runs"
    images = next(iter(plan.arms.values()))[0].evaluate_on
    return f"{plan.dataset}, {images} images, {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}{missing}"


def for_reading(table: pd.DataFrame, plus_minus: str = "±") -> pd.DataFrame:
    """A summary with every cell as the text that people read."""

    def cell(mean: float, half: float) -> str:
        if math.isnan(mean):
            return "–"
        return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} {plus_minus} {half:.2f}"

    def printed(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.2f}"

    top1, top5 = (column for column in map(str, table.columns) if column.startswith("paper_"))
    texts = {
        "Arm": table["arm"],
        "Runs": [f"{done} of {runs}" for done, runs in zip(table["done"], table["runs"], strict=True)],
        "Parameters": ["–" if math.isnan(n) else f"{n / 1e6:.3f}M" for n in table["parameters"]],
        "Top-1 error": list(map(cell, table["top1_error"], table["top1_half"])),
        "Top-5 error": list(map(cell, table["top5_error"], table["top5_half"])),
        "Paper top-1": list(map(printed, table[top1])),
        "Paper top-5": list(map(printed, table[top5])),
    }
    if table[top1].isna().all():
        del texts["Paper top-1"], texts["Paper top-5"]
    return pd.DataFrame(texts)


def latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A summary as a LaTeX table."""
    texts = for_reading(table, plus_minus="PLUSMINUS")
    return to_latex(texts, caption, label, "l" + "r" * (texts.shape[1] - 1)).replace("PLUSMINUS", r"$\pm$")


def to_latex(texts: pd.DataFrame, caption: str, label: str, columns: str) -> str:
    """A frame of texts as a LaTeX table (packages booktabs and graphicx), no wider than a page's text."""
    styler = texts.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    body = styler.to_latex(
        hrules=True,
        column_format=columns,
        caption=_escaped(caption),
        label=f"tab:{label}",
        position_float="centering",
    )
    body = body.replace(r"\begin{tabular}", "\\resizebox{\\linewidth}{!}{\n\\begin{tabular}")
    return body.replace(r"\end{tabular}", "\\end{tabular}\n}").replace("–", "--")


def _escaped(text: str) -> str:
    for mark in "&%$#_{}":
        text = text.replace(mark, "\\" + mark)
    return text.replace("±", r"$\pm$")
