"""Where files lie, and how they are complete or not there: written under another name, flushed, renamed; and locks."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]  # the repository, or the folder that the package was installed into
CLONE = (ROOT / "notebooks" / "run.ipynb").exists()


def base_folder() -> Path:
    """Where runs, figures and data lie by default: the repository of a clone, else the working directory."""
    return ROOT if CLONE else Path.cwd()


def folder_of(name: str) -> Path:
    """The folder `runs`, `figures` or `data`: what $GAM_RUNS and so on say, else the one of `base_folder`."""
    return Path(os.environ.get(f"GAM_{name.upper()}") or base_folder() / name).absolute()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and leaves nothing when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees all of it, or what was there before."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def remove_parts(path: Path) -> None:
    """Remove what killed writers of a file have left beside it. No other writer may be at work."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there: whoever comes second, in any process, waits.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
