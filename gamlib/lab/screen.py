"""The screen: what the command shows of frames, plans and runs. It decides nothing."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from gamlib.lab.config import RunConfig
    from gamlib.lab.studies import Plan

WIDTH = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
out = Console(soft_wrap=True, width=WIDTH)
err = Console(stderr=True, soft_wrap=True, width=WIDTH)


def print_frame(frame: "pd.DataFrame") -> None:
    """A frame whose cells are texts; columns of numbers to the right, others to the left."""
    table = Table(box=None, header_style="bold")
    for column in frame.columns:
        numbers = all(text[:1] in "0123456789–" for text in frame[column].astype(str))
        table.add_column(str(column), justify="right" if numbers else "left", no_wrap=True)
    for values in frame.itertuples(index=False):
        table.add_row(*map(str, values))
    out.print(table)


def show_values(config: "RunConfig") -> None:
    """All values of a configuration."""
    out.print("  ".join(f"{key}={value}" for key, value in config.model_dump().items()), markup=False, highlight=False)


def show_plan(plan: "Plan") -> None:
    """Which runs exist, which would run, and with which values: first what all share, then what makes each arm."""
    from gamlib.lab.runs import Run

    every = [config.model_dump(exclude={"seed"}) for configs in plan.arms.values() for config in configs]
    shared = {key: value for key, value in every[0].items() if all(values[key] == value for values in every)}
    out.print(f"{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    out.print("all runs: " + "  ".join(f"{k}={v}" for k, v in shared.items()), markup=False, highlight=False)
    for arm, configs in plan.arms.items():
        own = "  ".join(f"{k}={v}" for k, v in configs[0].model_dump(exclude={"seed"}).items() if k not in shared)
        out.print(f"{arm}: {own}", markup=False, highlight=False)
        for run in map(Run, configs):
            state = run.status().state
            what = "done" if state == "done" else f"would run (is {state})"
            out.print(f"    seed {run.config.seed}: {what}  {run.folder.name}", markup=False, highlight=False)


def show_statuses(rows: Sequence[dict[str, Any]]) -> None:
    """The runs of `runs.row`, with the arm where they are of one study, and how many are in which state."""
    if not rows:
        out.print("no runs yet; see `gamlib study --help`", markup=False)
        return
    table = Table(box=None, header_style="bold")
    shown = [key for key in ("arm", "seed", "state", "attempts", "top1_error", "error", "name") if key in rows[0]]
    for key in shown:
        table.add_column(
            key.replace("top1_error", "top-1 error (%)"), justify="right" if key == "top1_error" else "left"
        )
    for entry in rows:
        table.add_row(
            *(f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in map(entry.get, shown))
        )
    out.print(table)
    counts = {
        state: sum(entry["state"] == state for entry in rows) for state in dict.fromkeys(e["state"] for e in rows)
    }
    out.print(", ".join(f"{number} {state}" for state, number in counts.items()), highlight=False)
