"""The screen: what the command shows of frames, plans and runs. It decides nothing."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from gamlib.lab.config import RunConfig
    from gamlib.lab.runs import Run
    from gamlib.lab.status import Status
    from gamlib.lab.studies import Plan

MOST = 500  # runs in a table; of more, those that need a look come first
URGENT = ("failed", "lost", "preempted", "running", "queued", "missing", "done")
WIDTH = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
out = Console(soft_wrap=True, width=WIDTH)
err = Console(stderr=True, soft_wrap=True, width=WIDTH)


def print_frame(frame: "pd.DataFrame") -> None:
    """A frame whose cells are texts, none of them cut; columns of numbers to the right, others to the left."""
    table = Table(box=None, header_style="bold")
    for column in frame.columns:
        numbers = all(text[:1] in "0123456789–+−<" for text in frame[column].astype(str))
        table.add_column(str(column), justify="right" if numbers else "left", no_wrap=True)
    for values in frame.itertuples(index=False):
        table.add_row(*map(str, values))
    wanted = Measurement.get(out, out.options.update(width=10_000), table).maximum
    Console(soft_wrap=True, width=max(wanted, out.width)).print(table, crop=False)  # of `out` its width is the most


def show_values(config: "RunConfig") -> None:
    """All values of a configuration."""
    out.print("  ".join(f"{key}={value}" for key, value in config.model_dump().items()), markup=False, highlight=False)


def show_plan(plan: "Plan") -> None:
    """Which runs exist, which would run, and with which values: first what all share, then what makes each arm."""
    from gamlib.lab.runs import Run

    shared, own = plan.values()
    out.print(f"{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    out.print("all runs: " + "  ".join(f"{k}={v}" for k, v in shared.items()), markup=False, highlight=False)
    for arm, configs in plan.arms.items():
        values = "  ".join(f"{k}={v}" for k, v in own[arm].items())
        if (other := plan.study.arms[arm].parameters_of) in plan.arms:
            from gamlib.lab.widths import parameters

            ratio = parameters(configs[0]) / parameters(plan.arms[other][0])
            values += f"  ({ratio:.4f} times the parameters of {other})"
        out.print(f"{arm}: {values}", markup=False, highlight=False)
        for run in map(Run, configs):
            state = run.status().state
            what = "done" if state == "done" else f"would run (is {state})"
            out.print(f"    seed {run.config.seed}: {what}  {run.folder.name}", markup=False, highlight=False)


def status_rows(runs: "Mapping[Run, str]") -> list[dict[str, Any]]:
    """What each run does, with its arm where it has one."""
    from gamlib.lab.slurm import statuses

    return [({"arm": runs[run]} if runs[run] else {}) | _row(run, status) for run, status in statuses(runs).items()]


def _row(run: "Run", status: "Status") -> dict[str, Any]:
    """What is said of a run; `code` is "other" where the present code did not make the result."""
    from gamlib.lab.provenance import source_hash

    result = run.result()
    return {
        "name": run.folder.name,
        "dataset": run.config.dataset,
        "seed": run.config.seed,
        "state": status.state,
        "attempts": status.attempts,
        "top1_error": result.top1_error if result else None,
        "code": ("present" if result.source == source_hash() else "other") if result else None,
        "error": status.error,
        "heartbeat": status.heartbeat,
        "job_id": status.job_id,
        "signature": run.signature,
        "folder": str(run.folder),
    }


def show_statuses(rows: Sequence[dict[str, Any]]) -> None:
    """The runs of `status_rows`, and how many are in which state."""
    if not rows:
        out.print("no runs yet; see `gamlib study --help`", markup=False)
        return
    out.print(_statuses(rows))
    out.print(_counts(rows), highlight=False)


def watch(runs: "Mapping[Run, str]", seconds: float = 5.0) -> None:
    """The same, anew every few seconds, until no run is queued or running."""
    rows = status_rows(runs)
    with Live(console=out, auto_refresh=False) as live:
        while True:
            live.update(Group(_statuses(rows), _counts(rows)), refresh=True)
            if not any(row["state"] in ("queued", "running") for row in rows):
                return
            time.sleep(seconds)
            rows = status_rows(runs)


def _statuses(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    shown = [key for key in ("arm", "seed", "state", "attempts", "top1_error", "error", "name") if key in rows[0]]
    for key in shown:
        title = key.replace("top1_error", "top-1 error (%)")
        table.add_column(title, justify="right" if key == "top1_error" else "left")
    for entry in sorted(rows, key=lambda row: URGENT.index(row["state"]))[:MOST] if len(rows) > MOST else rows:
        texts = {key: f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for key, v in entry.items()}
        texts["state"] += " by other code" if entry["code"] == "other" else ""
        table.add_row(*(Text(texts[key]) for key in shown))
    return table


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(entry["state"] for entry in rows)
    counts["done by other code"] = sum(entry["code"] == "other" for entry in rows)
    more = f"; {MOST} of {len(rows)} are shown, --json gives all" if len(rows) > MOST else ""
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) + more


def show_report(plan: "Plan", paths: Sequence[Path]) -> None:
    """The tables that a report wrote among these files, what stands under them, and what of the runs is damaged."""
    import pandas as pd

    from gamlib.lab import evidence
    from gamlib.lab.tables import note, outcomes, outdated
    from gamlib.lab.typeset import comparisons, for_reading

    texts = dict.fromkeys(("arm", "reference", "verdict"), str)
    frames = {
        path.stem: pd.read_csv(path, keep_default_na=False, na_values="", dtype=texts)  # an arm may be called 16
        for path in paths
        if path.suffix == ".csv"
    }
    out.print(f"\n{plan.name}: {plan.study.question}", style="bold", markup=False, highlight=False)
    if plan.name in frames:  # a notebook may export figures alone
        print_frame(for_reading(frames[plan.name]))
        if not (compared := frames[f"{plan.name}-differences"]).empty:
            out.print()
            print_frame(comparisons(compared))
        out.print()
        frame = outcomes(plan)
        out.print(note(plan, frame), markup=False, highlight=False)
        if said := outdated(frame):
            out.print(said, markup=False, highlight=False)
    for problem in evidence.problems(plan):
        err.print(problem, style="red", markup=False, highlight=False)
    for path in paths:
        out.print(os.path.relpath(path), markup=False, highlight=False)
