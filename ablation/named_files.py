"""Files that a configuration names, each with the hash of what is in it: other content is another run."""

import os
from pathlib import Path
from typing import Any

from ablation.errors import ConfigError
from gamlib.files import write_whole
from gamlib.sources import file_hash, own_file, split_hash


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
    return f"{file}#{file_hash(f'weights={path!r}', file, expected)}"


def copied(attention: str, folder: Path, other: Path | None = None) -> str:
    """A mechanism whose file lies in a folder, into which it is copied unless it is there; others as they are.

    Args:
        attention: resolved, see `gamlib.sources`.
        folder: where the copy lies.
        other: a file that holds the same, where its own may have changed since.

    Raises:
        ConfigError: there is neither a copy nor a file with the content that the mechanism was resolved with.
    """
    if (file := own_file(attention)) is None:
        return attention
    place, expected = split_hash(attention)
    copy = folder / file.name
    if not copy.exists() or file_hash("the copy", copy) != expected:
        source = other or file
        try:
            file_hash(f"attention={place!r}", source, expected)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        write_whole(copy, source.read_bytes())
    return f"{copy}:{place.rpartition(':')[2]}#{expected}"
