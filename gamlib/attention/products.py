"""Products of many small matrices on a CPU: by `products.c` where a C compiler is at hand, else by torch.

The library behind torch's product of matrices (MKL) multiplies small ones at a third of what a processor with 512-bit
vectors can do. `products.c` is compiled when it is first used, in a fraction of a second, for this processor, and kept
in the user's cache ($XDG_CACHE_HOME, ~/.cache). `GAM_COMPILER` names another compiler than `cc`, or none if it is empty.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fPIC", "-shared")
SECONDS = 60  # that a compiler may take


class _Matrices(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("batch", ctypes.c_long), ("row", ctypes.c_long), ("column", ctypes.c_long))


def products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The products a[t] b[t], of [T, M, K] and [T, K, N] with any strides: [T, M, N].

    Args:
        a: the left matrices.
        b: the right ones.
        out: where they shall be, numbers of a row one after the other; else they are new, and contiguous.
    """
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    native = _native() if a.dtype == torch.float32 else None
    if native is None:
        return torch.bmm(a, b, out=out)
    if native(*out.shape, a.shape[2], *(_Matrices(x.data_ptr(), *x.stride()) for x in (a, b, out))):
        raise MemoryError(f"no memory for a panel of {a.shape[2]} rows")
    return out


def is_native() -> bool:
    """Whether `products.c` is there to be used: compiled before, or now."""
    return _native() is not None


@cache
def _native() -> Any:
    """The function `products` of `products.c`, or None where it cannot be compiled or loaded."""
    compiler = shlex.split(os.environ.get("GAM_COMPILER", "cc"))
    if not compiler or not torch.backends.openmp.is_available():
        return None
    try:
        try:
            return _load(_compiled(compiler, _cache()))
        except OSError:  # a cache that cannot be written, or from which nothing may be executed
            with tempfile.TemporaryDirectory() as folder:
                return _load(_compiled(compiler, Path(folder)))
    except (OSError, subprocess.SubprocessError):
        return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamlib"


def _compiled(compiler: list[str], folder: Path) -> Path:
    cpuinfo = Path("/proc/cpuinfo")
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")] if cpuinfo.exists() else []
    parts = [SOURCE.read_text(), *compiler, *FLAGS, *flags[:1]]  # a home may be shared by other processors
    version = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = folder / f"products-{version}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(descriptor)
        try:
            command = [*compiler, *FLAGS, str(SOURCE), "-o", unfinished]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            Path(unfinished).replace(library)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return library


def _load(library: Path) -> Any:
    function = ctypes.CDLL(str(library)).products
    function.argtypes = [ctypes.c_long] * 4 + [_Matrices] * 3
    return function
