"""GAM as one function with its own backward pass: what `gam.py` computes, in few passes over the maps.

Eager PyTorch keeps every intermediate map for the backward pass and writes each to new memory. Here only the input, the
squeezed map (C/r channels), the logits of the spatial gate and what an engine asks for are kept; what else the backward
pass needs costs less to compute again than to keep. `gating.py` has the gates. An engine computes the two 7x7
convolutions and their gradients: `direct.py` as they are, `fourier.py` by discrete Fourier transforms, `dense.py` as
one matrix. Each likes its maps in an order of memory of its own, and a map comes into it by the product that makes it,
not by a copy.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from gamlib.attention.ways.conditions import Weights, is_usable_gradient
from gamlib.attention.ways.gating import (
    channel_gate,
    channel_gate_gradients,
    channels_last,
    gates_again,
    maps,
    rows,
    spatial_gate,
    spatial_gate_gradient,
    with_rows,
)
from gamlib.attention.ways.native import Kernels, Mlp, Saved


class Engine(Protocol):
    """Both convolutions of a spatial attention, for maps [N, C, H, W] in memory of one order."""

    def room(self, name: str, x: Tensor) -> Tensor:
        """Memory for a map like x, in the engine's order, until the next call with this name."""

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C -> C/r, in memory of its own, and what its gradients need beside x and the weight.

        If that is anything, they look at the shape of x and not at its numbers.
        """

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C/r -> C, in memory of its own, and what its gradients need beside x and the weight."""

    def squeeze_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `squeeze` with respect to its map, in memory of their own, and to its weight."""

    def expand_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `expand` with respect to its map, in memory of their own, and to its weight."""


class Fused(torch.autograd.Function):
    """Channel gate and spatial gate of GAM; [N, C, H, W] -> [N, C, H, W]. Either may be missing (weights None)."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, x: Tensor, *weights: Tensor | None) -> Tensor:
        out, found, of_squeeze, of_expand = attend(engine, x, *apart(weights))
        ctx.engine, ctx.number = engine, len(of_squeeze)
        ctx.save_for_backward(x, *found, *weights, *of_squeeze, *of_expand)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, squeezed, logits, *rest = ctx.saved_tensors
        weights, saved = tuple(rest[:6]), tuple(rest[6:])
        if not is_usable_gradient(gradient):
            return None, *differentiable(gradient, x, weights)
        (mlp, kernels), engine = apart(weights), ctx.engine
        gradient = with_rows(gradient)
        gated = engine.room("gated", x)
        of_gated, further = gradient, None
        of_mlp: Weights = (None,) * 4
        of_kernels: Weights = (None,) * 2
        if kernels is None:
            hidden = _gate(x, mlp, gated)
        else:
            of_logits = engine.room("logits", x)
            if mlp is None:
                spatial_gate_gradient(gradient, gated.copy_(x), logits, of_logits)
            else:
                hidden = gates_again(x, mlp, gradient, logits, gated, of_logits, is_needed=not ctx.number)
            of_squeezed, of_k2 = engine.expand_gradients(of_logits, squeezed, kernels[1], saved[ctx.number :])
            torch.ops.aten.threshold_backward.grad_input(of_squeezed, squeezed, 0, grad_input=of_squeezed)
            of_gated, of_k1 = engine.squeeze_gradients(of_squeezed, gated, kernels[0], saved[: ctx.number])
            further, of_kernels = gradient, (of_k1, of_k2)
        if mlp is None:
            return None, of_gated.addcmul_(gradient, logits.sigmoid()), *of_mlp, *of_kernels
        of_x, *of_mlp = channel_gate_gradients(x, mlp, hidden, of_gated, further, logits)  # type: ignore[assignment]
        return None, of_x, *of_mlp, *of_kernels


def apart(weights: Weights) -> tuple[Mlp | None, Kernels | None]:
    """The MLP's four and both convolutions', where they are there."""
    mlp, kernels = weights[:4], weights[4:]
    return (None if mlp[0] is None else cast(Mlp, mlp)), (None if kernels[0] is None else cast(Kernels, kernels))


def attend(
    engine: Engine, x: Tensor, mlp: Mlp | None, kernels: Kernels | None
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None], Saved, Saved]:
    """The block's map; the squeezed one and the logits of the spatial gate, if it has one; what engines keep."""
    if kernels is None:
        out = channels_last(x)
        _gate(x, mlp, out)
        return in_order_of(x, out), (None, None), (), ()
    gated = engine.room("gated", x)
    _gate(x, mlp, gated)
    squeezed, of_squeeze = engine.squeeze(gated, kernels[0])
    logits, of_expand = engine.expand(squeezed.relu_(), kernels[1])
    out = spatial_gate(gated, logits, channels_last(x))
    return in_order_of(x, out), (squeezed, logits), of_squeeze, of_expand


def _gate(x: Tensor, mlp: Mlp | None, out: Tensor) -> Tensor:
    """What the channel gate makes of x, or x if there is none, written into `out`; the hidden rows of the MLP."""
    return out.copy_(x) if mlp is None else channel_gate(x, mlp, out)


def in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """A map in x's order of memory: channels first, or last."""
    channels_first = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous() if channels_first else out


def differentiable(gradient: Tensor, x: Tensor, weights: Weights) -> Weights:
    """The gradients of x and of the weights that are there, by the equations; with a graph where one is wanted.

    Each weight stands for itself, also where two of them are one tensor, and is cast to x's type as autocast would.
    """
    inputs, create_graph = (x, *weights), torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        given = [value if value is None else value.view_as(value) for value in inputs]
        out = cast(Tensor, given[0])
        mlp, kernels = apart(tuple(value if value is None else value.to(x.dtype) for value in given[1:]))
        if mlp is not None:
            w1, b1, w2, b2 = mlp
            out = out * maps(F.linear(F.linear(rows(out), w1, b1).relu(), w2, b2), x).sigmoid()
        if kernels is not None:
            k1, k2 = kernels
            out = out * F.conv2d(F.conv2d(out, k1, padding=3).relu(), k2, padding=3).sigmoid()
        wanted = [value for value in given if value is not None and value.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=create_graph))
    return tuple(next(found) if value is not None and value.requires_grad else None for value in inputs)
