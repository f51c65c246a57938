"""Where a result comes from: the commit, the code, the versions, the machine."""

import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gamlib
from ablation.paths import ROOT
from gamlib.files import CLONE

SOURCE = "GAM_SOURCE"  # in a job's environment: the hash of the code that submitted it
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "papermill", "submitit", "timm")  # the last if it is there


@cache
def source_hash() -> str:
    """Hash of gamlib's Python and C files, 16 hexadecimal digits: results of two were made by different code."""
    package = Path(gamlib.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".c", ".h")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit() -> tuple[str | None, bool | None]:
    """The commit of this checkout, and whether what trains is as it was committed; None outside a git checkout."""
    if not CLONE:
        return None, None  # a repository around an installed package is another's
    changed = _git("status", "--porcelain", "--", "gamlib", "notebooks")
    return _git("rev-parse", "HEAD"), None if changed is None else not changed


def changed(paths: Sequence[Path]) -> list[str]:
    """Those of some files in one folder that are committed and differ from that; none outside a git checkout."""
    names = [path.name for path in paths]
    found = _git("diff", "--name-only", "HEAD", "--", *names, folder=paths[0].parent) if names else None
    return (found or "").splitlines()


def provenance(device: str, threads: int) -> dict[str, Any]:
    """What `provenance.json` holds, as of this process; `commit` is None outside a git checkout."""
    made, clean = commit()
    return {
        "commit": made,
        "clean": clean,
        "source": source_hash(),
        "submitted_source": os.environ.get(SOURCE) or source_hash(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": device,
        "threads": threads,
        "cores": os.cpu_count(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "interpreter": sys.executable,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor() -> str:
    """The processor's name as Linux knows it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str, folder: Path = ROOT) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=30).strip()
    return None
