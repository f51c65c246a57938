"""Tables as frames of numbers: the arms of a study with the paper's numbers beside them, its comparisons; its notes."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from ablation.config import title
from ablation.provenance import commit, source_hash
from ablation.results.frames import SPEEDS, Results, predicted_by
from ablation.results.statistics import ALPHA, Comparison, compare, mcnemar, mean_interval, table
from ablation.studies import Plan
from gamlib import paper

COSTS = {"parameters": "Parameters", "flops": "FLOPs"}
UNITS = ((1e9, "10⁹"), (1e6, "10⁶"), (0, "10³"))  # a cost from that size on has the unit


def summary(results: Results) -> pd.DataFrame:
    """One row an arm: its costs, errors in percent as mean and half of the 95 % interval over seeds, and the paper's.

    Columns: arm, done and runs (numbers of runs), parameters, flops (of one test image, by `gamlib.paper.complexity`),
    images_per_second and peak_memory_mib (of training: medians over the epochs of all its runs), top1_error,
    top1_half, top5_error, top5_half, paper_imagenet_top1_error, paper_imagenet_top5_error (one run), or
    paper_cifar100_... on CIFAR-100 where Table 1 has some of the arms. NaN where nothing is known.
    """
    rows = []
    source, printed = _printed(results.plan)
    speeds = results.epochs.groupby("arm")[list(SPEEDS)].median()
    for label in results.plan.arms:
        of_arm = results.runs[results.runs["arm"] == label]
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


def costs(results: Results) -> pd.DataFrame:
    """What the arms with a run cost and how they err, a row an arm and cost; none if all have the same size.

    Columns: cost (with its unit), value, arm, top1_error and top1_half in percent, lowest: whether no arm that costs
    less, or as much, has as low a mean.
    """
    known = summary(results).dropna(subset="top1_error")
    if known["parameters"].nunique() < 2 and known["flops"].nunique() < 2:
        return pd.DataFrame(columns=["cost", "value", "lowest"])
    values = {"Training time (ms per image)": 1e3 / known["images_per_second"]}
    for key, name in reversed(COSTS.items()):
        unit, power = next(of for of in UNITS if known[key].max() >= of[0] or not of[0])
        values = {f"{name} ({power})": known[key] / (unit or 1e3), **values}
    rows = []
    for cost, value in values.items():
        of_it = known[["arm", "top1_error", "top1_half"]].assign(cost=cost, value=value).dropna(subset="value")
        by_cost = of_it.sort_values(["value", "top1_error"], kind="stable")["top1_error"]
        rows.append(of_it.assign(lowest=by_cost < by_cost.cummin().shift(fill_value=math.inf)))
    return pd.concat(rows, ignore_index=True)


def comparisons(results: Results) -> list[Comparison]:
    """Those between the plan's arms, corrected for all comparisons of the study, whichever arms were asked for."""
    compared = compare(results.runs, results.plan.study.compare)
    return [of for of in compared if (of.arm, of.reference) in results.plan.compare]


def differences(results: Results) -> pd.DataFrame:
    """The table of those comparisons, as `statistics.table` has it."""
    return table(comparisons(results))


def by_image(results: Results) -> pd.DataFrame:
    """McNemar's test of every comparison of a study, seed by seed, on the test images.

    Columns: arm, reference, seed, images, only_arm and only_reference (images that one of the two alone got right), p
    (exact, two-sided, not corrected). It asks whether these two trained networks differ on these images, and not, as
    `statistics.compare` does, whether the arms do whatever the seed. Runs without usable predictions are left out.
    """
    right = results.predictions.drop(columns="label").eq(results.predictions["label"], axis=0)
    rows = []
    for arm, reference in results.plan.compare:
        for seed in results.plan.seeds:
            pair = [predicted_by(label, seed) for label in (arm, reference)]
            if set(pair) <= set(right):
                test = mcnemar(*(right[name].to_numpy() for name in pair))
                row = {"arm": arm, "reference": reference, "seed": seed, "images": test.images}
                rows.append(row | {"only_arm": test.only_arm, "only_reference": test.only_reference, "p": test.p})
    columns = ["arm", "reference", "seed", "images", "only_arm", "only_reference", "p"]
    return pd.DataFrame(rows, columns=columns)


