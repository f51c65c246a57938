"""Two kinds of chance at once: other seeds, and other test images from where these come from.

Intervals over seeds take the test images as given. Here both are drawn anew, the images together for all runs, since
all are tested on the same ones.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993); Rao and Wu, "Resampling inference with
complex survey data" (1988), for drawing one seed less than there are, without which so few seeds look too much alike;
Owen, "The pigeonhole bootstrap" (2007), for drawing the rows and the columns of a table; Zou and Donner, "Construction
of confidence limits about effect measures" (2008), for adding intervals whose quantiles differ.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ablation.results.frames import Results, predicted_by
from ablation.results.statistics import estimate

RESAMPLES = 1000


def halves(results: Results, compared: pd.DataFrame) -> list[float]:
    """Half of the 95 % interval, over seeds and test images together, of each row of `statistics.compare`, in points.

    The two-way bootstrap gives the variance of both. The part of it that is of seeds counts as in the interval over
    seeds, with the quantile of Student's t, and the rest with the normal one, as there are many images; the halves are
    added as squares. NaN where predictions of a run are missing, or there are fewer than two seeds.
    """
    predictions = results.predictions
    images, names = len(predictions), [name for name in predictions if name != "label"]
    if compared.empty or not names:
        return [math.nan] * len(compared)
    wrong = predictions[names].ne(predictions["label"], axis=0).to_numpy(np.float32)
    generator = np.random.default_rng(0)
    drawn = (np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(RESAMPLES))
    counts = [np.ones(images), *drawn]  # the images as they are come first
    percent = np.stack([100 * (count.astype(np.float32) @ wrong) / images for count in counts])  # [1 + resamples, runs]
    errors = pd.DataFrame(percent, columns=names)
    found = []
    for *pair, number in compared[["arm", "reference", "seeds"]].itertuples(index=False):
        arms = [results.done.loc[results.done["arm"] == arm, "seed"].tolist() for arm in pair]
        if results.plan.study.looks:
            arms = [seeds[:number] for seeds in arms]
        if results.plan.study.test == "paired":
            arms = [[seed for seed in arms[0] if seed in arms[1]]] * 2
        columns = [[predicted_by(arm, seed) for seed in seeds] for arm, seeds in zip(pair, arms, strict=True)]
        usable = min(map(len, columns)) > 1 and {*columns[0], *columns[1]} <= {*names}
        found.append(_half(results.plan.study.test, *(errors[of].to_numpy() for of in columns)) if usable else math.nan)
    return found


def _half(test: str, arm: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """`halves` of two arms: errors [1 + resamples, seeds] in percent, on the images as they are and as drawn."""
    seeds = estimate(test, arm[0].astype(float), reference[0].astype(float))
    generator = np.random.default_rng(1)
    draws = [generator.integers(of.shape[1], size=(RESAMPLES, of.shape[1] - 1)) for of in (arm, reference)]
    if test == "paired":
        draws[1] = draws[0]
    means = [np.take_along_axis(of[1:], drawn, 1).mean(1) for of, drawn in zip((arm, reference), draws, strict=True)]
    of_images = max(0.0, float(np.var(means[0] - means[1], ddof=1)) - float(seeds.error) ** 2)
    low, high = seeds.interval()
    return math.hypot((high - low) / 2, float(stats.norm.ppf(0.975)) * of_images**0.5)
