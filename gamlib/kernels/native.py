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


def fits(x: Tensor) -> bool:
    """Whether the gates take x [N, C, H, W]."""
    return x.dtype == torch.float32 and x.shape[1] % FILL == 0 and library() is not None


def filled(channels: int) -> int:
    """Channels up to full vectors."""
    return channels + -channels % FILL


def empty_like(x: Tensor) -> Tensor:
    """Memory for the gradient of a weight, one number after the other."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def products(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The products a[t] b[t], of [T, M, K] and [T, K, N] with any strides: [T, M, N]; by torch where not by C.

    Args:
        a: the left matrices.
        b: the right ones.
        out: where they shall be, numbers of a row one after the other; else they are new, and contiguous.
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


_AT, _LONG = ctypes.c_void_p, ctypes.c_long


def _structure(names: str, **kinds: Any) -> Any:
    """A structure of the C files, of the same name; `from_param` makes it of what a function is given."""
    fields = [(name, _AT if name == "at" else kinds.get(name, _LONG)) for name in names.split()]
    return type("_", (ctypes.Structure,), {"_fields_": fields})


def _kernel(weight: Tensor, hidden: int, channel: int) -> Any:
    step = weight.stride()
    return _Kernel(_at(weight), step[hidden], step[channel], step[3], weight.numel())


_Array = _structure("at numbers")
_Matrices = _structure("at batch rows columns next row column")
_Size = _structure("n channels h w")
_Map = _structure("at n channel h w of", of=_Size)
_Mlp = _structure("hidden w1 b1 w2 b2", w1=_Array, b1=_Array, w2=_Array, b2=_Array)
_Kernel = _structure("at hidden channel tap numbers")
_Kernels = _structure("hidden first second", first=_Kernel, second=_Kernel)
_Positions = _structure("at h w run column height width runs columns")
_Transforms = _structure("rows f p along_h along_w", along_h=_Array, along_w=_Array)

_Array.from_param = lambda x: _Array(_at(x), x.numel() if x.is_contiguous() else -1)
_Matrices.from_param = lambda x: _Matrices(_at(x), *x.shape, *x.stride())
_Size.from_param = lambda x: _Size(*x.shape)
_Map.from_param = lambda x: _Map() if x is None else _Map(_at(x), *x.stride(), _Size(*x.shape))
_Mlp.from_param = lambda mlp: _Mlp() if mlp is None else _Mlp(len(mlp[0]), *map(_Array.from_param, mlp))
_Kernels.from_param = lambda k: _Kernels(len(k[0]), _kernel(k[0], 0, 1), _kernel(k[1], 1, 0))
_Positions.from_param = lambda x: _Positions(_at(x), *x.stride(), *x.shape[:2], *runs(x))
_Transforms.from_param = lambda pair: _Transforms(len(pair[0]), *pair[1].shape[:2], *map(_Array.from_param, pair))
ARGUMENTS: dict[str, list[Any]] = {
    "products": [_Matrices] * 3,
    "channel_gate": [_Size, _Array, _Mlp, _Map, _Array, *[_Map] * 3],
    "channel_gate_gradients": [_Size, _Array, _Mlp, _Array, *[_Map] * 3, _Array, _Mlp],
    "gate": [_Size, *[_Map] * 4],
    "transform": [_Transforms, _Positions, _Array, ctypes.c_int],
    "dense_keeps": [_Size, _LONG],
    "dense": [_Size, _Array, _Mlp, _Kernels, ctypes.c_int, _Array, _Array],
    "dense_gradients": [_Size, _Array, _Mlp, _Kernels, *[_Array] * 4, _Mlp, _Kernels],
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
            return _load(_compiled(compiler, _cache()))
        except (OSError, RuntimeError):  # no home, or a cache that cannot be written, or executed from
            with tempfile.TemporaryDirectory() as folder:
                return _load(_compiled(compiler, Path(folder)))
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:  # ValueError: an open quotation
        why = "GAM is computed by torch alone, slower and with other roundings, since its C files were not compiled"
        warnings.warn(f"{why}: {' '.join(str(error).split())}", RuntimeWarning, stacklevel=2)
        return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamlib"


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
    found.dense_keeps.restype, found.dense_keeps.errcheck = _LONG, lambda number, *_: number
    return found
