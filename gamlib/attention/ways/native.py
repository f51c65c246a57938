"""What the C files of `c/` compute, float32 on a CPU, for those who have a C compiler.

The library behind torch's product of matrices (MKL) multiplies small ones at a third of what a processor with 512-bit
vectors can do, eager torch takes a map from memory and back for every step of a gate, and each of its calls takes as
long as a tiny map. The files are compiled when they are first used, in seconds, for this processor, and kept in
the user's cache ($XDG_CACHE_HOME, ~/.cache).
`GAM_COMPILER` names another compiler than `cc`, or none if it is empty: then torch computes the same.
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

from gamlib.attention.ways.rooms import room

SOURCES = sorted((Path(__file__).parent / "c").iterdir())
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fPIC", "-shared")
FEATURES = ("flags", "Features", "CPU ", "isa", "cpu\t")  # lines of /proc/cpuinfo on x86, ARM (two), RISC-V, POWER
SECONDS = 60  # that a compiler may take
FILL = 16  # channels that fill the vectors of every processor

Saved = tuple[Tensor, ...]
Mlp = tuple[Tensor, Tensor, Tensor, Tensor]  # weight [C/r, C], bias, weight [C, C/r], bias
Kernels = tuple[Tensor, Tensor]  # of the convolutions, [C/r, C, 7, 7] and [C, C/r, 7, 7]


class _Matrices(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("batch", ctypes.c_long), ("row", ctypes.c_long), ("column", ctypes.c_long))


class _Map(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("n", ctypes.c_long), ("h", ctypes.c_long), ("w", ctypes.c_long))


class _Size(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("n", "h", "w", "channels"))


class _Mlp(ctypes.Structure):
    _fields_ = (("hidden", ctypes.c_long), *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2")))


class _Kernel(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("hidden", "channel", "tap")))


class _Kernels(ctypes.Structure):
    _fields_ = (("hidden", ctypes.c_long), ("first", _Kernel), ("second", _Kernel))


class _Positions(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("h", "w", "run")))


class _Waves(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("h", "w", "runs", "run", "rows", "f", "p")),
        *((name, ctypes.c_void_p) for name in ("along_h", "along_w")),
    )


ARGUMENTS: dict[str, list[Any]] = {
    "products": [ctypes.c_long] * 4 + [_Matrices] * 3,
    "channel_gate": [_Size, ctypes.c_void_p, _Mlp, _Map, ctypes.c_void_p, *[_Map] * 3],
    "channel_gate_gradients": [_Size, ctypes.c_void_p, _Mlp, ctypes.c_void_p, *[_Map] * 3, *[ctypes.c_void_p] * 5],
    "gate": [_Size, _Map, _Map, _Map],
    "gate_gradient": [_Size, _Map, _Map, _Map, _Map],
    "transform": [_Waves, _Positions, ctypes.c_void_p],
    "restore": [_Waves, ctypes.c_void_p, _Positions],
    "dense_keeps": [_Size, ctypes.c_long],
    "dense": [_Size, ctypes.c_void_p, _Mlp, _Kernels, ctypes.c_int, *[ctypes.c_void_p] * 2],
    "dense_gradients": [_Size, ctypes.c_void_p, _Mlp, _Kernels, *[ctypes.c_void_p] * 10],
}


def fits(x: Tensor) -> bool:
    """Whether the gates here take x [N, C, H, W]."""
    return x.dtype == torch.float32 and x.shape[1] % FILL == 0 and library() is not None


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
    _done(ours.products(*out.shape, a.shape[2], *(_Matrices(x.data_ptr(), *x.stride()) for x in (a, b, out))))
    return out


def transforms(x: Tensor) -> bool:
    """Whether `transform` takes x [H, W, n, c], and `restore` gives it."""
    return x.dtype == torch.float32 and library() is not None and x.stride(3) == 1 and _runs(x)[1] % FILL == 0


def transform(x: Tensor, along_h: Tensor, along_w: Tensor, known: Tensor) -> None:
    """Both products with x [H, W, n, c] along H and W, as `fourier.py` has them, into known [F, P, n c]."""
    _done(library().transform(_waves(x, along_h, along_w), _positions(x), known.data_ptr()))


def restore(known: Tensor, along_h: Tensor, along_w: Tensor, x: Tensor) -> None:
    """The transpose of `transform`, into x."""
    _done(library().restore(_waves(x, along_h, along_w), known.data_ptr(), _positions(x)))


def _runs(x: Tensor) -> tuple[int, int]:
    """How many runs of columns one after the other x [H, W, n, c] has at a position, and how long they are."""
    number, channels = x.shape[2:]
    return (1, number * channels) if x.stride(2) == channels else (number, channels)


def _waves(x: Tensor, along_h: Tensor, along_w: Tensor) -> _Waves:
    matrices = along_h.data_ptr(), along_w.data_ptr()
    return _Waves(*x.shape[:2], *_runs(x), len(along_h), *along_w.shape[:2], *matrices)


def _positions(x: Tensor) -> _Positions:
    return _Positions(x.data_ptr(), *x.stride()[:3])


def channel_gate(
    x: Tensor,
    mlp: Mlp,
    out: Tensor | None,
    gradient: Tensor | None = None,
    logits: Tensor | None = None,
    of_logits: Tensor | None = None,
) -> Tensor:
    """What the MLP's ReLU gives, filled up with zeros; x times its channel gate, written into `out` [N, C, H, W].

    Where there is a gradient of the whole block, that by the spatial gate's logits is written into `of_logits`.
    """
    rows, mlp = x.permute(0, 2, 3, 1).contiguous(), _whole(mlp)
    hidden = x.new_empty(rows.shape[:3].numel(), _filled(len(mlp[0])))
    further = map(_map, (gradient, logits, of_logits))
    _done(library().channel_gate(_size(x), rows.data_ptr(), _mlp(mlp), _map(out), hidden.data_ptr(), *further))
    return hidden


def channel_gate_gradients(
    x: Tensor, mlp: Mlp, hidden: Tensor, gradient: Tensor, further: Tensor | None, logits: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients by x and by the MLP's four, where that by its map is gradient + further sigmoid(logits)."""
    rows, mlp = x.permute(0, 2, 3, 1).contiguous(), _whole(mlp)
    found = torch.empty_like(rows), *map(torch.empty_like, mlp)
    given = map(_map, (gradient, further, logits))
    to = (value.data_ptr() for value in found)
    _done(library().channel_gate_gradients(_size(x), rows.data_ptr(), _mlp(mlp), hidden.data_ptr(), *given, *to))
    return found[0].permute(0, 3, 1, 2), *found[1:]


