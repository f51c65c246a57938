"""On the path of a kernel: a machine without GPUs shows two, and a run on two devices trains on its CPU."""

import os
import sys
from pathlib import Path

# A kernel of a job, and the processes that it launches to train
if "GAM_JOB" in os.environ and "resource_tracker" not in str(sys.orig_argv):
    import torch

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import sync_batchnorm  # noqa: F401

    torch.cuda.device_count = lambda: 2
