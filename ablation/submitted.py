"""What was submitted of a study: the plan of the last submission, and what is open of those before."""

from ablation.runs import Run
from ablation.studies import Plan, kept_plans


def submitted(study: str, dataset: str | None = None) -> list[tuple[Run, str, Plan]]:
    """All runs that were submitted of a study, each with its arm and its plan.

    Those of the plan that was submitted last, done or not, then those of earlier ones that are not done or removed.

    Raises:
        ConfigError: none was submitted; see `Plan.load`.
    """
    last = Plan.load(study, dataset)
    found = {config.signature: (Run(config), arm, last) for arm, configs in last.arms.items() for config in configs}
    for plan in map(Plan.read, kept_plans(last.name)):
        if plan is not None and plan.dataset == last.dataset:
            unfinished = {run.signature for run in plan.unfinished()}
            for arm, configs in plan.arms.items():
                for config in configs:
                    if config.signature in unfinished:
                        found.setdefault(config.signature, (Run(config), arm, plan))
    return list(found.values())
