"""What becomes of the runs of a dispatch, shown while it happens: how far they are, how they ended, the time left."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Self

from tqdm.auto import tqdm

from ablation.runs import BATCH, PROGRESS, Run
from ablation.status import PROGRESS_SECONDS, TrainingProgress, duration

OF_RUNS = " runs done, "  # in each line about a run
MOST = 4  # running runs whose epochs are in one line


class ProgressFile:
    """The `progress.json` of a run, written while it trains, at most every few seconds."""

    def __init__(self, run: Run, steps: int, test_steps: float) -> None:
        """`steps` are those of an epoch, and its test takes as long as `test_steps` of them."""
        self.run, self.steps, self.test_steps = run, steps, test_steps
        self._written = -math.inf
        self._began: tuple[float, float] | None = None  # when the first step here was over, and the steps by then

    def write(self, done: int, epochs: Sequence[Mapping[str, float]]) -> None:
        """Say how far the run has come, unless that was said a moment ago or cannot be written.

        Args:
            done: steps since the first epoch began.
            epochs: the metrics of those that are over.
        """
        now, number = time.monotonic(), self.run.config.epochs
        work = done + self.test_steps * len(epochs)
        self._began = began, before = self._began or (now, work)
        if now < self._written + PROGRESS_SECONDS:
            return
        pace = (now - began) / (work - before) if work > before else None
        total = number * (self.steps + self.test_steps)
        progress = TrainingProgress(
            epoch=(done - 1) // self.steps + 1,
            epochs=number,
            top1_error=epochs[-1]["top1_error"] if epochs else None,
            seconds=None if pace is None else pace * total,
            seconds_left=None if pace is None else pace * (total - work),
        )
        with suppress(OSError):  # a full disk must not end a run that has nothing to save just now
            if not self.run.removed():
                self.run.write(PROGRESS, progress.model_dump_json())
        self._written = now


def seconds_left(running: Sequence[TrainingProgress | None], waiting: int, ended: Sequence[float] = ()) -> float | None:
    """Until all of some runs have ended, as many at once as now, or None before that is known.

    A run that has not said how long it takes is taken for a mean one of those that have, and of those done.

    Args:
        running: how far the runs under way have come.
        waiting: number of runs that have not begun.
        ended: what those took that are done, in seconds.
    """
    known = [*ended, *(run.seconds for run in running if run and run.seconds is not None)]
    if not known:
        return None
    mean = fmean(known)
    left = [mean if run is None or run.seconds_left is None else run.seconds_left for run in running]
    return max([*left, (sum(left) + waiting * mean) / max(1, len(left))])


class Progress:
    """What became of the runs that were asked for: a line for each that ends, and a bar in a terminal or in Jupyter."""

    def __init__(self, runs: Sequence[Run], done_before: int = 0) -> None:
        self.runs, self.done_before, self.done = runs, done_before, 0
        self.failed: dict[Run, str] = {}  # with the reason, in one line
        self.running: Sequence[Run] = ()
        self._progress: dict[Run, TrainingProgress | None] = {}  # of those, a moment ago
        self._looked = -math.inf
        self._took: list[float] = []  # seconds of the runs done

    def __enter__(self) -> Self:
        nobody_watches = BATCH in os.environ or None  # None: where the output is no terminal
        self._bar = tqdm(total=len(self.runs), bar_format="{desc} |{bar}|", file=sys.stdout, disable=nobody_watches)
        self.show(())
        return self

    def __exit__(self, *_: object) -> None:
        self.show(self.running)
        self._bar.close()

    def __str__(self) -> str:
        """Runs done, running and failed, and as soon as it is known the time left of all."""
        done, failed, number = self.done_before + self.done, len(self.failed), len(self.runs)
        text = f"{done} of {number}{OF_RUNS}{len(self.running)} running, {failed} failed"
        waiting = max(0, number - done - failed - len(self.running))
        left = seconds_left([self._progress.get(run) for run in self.running], waiting, self._took)
        return text if left is None or done + failed == number else f"{text}, {duration(left)} left"

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()

    def show(self, running: Sequence[Run]) -> None:
        """Show the present counts, the runs that are under way, and every few seconds how far these have come."""
        self.running = running
        if self._bar.disable:
            return
        if running and time.monotonic() > self._looked + PROGRESS_SECONDS:
            self._look()
        self._bar.n = self.done_before + self.done + len(self.failed)
        known = [progress for run in running if (progress := self._progress.get(run))]
        epochs = ", ".join(f"{progress.epoch}/{progress.epochs}" for progress in known[:MOST])
        text = str(self)
        if known and len(running) == 1:  # of the last run of all, the time left is said once
            text = f"{text.removesuffix(', ' + str(known[0]).rpartition(' · ')[2])}; {known[0]}"
        elif known:
            text = f"{text}; epoch {epochs}{', …' * (len(known) > MOST)}"
        self._bar.set_description_str(text)

    def _look(self) -> None:
        self._looked = time.monotonic()
        # A run that has trained, and whose process is about to end, is where it was last seen.
        self._progress = {run: run.progress() or self._progress.get(run) for run in self.running}

    def ended(self, run: Run, seconds: float, reason: str) -> None:
        """One run has ended; say how, with the reason where it failed."""
        if (result := run.result()) is not None:
            self.done += 1
            self._took.append(seconds)
            outcome = f"top-1 error {result.top1_error:.2f} %"
        else:
            self.failed[run] = reason
            outcome = f"{'STOPPED' if run.status().state == 'preempted' else 'FAILED'}: {reason}"
        self._look()
        self.write(f"{run.folder.name}  {outcome}  ({seconds:.0f} s)  [{self}]")
        self.show(self.running)
