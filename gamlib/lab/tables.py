"""Tables as frames of numbers: the runs of a study, its arms with the paper's numbers beside them, its comparisons."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from gamlib import paper
from gamlib.lab import evidence
from gamlib.lab.provenance import source_hash
from gamlib.lab.runs import Result, Run, unique
from gamlib.lab.statistics import ALPHA, Comparison, compare, mean_interval, table
from gamlib.lab.studies import Plan
from gamlib.training.datasets import title

SPEEDS = ("images_per_second", "peak_memory_mib")  # of training, as metrics have them


def outcomes(plan: Plan) -> pd.DataFrame:
    """The runs of a study, one row each: arm, seed, state, and the fields of `Result`, NaN where a run is not done."""
    rows = []
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            result = run.result()
            row = {"arm": arm, "seed": run.config.seed, "state": "done" if result else run.status().state}
            rows.append(row | (result.model_dump() if result else {}))
    frame = pd.DataFrame(rows, columns=["arm", "seed", "state", *Result.model_fields])
    return frame.assign(flops=pd.to_numeric(frame["flops"]))


def histories(plan: Plan) -> pd.DataFrame:
    """The epochs of the finished runs of a study: arm, seed, and the columns of `metrics.jsonl`.

    A run whose file cannot be used is left out; `evidence.problems` names it.
    """
    rows = []
    for arm, configs in plan.arms.items():
        for run in map(Run, configs):
            with suppress(evidence.DamagedError):
                rows += [{"arm": arm, "seed": run.config.seed, **epoch} for epoch in evidence.epochs(run)]
    columns = ["arm", "seed", "epoch", "top1_error", *SPEEDS]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=list(dict.fromkeys([*columns, *frame.columns])))


def summary(plan: Plan, frame: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: its costs, errors in percent as mean and half of the 95 % interval over seeds, and the paper's.

    Columns: arm, done and runs (numbers of runs), parameters, flops (of one test image, by `gamlib.complexity`),
    images_per_second and peak_memory_mib (of training: medians over the epochs of all its runs), top1_error,
    top1_half, top5_error, top5_half, paper_imagenet_top1_error, paper_imagenet_top5_error (one run), or
    paper_cifar100_... on CIFAR-100 where Table 1 has some of the arms. NaN where nothing is known.
    """
    rows = []
    source, printed = _printed(plan)
    speeds = histories(plan).groupby("arm")[list(SPEEDS)].median()
    for label in plan.arms:
        of_arm = frame[frame["arm"] == label]
        top1, top1_half = mean_interval(of_arm["top1_error"])
        top5, top5_half = mean_interval(of_arm["top5_error"])
        done = int(of_arm["top1_error"].notna().sum())
        row = {
            "arm": label,
            "done": done,
            "runs": len(of_arm),
            "parameters": of_arm["parameters"].max(),
            "flops": of_arm["flops"].max(),
            **{key: speeds[key].get(label, math.nan) for key in SPEEDS},
            "top1_error": top1,
            "top1_half": top1_half,
            "top5_error": top5,
            "top5_half": top5_half,
        }
        for key in ("top1_error", "top5_error"):
            row[f"paper_{source}_{key}"] = printed[label][key] if label in printed else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def comparisons(plan: Plan, frame: pd.DataFrame) -> list[Comparison]:
    """Those between the plan's arms, corrected for all comparisons of the study, whichever arms were asked for."""
    return [of for of in compare(frame, plan.study.compare) if (of.arm, of.reference) in plan.compare]


def differences(plan: Plan, frame: pd.DataFrame) -> pd.DataFrame:
    """The table of those comparisons, as `statistics.table` has it."""
    return table(comparisons(plan, frame))


def _printed(plan: Plan) -> "tuple[str, dict[str, pd.Series[Any]]]":
    """The data set of the paper's numbers, and the printed row of every arm that has one with its backbone.

    ImageNet, or CIFAR-100 where the study runs on it and Table 1 has any of its arms; never some of each.
    """
    found: dict[str, pd.Series[Any]] = {}
    for source in ("cifar100", "imagenet") if plan.dataset == "cifar100" else ("imagenet",):
        for label, configs in plan.arms.items():
            if (row := plan.study.arms[label].paper) is not None:
                table, backbone = 1 if source == "cifar100" else row.table, configs[0].backbone
                with suppress(LookupError):
                    found[label] = paper.row(table, backbone, row.attention, row.variant)
        if found:
            break
    return source, found


