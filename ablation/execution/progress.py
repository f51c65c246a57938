"""What became of the runs of a dispatch, shown while it happens."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Self

from tqdm.auto import tqdm

from ablation.runs import BATCH, Run

OF_RUNS = " runs done, "  # in each line about a run


class Progress:
    """What became of the runs that were asked for: a line for each that ends, and a bar in a terminal or in Jupyter."""

    def __init__(self, runs: Sequence[Run], done_before: int = 0) -> None:
        self.runs, self.done_before, self.done, self.running = runs, done_before, 0, 0
        self.failed: dict[Run, str] = {}  # with the reason, in one line

    def __enter__(self) -> Self:
        self._began = self._until = time.monotonic()
        nobody_watches = BATCH in os.environ or None  # None: where the output is no terminal
        self._bar = tqdm(total=len(self.runs), bar_format="{desc} |{bar}|", file=sys.stdout, disable=nobody_watches)
        self.show(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.show(self.running)
        self._bar.close()

    def __str__(self) -> str:
        """Runs done, running and failed, and once one has ended the time left."""
        done, failed, number = self.done_before + self.done, len(self.failed), len(self.runs)
        left = max(0, int(self._until - time.monotonic()))
        known = self.done_before < done + failed < number
        text = f"{done} of {number}{OF_RUNS}{self.running} running, {failed} failed"
        return f"{text}, {left // 60}:{left % 60:02d} left" if known else text

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()

    def show(self, running: int) -> None:
        """Show the present counts, of which so many runs are under way."""
        self.running = running
        self._bar.n = self.done_before + self.done + len(self.failed)
        self._bar.set_description_str(str(self))

    def ended(self, run: Run, seconds: float, reason: str) -> None:
        """One run has ended; say how, with the reason where it failed."""
        if (result := run.result()) is not None:
            self.done += 1
            outcome = f"top-1 error {result.top1_error:.2f} %"
        else:
            self.failed[run] = reason
            outcome = f"{'STOPPED' if run.status().state == 'preempted' else 'FAILED'}: {reason}"
        now, ended = time.monotonic(), self.done + len(self.failed)
        self._until = now + (now - self._began) / ended * (len(self.runs) - self.done_before - ended)
        self.write(f"{run.folder.name}  {outcome}  ({seconds:.0f} s)  [{self}]")
        self.show(self.running)
