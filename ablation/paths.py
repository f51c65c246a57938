"""Where things lie: the notebooks beside the package, the folders of runs and figures."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from ablation.errors import ConfigError
from gamlib.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def runs_root() -> Path:
    """Folder of all runs: $GAM_RUNS, by default `runs/` of the repository."""
    return Path(os.environ.get("GAM_RUNS") or ROOT / "runs").absolute()


def figures_root() -> Path:
    """Folder of the figures: $GAM_FIGURES, by default `figures/` of the repository."""
    return Path(os.environ.get("GAM_FIGURES") or ROOT / "figures").absolute()


def write_changed(path: Path, data: str | bytes) -> Path:
    """Write a file whole, and leave one untouched that has these bytes already; its path."""
    data = data.encode() if isinstance(data, str) else data
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
    return path


def require(path: Path) -> Path:
    """The path of a file in one of the repository's folders, such as `notebooks`.

    Raises:
        ConfigError: it is not there: the package was installed without its repository.
    """
    if not path.exists():
        raise ConfigError(
            f"{path}: not there; this needs the {path.parent.name} of gamlib's repository: install it from a clone, "
            "with pip install -e"
        )
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


def share_of_cores(workers: int | None = None) -> int:
    """Threads of a run: its share of the cores beside `workers - 1` others, by default one for each core, four at most.

    The bits of a result depend on it, so it does not depend on how many runs there happen to be.
    """
    return max(1, cores() // (workers or min(cores(), 4)))
