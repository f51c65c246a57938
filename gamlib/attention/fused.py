"""GAM as one function with its own backward pass: what `gam.py` computes, in few passes over the maps.

Eager PyTorch keeps every intermediate map for the backward pass and writes each to new memory. Here gates are computed
in place, and what is kept is the input, both gates, the squeezed map and what an engine asks for; the gated map is
multiplied anew. An engine computes the two 7x7 convolutions and their gradients: `direct.py` as they are, `fourier.py`
by discrete Fourier transforms, `dense.py` as one matrix. Each likes its maps in an order of memory of its own, and a
map comes into it by the product that makes it, not by a copy.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Saved = tuple[Tensor, ...]
Weights = tuple[Tensor | None, ...]


class Engine(Protocol):
    """Both convolutions of a spatial attention, for maps [N, C, H, W] of one shape in memory of one order."""

    def empty(self, x: Tensor) -> Tensor:
        """Room for a map like x, in the engine's order."""

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C -> C/r, in memory of its own, and what its gradient needs beside x and the weight."""

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C/r -> C, in memory of its own, and what its gradient needs beside x and the weight."""

    def squeeze_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `squeeze` with respect to its map, in memory of their own, and to its weight."""

    def expand_gradients(self, gradient: Tensor, x: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `expand` with respect to its map, in memory of their own, and to its weight."""


class Fused(torch.autograd.Function):
    """Channel gate and spatial gate of GAM; [N, C, H, W] -> [N, C, H, W]. Either may be missing (weights None)."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, x: Tensor, *weights: Tensor | None) -> Tensor:
        out, found, (of_squeeze, of_expand) = attend(engine, x, weights)
        ctx.engine, ctx.number = engine, len(of_squeeze)
        ctx.save_for_backward(x, *found, *weights, *of_squeeze, *of_expand)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, channel, squeezed, spatial, *rest = ctx.saved_tensors
        weights, kept = rest[:6], rest[6:]
        if torch.is_grad_enabled():  # create_graph: a gradient that has one itself
            return None, *_differentiable(gradient, x, weights)
        w1, _, w2, _, k1, k2 = weights
        engine: Engine = ctx.engine
        dw1 = db1 = dw2 = db2 = dk1 = dk2 = None
        of_gated = gradient
        if k1 is not None:
            gated = _gated(engine, x, channel)
            of_logits = _through_sigmoid(torch.mul(gradient, gated, out=engine.empty(x)), spatial)
            of_squeezed, dk2 = engine.expand_gradients(of_logits, squeezed, k2, kept[ctx.number :])
            torch.ops.aten.threshold_backward.grad_input(of_squeezed, squeezed, 0, grad_input=of_squeezed)
            of_gated, dk1 = engine.squeeze_gradients(of_squeezed, gated, k1, kept[: ctx.number])
            of_gated.addcmul_(gradient, spatial)
        of_x = of_gated
        if w1 is not None:
            of_logits = rows(_through_sigmoid(torch.mul(of_gated, x, out=_channels_last(x)), channel))
            dw2, db2 = (hidden.t() @ of_logits).t(), of_logits.sum(0)  # in this order faster where C/r is small
            of_hidden = (of_logits @ w2).mul_(hidden > 0)
            dw1, db1 = of_hidden.t() @ rows(x), of_hidden.sum(0)
            of_x = torch.mul(of_gated, channel, out=_channels_last(x))
            rows(of_x).addmm_(of_hidden, w1)
        return None, of_x, dw1, db1, dw2, db2, dk1, dk2


def attend(engine: Engine, x: Tensor, weights: Weights) -> tuple[Tensor, Weights, list[Saved]]:
    """The block's map [N, C, H, W]; the MLP's hidden rows, its gate, the squeezed map, its gate; what engines keep."""
    w1, b1, w2, b2, k1, k2 = weights
    hidden = channel = squeezed = spatial = None
    kept: list[Saved] = [(), ()]
    if w1 is not None and w2 is not None:
        hidden = torch.addmm(b1, rows(x), w1.t()).relu_()
        channel = maps(torch.addmm(b2, hidden, w2.t()).sigmoid_(), x)
    if k1 is not None and k2 is not None:
        gated = _gated(engine, x, channel)
        squeezed, kept[0] = engine.squeeze(gated, k1)
        spatial, kept[1] = engine.expand(squeezed.relu_(), k2)
        out = torch.mul(gated, spatial.sigmoid_(), out=torch.empty_like(x))
    else:
        out = x * channel
    return out, (hidden, channel, squeezed, spatial), kept


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C]; the same memory if x is in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps(values: Tensor, like: Tensor) -> Tensor:
    """Rows [N H W, c] -> [N, c, H, W] of the same memory, with N, H and W of `like`."""
    batch, _, height, width = like.shape
    return values.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _gated(engine: Engine, x: Tensor, channel: Tensor | None) -> Tensor:
    """The map behind the channel gate, in the engine's order."""
    return engine.empty(x).copy_(x) if channel is None else torch.mul(x, channel, out=engine.empty(x))


def _through_sigmoid(gradient: Tensor, gate: Tensor) -> Tensor:
    """The gradient before a sigmoid, in the memory of the one behind it."""
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, gate, grad_input=gradient)


def _differentiable(gradient: Tensor, x: Tensor, weights: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients by the equations themselves, as a graph: of x and of the weights that are there."""
    w1, b1, w2, b2, k1, k2 = weights
    out = x
    if w1 is not None and w2 is not None:
        out = out * maps(F.linear(F.linear(rows(x), w1, b1).relu(), w2, b2), x).sigmoid()
    if k1 is not None and k2 is not None:
        out = out * F.conv2d(F.conv2d(out, k1, padding=3).relu(), k2, padding=3).sigmoid()
    wanted = [value for value in (x, *weights) if value is not None and value.requires_grad]
    found = dict(zip(map(id, wanted), torch.autograd.grad(out, wanted, gradient, create_graph=True), strict=True))
    return tuple(found.get(id(value)) for value in (x, *weights))
