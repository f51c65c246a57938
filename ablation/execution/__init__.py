"""One run and its kernel, the queue on this machine, SLURM."""