def note(plan: Plan, frame: pd.DataFrame) -> str:
    """The lines under a table: what was run, how much of it is done, what made the numbers, and how to read them."""
    configs = plan.configs
    found = {arm: runs[0].width for arm, runs in plan.arms.items() if plan.study.arms[arm].parameters_of is not None}
    usual = [runs[0] for arm, runs in plan.arms.items() if arm not in found] or [runs[0] for runs in plan.arms.values()]

    def each(key: str) -> str:
        values = dict.fromkeys(getattr(config, key) for config in usual)
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    sources = sorted(frame["source"].dropna().unique())
    code = ", ".join(sources) + (" (several versions of the code)" if len(sources) > 1 else "") if sources else "none"
    commits, machines = _origins(plan)
    overrides = "".join(f", {k}={v}" for k, v in plan.overrides.items() if k not in ("epochs", "backbone", "width"))
    where = {"test": "", "validation": ", measured on validation images"}[configs[0].evaluate_on]
    partly = f"; {part} runs are done ({_ends(frame)})" if (part := missing(frame)) else ""
    own = f" ({', '.join(f'{arm}: {width:g}' for arm, width in found.items())})" if found else ""
    made = (
        f"{title(plan.dataset)}, {each('backbone')} at width {each('width')}{own}, {each('epochs')} epochs{overrides}"
        f"{where}; errors in percent, mean ± 95 % interval over seeds {_ranges(plan.seeds)}{partly}; "
        f"gamlib at commit {commits}, code {code}."
    )
    measured = f"Images/s and peak memory are those of training, medians over epochs, on {machines}." * bool(machines)
    references = {reference for _, reference in plan.compare}
    compared = (
        f"Difference: top-1 error minus that of {min(references) if len(references) == 1 else 'the reference'} in "
        "points, paired by seed, ± its own 95 % interval; p of the paired t-test, corrected by Holm for all "
        f"{len(plan.study.compare)} comparisons; what it calls better (below {ALPHA}) is bold."
    ) * any(of.seeds > 1 for of in comparisons(plan, frame))
    source, printed = _printed(plan)
    said = f"Paper: full width, {paper.DATASETS[source]}, one run each." if printed else ""
    return " ".join(filter(None, (made, measured, compared, said, plan.study.note)))


def outdated(frame: pd.DataFrame) -> str:
    """A line that says so if other code than the present made some of the results, else nothing."""
    others = set(frame["source"].dropna()) - {source_hash()}
    return f"Other code made these numbers than the present, which is {source_hash()}." if others else ""


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2 and 5 as "0–2, 5"; one or two in a row are named."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _origins(plan: Plan) -> tuple[str, str]:
    """Commits and devices of the finished runs, as texts; of a run without a whole `provenance.json`, "unknown"."""
    commits, devices = set(), set()
    for run in unique(plan.configs):
        if run.result() is None:
            continue
        try:
            for made in evidence.origins(run):
                changed = "" if made.get("clean") else " with changes"
                commits.add(f"{made['commit'][:7]}{changed}" if made.get("commit") else "unknown")
                devices.add(str(made.get("device", "an unknown device")))
        except evidence.DamagedError:
            commits.add("unknown")
    return ", ".join(sorted(commits)) or "none", ", ".join(sorted(devices))


def missing(frame: pd.DataFrame) -> str:
    """ "n of N" if not all runs are done, else nothing."""
    done = int(frame["top1_error"].notna().sum())
    return "" if done == len(frame) else f"{done} of {len(frame)}"


def _ends(frame: pd.DataFrame) -> str:
    """How the runs that are not done stand: "2 missing, 1 failed", most first."""
    states = frame.loc[frame["top1_error"].isna(), "state"].value_counts()
    return ", ".join(f"{number} {state}" for state, number in states.items())


def label(plan: Plan, frame: pd.DataFrame) -> str:
    """What stands under the axis of a figure: data set and part, number of seeds, overrides, and what is missing."""
    partly = f", {part} runs" if (part := missing(frame)) else ""
    images = next(iter(plan.arms.values()))[0].evaluate_on
    own = "".join(f", {key}={value}" for key, value in plan.overrides.items() if key != "evaluate_on")
    return f"{title(plan.dataset)}, {images} images, {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}{own}{partly}"
