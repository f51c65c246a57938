"""Parameters and FLOPs of any module, counted the way that reproduces the paper's tables.

The paper does not say what it calls a FLOP; its numbers do: a multiply-accumulate of a convolution or a linear layer
(any matrix product) counts one, an element that a BatchNorm puts out counts two, an element that goes into SE's average
pooling counts one, and nothing else counts. Products are counted by torch's own `FlopCounterMode` on tensors without
memory, so that no arithmetic is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from gamlib.attention import SE

# It decomposes into no products; naming it spares an audit seconds.
UNCOUNTED = {torch.ops.aten._native_batch_norm_legit_no_training: lambda *_, **__: 0}


@dataclass(frozen=True)
class Complexity:
    """Size of a network, and its operations for one image, in evaluation mode."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, linear layers and other matrix products
    flops: int  # by the paper's rule: macs, and what BatchNorm and SE's pooling add


def complexity(model: nn.Module, inputs: Sequence[int] | Tensor = (1, 3, 224, 224)) -> Complexity:
    """Count a module's parameters and operations, of one image whatever the batch; it is left as it was.

    Args:
        model: on any device, the meta device too.
        inputs: shape of a batch of floating-point inputs [N, ...], or an example batch where they are others.

    Raises:
        ValueError: a shape that is none.
        Exception: whatever the module raises at such an input; also where it branches on values, which are not there.
    """
    if not isinstance(inputs, Tensor) and (not inputs or any(not isinstance(n, int) or n < 1 for n in inputs)):
        raise ValueError(f"inputs={inputs!r}: allowed: a shape of whole numbers from 1, [N, ...], or a tensor")
    state = {name: value.detach().to("meta") for name, value in model.named_parameters()}
    state |= {name: value.to("meta") for name, value in model.named_buffers()}
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.get_default_dtype())
    extra = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        if isinstance(module, _BatchNorm):
            extra += 2 * output.numel()
        elif isinstance(module, SE):
            extra += given[0].numel()

    training = {module: module.training for module in model.modules()}
    # Of attention layers torch has a fused form for evaluation, in which no products are to be seen.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    hook = register_module_forward_hook(count)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    try:
        with torch.no_grad(), torch.device("meta"), counter, _WithoutMemory():
            batch = inputs.to("meta") if isinstance(inputs, Tensor) else torch.empty(*inputs, dtype=dtype)
            functional_call(model.eval(), state, (batch,))
    finally:
        hook.remove()
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training.items():
            module.training = mode
    macs = counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two
    n = len(batch)
    return Complexity(sum(p.numel() for p in model.parameters()), round(macs / n), round((macs + extra) / n))


class _WithoutMemory(TorchDispatchMode):
    """Tensors that are neither parameters nor buffers go to the meta device when an operation meets them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs or {}))
        return func(*args, **(kwargs | {"device": "meta"} if "device" in kwargs else kwargs))
