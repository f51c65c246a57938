"""One run and its kernel, the queue on this machine, SLURM."""

FORMER = ("account", "qos", "constraint", "array_parallelism", "setup")  # options once, and still read: keys of `slurm`
