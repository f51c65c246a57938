"""Studies that go on, look by look, until their comparisons are decided: `gamlib study STUDY --until-decided`.

What is next follows from the results alone, so that the same command goes on after whatever stopped it.
"""

from collections.abc import Callable

import pandas as pd

from ablation.errors import ConfigError
from ablation.execution.progress import Progress
from ablation.results.statistics import compare
from ablation.runs import Run
from ablation.studies import Plan


def check(plan: Plan) -> None:
    """Refuse a plan that cannot go on until it is decided.

    Raises:
        ConfigError: its study compares nothing, declares no looks, or other seeds than so many as its last look.
    """
    looks, number = plan.study.looks, len(plan.seeds)
    if not plan.compare:
        raise ConfigError(f"until_decided: {plan.study.name} compares none of these arms")
    if not looks:
        raise ConfigError(
            f"until_decided: {plan.study.name} declares no looks; allowed: one with, say, looks: [4, 8, 12]"
        )
    if looks[-1] != number:
        raise ConfigError(f"seeds: {number} of them: allowed with looks={looks}: {looks[-1]}")


def next_look(plan: Plan) -> tuple[Plan, pd.DataFrame, bool]:
    """The runs up to the first look that lacks some, the comparisons at the look before, and whether it is over.

    An arm gets the seeds of a look if one of its comparisons was undecided at the look before. It is over when all are
    decided, or when the last look has its runs. The plan is that of the whole study, with fewer runs of some arms.
    """
    undecided, numbers = {*plan.arms}, dict.fromkeys(plan.arms, 0)
    part, compared = plan, pd.DataFrame(columns=["arm", "reference", "verdict"])
    for look in plan.study.looks:
        numbers |= dict.fromkeys(undecided, look)
        part = plan.model_copy(update={"arms": {arm: of[: numbers[arm]] for arm, of in plan.arms.items()}})
        results = [(arm, run.seed, Run(run).result()) for arm, of in part.arms.items() for run in of]
        if any(result is None for _, _, result in results):
            return part, compared, False
        rows = [(arm, seed, result.top1_error) for arm, seed, result in results if result is not None]
        compared = compare(pd.DataFrame(rows, columns=["arm", "seed", "top1_error"]), plan.study)
        open_ = compared[compared["verdict"].str.startswith("undecided")]
        undecided = {*open_["arm"], *open_["reference"]} & {*plan.arms}
        if not undecided:
            break
    return part, compared, True


def run_until_decided(plan: Plan, run: Callable[[Plan], Progress], wait: bool) -> Progress:
    """Run a study look by look, and print what each look has decided; what `run` gave of the last one.

    Args:
        plan: of the whole study, see `check`.
        run: executes what is missing of a plan.
        wait: or only the runs of one look are submitted.
    """
    progress = None
    while True:
        part, compared, over = next_look(plan)
        if len(compared):
            print(f"{plan.name}, {compared['seeds'].max()} of {len(plan.seeds)} seeds:")
            for of in compared.itertuples():
                print(f"    {of.arm} against {of.reference}: {of.verdict}")
        if progress is None or not over:
            progress = run(part)
        if progress.failed and wait:
            print(f"{plan.name} does not go on, as runs of this look have failed; --arms can leave an arm out")
        if over or progress.failed or not wait:
            return progress
