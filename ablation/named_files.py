"""Files that a configuration names, each with the hash of what is in it: other content is another run."""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any


def split_hash(weights: str) -> tuple[str, str]:
    """A file or a name, and the hash behind its last #, empty where there is none."""
    path, _, expected = weights.rpartition("#")
    return (path, expected) if re.fullmatch("[0-9a-f]{16}", expected) and path else (weights, "")


def with_hash(weights: Any, backbone: str) -> str:
    """A file's absolute path, # and the hash of what is in it; or the one name that a member of torchvision's has.

    A file given with a hash, as a configuration that was written has it, must still hold what it held then.
    """
    from gamlib.backbones.weights import locate

    text = os.fspath(weights) if isinstance(weights, os.PathLike) else weights
    path, expected = split_hash(text) if isinstance(text, str) else (text, "")
    if not isinstance(source := locate(backbone, path), Path):
        return source.name
    file = source.expanduser().resolve()
    try:
        found = _content_hash(file, file.stat().st_mtime_ns, file.stat().st_size)
    except OSError as error:
        raise ValueError(f"weights={path!r} cannot be read: {error.strerror}") from None
    if expected and found != expected:
        raise ValueError(f"weights={path!r}: the file has changed, its hash was {expected} and is {found}")
    return f"{file}#{found}"


@lru_cache
def _content_hash(file: Path, *_: int) -> str:
    """Of a file as it stands, by its time and size: the runs of a study share one, and it may be large."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
