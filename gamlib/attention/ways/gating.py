"""Both gates of GAM and their gradients: by `native` where it can be used, else by torch, which computes the same.

Sigmoids are computed anew in the backward pass. Maps are [N, C, H, W], each in an order of memory of its own, with the
channels of a position one after the other.
"""

import torch
from torch import Tensor

from gamlib.attention.ways import native
from gamlib.attention.ways.native import Mlp


def channel_gate(x: Tensor, mlp: Mlp, out: Tensor) -> Tensor:
    """x times its channel gate, written into `out`; hidden rows [N H W, C/r or more], behind the ReLU."""
    if native.fits(x):
        return native.channel_gate(x, mlp, out)
    hidden = torch.addmm(mlp[1], rows(x), mlp[0].t()).relu_()
    torch.mul(x, _channel_gate(mlp, hidden, x), out=out)
    return hidden


def gates_again(
    x: Tensor, mlp: Mlp, gradient: Tensor, logits: Tensor, gated: Tensor, of_logits: Tensor, *, is_needed: bool
) -> Tensor:
    """What the backward pass begins with, in one reading of x: hidden rows, and into rooms that are given:

    Args:
        x: the map.
        mlp: weights and biases.
        gradient: that of the whole block.
        logits: of the spatial gate.
        gated: becomes x times its channel gate, if that `is_needed`.
        of_logits: becomes the gradient by the logits.
    """
    if native.fits(x):
        return native.channel_gate(x, mlp, gated if is_needed else None, gradient, logits, of_logits)
    hidden = channel_gate(x, mlp, gated)
    spatial_gate_gradient(gradient, gated, logits, of_logits)
    return hidden


def channel_gate_gradients(
    x: Tensor, mlp: Mlp, hidden: Tensor, gradient: Tensor, further: Tensor | None, logits: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients by x and by the MLP's four.

    Args:
        x: the map.
        mlp: weights and biases.
        hidden: what `channel_gate` returned.
        gradient: that of its map; or a part of it, the other one being
        further: times sigmoid(logits).
        logits: of the spatial gate.
    """
    if native.fits(x):
        return native.channel_gate_gradients(x, mlp, hidden, gradient, further, logits)
    w1, _, w2, _ = mlp
    gate = _channel_gate(mlp, hidden, x)
    of_gated = gradient if further is None or logits is None else gradient.addcmul(further, logits.sigmoid())
    of_logits = rows(_through_sigmoid(torch.mul(of_gated, x, out=channels_last(x)), gate))
    of_w2, of_b2 = (hidden.t() @ of_logits).t(), of_logits.sum(0)  # in this order faster where C/r is small
    of_hidden = (of_logits @ w2).mul_(hidden > 0)
    of_x = torch.mul(of_gated, gate, out=channels_last(x))
    rows(of_x).addmm_(of_hidden, w1)
    return of_x, of_hidden.t() @ rows(x), of_hidden.sum(0), of_w2, of_b2


def spatial_gate(x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """x sigmoid(logits), written into `out`."""
    return native.gate(x, logits, out) if native.fits(x) else torch.mul(x, logits.sigmoid(), out=out)


def spatial_gate_gradient(gradient: Tensor, x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """The gradient of `spatial_gate` by its logits, written into `out`; that by x is gradient sigmoid(logits)."""
    if native.fits(x):
        return native.gate_gradient(gradient, x, logits, out)
    return _through_sigmoid(torch.mul(gradient, x, out=out), logits.sigmoid())


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C]; the same memory if x is in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps(values: Tensor, like: Tensor) -> Tensor:
    """Rows [N H W, c] -> [N, c, H, W] of the same memory, with N, H and W of `like`."""
    batch, _, height, width = like.shape
    return values.view(batch, height, width, -1).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """Room for a map like x."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def with_rows(x: Tensor) -> Tensor:
    """x, copied if the channels of a position do not lie one after the other."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _channel_gate(mlp: Mlp, hidden: Tensor, x: Tensor) -> Tensor:
    return maps(torch.addmm(mlp[3], hidden, mlp[2].t()).sigmoid_(), x)


def _through_sigmoid(gradient: Tensor, gate: Tensor) -> Tensor:
    """The gradient before a sigmoid, in the memory of the one behind it."""
    return torch.ops.aten.sigmoid_backward.grad_input(gradient, gate, grad_input=gradient)
