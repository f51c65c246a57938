"""GAM as one function with its own backward pass: what `gam.py` computes, in few passes over the maps.

Eager PyTorch keeps every intermediate map for the backward pass and writes each to new memory. Here a map is a matrix
of rows [positions, C] in the order that an engine likes, gates are computed in place, and what is kept is the input,
both gates, the gated map and what the engine asks for. An engine computes the two 7x7 convolutions and their gradients:
`direct.py` in channels_last, `fourier.py` by discrete Fourier transforms.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

MlpWeights = tuple[Tensor, Tensor, Tensor, Tensor]
Saved = tuple[Tensor, ...]


class Engine(Protocol):
    """Both convolutions of a spatial attention for maps of one shape; rows are [positions, channels], contiguous."""

    def lay(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> rows [N H W, C]; may share memory."""

    def unlay(self, rows: Tensor) -> Tensor:
        """Rows -> [N, C, H, W] in channels_last; may share memory."""

    def squeeze(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C -> C/r of rows, in memory of its own, and what its gradient needs."""

    def expand(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Saved]:
        """The convolution C/r -> C of rows, in memory of its own, and what its gradient needs."""

    def squeeze_gradients(self, gradient: Tensor, rows: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `squeeze` with respect to its rows, in memory of their own, and to its weight."""

    def expand_gradients(self, gradient: Tensor, rows: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
        """Gradients of `expand` with respect to its rows, in memory of their own, and to its weight."""


class Fused(torch.autograd.Function):
    """Channel gate and spatial gate of GAM; [N, C, H, W] -> [N, C, H, W]. Either may be missing (weights None)."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, x: Tensor, *weights: Tensor | None) -> Tensor:
        w1, b1, w2, b2, k1, k2 = weights
        rows = engine.lay(x)
        hidden = channel = squeezed = spatial = None
        kept: list[Saved] = [(), ()]
        gated = rows
        if w1 is not None:
            hidden = torch.addmm(b1, rows, w1.t()).relu_()
            channel = torch.addmm(b2, hidden, w2.t()).sigmoid_()
            gated = rows * channel
        out = gated
        if k1 is not None:
            squeezed, kept[0] = engine.squeeze(gated, k1)
            squeezed.relu_()
            spatial, kept[1] = engine.expand(squeezed, k2)
            spatial.sigmoid_()
            out = gated * spatial
        ctx.engine, ctx.number = engine, len(kept[0])
        ctx.save_for_backward(rows, hidden, channel, gated, squeezed, spatial, *weights, *kept[0], *kept[1])
        return engine.unlay(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, channel, gated, squeezed, spatial, w1, _, w2, _, k1, k2, *kept = ctx.saved_tensors
        engine: Engine = ctx.engine
        of_gated = engine.lay(gradient)  # may be the caller's: not written to
        dw1 = db1 = dw2 = db2 = dk1 = dk2 = None
        if k1 is not None:
            arrived = of_gated
            of_logits = _through_sigmoid(arrived * gated, spatial)
            of_squeezed, dk2 = engine.expand_gradients(of_logits, squeezed, k2, kept[ctx.number :])
            of_squeezed.mul_(squeezed > 0)
            of_gated, dk1 = engine.squeeze_gradients(of_squeezed, gated, k1, kept[: ctx.number])
            of_gated.addcmul_(arrived, spatial)
        of_rows = of_gated
        if w1 is not None:
            of_logits = _through_sigmoid(of_gated * rows, channel)
            of_rows = of_gated * channel if k1 is None else of_gated.mul_(channel)
            dw2, db2 = of_logits.t() @ hidden, of_logits.sum(0)
            of_hidden = (of_logits @ w2).mul_(hidden > 0)
            dw1, db1 = of_hidden.t() @ rows, of_hidden.sum(0)
            of_rows.addmm_(of_hidden, w1)
        return None, engine.unlay(of_rows), dw1, db1, dw2, db2, dk1, dk2


def _through_sigmoid(gradient: Tensor, gate: Tensor) -> Tensor:
    """The gradient before a sigmoid, in the memory of the one behind it."""
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, gate, grad_input=gradient)
