"""Batch normalisation over several processes on a CPU: torch's own SyncBatchNorm needs a GPU, this one none.

What imports this trains on the CPU as on GPUs: with the statistics of the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """As torch's."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] to the same; in evaluation torch's own."""
        if not self.training:
            return super().forward(input)
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


torchs = nn.SyncBatchNorm.convert_sync_batchnorm


def converted(model: nn.Module) -> Any:
    """The network with its batch normalisations over all processes: same parameters and buffers."""
    if next(model.parameters()).is_cuda:
        return torchs(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
    return model


nn.SyncBatchNorm.convert_sync_batchnorm = converted  # type: ignore[assignment, method-assign]
