"""Parameters and FLOPs of any module, counted the way that reproduces the paper's tables.

The paper does not say what it calls a FLOP; its numbers do: a multiply-accumulate of a convolution or a linear layer
(any matrix product) counts one, an element that a BatchNorm puts out counts two, an element that goes into SE's average
pooling counts one, and nothing else counts. Products are counted by torch's own `FlopCounterMode` on tensors without
memory, so that no arithmetic is done. Operators that have no formula are named in the answer.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torchvision.ops import FrozenBatchNorm2d

from gamlib.attention import SE
from gamlib.backbones.channels import without_memory

# By shapes, what torch's counter does not know, a multiply-accumulate as two as there. The first decomposes into no
# products; naming it spares an audit seconds.
FORMULAS: dict[Any, Any] = {
    torch.ops.aten._native_batch_norm_legit_no_training: lambda *_, **__: 0,
    **dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot, torch.ops.aten.vdot), lambda a, b, **_: 2 * math.prod(a)),
    torch.ops.aten.addmv: lambda x, a, b, **_: 2 * math.prod(a),
    torch.ops.aten.addr: lambda x, a, b, **_: 2 * math.prod(a) * math.prod(b),
    torch.ops.aten.addbmm: lambda x, a, b, **_: 2 * math.prod(a) * b[-1],
    torch.ops.aten._trilinear: lambda x, weight, *_, **__: 2 * x[0] * math.prod(weight),  # of torch.nn.Bilinear
    torch.ops.torchvision.deform_conv2d: lambda x, w, *_, out_shape, **__: 2 * math.prod(out_shape) * math.prod(w[1:]),
}

# By the rule these count nothing: what works on each element, reduces, pools, normalises, or moves numbers.
NOTHING = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy, torch.Tag.inplace_view}  # PyTorch's own tags
NOTHING_BY_NAME = re.compile(  # of its operators without such a tag
    "pool|norm|softmax|pad|upsample|shuffle|relu|hard|dropout|rand|bernoulli|sort|topk|unique|cum|arg|arange|linspace|"
    "eye|tri[lu]|empty|new_|zero|ones|full|fill|scalar|copy|clone|lift|detach|resize|view|cat|stack|roll|flip|repeat|"
    "index|select|gather|scatter|embedding|im2col|col2im|check_errors"
)


@dataclass(frozen=True)
class Complexity:
    """Size of a network, and its operations for one image, in evaluation mode."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, linear layers and other matrix products
    flops: int  # by the paper's rule: macs, and what BatchNorm and SE's pooling add
    uncounted: tuple[str, ...] = ()  # operators that may multiply matrices and have no formula: they are not in `macs`


def complexity(model: nn.Module, inputs: Sequence[int] | Tensor | Sequence[Tensor] = (1, 3, 224, 224)) -> Complexity:
    """Count a module's parameters, and its operations for one image whatever the batch; it is left as it was.

    BatchNorm is what is a torch.nn.BatchNorm or torchvision's FrozenBatchNorm2d, SE what is `gamlib.attention.SE`:
    normalisation and pooling by functions or by other classes count nothing.

    Args:
        model: on any device, the meta device too.
        inputs: shape of a batch of floating-point inputs [N, ...]; an example batch where they are others, or a tuple
            of them where there are several. Only the first of the batch is counted.

    Raises:
        ValueError: inputs that are none of these, or of no image.
        Exception: whatever the module raises at such an input; also where it branches on values, which are not there.
    """
    twin = without_memory(model)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.get_default_dtype())
    examples = _examples(inputs, dtype)
    extra = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal extra
        if isinstance(module, _BatchNorm | FrozenBatchNorm2d):
            extra += 2 * output.numel()
        elif isinstance(module, SE):
            extra += output.numel()  # as many as go into its pooling

    # Of attention layers torch has a fused form for evaluation, in which no products are to be seen.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    hook = register_module_forward_hook(count)
    counter, arithmetic = FlopCounterMode(display=False, custom_mapping=FORMULAS), _WithoutMemory()
    try:
        with torch.no_grad(), torch.device("meta"), counter, arithmetic:
            twin(*examples)
    finally:
        hook.remove()
        torch.backends.mha.set_fastpath_enabled(fused)
    macs = counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity(parameters, macs, macs + extra, tuple(sorted(arithmetic.uncounted)))


def _examples(inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    """One image of what was given, without memory."""
    listed = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if listed and all(isinstance(n, int) and n > 0 for n in listed) and isinstance(inputs, Sequence):
        return [torch.empty(1, *listed[1:], dtype=dtype, device="meta")]
    if not listed or not all(isinstance(example, Tensor) and example.ndim and len(example) for example in listed):
        raise ValueError(f"inputs={inputs!r}: allowed: a shape of whole numbers from 1, [N, ...], a tensor, or several")
    return [example[:1].to("meta") for example in listed]


class _WithoutMemory(TorchDispatchMode):
    """Tensors that are neither parameters nor buffers go to the meta device when an operation meets them."""

    def __init__(self) -> None:
        super().__init__()
        self.uncounted = set[str]()  # names of operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func.overloadpacket
        if operator not in flop_registry and operator not in FORMULAS and not _counts_nothing(func):
            self.uncounted.add(str(operator))
        args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs or {}))
        return func(*args, **(kwargs | {"device": "meta"} if "device" in kwargs else kwargs))


def _counts_nothing(func: Any) -> bool:
    if func.is_view or not NOTHING.isdisjoint(func.tags) or func.namespace == "profiler":
        return True
    return func.namespace == "aten" and NOTHING_BY_NAME.search(func.overloadpacket.__name__) is not None