def _printed(plan: Plan) -> tuple[str, dict[str, dict[str, Any]]]:
    """The data set of the paper's numbers, and the printed row of every arm that has one with its backbone.

    ImageNet, or CIFAR-100 where the study runs on it and Table 1 has any of its arms; never some of each.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in ("cifar100", "imagenet") if plan.dataset == "cifar100" else ("imagenet",):
        for label, configs in plan.arms.items():
            if (row := plan.study.arms[label].paper) is not None:
                table, backbone = 1 if source == "cifar100" else row.table, configs[0].backbone
                with suppress(LookupError):
                    found[label] = paper.row(table, backbone, row.attention, row.variant)
        if found:
            break
    return source, found


def note(results: Results) -> str:
    """The lines under a table: what was run, how much of it is done, what made the numbers, and how to read them."""
    plan, configs = results.plan, results.plan.configs
    found = {arm: runs[0].width for arm, runs in plan.arms.items() if plan.study.arms[arm].parameters_of is not None}
    usual = [runs[0] for arm, runs in plan.arms.items() if arm not in found] or [runs[0] for runs in plan.arms.values()]

    def each(key: str) -> str:
        values = dict.fromkeys(getattr(config, key) for config in usual)
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    sources = sorted(results.done["source"].unique())
    code = ", ".join(sources) + (" (several versions of the code)" if len(sources) > 1 else "") if sources else "none"
    machines = ", ".join(sorted(results.origins["device"].fillna("an unknown device").unique()))
    overrides = "".join(f", {k}={v}" for k, v in plan.overrides.items() if k not in ("epochs", "backbone", "width"))
    where = {"test": "", "validation": ", measured on validation images"}[configs[0].evaluate_on]
    partly = f"; {part} runs are done ({_ends(results)})" if (part := missing(results)) else ""
    own = f" ({', '.join(f'{arm}: {width:g}' for arm, width in found.items())})" if found else ""
    made = (
        f"{title(plan.dataset)}, {each('backbone')} at width {each('width')}{own}, {each('epochs')} epochs{overrides}"
        f"{where}; errors in percent, mean ± 95 % interval over seeds {_ranges(plan.seeds)}{partly}; "
        f"gamlib at commit {_commits(results)}, code {code}."
    )
    measured = f"Images/s and peak memory are those of training, medians over epochs, on {machines}." * bool(machines)
    references = {reference for _, reference in plan.compare}
    compared = (
        f"Difference: top-1 error minus that of {min(references) if len(references) == 1 else 'the reference'} in "
        "points, paired by seed, ± its own 95 % interval; p of the paired t-test, corrected by Holm for all "
        f"{len(plan.study.compare)} comparisons; what it calls better (below {ALPHA}) is bold."
    ) * any(of.seeds > 1 for of in comparisons(results))
    source, printed = _printed(plan)
    said = f"Paper: full width, {paper.DATASETS[source]}, one run each." if printed else ""
    return " ".join(filter(None, (made, measured, compared, said, plan.study.note)))


def outdated(results: Results) -> str:
    """A line that says so if other code than the present made some of the results, else nothing."""
    if not set(results.done["source"]) - {source_hash()}:
        return ""
    made = f"Other code made these numbers, at commit {_commits(results)},"
    return f"{made} than the present, which is {source_hash()} at commit {_short(*commit())}."


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2 and 5 as "0–2, 5"; one or two in a row are named."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _commits(results: Results) -> str:
    """The commits of the finished runs; of a run without a whole `provenance.json`, "unknown"."""
    known = zip(results.origins["commit"], results.origins["clean"], strict=True)
    found = {_short(commit, clean) for commit, clean in known}
    of_runs, with_origins = (
        set(zip(frame["arm"], frame["seed"], strict=True)) for frame in (results.done, results.origins)
    )
    found |= {"unknown"} if of_runs - with_origins else set()
    return ", ".join(sorted(found)) or "none"


def _short(commit: Any, clean: Any) -> str:
    """A commit as people write it, and whether files had changed since."""
    if pd.isna(commit):
        return "unknown"
    return f"{commit[:7]}{'' if clean is True else ' with changes'}"


def missing(results: Results) -> str:
    """ "n of N" if not all runs are done, else nothing."""
    done, runs = len(results.done), len(results.runs)
    return "" if done == runs else f"{done} of {runs}"


def _ends(results: Results) -> str:
    """How the runs that are not done stand: "2 missing, 1 failed", most first."""
    states = results.runs.loc[results.runs["state"] != "done", "state"].value_counts()
    return ", ".join(f"{number} {state}" for state, number in states.items())


def about(results: Results) -> str:
    """What stands under the axis of a figure: data set and part, number of seeds, overrides, and what is missing."""
    plan = results.plan
    partly = f", {part} runs" if (part := missing(results)) else ""
    images = next(iter(plan.arms.values()))[0].evaluate_on
    own = "".join(f", {key}={value}" for key, value in plan.overrides.items() if key != "evaluate_on")
    return f"{title(plan.dataset)}, {images} images, {len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}{own}{partly}"
