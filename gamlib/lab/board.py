"""What a dispatch shows while it works, and what became of its runs."""

import os
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gamlib.lab.runs import BATCH, Run


@dataclass
class Tally:
    """What became of the runs that were asked for."""

    runs: list[Run]
    done_before: int = 0
    done: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)  # with the reason, in one line
    running: int = 0


class Board:
    """Progress for people: a live line in a terminal or in Jupyter, one line a finished run elsewhere."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.began, self.last_end = tally, time.monotonic(), 0.0
        self.console = Console(soft_wrap=True)
        live = self.console.is_terminal or (self.console.is_jupyter and BATCH not in os.environ)
        text = TextColumn("{task.fields[counts]}", table_column=Column(no_wrap=True))
        self.bar = Progress(BarColumn(bar_width=30), text, console=self.console, disable=not live)
        self.task = self.bar.add_task("", total=len(tally.runs), counts=self.counts())

    def __enter__(self) -> "Board":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self.bar.stop()

    def counts(self) -> str:
        """Runs done, running and failed, and the time left."""
        tally = self.tally
        parts = [
            f"{tally.done_before + len(tally.done)} of {len(tally.runs)} runs done",
            f"{tally.running} running",
            f"{len(tally.failed)} failed",
        ]
        if (left := self.seconds_left()) is not None:
            left = max(0, int(left))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """From the time that the ended runs took; None before the first has ended."""
        ended = len(self.tally.done) + len(self.tally.failed)
        todo = len(self.tally.runs) - self.tally.done_before - ended
        return (
            self.last_end / ended * todo - (time.monotonic() - self.began - self.last_end) if ended and todo else None
        )

    def ended(self, run: Run, seconds: float, reason: str) -> None:
        """One run has ended; say how, with the reason where it failed."""
        tally, result = self.tally, run.result()
        if result:
            tally.done.append(run)
        else:
            tally.failed[run] = reason
        self.last_end = time.monotonic() - self.began
        how = "STOPPED" if run.status().state == "preempted" else "FAILED"
        what = f"top-1 error {result.top1_error:.2f} %" if result else f"{how}: {reason}"
        self.console.print(
            f"{run.folder.name}  {what}  ({seconds:.0f} s)  [{self.counts()}]", markup=False, highlight=False
        )
        self.refresh()

    def refresh(self) -> None:
        """Show the present counts."""
        ended = self.tally.done_before + len(self.tally.done) + len(self.tally.failed)
        self.bar.update(self.task, completed=ended, counts=self.counts())
