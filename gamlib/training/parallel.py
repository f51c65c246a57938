"""Several processes that train one network, each on its own GPU: torch's DistributedDataParallel and its launcher.

Batch statistics are taken over the whole batch, so that a run is the same on one device and on four, but for rounding.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """The processes of one run: this one's rank, how many there are, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    control: Any = None  # a gloo group for messages between the processes, beside the device's own

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Which of some flags hold in one process at least; all processes must ask."""
        if self.world == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in found]

    def wrap(self, model: nn.Module, exact: bool) -> nn.Module:
        """The network for training in this group; its own modules stay the ones to save and to evaluate.

        If `exact`, gradients are summed in one order from the first step on. Otherwise torch arranges them anew after
        it, and more than two processes that go on from a checkpoint would round otherwise.
        """
        if self.world == 1:
            return model
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, ids, find_unused_parameters=exact)


def launch(function: Callable[..., Any], processes: int, *arguments: Any) -> Any:
    """Call a function of a module in several processes of this machine, each with its group's `join`; what rank 0 gave.

    SIGTERM, SIGUSR2 and Ctrl-C stay this process's to handle; it is the function's to end when asked to.

    Raises:
        RuntimeError: one of the processes failed; the message is its own.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"gamlib-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGHUP",
    )
    try:
        return elastic_launch(config, function)(*arguments)[0]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        message = failure.message if isinstance(failure.message, str) else str(failure.message.get("message", failure))
        raise RuntimeError(f"process {failure.local_rank} of {processes} failed: {message.strip()}") from None


def join() -> Group:
    """The group of a process that `launch` has started: NCCL on GPUs, gloo on CPUs."""
    parent = os.getppid()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def orphaned(*_: object) -> None:  # torch has the kernel send SIGINT when the launcher dies
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGINT, orphaned)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
        return Group(device, rank, world, dist.new_group(backend="gloo"))
    dist.init_process_group("gloo")
    return Group(torch.device("cpu"), rank, world)
