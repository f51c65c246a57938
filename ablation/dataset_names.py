"""How a data set is named in folders, figures and tables."""

import hashlib
from pathlib import Path

from gamlib.data.datasets import FOLDER

# Image folders that are known by their name; lossy compression makes other images than CIFAR-10's, and other errors.
TITLES = {"cifar10-jpeg": "CIFAR-10 (JPEG)"}


def title(name: str) -> str:
    """A data set's name as figures and tables say it: its own, or that by which an image folder is known."""
    return TITLES.get(Path(name.removeprefix(FOLDER)).name, name) if name.startswith(FOLDER) else name


def folder_name(name: str) -> str:
    """A data set's name as that of a folder or a figure, another one for each.

    `imagefolder:a` is `imagefolder-a`; a path of several parts, which may read like another one, ends in a hash.
    """
    parts = name.replace(":", "/").split("/")
    plain = "-".join(part for part in parts if part not in ("", ".", "..", "~"))
    path = name.removeprefix(FOLDER)
    if path == name or plain == f"{FOLDER[:-1]}-{path}":
        return plain
    return f"{plain}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
