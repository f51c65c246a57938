"""Two arms on the same test images: which of them each got right, from the predictions that every run leaves."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gamlib.files import write_whole
from gamlib.lab.evidence import PREDICTIONS, DamagedError, read_predictions
from gamlib.lab.runs import Run
from gamlib.lab.statistics import mcnemar
from gamlib.lab.studies import Plan


def write_predictions(folder: Path, predicted: NDArray[np.integer], label: NDArray[np.integer]) -> None:
    """Leave `predictions.npz` in a run's folder: `predicted` and `label`, one or two bytes an image, compressed."""
    kind = np.uint8 if max(predicted.max(initial=0), label.max(initial=0)) < 256 else np.uint16
    buffer = BytesIO()
    np.savez_compressed(buffer, predicted=predicted.astype(kind), label=label.astype(kind))
    write_whole(folder / PREDICTIONS, buffer.getvalue())


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
