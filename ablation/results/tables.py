"""Tables as frames of numbers: the arms of a study with the paper's numbers beside them, its comparisons; its notes."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from ablation.hypotheses import declared_in_words, in_words
from ablation.provenance import commit, source_hash
from ablation.results.frames import KEY, SPEEDS, Results, predicted_by
from ablation.results.statistics import ci95, compare
from ablation.results.two_way import halves
from ablation.studies import Plan
from gamlib import paper

COSTS = {"parameters": "Parameters", "flops": "FLOPs"}
UNITS = ((1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"))  # of a cost: the first that it reaches, else the last


def summary(results: Results) -> pd.DataFrame:
    """One row an arm: its costs, errors in percent as mean and half of the 95 % interval over seeds, and the paper's.

    Columns: arm, done and runs (numbers of runs), parameters, flops (of one test image, by `gamlib.paper.complexity`),
    images_per_second and peak_memory_mib (of training: medians over the epochs of all its runs; left out where runs
    are of several processors, whose speeds say nothing of the arms), top1_error, top1_half, top5_error, top5_half,
    paper_imagenet_top1_error, paper_imagenet_top5_error (one run), or paper_cifar100_... on CIFAR-100 where Table 1 has
    some of the arms. NaN where nothing is known.
    """
    runs = results.runs.groupby("arm", sort=False)
    table = runs.agg(done=("top1_error", "count"), runs=("seed", "size"))
    table[["parameters", "flops"]] = runs[["parameters", "flops"]].max()
    if len(_machines(results)) < 2:
        table = table.join(results.epochs.groupby("arm")[list(SPEEDS)].median())
    for key in ("top1", "top5"):
        errors = runs[f"{key}_error"]
        table[f"{key}_error"] = errors.mean()
        table[f"{key}_half"] = errors.agg(lambda of_arm: ci95(of_arm)[1]) - table[f"{key}_error"]
    source, printed = _printed(results.plan)
    for key in ("top1_error", "top5_error"):
        table[f"paper_{source}_{key}"] = [printed.get(str(arm), {}).get(key, math.nan) for arm in table.index]
    return table.reset_index()


def _machines(results: Results) -> list[str]:
    """What the runs were trained on."""
    return sorted(results.origins["device"].fillna("an unknown device").unique())


def costs(results: Results) -> pd.DataFrame:
    """What the arms with a run cost and how they err, a row an arm and cost; none if all have the same size.

    Columns: cost (with its unit), value, arm, top1_error and top1_half in percent, lowest: whether no arm that costs
    less, or as much, has as low a mean.
    """
    known = summary(results).dropna(subset="top1_error")
    if (known[list(COSTS)].nunique() < 2).all():
        return pd.DataFrame(columns=["cost", "value", "lowest"])
    costs, arm = {}, ["arm", "top1_error", "top1_half"]
    for key, name in COSTS.items():
        unit, power = next((of for of in UNITS if known[key].max() >= of[0]), UNITS[-1])
        costs[f"{name} ({power})"] = known[key] / unit
    if "images_per_second" in known:
        costs["Training time (ms per image)"] = 1e3 / known["images_per_second"]
    table = known[arm].assign(**costs).melt(arm, var_name="cost").dropna(subset="value")
    cheaper = table.sort_values(["value", "top1_error"], kind="stable").groupby("cost")["top1_error"]
    best = cheaper.transform(lambda errors: errors.cummin().shift(fill_value=math.inf))
    return table.assign(lowest=table["top1_error"].lt(best))


def differences(results: Results) -> pd.DataFrame:
    """`compared`, and `two_way_half`: half of the interval over seeds and test images together, see `two_way`."""
    found = compared(results)
    return found.assign(two_way_half=halves(results, found))


def compared(results: Results) -> pd.DataFrame:
    """The comparisons of `statistics` between the plan's arms, corrected for all comparisons of the study."""
    found = compare(results.runs, results.plan.study)
    ours = [pair in results.plan.compare for pair in zip(found["arm"], found["reference"], strict=True)]
    return found.loc[ours].reset_index(drop=True)  # which keeps the columns where there is none


def by_image(results: Results) -> pd.DataFrame:
    """McNemar's test of every comparison of a study, seed by seed, on the test images.

    Columns: arm, reference, seed, images, only_arm and only_reference (images that one of the two alone got right), p
    (exact, two-sided, not corrected). It asks whether these two trained networks differ on these images, and not, as
    `statistics.compare` does, whether the arms do whatever the seed. Runs without usable predictions are left out.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
    """
    right = results.predictions.drop(columns="label").eq(results.predictions["label"], axis=0)
    columns = ["arm", "reference", "seed", "images", "only_arm", "only_reference", "p"]
    rows = []
    for arm, reference in results.plan.compare:
        for seed in results.plan.seeds:
            names = predicted_by(arm, seed), predicted_by(reference, seed)
            if {*names} <= {*right}:
                first, second = (right[name] for name in names)
                only = int((first & ~second).sum()), int((second & ~first).sum())
                p = mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue  # who agree count for nothing in it
                rows.append((arm, reference, seed, len(right), *only, float(p)))
    return pd.DataFrame(rows, columns=columns)


