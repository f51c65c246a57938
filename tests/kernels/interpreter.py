"""Triton's interpreter: GAM's kernels for a GPU, on CPU tensors."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from gamlib import kernels

OURS = "gamlib.kernels.triton_gates"


def forgotten() -> dict[str, Any]:
    """Triton and what was imported with it, which the next import reads anew; its binary part can be loaded once."""

    def anew(name: str) -> bool:
        return name == OURS or (name.split(".")[0] == "triton" and not name.startswith("triton._C"))

    vars(kernels).pop("triton_gates", None)  # a package's attribute would be found before the module is looked for
    return {name: sys.modules.pop(name) for name in list(sys.modules) if anew(name)}


@contextmanager
def afresh() -> Iterator[None]:
    """Triton as if never imported; afterwards what was imported before."""
    before = forgotten()
    try:
        yield
    finally:
        forgotten()
        sys.modules.update(before)
        vars(kernels).update({"triton_gates": before[OURS]} if OURS in before else {})


@contextmanager
def interpreted() -> Iterator[Any]:
    """`gamlib.kernels.triton_gates` with its kernels interpreted on CPU tensors.

    Triton decides when a function is decorated, its own library's too. Its interpreter cuts bfloat16 off instead of
    rounding, and multiplies matrices of bfloat16 as if their bits were whole numbers; here it does as a GPU does.
    """
    with afresh(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        interpreter = importlib.import_module("triton.runtime.interpreter")
        types = interpreter.tl
        cut_off, of_bits = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

        def rounded(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
            if (given, wanted) != (types.float32, types.bfloat16):
                return cut_off(data, given, wanted, mode)
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.uint16).numpy()

        def wide(handle: Any) -> Any:
            if handle.dtype.scalar != types.bfloat16:
                return handle
            return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), types.float32)

        def product(self: Any, left: Any, right: Any, *rest: Any) -> Any:
            return of_bits(self, wide(left), wide(right), *rest)

        patch.setattr(interpreter, "_convert_float", rounded)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
        yield importlib.import_module(OURS)
