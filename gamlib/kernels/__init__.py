"""GAM computed faster: `accelerate` is the door, and everything behind it gives the numbers of `gamlib.attention.gam`.

Hooks on a block see the block, computed fast. Profilers and dispatch modes see the operators `gamlib::gam` and
`gamlib::gam_backward`, which `FlopCounterMode` counts as the equations. The equations themselves are what all others
see: hooks on layers, layers and methods that were replaced, torch.compile, torch.export, ONNX, torch.jit.trace,
make_fx, torch.func, derivatives in forward mode, of derivatives and of batches, function modes, tensor subclasses,
autocast on a CPU, other devices and types.

Who wants the equations in any case takes the model before, or has them back by `accelerate(model, backend="plain")`.
"""

from typing import TypeVar

from torch import Tensor, nn

from gamlib.attention.gam import GAM
from gamlib.kernels.backends import BACKENDS, CHOICES, choose
from gamlib.kernels.conditions import Weights, usable_weights
from gamlib.kernels.operators import compute, needs_gradients

__all__ = ["BACKENDS", "CHOICES", "FastGAM", "accelerate"]

Module = TypeVar("Module", bound=nn.Module)


class FastGAM(GAM):
    """GAM in the hands of `accelerate`, by the backend that it names. [N, C, H, W] -> [N, C, H, W]."""

    backend: str

    def backend_for(self, x: Tensor) -> str:
        """What computes a map x [N, C, H, W]: a name of `BACKENDS`, or "plain", which is the equations."""
        return self._choice(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        backend, weights = self._choice(x)
        if backend == "plain":
            return super().forward(x)
        try:
            return compute(backend, x, weights)
        except RuntimeError as error:
            if "functorch" not in str(error):
                raise
            # within a transformation of torch.func in which none of these tensors takes part
            return super().forward(x)

    def _choice(self, x: Tensor) -> tuple[str, Weights]:
        weights = usable_weights(self, x)
        return choose(self.backend, x, weights, needs_gradients(x, weights)) if weights else "plain", weights


def accelerate(model: Module, backend: str = "auto") -> Module:
    """Have the GAM blocks of a network computed faster, in place; the same network is given back.

    Numbers stay the same but for rounding: for every output and gradient the error against float64 is at most twice
    that of the equations in the same type. A block changes its class and nothing else, so its parameters and their
    names, its hooks and its mode stay, an optimiser keeps what it holds, and a bare block can be accelerated, too.
    Variants of GAM and other mechanisms stay as they are. What a block may not be computed fast for is decided in every
    call, by `conditions.usable_weights`; then its equations run.

    Args:
        model: a network, or a block.
        backend: "auto" takes the fastest by the map's shape, type and device; on a GPU that is the equations, since
            "triton" has never run on one. "direct", "fourier", "dense" (maps up to 4x4) and "triton" are taken where
            they can be, for tests and benchmarks. "plain" takes acceleration back.

    Raises:
        ValueError: an unknown backend; the message lists the known ones.
    """
    if backend not in CHOICES:
        raise ValueError(f"backend={backend!r}: allowed: {', '.join(CHOICES)}")
    for block in model.modules():
        if type(block) not in (GAM, FastGAM):
            continue
        block.__class__ = GAM if backend == "plain" else FastGAM
        vars(block).pop("backend", None)
        if isinstance(block, FastGAM):
            block.backend = backend
    return model
