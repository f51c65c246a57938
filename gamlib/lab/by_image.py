"""Two arms on the same test images: which of them each got right, from the predictions that every run leaves."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gamlib.files import write_whole
from gamlib.lab.runs import Run
from gamlib.lab.statistics import mcnemar
from gamlib.lab.studies import Plan

FILE = "predictions.npz"


def write_predictions(folder: Path, predicted: NDArray[np.integer], label: NDArray[np.integer]) -> None:
    """Leave `predictions.npz` in a run's folder: `predicted` and `label`, one or two bytes an image, compressed."""
    kind = np.uint8 if max(predicted.max(initial=0), label.max(initial=0)) < 256 else np.uint16
    buffer = BytesIO()
    np.savez_compressed(buffer, predicted=predicted.astype(kind), label=label.astype(kind))
    write_whole(folder / FILE, buffer.getvalue())


def correct(run: Run) -> NDArray[np.bool_] | None:
    """Whether the run got each test image right, bool [images]; None if it left no whole predictions."""
    try:
        with np.load(run.folder / FILE) as arrays:
            right: NDArray[np.bool_] = np.equal(arrays["predicted"], arrays["label"])
    except Exception:  # a damaged archive raises whatever zipfile, zlib and numpy do
        return None
    return right


def by_image(plan: Plan) -> pd.DataFrame:
    """McNemar's test of every comparison of a study, seed by seed, on the images that both runs have looked at.

    Columns: arm, reference, seed, images, only_arm and only_reference (images that one of the two alone got right), p
    (exact, two-sided, not corrected). It asks whether these two trained networks differ on these images, and not, as
    `statistics.compare` does, whether the arms do whatever the seed. Runs that are not done or have left no predictions
    are left out.
    """
    rows = []
    for arm, reference in plan.compare:
        for ours, theirs in zip(plan.arms[arm], plan.arms[reference], strict=True):
            runs = Run(ours), Run(theirs)
            if any(run.result() is None for run in runs):
                continue
            right, other = map(correct, runs)
            if right is None or other is None or right.shape != other.shape:
                continue
            test = mcnemar(right, other)
            row = {"arm": arm, "reference": reference, "seed": ours.seed, "images": test.images}
            rows.append(row | {"only_arm": test.only_arm, "only_reference": test.only_reference, "p": test.p})
    columns = ["arm", "reference", "seed", "images", "only_arm", "only_reference", "p"]
    return pd.DataFrame(rows, columns=columns)
