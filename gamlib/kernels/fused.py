"""A backend that computes a block in few passes over its maps, whatever computes the convolutions.

Eager PyTorch keeps every intermediate map for the backward pass and writes each to new memory. Here only the squeezed
map (C/r channels), the logits of the spatial gate and what an engine asks for are kept beside the input; what else the
backward pass needs costs less to compute again than to keep. `gates.py` has the gates. An engine computes the two 7x7
convolutions and their gradients: `direct.py` as they are, `fourier.py` by discrete Fourier transforms, `dense.py` as
one matrix. Each likes its maps in an order of memory of its own, and a map comes into it by the product that makes it,
not by a copy.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from gamlib.kernels.conditions import Mlp, Weights, split
from gamlib.kernels.gates import (
    channel_gate,
    channel_gate_gradients,
    empty_in_channels_last,
    in_order_of,
    spatial_gate,
    spatial_gate_gradient,
    with_rows,
)


class Engine(Protocol):
    """Both convolutions of a spatial attention, for maps [N, C, H, W] in memory of one order.

    A convolution gives its map in memory of its own, then what its gradients need beside its input and the weight: as
    many tensors for both of them, or one more for `squeeze`. If `squeeze` gives any, its gradients look at the shape of
    x and not at its numbers. Gradients are those by the map, in memory of their own, and by the weight.
    """

    def workspace(self, name: str, x: Tensor) -> Tensor:
        """Memory for a map like x, in the engine's order, until the next call with this name."""

    def squeeze(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The convolution C -> C/r."""

    def expand(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The convolution C/r -> C."""

    def squeeze_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        """Those of `squeeze`."""

    def expand_gradients(self, grad_output: Tensor, x: Tensor, weight: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
        """Those of `expand`."""


class Fused:
    """Channel gate and spatial gate of GAM, of which either may be missing, around an engine's convolutions."""

    def __init__(self, engine: Engine, for_inference: Engine | None = None) -> None:
        self.engine, self.for_inference = engine, for_inference or engine

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        mlp, kernels = split(weights)
        if kernels is None:
            out = empty_in_channels_last(x)
            _gate(x, mlp, out)
            return [in_order_of(x, out)]
        engine = self.engine if differentiates else self.for_inference
        gated = engine.workspace("gated", x)
        _gate(x, mlp, gated)
        squeezed, *of_squeeze = engine.squeeze(gated, kernels[0])
        logits, *of_expand = engine.expand(squeezed.relu_(), kernels[1])
        out = in_order_of(x, spatial_gate(gated, logits, empty_in_channels_last(x)))
        return [out, squeezed, logits, *of_squeeze, *of_expand] if differentiates else [out]

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        (mlp, kernels), engine, grad_output = split(weights), self.engine, with_rows(grad_output)
        gated = engine.workspace("gated", x)
        if kernels is None:
            assert mlp is not None
            return channel_gate_gradients(x, mlp, channel_gate(x, mlp, gated), grad_output)
        squeezed, logits, *kept = saved
        middle = (len(kept) + 1) // 2
        of_logits = engine.workspace("logits", x)
        if mlp is None:
            spatial_gate_gradient(grad_output, gated.copy_(x), logits, of_logits)
        else:
            hidden = channel_gate(x, mlp, gated, (grad_output, logits, of_logits), is_needed=not kept)
        of_squeezed, of_k2 = engine.expand_gradients(of_logits, squeezed, kernels[1], kept[middle:])
        torch.ops.aten.threshold_backward.grad_input(of_squeezed, squeezed, 0, grad_input=of_squeezed)
        of_gated, of_k1 = engine.squeeze_gradients(of_squeezed, gated, kernels[0], kept[:middle])
        if mlp is None:
            return [of_gated.addcmul_(grad_output, logits.sigmoid()), of_k1, of_k2]
        return [*channel_gate_gradients(x, mlp, hidden, of_gated, grad_output, logits), of_k1, of_k2]


def _gate(x: Tensor, mlp: Mlp | None, out: Tensor) -> None:
    """What the channel gate makes of x, or x if there is none, written into `out`."""
    if mlp is None:
        out.copy_(x)
    else:
        channel_gate(x, mlp, out)
