"""How often the statistics of a study are wrong, and how often they find what is there: studies drawn with known truth.

    python benchmarks/error_rates.py                 50,000 studies of each kind, three minutes of one core
    python benchmarks/error_rates.py --quick         500, seconds, to see that it works
    python benchmarks/error_rates.py --write         into docs/statistics.md, too

Seven arms are compared with one baseline. Errors are normal over seeds, or skewed where it says so. The baseline's
standard deviation is the arms' times a ratio, and σ is the root of the mean of both squares. Verdicts are those of
`ablation.results.statistics`, for many studies at once: `decide` goes from look to look as `gamlib study
--until-decided` does. Behind each number stands its Monte Carlo standard error.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from typing import Annotated, Any, NamedTuple

import arguments
import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from scipy import stats

from ablation.console import plain_errors
from ablation.hypotheses import Hypotheses
from ablation.paths import ROOT
from ablation.provenance import processor
from ablation.results.publication import published_plan
from ablation.results.statistics import Estimate, estimate, overall_ps
from ablation.results.typeset import markdown
from gamlib.files import write_whole

ARMS = 7
LOOKS = [4, 8, 12]
RATIOS = (0.5, 1, 2)  # standard deviation of the baseline to that of an arm
AT_ONCE = 5_000  # studies that are drawn together
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- written by benchmarks/error_rates.py -->", "<!-- until here -->"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Numbers = NDArray[Any]
Drawn = Callable[[int], Iterator[tuple[Numbers, Numbers]]]


class Decided(NamedTuple):
    """What many studies say of each of their comparisons; all are arrays [studies, comparisons].

    Attributes:
        better, worse: whether the corrected p of a difference is below alpha, by its direction.
        equal: whether that of equality is.
        seeds: how many the arm has got.
        estimate: the difference at the last of its looks.
    """

    better: Numbers
    worse: Numbers
    equal: Numbers
    seeds: Numbers
    estimate: Estimate

    @property
    def different(self) -> Numbers:
        """Better or worse."""
        return self.better | self.worse


def corrected(ps: Numbers, comparisons: Sequence[int] = ()) -> Numbers:
    """`statistics.holm` of many studies: ps and what it gives are [studies, hypotheses]."""
    of = np.array(comparisons or range(ps.shape[-1]))
    left = np.tile(np.bincount(of), (len(ps), 1))
    adjusted, least, studies = np.full(ps.shape, np.nan), np.zeros(len(ps)), np.arange(len(ps))
    for number in np.argsort(ps, axis=-1).T:  # NaN comes last
        p = ps[studies, number]
        known = ~np.isnan(p)
        least = np.where(known, np.maximum(least, np.minimum(1, (left > 0).sum(-1) * p)), least)
        adjusted[studies, number] = np.where(known, least, np.nan)
        left[studies, of[number]] -= known
    return adjusted


def decide(of: Hypotheses, arms: Numbers, baseline: Numbers) -> Decided:
    """What `until_decided` comes to, look by look, or all seeds at once where there are no looks.

    Args:
        of: test, alpha, looks, and a margin that is for all comparisons.
        arms: errors [studies, comparisons, seeds].
        baseline: those of what all of them are compared with, [studies, 1, seeds].
    """
    shape = arms.shape[:2]
    ps, found = np.full((*shape, 2), np.nan), Estimate(*np.full((3, *shape), np.nan))
    undecided, seeds = np.ones(shape, bool), np.zeros(shape, int)
    for look in of.looks or [arms.shape[-1]]:
        part = arms[..., :look], baseline[..., :look]
        now = np.stack(np.broadcast_arrays(*overall_ps(of, *part, of.margin)), -1)
        ps, seeds = np.where(undecided[..., None], now, ps), np.where(undecided, look, seeds)
        new = estimate(of.test, *part)
        found = Estimate(*(np.where(undecided, *both) for both in zip(new, found, strict=True)))
        tests = 1 if of.margin is None else 2
        flat = ps[..., :tests].swapaxes(1, 2).reshape(len(ps), -1)
        different, *equal = np.split(corrected(flat, [*range(shape[1])] * tests) < of.alpha, tests, -1)
        undecided = ~(different | equal[0] if equal else different)
    better = found.difference < 0
    none = np.zeros(shape, bool)
    return Decided(different & better, different & ~better, equal[0] if equal else none, seeds, found)


def pooled(arms: Numbers, baseline: Numbers) -> Numbers:
    """Whether the t-test with one variance for both, which nothing here uses, finds a difference after Holm."""
    number = arms.shape[-1]
    variance = (arms.var(-1, ddof=1) + baseline.var(-1, ddof=1)) / 2
    found = Estimate(arms.mean(-1) - baseline.mean(-1), np.sqrt(2 * variance / number), 2 * number - 2)
    return corrected(found.p()) < 0.05


def until_significant(test: str, arms: Numbers, baseline: Numbers) -> Numbers:
    """Which studies find any difference, after Holm, with any number of seeds from three to all."""
    numbers = range(3, arms.shape[-1] + 1)
    tests = (decide(Hypotheses(test=test), arms[..., :number], baseline[..., :number]) for number in numbers)
    return np.any([of.different for of in tests], axis=(0, -1))


def drawn(
    shifts: Sequence[float], ratio: float, seeds: int, seed: int, shared: float = 0, skewed: bool = False
) -> Drawn:
    """Studies in parts, arms and baseline as `decide` takes them.

    Args:
        shifts: true difference of each arm to the baseline, in σ.
        ratio: standard deviation of the baseline to that of the arms.
        seeds: how many.
        seed: of the generator.
        shared: correlation over seeds of any two arms, the baseline too.
        skewed: errors are exponential above their least, not normal.
    """

    def draw(studies: int) -> Iterator[tuple[Numbers, Numbers]]:
        generator = np.random.default_rng([seed, seeds])
        for first in range(0, studies, AT_ONCE):
            size = min(AT_ONCE, studies - first)
            shape = size, 1 + len(shifts), seeds
            noise = generator.exponential(size=shape) - 1 if skewed else generator.normal(size=shape)
            noise *= (1 - shared) ** 0.5
            noise += generator.normal(size=(size, 1, seeds)) * shared**0.5
            noise /= ((1 + ratio**2) / 2) ** 0.5
            yield noise[:, 1:] + np.array(shifts)[:, None], noise[:, :1] * ratio

    return draw


def mean(studies: int, draw: Drawn, value: Callable[[Numbers, Numbers], Numbers], percent: bool = True) -> str:
    """The mean over studies of a number that each gives, in percent or as it is, ± its standard error; NaN is none."""
    values = np.concatenate([value(*part) for part in draw(studies)]).astype(float) * (100 if percent else 1)
    values = values[~np.isnan(values)]
    if not len(values):
        return "none"
    digits = 1 if percent else 2
    return f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.2f}"


def wrong(of: Hypotheses, shifts: Sequence[float], arms: Numbers, baseline: Numbers) -> Numbers:
    """Which studies say of equals that they differ, of any apart by the margin that they are equal, or the opposite."""
    found, differ = decide(of, arms, baseline), np.array(shifts) > 0
    return np.where(differ, found.equal | found.better, found.different).any(-1)


def errors(studies: int, seed: int) -> pd.DataFrame:
    """Studies of which any verdict is wrong."""
    equal, most = [0.0] * ARMS, [0.0, *[4.0] * (ARMS - 1)]
    rows: dict[str, tuple[int, list[float], Callable[[Numbers, Numbers], Numbers]]] = {}
    for test in ("welch", "paired"):
        for name, seeds, looks in (("4 seeds", 4, []), ("looks at 4, 8, 12", 12, LOOKS)):
            of = Hypotheses(test=test, looks=looks)
            for text, shifts in (("", equal), (": six differ by 4 σ", most), (": one comparison", [0.0])):
                rows[f"{test}, {name}{text}"] = seeds, shifts, partial(wrong, of, shifts)
    # the margins at which most is wrong: a wider one is decided at an earlier look, which has spent less
    for name, seeds, looks, margin in (("4 seeds", 4, [], 10.0), ("looks at 4, 8, 12", 12, LOOKS, 2.0)):
        of, apart = Hypotheses(looks=looks, margin=margin), [margin] * ARMS
        truths = {"all equal": equal, "all apart by it": apart, "three apart by it": [*equal[3:], *apart[:3]]}
        for text, shifts in truths.items():
            rows[f"welch, {name}, margin {margin:g} σ: {text}"] = seeds, shifts, partial(wrong, of, shifts)
    rows["welch, 3 seeds"] = 3, equal, partial(wrong, Hypotheses(), equal)
    rows["welch, 3 seeds, skewed"] = rows["welch, 3 seeds"]
    rows["welch, 4 seeds, skewed"] = rows["welch, 4 seeds"]
    rows["pooled, 4 seeds"] = 4, equal, lambda *part: pooled(*part).any(-1)
    for test in ("welch", "paired"):
        for text, shifts in (("", equal), (": one comparison", [0.0])):
            value = partial(until_significant, test)
            rows[f"{test}, 3 to 10 seeds, until corrected p < 0.05{text}"] = 10, shifts, value
    found = []
    for name, (seeds, shifts, value) in rows.items():
        draws = {ratio: drawn(shifts, ratio, seeds, seed, skewed=name.endswith("skewed")) for ratio in RATIOS}
        cells = {f"ratio {ratio:g}": mean(studies, draw, value) for ratio, draw in draws.items()}
        found.append({"any wrong verdict, % of studies": name, **cells})
    return pd.DataFrame(found)


def power(studies: int, seed: int) -> pd.DataFrame:
    """What is found of arms that differ from the baseline: one of seven, or all; equal spreads."""
    rows = []
    plans: list[tuple[str, float, list[int]]] = [("welch", 4, []), ("paired", 4, [])]
    plans += [("welch", effect, LOOKS) for effect in (1, 1.5, 2, 4, 8)]
    for test, effect, looks in plans:
        of, seeds = Hypotheses(test=test, looks=looks), looks[-1] if looks else 4
        one, every = (drawn(shifts, 1, seeds, seed) for shifts in ([-effect, *[0.0] * (ARMS - 1)], [-effect] * ARMS))

        def runs(arms: Numbers, baseline: Numbers, of: Hypotheses = of) -> Numbers:
            used = decide(of, arms, baseline).seeds
            return (used.sum(-1) + used.max(-1)) / (ARMS + 1)

        def better(*part: Numbers, of: Hypotheses = of) -> Numbers:
            return decide(of, *part).better

        rows.append(
            {
                "power, %": f"{test}, {'looks at 4, 8, 12' if looks else '4 seeds'}, {effect:g} σ",
                "one of seven differs": mean(studies, one, lambda *part, better=better: better(*part)[:, 0]),
                "all differ, of one": mean(studies, every, lambda *part, better=better: better(*part).mean(-1)),
                "all differ, of all": mean(studies, every, lambda *part, better=better: better(*part).all(-1)),
                "seeds an arm, one differs": mean(studies, one, runs, percent=False),
                "all differ": mean(studies, every, runs, percent=False),
            }
        )
    return pd.DataFrame(rows)


def first_estimate(
    of: Hypotheses, effect: float, ended: Sequence[int], bias: bool, arms: Numbers, baseline: Numbers
) -> Numbers:
    """Of the first comparison: whether its interval holds the truth, or the bias; NaN if it ended at other seeds."""
    found = decide(of, arms, baseline)
    low, high = found.estimate.interval()
    value = found.estimate.difference - effect if bias else (low <= effect) & (effect <= high)
    return np.where(np.isin(found.seeds[:, 0], ended), value[:, 0], np.nan)


def intervals(studies: int, seed: int) -> pd.DataFrame:
    """How many of Welch's 95 % intervals hold the true difference, and how far the estimate is off after stopping.

    Of one comparison a study, and of those that ended at the second look, too.
    """
    rows = []
    plans: list[tuple[str, float, list[int], list[int]]] = [("4 seeds", 0, [], [4]), ("12 seeds", 0, [], [12])]
    for effect in (0, 1, 1.5, 2, 4):
        name = f"looks at 4, 8, 12; differ by {effect:g} σ"
        plans += [(name, effect, LOOKS, LOOKS)]
        plans += [(f"{name}; ended at 8", effect, LOOKS, [8])] if effect else []
    for name, effect, looks, ended in plans:
        draws = {ratio: drawn([effect] * ARMS, ratio, (looks or ended)[-1], seed) for ratio in RATIOS}
        holds, bias = (partial(first_estimate, Hypotheses(looks=looks), effect, ended, of) for of in (False, True))
        cells = {f"ratio {ratio:g}": mean(studies, draw, holds) for ratio, draw in draws.items()}
        bias_of = mean(studies, draws[1], bias, percent=False)
        rows.append({"95 % interval holds the truth, %": name, **cells, "bias at ratio 1, σ": bias_of})
    return pd.DataFrame(rows)


def correlation(studies: int, seed: int) -> pd.DataFrame:
    """What pairing by seed gains where arms are correlated over seeds: four seeds, equal spreads."""
    rows = []
    for test in ("welch", "paired"):
        row, of = {"correlation over seeds": f"{test}, 4 seeds"}, Hypotheses(test=test)
        for shared in (0, 0.5):
            none, one = (drawn([first, *[0.0] * (ARMS - 1)], 1, 4, seed, shared) for first in (0.0, -4.0))
            row[f"{shared:g}: any wrong, %"] = mean(studies, none, partial(wrong, of, [0.0] * ARMS))
            row[f"{shared:g}: power at 4 σ, %"] = mean(
                studies, one, lambda *part, of=of: decide(of, *part).better[:, 0]
            )
        rows.append(row)
    return pd.DataFrame(rows)


def seen() -> pd.DataFrame:
    """The correlation of arms over seeds in published runs: mean covariance of two arms over the mean variance.

    Of studies whose errors are of test images. The 95 % interval is by the F distribution (McGraw and Wong, 1996, the
    consistency of single measurements).
    """
    rows = []
    for path in sorted((ROOT / "figures" / "data").glob("*-runs.csv")):
        study = path.name.removesuffix("-runs.csv")
        if published_plan(study, None, path.parent).configs[0].evaluate_on != "test":
            continue
        runs = pd.read_csv(path)
        errors = runs[runs["state"] == "done"].pivot(index="seed", columns="arm", values="top1_error").dropna(axis=1)
        if min(errors.shape) < 2:
            continue
        covariance = np.cov(errors.to_numpy().T)
        seeds, number = errors.shape
        of_seeds = covariance.sum() / number  # the mean square of seeds; what is left is that of the rest
        ratio = of_seeds * (number - 1) / (np.trace(covariance) - of_seeds)
        df = seeds - 1, (seeds - 1) * (number - 1)
        ratios = np.array([ratio, ratio / stats.f.ppf(0.975, *df), ratio / stats.f.ppf(0.025, *df)])
        between, low, high = (ratios - 1) / (ratios + number - 1)
        rows.append(
            {
                "published": study,
                "arms": number,
                "seeds": seeds,
                "correlation": f"{between:.2f}",
                "95 % interval": f"{low:.2f} to {high:.2f}",
            }
        )
    return pd.DataFrame(rows)


@app.command()
@plain_errors()
def main(
    studies: Annotated[str, typer.Option(metavar="N", help="Studies of each kind: 50000.")] = "",
    seed: Annotated[str, typer.Option(metavar="N", help="Of the generator: 0.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="500 studies of each kind.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/statistics.md, too.")] = False,
) -> None:
    """Error rates, power, intervals and correlation of the statistics of studies, by simulation."""
    number, of = arguments.number("studies", studies, 500 if quick else 50_000), arguments.number("seed", seed, 0, 0)
    parts = [markdown(table(number, of)) for table in (errors, power, intervals, correlation)]
    made = f"`python benchmarks/error_rates.py --studies {number} --seed {of}` on {date.today()}, one core of an"
    text = "\n\n".join([f"{made} {processor()}:", *parts, markdown(seen())])
    print(text)
    if write:
        page = PAGE.read_text()
        if page.count(BEGIN) != 1 or page.count(END) != 1:
            sys.exit(f"{PAGE} lacks the lines {BEGIN} and {END}")
        write_whole(PAGE, re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    app()