def _printed(plan: Plan) -> tuple[str, dict[str, dict[str, Any]]]:
    """The data set of the paper's numbers, and the printed row of every arm that has one with its backbone.

    ImageNet, or CIFAR-100 where the study runs on it and Table 1 has any of its arms; never some of each.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in ("cifar100", "imagenet") if plan.dataset == "cifar100" else ("imagenet",):
        for label, configs in plan.arms.items():
            if (row := plan.study.arms[label].paper) is not None:
                table = 1 if source == "cifar100" else row.table
                with suppress(LookupError):
                    found[label] = paper.row(table, configs[0].backbone, row.attention, row.variant)
        if found:
            break
    return source, found


def note(results: Results) -> str:
    """The lines under a table: what was run, how much of it is done, what made the numbers, and how to read them."""
    plan = results.plan
    first = {arm: configs[0] for arm, configs in plan.arms.items()}
    found = {arm: config.width for arm, config in first.items() if plan.study.arms[arm].parameters_of is not None}
    usual = [config for arm, config in first.items() if arm not in found] or list(first.values())

    def each(key: str) -> str:
        values = dict.fromkeys(getattr(config, key) for config in usual)
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    sources = sorted(results.done["source"].unique())
    code = (", ".join(sources) or "none") + " (several versions of the code)" * (len(sources) > 1)
    machines = _machines(results)
    overrides = "".join(f", {k}={v}" for k, v in plan.overrides.items() if k not in ("epochs", "backbone", "width"))
    where = ", measured on validation images" * (usual[0].evaluate_on == "validation")
    seeds = plan.seeds[: max(map(len, plan.arms.values()))]  # of a study that ended at a look not all
    ends = results.runs["state"].value_counts().drop("done", errors="ignore")
    how = ", ".join(f"{number} {state}" for state, number in ends.items())
    partly = f"; {missing(results)} runs are done ({how})" if how else ""
    own = f" ({', '.join(f'{arm}: {width:g}' for arm, width in found.items())})" if found else ""
    said = [
        f"{plan.dataset_title}, {each('backbone')} at width {each('width')}{own}, {each('epochs')} epochs{overrides}"
        f"{where}; errors in percent, mean ± 95 % interval over seeds {_ranges(seeds)}{partly}; "
        f"gamlib at commit {_commits(results)}, code {code}."
    ]
    if len(machines) == 1:
        said.append(f"Images/s and peak memory are those of training, medians over epochs, on {machines[0]}.")
    elif machines:
        said.append(f"No images/s and peak memory: the runs are of several processors, {', '.join(machines)}.")
    if (compared(results)["seeds"] > 1).any():
        references = {reference for _, reference in plan.compare}
        said.append(
            f"Difference: top-1 error minus that of {min(references) if len(references) == 1 else 'the reference'} in "
            "points, ± its own 95 % interval over seeds; P(better): the share of pairs of runs in which the arm errs "
            "less; "
            f"{in_words(plan.study)} What is called better is bold."
        )
        begun = begun_before(results)
        said.append(declared_in_words(plan.declared, plan.declares(), begun, plan.seeds))
        if plan.study.looks:
            said.append(
                f"A difference is of the first seeds up to the last look that both arms have come to{_ended(results)}. "
                "p is the lowest of all looks, each at a level of its own. After an early end a difference is an upper "
                "estimate."
            )
    source, printed = _printed(plan)
    if printed:
        said.append(f"Paper: full width, {paper.DATASETS[source]}, one run each.")
    return " ".join(filter(None, (*said, plan.study.note)))


def begun_before(results: Results) -> int:
    """How many of the finished runs had begun when the test was declared: they ended less than they took after it."""
    if results.plan.declared is None:
        return 0
    ended = pd.to_datetime(results.done["ended"], utc=True, errors="coerce", format="ISO8601")
    began = ended - pd.to_timedelta(results.done["seconds"], unit="s")
    declared = pd.Timestamp(results.plan.declared.at) - pd.Timedelta(seconds=2)  # both are whole seconds
    return int((began < declared).sum())


def _ended(results: Results) -> str:
    """That a study has ended before its last look, if it has."""
    looks, number = results.plan.study.looks, max(map(len, results.plan.arms.values()))
    undecided = compared(results)["verdict"].str.startswith(("undecided", "not measured")).any()
    return "" if number >= looks[-1] or undecided else f"; all was decided at {number} of {looks[-1]} seeds"


def outdated(results: Results) -> str:
    """A line that says so if other code than the present made some of the results, else nothing."""
    if not set(results.done["source"]) - {source_hash()}:
        return ""
    made = f"Other code made these numbers, at commit {_commits(results)},"
    return f"{made} than the present, which is {source_hash()} at commit {short_commit(*commit())}."


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2 and 5 as "0–2, 5"; one or two in a row are named."""
    series = pd.Series(numbers)
    runs = (run.tolist() for _, run in series.groupby(series.diff().ne(1).cumsum()))
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _commits(results: Results) -> str:
    """The commits of the finished runs; of a run without a whole `provenance.json`, "unknown"."""
    made = results.done[KEY].merge(results.origins, how="left", on=KEY)
    return ", ".join(sorted({short_commit(*of) for of in zip(made["commit"], made["clean"], strict=True)})) or "none"


def short_commit(commit: Any, clean: Any) -> str:
    """A commit as people write it, and whether files had changed since."""
    if pd.isna(commit):
        return "unknown"
    return f"{commit[:7]}{'' if clean is True else ' with changes'}"


def missing(results: Results) -> str:
    """ "n of N" if not all runs are done, else nothing."""
    done, runs = len(results.done), len(results.runs)
    return "" if done == runs else f"{done} of {runs}"


def about(results: Results) -> str:
    """What stands under the axis of a figure: data set and part, number of seeds, overrides, and what is missing."""
    plan = results.plan
    images = next(iter(plan.arms.values()))[0].evaluate_on
    fewest, most = (of(map(len, plan.arms.values())) for of in (min, max))
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    said = [plan.dataset_title, f"{images} images", f"{number} seed{'s' * (most > 1)}"]
    said += [f"{key}={value}" for key, value in plan.overrides.items() if key != "evaluate_on"]
    return ", ".join(said + [f"{part} runs" for part in [missing(results)] if part])
