"""GAM as two operators of PyTorch, `gamlib::gam` and `gamlib::gam_backward`, and the gradients of the first.

Whoever counts or records operations sees these two; to `FlopCounterMode` they are worth what the equations are. The
memory of a tensor is read in them alone, so nothing is computed beside what PyTorch is told.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from gamlib.kernels.backends import BACKENDS
from gamlib.kernels.conditions import Weights, is_usable_gradient, split

DEVICES = ("cpu", "cuda")
torch.library.define("gamlib::gam", "(Tensor x, Tensor[] weights, str backend, bool differentiates) -> Tensor[]")
torch.library.define(
    "gamlib::gam_backward", "(Tensor grad_output, Tensor x, Tensor[] weights, Tensor[] saved, str backend) -> Tensor[]"
)
GAM, GAM_BACKWARD = torch.ops.gamlib.gam.default, torch.ops.gamlib.gam_backward.default


@torch.library.impl("gamlib::gam", DEVICES)
def _gam(x: Tensor, weights: Sequence[Tensor], backend: str, differentiates: bool) -> list[Tensor]:
    return BACKENDS[backend].forward(x, tuple(weights), differentiates)


@torch.library.impl("gamlib::gam_backward", DEVICES)
def _gam_backward(grad_output: Tensor, x: Tensor, weights: Any, saved: Sequence[Tensor], backend: str) -> list[Tensor]:
    return BACKENDS[backend].backward(grad_output, x, tuple(weights), saved)


@register_flop_formula(torch.ops.gamlib.gam)
def _flops(x: Sequence[int], weights: Sequence[Sequence[int]], *rest: Any, **options: Any) -> int:
    """Of the equations, a multiply-accumulate as two, whatever a backend multiplies."""
    return 2 * x[0] * x[2] * x[3] * sum(math.prod(weight) for weight in weights if len(weight) > 1)


@register_flop_formula(torch.ops.gamlib.gam_backward)
def _flops_backward(grad_output: Any, x: Any, weights: Any, *rest: Any, **options: Any) -> int:
    return 2 * _flops(x, weights)


def compute(backend: str, x: Tensor, weights: Weights) -> Tensor:
    """A block's map [N, C, H, W] -> [N, C, H, W], by a backend that is not "plain"."""
    if needs_gradients(x, weights):
        return GAMFunction.apply(backend, x, *weights)
    return GAM(x, weights, backend, False)[0]


def needs_gradients(x: Tensor, weights: Weights) -> bool:
    """Whether PyTorch will want gradients of a block's map."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in (x, *weights))


class GAMFunction(torch.autograd.Function):
    """`gamlib::gam`, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, backend: str, x: Tensor, *weights: Tensor) -> Tensor:
        out, *saved = GAM(x, weights, backend, True)
        ctx.backend, ctx.number = backend, 1 + len(weights)
        ctx.save_for_backward(x, *weights, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        x, weights, saved = tensors[0], tensors[1 : ctx.number], tensors[ctx.number :]
        if is_usable_gradient(grad_output):
            return None, *GAM_BACKWARD(grad_output, x, weights, saved, ctx.backend)
        return None, *_by_equations(grad_output, x, *weights)


def _by_equations(grad_output: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """The gradients of x and of the weights; with a graph where one is wanted.

    Each weight stands for itself, also where two of them are one tensor, and is cast to x's type as autocast would.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        out, *weights = given = [value.view_as(value) for value in inputs]
        mlp, kernels = split(tuple(value.to(out.dtype) for value in weights))
        if mlp is not None:
            w1, b1, w2, b2 = mlp
            rows = out.permute(0, 2, 3, 1)
            out = out * F.linear(F.linear(rows, w1, b1).relu(), w2, b2).permute(0, 3, 1, 2).sigmoid()
        if kernels is not None:
            k1, k2 = kernels
            out = out * F.conv2d(F.conv2d(out, k1, padding=3).relu(), k2, padding=3).sigmoid()
        wanted = [value for value in given if value.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad_output, create_graph=create_graph))
    return [next(found) if value.requires_grad else None for value in inputs]
