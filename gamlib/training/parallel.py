"""Several processes that train one network, each on its own device: torch's DistributedDataParallel and its launcher.

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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """The processes of one run: this one's rank, how many there are, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    control: Any = None  # a gloo group for words between the processes, beside the device's own

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Which of some flags hold in one process at least; all processes must ask."""
        if self.world == 1:
            return list(flags)
        words = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(words, dist.ReduceOp.MAX, group=self.control)
        return [bool(word) for word in words]

    def wrap(self, model: nn.Module, exact: bool) -> nn.Module:
        """The network for training in this group; its own modules stay the ones to save and to evaluate.

        Args:
            model: on this group's device.
            exact: sum gradients in one order from the first step on. Otherwise torch arranges them anew after it, and
                more than two processes that go on from a checkpoint would round otherwise.
        """
        if self.world == 1:
            return model
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if self.device.type == "cuda" else synchronised(model)
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


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes: torch's own `SyncBatchNorm` needs a GPU, this one none."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] to the same; in evaluation torch's own."""
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        kind, input = input.dtype, input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        count = torch.tensor(float(input.numel() // input.shape[1]))
        dist.all_reduce(count)
        mean = all_reduce(input.sum(dims)) / count
        centred = input - mean.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        return (normed * self.weight.view(shape) + self.bias.view(shape) if self.affine else normed).to(kind)


def synchronised(model: nn.Module) -> nn.Module:
    """The network with its batch normalisations turned into `SyncBatchNorm`, in place: same parameters and buffers."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
    return model
