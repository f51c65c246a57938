"""Compiles GAM's kernels for compute capability 9.0, which needs no GPU, and prints what they take as JSON."""

import json
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gamlib.kernels import triton_gates

CASES = {"64 in one block": (64, 4), "256 in one block": (256, 16), "2048 in blocks": (2048, 128)}
POINTERS = ["x", "w1", "b1", "w2", "b2", "g", "u", "dy", "s", "ds", "dx", "du", "dl", "grad", "further"]


def report(kernel: Any, channels: int, hidden: int) -> dict[str, int]:
    constants = triton_gates.tiles(channels, hidden, torch.bfloat16)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    names, pointers = kernel.arg_names, dict.fromkeys(POINTERS, "*bf16")
    types = {name: pointers.get(name, "i32" if name == "M" else "constexpr") for name in names}
    source = ASTSource(
        kernel,
        types,
        {(names.index(name),): constants.get(name) for name in names if types[name] == "constexpr"},
        {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in pointers},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert spilled is not None
    loads = compiled.asm["ttgir"].count("tt.load")
    return {"spilled": int(spilled[1]), "shared": compiled.metadata.shared, "loads": loads}


def main() -> None:
    """Of forward (with what it does in the backward pass) and backward, for every case."""
    found = {}
    for name, (channels, hidden) in CASES.items():
        found[name] = report(triton_gates._channel_gate, channels, hidden)
        found[name + " backward"] = report(triton_gates._channel_gate_backward, channels, hidden)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