def gate(x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """x sigmoid(logits), all [N, C, H, W] with channels one after the other."""
    library().gate(_size(x), _map(x), _map(logits), _map(out))
    return out


def gate_gradient(gradient: Tensor, x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """The gradient of `gate` by its logits, all [N, C, H, W] with channels one after the other."""
    library().gate_gradient(_size(x), _map(gradient), _map(x), _map(logits), _map(out))
    return out


def dense(x: Tensor, mlp: Mlp | None, kernels: Kernels, *, differentiates: bool) -> tuple[Tensor, Tensor]:
    """The whole block of a tiny map [N, C, H, W], with or without a channel gate; and what its gradients need."""
    rows, mlp, kernels = x.permute(0, 2, 3, 1).contiguous(), mlp and _whole(mlp), _laid(kernels)
    size, out = _size(x), torch.empty_like(x, memory_format=torch.channels_last)
    kept = x.new_empty(library().dense_keeps(size, len(kernels[0])))
    to = kept.data_ptr(), out.data_ptr()
    _done(library().dense(size, rows.data_ptr(), _mlp(mlp), _kernels(kernels), differentiates, *to))
    return out, kept


def dense_gradients(
    x: Tensor, mlp: Mlp | None, kernels: Kernels, kept: Tensor, gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `dense` by x, the MLP's four, and both kernels."""
    rows, mlp, kernels = x.permute(0, 2, 3, 1).contiguous(), mlp and _whole(mlp), _laid(kernels)
    of_rows, gradient = torch.empty_like(rows), gradient.permute(0, 2, 3, 1).contiguous()
    given = rows.data_ptr(), _mlp(mlp), _kernels(kernels), kept.data_ptr(), gradient.data_ptr()
    memory = room("dense", x, len(kept)).data_ptr()
    of_mlp: list[Tensor | None] = [torch.empty_like(value) for value in mlp] if mlp else [None] * 4
    found = of_rows, *of_mlp, *map(torch.empty_like, kernels)
    _done(library().dense_gradients(_size(x), *given, memory, *(v if v is None else v.data_ptr() for v in found)))
    return of_rows.permute(0, 3, 1, 2), *found[1:]


def _size(x: Tensor) -> _Size:
    batch, channels, height, width = x.shape
    return _Size(batch, height, width, channels)


def _map(x: Tensor | None) -> _Map:
    return _Map(None, 0, 0, 0) if x is None else _Map(x.data_ptr(), x.stride(0), x.stride(2), x.stride(3))


def _filled(channels: int) -> int:
    return channels + -channels % FILL


def _whole(values: tuple[Tensor, ...]) -> Any:
    return tuple(value.contiguous() for value in values)


def _mlp(mlp: Mlp | None) -> _Mlp:
    return _Mlp() if mlp is None else _Mlp(len(mlp[0]), *(value.data_ptr() for value in mlp))


def _laid(kernels: Kernels) -> Kernels:
    """As they are, or their taps one after the other if these lie neither so nor behind the channels."""
    k1, k2 = (k if k.is_contiguous(memory_format=torch.channels_last) else k.contiguous() for k in kernels)
    return k1, k2


def _kernels(kernels: Kernels) -> _Kernels:
    (out1, in1, _, tap1), (out2, in2, _, tap2) = (value.stride() for value in kernels)
    k1, k2 = (value.data_ptr() for value in kernels)
    return _Kernels(len(kernels[0]), _Kernel(k1, out1, in1, tap1), _Kernel(k2, in2, out2, tap2))


def _done(failed: int) -> None:
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
    told = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return [platform.machine(), *sorted({line for line in told if line.startswith(FEATURES)})]


def _load(path: Path) -> Any:
    found = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    found.dense_keeps.restype = ctypes.c_long
    return found
