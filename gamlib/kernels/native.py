"""What the C files of `c/` compute, float32 on a CPU, for those who have a C compiler.

The library behind torch's product of matrices (MKL) multiplies small ones at a third of what a processor with 512-bit
vectors can do, eager torch takes a map from memory and back for every step of a gate, and each of its calls takes as
long as a tiny map. The files are compiled when they are first used, in seconds, for this processor, and kept in
the user's cache ($XDG_CACHE_HOME, ~/.cache).
`GAM_COMPILER` names another compiler than `cc`, or none if it is empty: then torch computes the same.

The functions of `library()` take tensors, and raise where those do not fit each other.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = sorted((Path(__file__).parent / "c").iterdir())
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fPIC", "-shared")
FEATURES = ("flags", "Features", "CPU ", "isa", "cpu\t")  # lines of /proc/cpuinfo on x86, ARM (two), RISC-V, POWER
SECONDS = 60  # that a compiler may take
FILL = 16  # channels that fill the vectors of every processor
UNFIT = 2  # what the C functions return, before they read a number, if sizes do not fit each other


def takes(dtype: torch.dtype, channels: int) -> bool:
    """Whether maps of this type, with so many numbers one after the other, can be computed by C."""
    return dtype == torch.float32 and channels % FILL == 0 and library() is not None


def fits(x: Tensor) -> bool:
    """Whether the gates take x [N, C, H, W]."""
    return takes(x.dtype, x.shape[1])


def filled(channels: int) -> int:
    """Channels up to full vectors."""
    return channels + -channels % FILL


def products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The products a[t] b[t], of [T, M, K] and [T, K, N] with any strides: [T, M, N]; by torch where not by C.

    In `out`, numbers of a row one after the other, where it is given; else new, and contiguous.
    """
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    ours = library() if a.dtype == torch.float32 and out.numel() else None
    if ours is None:
        return torch.bmm(a, b, out=out)
    ours.products(a, b, out)
    return out


def _at(x: Tensor) -> int:
    if x.dtype != torch.float32:
        raise ValueError(f"GAM's C functions were given numbers of {x.dtype}: allowed: torch.float32")
    return x.data_ptr()


def _arrays(values: Any) -> list[int]:
    return [number for x in values for number in (_at(x), x.numel() if x.is_contiguous() else -1)]


def _kernel(weight: Tensor, hidden: int, channel: int) -> tuple[int, ...]:
    step = weight.stride()
    return _at(weight), step[hidden], step[channel], step[3], weight.numel()


def _structure(size: int, numbers: Callable[[Any], Iterable[int]]) -> Any:
    """A structure of the C files, of pointers and longs, so many in all, made of what a function is given."""
    found: Any = type("_", (ctypes.Structure,), {"_fields_": [(f"_{i}", ctypes.c_long) for i in range(size)]})
    found.from_param = lambda given: found() if given is None else found(*numbers(given))
    return found


_ARRAY = _structure(2, lambda x: _arrays([x]))
_MATRICES = _structure(7, lambda x: (_at(x), *x.shape, *x.stride()))
_SIZE = _structure(4, lambda x: x.shape)
_MAP = _structure(9, lambda x: (_at(x), *x.stride(), *x.shape))
_MLP = _structure(9, lambda mlp: (len(mlp[0]), *_arrays(mlp)))
_KERNELS = _structure(11, lambda k: (len(k[0]), *_kernel(k[0], 0, 1), *_kernel(k[1], 1, 0)))
_POSITIONS = _structure(9, lambda x: (_at(x), *x.stride(), *x.shape[:2], *runs(x)))
_TRANSFORMS = _structure(7, lambda pair: (len(pair[0]), *pair[1].shape[:2], *_arrays(pair)))
ARGUMENTS: dict[str, list[Any]] = {
    "products": [_MATRICES] * 3,
    "channel_gate": [_SIZE, _ARRAY, _MLP, _MAP, _ARRAY, *[_MAP] * 3],
    "channel_gate_gradients": [_SIZE, _ARRAY, _MLP, _ARRAY, *[_MAP] * 3, _ARRAY, _MLP],
    "gate": [_SIZE, *[_MAP] * 4],
    "transform": [_TRANSFORMS, _POSITIONS, _ARRAY, ctypes.c_int],
    "dense_keeps": [_SIZE, ctypes.c_long],
    "dense": [_SIZE, _ARRAY, _MLP, _KERNELS, ctypes.c_int, _ARRAY, _ARRAY],
    "dense_gradients": [_SIZE, _ARRAY, _MLP, _KERNELS, *[_ARRAY] * 4, _MLP, _KERNELS],
}


def runs(x: Tensor) -> tuple[int, int]:
    """How many runs of columns one after the other x [H, W, n, c] has at a position, and how long they are."""
    number, channels = x.shape[2:]
    return (1, number * channels) if x.stride(2) == channels else (number, channels)


def _refuse(failed: int, function: Any, arguments: Any) -> None:
    if failed == UNFIT:
        raise ValueError("GAM's C functions were given arrays whose shapes do not fit each other")
    if failed:
        raise MemoryError("no memory for a block of rows")


@cache
def library() -> Any:
    """The C files, compiled before or now; None where it cannot be."""
    try:
        compiler = shlex.split(os.environ.get("GAM_COMPILER", "cc"))
        if not compiler or not torch.backends.openmp.is_available():
            return None
        try:
            cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamlib"
            return _load(_compiled(compiler, cached))
        except (OSError, RuntimeError):  # no home, or a cache that cannot be written, or executed from
            with tempfile.TemporaryDirectory() as folder:
                return _load(_compiled(compiler, Path(folder)))
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:  # ValueError: an open quotation
        why = "GAM is computed by torch alone, slower and with other roundings, since its C files were not compiled"
        warnings.warn(f"{why}: {' '.join(str(error).split())}", RuntimeWarning, stacklevel=2)
        return None


def _compiled(compiler: list[str], folder: Path) -> Path:
    parts = [*(path.read_text() for path in SOURCES), *compiler, *FLAGS, *_processor()]  # a home may serve many
    version = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    found = folder / f"native-{version}.so"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(descriptor)
        try:
            command = [*compiler, *FLAGS, *(str(path) for path in SOURCES if path.suffix == ".c"), "-o", unfinished]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            _load(Path(unfinished))  # a compiler may succeed without a library, or without what it should hold
            Path(unfinished).replace(found)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    return found


def _processor() -> list[str]:
    """What this machine's processors can do, and on ARM which they are, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return [platform.machine(), *sorted({line for line in lines if line.startswith(FEATURES)})]


def _load(path: Path) -> Any:
    found = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.errcheck = arguments, _refuse
    found.dense_keeps.restype, found.dense_keeps.errcheck = ctypes.c_long, lambda number, *_: number
    return found
