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
UNFIT = 2  # what the C functions return, before they read a number, if sizes do not fit each other

Saved = tuple[Tensor, ...]
Mlp = tuple[Tensor, Tensor, Tensor, Tensor]  # weight [C/r, C], bias, weight [C, C/r], bias
Kernels = tuple[Tensor, Tensor]  # of the convolutions, [C/r, C, 7, 7] and [C, C/r, 7, 7]


def _structure(*fields: tuple[Any, str]) -> Any:
    """One of the C files, of the same name: kinds of fields and their names, in order."""
    return type(
        "_", (ctypes.Structure,), {"_fields_": [(name, kind) for kind, names in fields for name in names.split()]}
    )


_AT, _LONG = ctypes.c_void_p, ctypes.c_long
_Array = _structure((_AT, "at"), (_LONG, "numbers"))
_Matrices = _structure((_AT, "at"), (_LONG, "batch rows columns next row column"))
_Size = _structure((_LONG, "n channels h w"))
_Map = _structure((_AT, "at"), (_LONG, "n channel h w"), (_Size, "of"))
_Mlp = _structure((_LONG, "hidden"), (_Array, "w1 b1 w2 b2"))
_Kernel = _structure((_AT, "at"), (_LONG, "hidden channel tap numbers"))
_Kernels = _structure((_LONG, "hidden"), (_Kernel, "first second"))
_Positions = _structure((_AT, "at"), (_LONG, "h w run column height width runs columns"))
_Waves = _structure((_LONG, "rows f p"), (_Array, "along_h along_w"))
ARGUMENTS: dict[str, list[Any]] = {
    "products": [_Matrices] * 3,
    "channel_gate": [_Size, _Array, _Mlp, _Map, _Array, *[_Map] * 3],
    "channel_gate_gradients": [_Size, _Array, _Mlp, _Array, *[_Map] * 3, _Array, _Mlp],
    "gate": [_Size, _Map, _Map, _Map],
    "gate_gradient": [_Size, _Map, _Map, _Map, _Map],
    "transform": [_Waves, _Positions, _Array],
    "restore": [_Waves, _Array, _Positions],
    "dense_keeps": [_Size, _LONG],
    "dense": [_Size, _Array, _Mlp, _Kernels, ctypes.c_int, _Array, _Array],
    "dense_gradients": [_Size, _Array, _Mlp, _Kernels, *[_Array] * 4, _Mlp, _Array, _Array],
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
    _done(ours.products(*(_Matrices(x.data_ptr(), *x.shape, *x.stride()) for x in (a, b, out))))
    return out


def transforms(x: Tensor) -> bool:
    """Whether `transform` takes x [H, W, n, c], and `restore` gives it."""
    return x.dtype == torch.float32 and library() is not None and x.stride(3) == 1 and _runs(x)[1] % FILL == 0


def transform(x: Tensor, along_h: Tensor, along_w: Tensor, known: Tensor) -> None:
    """Both products with x [H, W, n, c] along H and W, as `fourier.py` has them, into known [F, P, n c]."""
    _done(library().transform(_waves(along_h, along_w), _positions(x), _array(known)))


def restore(known: Tensor, along_h: Tensor, along_w: Tensor, x: Tensor) -> None:
    """The transpose of `transform`, into x."""
    _done(library().restore(_waves(along_h, along_w), _array(known), _positions(x)))


def _runs(x: Tensor) -> tuple[int, int]:
    """How many runs of columns one after the other x [H, W, n, c] has at a position, and how long they are."""
    number, channels = x.shape[2:]
    return (1, number * channels) if x.stride(2) == channels else (number, channels)


def _waves(along_h: Tensor, along_w: Tensor) -> Any:
    return _Waves(len(along_h), *along_w.shape[:2], _array(along_h), _array(along_w))


def _positions(x: Tensor) -> Any:
    return _Positions(x.data_ptr(), *x.stride(), *x.shape[:2], *_runs(x))


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
    _done(library().channel_gate(_size(x), _array(rows), _mlp(mlp), _map(out), _array(hidden), *further))
    return hidden


def channel_gate_gradients(
    x: Tensor, mlp: Mlp, hidden: Tensor, gradient: Tensor, further: Tensor | None, logits: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients by x and by the MLP's four, where that by its map is gradient + further sigmoid(logits)."""
    rows, mlp = x.permute(0, 2, 3, 1).contiguous(), _whole(mlp)
    of_rows, of_mlp = torch.empty_like(rows), _like(mlp)
    given = _size(x), _array(rows), _mlp(mlp), _array(hidden), *map(_map, (gradient, further, logits))
    _done(library().channel_gate_gradients(*given, _array(of_rows), _mlp(of_mlp)))
    return of_rows.permute(0, 3, 1, 2), *of_mlp


def gate(x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """x sigmoid(logits), all [N, C, H, W] with channels one after the other."""
    _done(library().gate(_size(x), _map(x), _map(logits), _map(out)))
    return out


def gate_gradient(gradient: Tensor, x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """The gradient of `gate` by its logits, all [N, C, H, W] with channels one after the other."""
    _done(library().gate_gradient(_size(x), _map(gradient), _map(x), _map(logits), _map(out)))
    return out


def dense(x: Tensor, mlp: Mlp | None, kernels: Kernels, *, differentiates: bool) -> tuple[Tensor, Tensor]:
    """The whole block of a tiny map [N, C, H, W], with or without a channel gate; and what its gradients need."""
    rows, mlp, kernels = x.permute(0, 2, 3, 1).contiguous(), mlp and _whole(mlp), _laid(kernels)
    size, out = _size(x), torch.empty_like(x, memory_format=torch.channels_last)
    kept = x.new_empty(library().dense_keeps(size, len(kernels[0])))
    to = _array(kept), _array(out.permute(0, 2, 3, 1))
    _done(library().dense(size, _array(rows), _mlp(mlp), _kernels(kernels), differentiates, *to))
    return out, kept


def dense_gradients(
    x: Tensor, mlp: Mlp | None, kernels: Kernels, kept: Tensor, gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `dense` by x, the MLP's four, and both kernels."""
    rows, mlp, kernels = x.permute(0, 2, 3, 1).contiguous(), mlp and _whole(mlp), _laid(kernels)
    of_rows, of_mlp, of_kernels = torch.empty_like(rows), mlp and _like(mlp), _like(kernels)
    gradient, memory = gradient.permute(0, 2, 3, 1).contiguous(), room("dense", x, len(kept))
    given = _size(x), _array(rows), _mlp(mlp), _kernels(kernels), *map(_array, (kept, gradient, memory))
    to = (_Array(kernel.data_ptr(), kernel.numel()) for kernel in of_kernels)  # laid as the kernels
    _done(library().dense_gradients(*given, _array(of_rows), _mlp(of_mlp), *to))
    return of_rows.permute(0, 3, 1, 2), *(of_mlp or [None] * 4), *of_kernels


def _array(x: Tensor) -> Any:
    return _Array(x.data_ptr(), x.numel() if x.is_contiguous() else -1)


def _size(x: Tensor) -> Any:
    return _Size(*x.shape)


def _map(x: Tensor | None) -> Any:
    return _Map() if x is None else _Map(x.data_ptr(), *x.stride(), _size(x))


def _filled(channels: int) -> int:
    return channels + -channels % FILL


def _whole(values: tuple[Tensor, ...]) -> Any:
    return tuple(value.contiguous() for value in values)


def _like(values: tuple[Tensor, ...]) -> Any:
    return tuple(map(torch.empty_like, values))


def _mlp(mlp: Mlp | None) -> Any:
    return _Mlp() if mlp is None else _Mlp(len(mlp[0]), *map(_array, mlp))


def _laid(kernels: Kernels) -> Kernels:
    """As they are, or their taps one after the other if these lie neither so nor behind the channels."""
    k1, k2 = (k if k.is_contiguous(memory_format=torch.channels_last) else k.contiguous() for k in kernels)
    return k1, k2


def _kernels(kernels: Kernels) -> Any:
    (out1, in1, _, tap1), (out2, in2, _, tap2) = (value.stride() for value in kernels)
    (k1, k2), (n1, n2) = (value.data_ptr() for value in kernels), (value.numel() for value in kernels)
    return _Kernels(len(kernels[0]), _Kernel(k1, out1, in1, tap1, n1), _Kernel(k2, in2, out2, tap2, n2))


def _done(failed: int) -> None:
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
    told = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return [platform.machine(), *sorted({line for line in told if line.startswith(FEATURES)})]


def _load(path: Path) -> Any:
    found = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    found.dense_keeps.restype = _LONG
    return found
