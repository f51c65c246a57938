"""Both gates of GAM and their gradients: by `native` where it can be used, else by torch, which computes the same.

Sigmoids are computed anew in the backward pass. Maps are [N, C, H, W], each in an order of memory of its own, with the
channels of a position one after the other.
"""

import torch
from torch import Tensor

from gamlib.kernels import native
from gamlib.kernels.conditions import Mlp
from gamlib.kernels.memory import in_channels_last, maps, rows


def channel_gate(
    x: Tensor, mlp: Mlp, out: Tensor, spatial: tuple[Tensor, ...] | None = None, *, is_needed: bool = True
) -> Tensor:
    """x times its channel gate, into `out` where it `is_needed`; gives rows [N H W, C/r or more], behind the ReLU.

    `spatial` is what the backward pass begins with, in the same reading of x: the gradient of the whole block, the
    logits of the spatial gate, and memory for the gradient by these.
    """
    if native.fits(x):
        by_position, weights = x.permute(0, 2, 3, 1).contiguous(), [value.contiguous() for value in mlp]
        hidden = x.new_empty(by_position.shape[:3].numel(), native.filled(len(mlp[0])))
        given = x, by_position, weights, out if is_needed else None, hidden
        native.library().channel_gate(*given, *(spatial or (None,) * 3))
        return hidden
    hidden = torch.addmm(mlp[1], rows(x), mlp[0].t()).relu_()
    torch.mul(x, _channel_sigmoid(mlp, hidden, x), out=out)
    if spatial is not None:
        grad_output, logits, of_logits = spatial
        spatial_gate(out, logits, of_logits, grad_output)
    return hidden


def channel_gate_gradients(x: Tensor, mlp: Mlp, hidden: Tensor, grad_output: Tensor, *further: Tensor) -> list[Tensor]:
    """Gradients by x and by the MLP's four, from the rows that `channel_gate` gave and the gradient of its map.

    `further` is a second part of that gradient: a map, and the logits of the sigmoid that it is multiplied by.
    """
    if native.fits(x):
        by_position, weights = x.permute(0, 2, 3, 1).contiguous(), [value.contiguous() for value in mlp]
        of_x, of_mlp = torch.empty_like(by_position), [*map(torch.empty_like, weights)]
        given = x, by_position, weights, hidden, grad_output, *(further or (None, None))
        native.library().channel_gate_gradients(*given, of_x, of_mlp)
        return [of_x.permute(0, 3, 1, 2), *of_mlp]
    gate = _channel_sigmoid(mlp, hidden, x)
    of_gated = grad_output.addcmul(further[0], further[1].sigmoid()) if further else grad_output
    of_logits = rows(_through_sigmoid(torch.mul(of_gated, x, out=in_channels_last(x)), gate))
    of_w2, of_b2 = (hidden.t() @ of_logits).t(), of_logits.sum(0)  # in this order faster where C/r is small
    of_hidden = (of_logits @ mlp[2]).mul_(hidden > 0)
    of_x = torch.mul(of_gated, gate, out=in_channels_last(x))
    rows(of_x).addmm_(of_hidden, mlp[0])
    return [of_x, of_hidden.t() @ rows(x), of_hidden.sum(0), of_w2, of_b2]


def spatial_gate(x: Tensor, logits: Tensor, out: Tensor, grad_output: Tensor | None = None) -> Tensor:
    """x sigmoid(logits), written into `out`; with the gradient of that given, the gradient by the logits instead."""
    if native.fits(x):
        native.library().gate(x, x, logits, grad_output, out)
        return out
    if grad_output is None:
        return torch.mul(x, logits.sigmoid(), out=out)
    return _through_sigmoid(torch.mul(grad_output, x, out=out), logits.sigmoid())


def _channel_sigmoid(mlp: Mlp, hidden: Tensor, x: Tensor) -> Tensor:
    return maps(torch.addmm(mlp[3], hidden, mlp[2].t()).sigmoid_(), x)


def _through_sigmoid(grad_output: Tensor, gate: Tensor) -> Tensor:
    """The gradient before a sigmoid, in the memory of the one behind it."""
    return torch.ops.aten.sigmoid_backward.grad_input(grad_output, gate, grad_input=grad_output)
