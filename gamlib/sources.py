"""Mechanisms that are not gamlib's own: where their code is, and the class that it defines. No torch is needed to tell.

`my_eca.py:ECA` is a class of a file, `package.module:Class` one of a module that can be imported, `timm:eca` one of
timm's, and a name without a colon an entry point of the group `gamlib.attention`, which an installed package declares.
Resolved, the first two end in # and the hash of their file's content: other code is another mechanism.
"""

import hashlib
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from gamlib.names import ATTENTIONS

GROUP = "gamlib.attention"  # of entry points


def split_hash(text: str) -> tuple[str, str]:
    """A file or a name, and the hash behind its last #, empty where there is none."""
    path, _, expected = text.rpartition("#")
    return (path, expected) if re.fullmatch("[0-9a-f]{16}", expected) and path else (text, "")


def file_hash(what: str, file: Path, expected: str = "") -> str:
    """Hash of a file's content, 16 hexadecimal digits; the runs of a study share one, and it may be large.

    Raises:
        ValueError: the file cannot be read, or has another hash than is expected; the message begins with `what`.
    """
    try:
        found = _content_hash(file, file.stat().st_mtime_ns, file.stat().st_size)
    except OSError as error:
        raise ValueError(f"{what} cannot be read: {error.strerror}") from None
    if expected and found != expected:
        raise ValueError(f"{what}: the file has changed, its hash was {expected} and is {found}")
    return found


@lru_cache
def _content_hash(file: Path, *_: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def own_file(attention: str) -> Path | None:
    """The file of a mechanism that is given as `file.py:Class`, else None."""
    place = split_hash(attention)[0].rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def placed(attention: Any) -> Any:
    """A mechanism whose file is there, by the file's whole path, so that it is found from everywhere; others as are."""
    file = own_file(attention) if isinstance(attention, str) else None
    there = file is not None and not file.is_absolute() and file.expanduser().is_file()
    return (
        attention.replace(str(file), str(file.expanduser().absolute()), 1) if file is not None and there else attention
    )


def without_folder(attention: str) -> str:
    """A mechanism's name without the folder that its file lies in: what it is does not depend on that."""
    return attention.removeprefix(f"{file.parent}/") if (file := own_file(attention)) is not None else attention


def resolve(attention: str) -> str:
    """A mechanism that is not gamlib's own, with the absolute path of its file, or its module, and the file's hash.

    Raises:
        ValueError: there is no such file, module or name, or its file has another hash than was given.
    """
    text, expected = split_hash(str(attention))
    if ":" not in text:
        declared = [entry.value for entry in entry_points(group=GROUP, name=text)]
        if not declared:
            raise ValueError(
                f"attention={attention!r}: allowed: {', '.join(ATTENTIONS)}, or one's own: file.py:Class, "
                f"package.module:Class, timm:NAME, an entry point of {GROUP}"
            )
        text = declared[0]
    place, _, name = text.rpartition(":")
    if place == "timm":
        if find_spec("timm") is None:
            raise ValueError(f"attention={attention!r}: timm is not installed")
        return text
    if place.endswith(".py"):
        file = Path(place).expanduser().absolute()
        return f"{file}:{name}#{file_hash(f'attention={text!r}', file, expected)}"
    made = _found(text, _imported(text, place), name)
    home = getattr(
        sys.modules.get(getattr(made, "__module__", "")), "__file__", None
    )  # a package may have it from there
    if home is None:
        raise ValueError(f"attention={text!r} lies in no file")
    return f"{place}:{name}#{file_hash(f'attention={text!r}', Path(home), expected)}"


def load_class(attention: str) -> Callable[..., Any]:
    """The class that makes blocks of a mechanism that is not gamlib's own; a file is executed once for each content.

    Raises:
        ValueError: as `resolve`, or the code cannot be executed or has no such class.
    """
    text, content_hash = split_hash(resolve(attention))
    given, (place, _, name) = split_hash(str(attention))[0], text.rpartition(":")
    return _found(given, _imported(given, place, content_hash), name)


def _imported(given: str, place: str, content_hash: str = "") -> Any:
    """The module of a mechanism, or what has timm's by their names; errors are those of `load_class`."""
    try:
        if place == "timm":
            from timm.layers.create_attn import get_attn

            return get_attn
        return _execute(Path(place), content_hash) if place.endswith(".py") else import_module(place)
    except (Exception, SystemExit) as error:
        what = str(error).strip().partition("\n")[0]
        hint = "; a file stands by itself, without others beside it" * place.endswith(".py")
        hint *= isinstance(error, ModuleNotFoundError)
        raise ValueError(f"attention={given!r}: {type(error).__name__}: {what}{hint}") from error


def _found(given: str, module: Any, name: str) -> Any:
    """What a module calls by a name, or timm by its own."""
    if callable(module):
        try:
            made = module(name or "none")
        except AssertionError as error:
            raise ValueError(f"attention={given!r}: timm: {error}") from None
    else:
        made = getattr(module, name, None)
    if not callable(made):
        classes = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        where = getattr(module, "__file__", "timm")
        raise ValueError(f"attention={given!r}: {where} has no class {name}; it has {', '.join(classes[:9]) or 'none'}")
    return made


def _execute(file: Path, content_hash: str) -> ModuleType:
    """A file's module; not through Python's loader, which would leave compiled code in a run's folder."""
    name = f"gamlib_{file.stem}_{content_hash}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module
        try:
            exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
