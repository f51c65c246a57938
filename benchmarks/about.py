"""What a measured number is worth nothing without: the machine, the day and the code."""

from datetime import date
from typing import Any

import torch

from ablation.provenance import processor, provenance


def about(device: str = "cpu", threads: int = 1) -> dict[str, Any]:
    """The processor, its cores and instructions as torch uses them, date, versions, the code's hash, the commit.

    The commit is followed by "+changes" where files differ from it.
    """
    source = provenance(device, threads)
    commit = source["commit"] and source["commit"][:7] + ("" if source["clean"] else "+changes")
    found = {"cpu": processor(), "cores": source["cores"]}
    found |= {"isa": torch.backends.cpu.get_cpu_capability(), "commit": commit}
    return found | {"source": source["source"], "date": date.today().isoformat()} | source["versions"]
