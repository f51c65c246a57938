"""On the path of a command: a machine without GPUs shows two, and a run on two devices trains on its CPU."""

import os
import sys
from pathlib import Path

# The server whose forks are the kernels, and the processes that those launch to train
if "ablation.execution.forkserver" in sys.orig_argv or (
    "GAM_JOB" in os.environ and "resource_tracker" not in str(sys.orig_argv)
):
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import sync_batchnorm  # noqa: F401

    from ablation import paths

    paths.usable_gpus = lambda: 2
