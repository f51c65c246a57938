"""What a measured number is worth nothing without: the machine, the day and the code."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gamlib.lab.provenance import provenance


def about(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The processor, its cores and instructions as torch uses them, date, versions, the code's hash, the commit.

    The commit is followed by "+changes" where files differ from it.
    """
    source, cpuinfo = provenance(device, threads), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = source["commit"] and source["commit"][:7] + ("" if source["clean"] else "+changes")
    found = {"cpu": models[0] if models else platform.machine(), "cores": source["cores"]}
    found |= {"isa": torch.backends.cpu.get_cpu_capability(), "commit": commit}
    return found | {"source": source["source"], "date": date.today().isoformat()} | source["versions"]
