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
from gamlib.kernels.gpu import Blocks

CASES = {"64 in registers": (64, 4), "256 in registers": (256, 16), "2048 in blocks": (2048, 128)}
MAPS = ["x", "w1", "w2", "g", "dy", "s", "ds", "dx", "convolved"]
SUMS = ["b1", "b2", "db1", "db2"]


def report(kernel: Any, channels: int, hidden: int, pointers: dict[str, str]) -> dict[str, int]:
    cut = Blocks.of(channels, hidden, torch.bfloat16)
    constants = {"C": channels, "H": hidden, "BM": cut.rows, "BC": cut.columns, "BH": cut.units}
    names = kernel.arg_names
    types = {name: pointers.get(name, "i32" if name == "M" else "constexpr") for name in names}
    source = ASTSource(
        kernel,
        types,
        {(names.index(name),): constants.get(name) for name in names if types[name] == "constexpr"},
        {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in pointers},
    )
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
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
    pointers = dict.fromkeys(MAPS, "*bf16") | dict.fromkeys(SUMS, "*fp32")
    for name, (channels, hidden) in CASES.items():
        in_registers = Blocks.of(channels, hidden, torch.bfloat16).in_registers
        weights = dict.fromkeys(["dw1", "dw2"], "*fp32") if in_registers else dict.fromkeys(["u", "du", "dl"], "*bf16")
        for part, kernel in (("", triton_gates.channel_gate), (" backward", triton_gates.channel_gate_backward)):
            taken = {n: kind for n, kind in (pointers | weights).items() if n in kernel.arg_names}
            found[name + part] = report(kernel, channels, hidden, taken)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
