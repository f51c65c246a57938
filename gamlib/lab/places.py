"""Where things lie: the notebooks beside the package, the folders of runs and figures."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def runs_root() -> Path:
    """Folder of all runs: $GAM_RUNS, by default `runs/` of the repository."""
    return Path(os.environ.get("GAM_RUNS") or ROOT / "runs").absolute()


def figures_root() -> Path:
    """Folder of the figures: $GAM_FIGURES, by default `figures/` of the repository."""
    return Path(os.environ.get("GAM_FIGURES") or ROOT / "figures").absolute()


def cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def share_of_cores(workers: int | None = None) -> int:
    """Threads of a run: its share of the cores beside `workers - 1` others, by default one for each core, four at most.

    The bits of a result depend on it, so it does not depend on how many runs there happen to be.
    """
    return max(1, cores() // (workers or min(cores(), 4)))
