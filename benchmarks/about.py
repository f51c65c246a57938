"""What a measured number is worth nothing without: the machine, the day and the code."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

from gamlib.lab.provenance import provenance


def about(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The processor, its cores, the commit ("+changes" where files differ from it), the code's hash, date, versions."""
    source, cpuinfo = provenance(device, threads), Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = source["commit"] and source["commit"][:7] + ("" if source["clean"] else "+changes")
    found = {"cpu": models[0] if models else platform.machine(), "cores": source["cores"], "commit": commit}
    return found | {"source": source["source"], "date": date.today().isoformat()} | source["versions"]
