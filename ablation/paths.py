"""Where things lie: notebooks and studies, the folders of runs and figures."""

import errno
import fcntl
import tempfile
from pathlib import Path

from ablation.errors import ConfigError
from gamlib.files import CLONE, folder_of, write_whole
from gamlib.files import ROOT as ROOT  # for whoever needs the repository

# pyproject.toml has notebooks and studies travel inside the package
_SHIPPED = ROOT if CLONE else Path(__file__).resolve().parent / "shipped"
NOTEBOOKS, STUDIES = _SHIPPED / "notebooks", _SHIPPED / "studies"


def runs_root() -> Path:
    """Folder of all runs: $GAM_RUNS, by default `runs/` of the repository or, without a clone, from here."""
    return folder_of("runs")


def figures_root() -> Path:
    """Folder of the figures: $GAM_FIGURES, by default `figures/` of the repository or, without a clone, from here."""
    return folder_of("figures")


def write_changed(path: Path, data: str | bytes) -> Path:
    """Write a file whole, and leave one untouched that has these bytes already; its path."""
    data = data.encode() if isinstance(data, str) else data
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
    return path


def folders() -> dict[str, str]:
    """The variables that have a process with another working directory find the same runs, figures and data."""
    return {f"GAM_{name.upper()}": str(folder_of(name)) for name in ("runs", "figures", "data")}


def require(path: Path, why: str = "it comes with gamlib: install that again") -> Path:
    """The path of a file that comes with the package, or of one that does not.

    Raises:
        ConfigError: it is not there; the message says why it should be.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there; {why}")
    return path


def require_locks(folder: Path) -> None:
    """Make a folder, and refuse it if its file system has no locks: one run would have several owners.

    Raises:
        ConfigError: it has none; the message names it and says what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            import psutil

            mounts = [disk for disk in psutil.disk_partitions(all=True) if folder.is_relative_to(disk.mountpoint)]
            kind = max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else "its file system"
            raise ConfigError(
                f"{folder}: {kind} has no file locks ({error.strerror}); set GAM_RUNS to a folder on a file system "
                "that has them"
            ) from None


def cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def usable_gpus() -> int:
    """GPUs that torch can compute on; the driver counts those too for which it is too old."""
    import torch  # late: whoever looks for a folder has no need of it

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def share_of_cores(workers: int | None = None) -> int:
    """Threads of a run: its share of the cores beside `workers - 1` others, by default one for each core, four at most.

    The bits of a result depend on it, so it does not depend on how many runs there happen to be.
    """
    return max(1, cores() // (workers or min(cores(), 4)))
