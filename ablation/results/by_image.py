"""Two arms on the same test images: which of them each got right, from the predictions that every run leaves."""

import numpy as np
import pandas as pd

from ablation.results.evidence import DamagedError, read_predictions
from ablation.results.statistics import mcnemar
from ablation.runs import Run
from ablation.studies import Plan


def by_image(plan: Plan) -> pd.DataFrame:
    """McNemar's test of every comparison of a study, seed by seed, on the images that both runs have looked at.

    Columns: arm, reference, seed, images, only_arm and only_reference (images that one of the two alone got right), p
    (exact, two-sided, not corrected). It asks whether these two trained networks differ on these images, and not, as
    `statistics.compare` does, whether the arms do whatever the seed. Runs that are not done or whose predictions cannot
    be used (`evidence.problems` names those) are left out, and so are pairs that were tested on other images.
    """
    rows = []
    for arm, reference in plan.compare:
        for ours, theirs in zip(plan.arms[arm], plan.arms[reference], strict=True):
            runs = Run(ours), Run(theirs)
            if any(run.result() is None for run in runs):
                continue
            try:
                (ours_said, label), (theirs_said, its_label) = map(read_predictions, runs)
            except DamagedError:
                continue
            if not np.array_equal(label, its_label):  # other images, or another order
                continue
            test = mcnemar(ours_said == label, theirs_said == label)
            row = {"arm": arm, "reference": reference, "seed": ours.seed, "images": test.images}
            rows.append(row | {"only_arm": test.only_arm, "only_reference": test.only_reference, "p": test.p})
    columns = ["arm", "reference", "seed", "images", "only_arm", "only_reference", "p"]
    return pd.DataFrame(rows, columns=columns)
