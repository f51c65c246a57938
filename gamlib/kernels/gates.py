"""Both gates of GAM and their gradients: by `native` where it can be used, else by torch, which computes the same.

Sigmoids are computed anew in the backward pass. Maps are [N, C, H, W], each in an order of memory of its own, with the
channels of a position one after the other.
"""

import torch
from torch import Tensor

from gamlib.kernels import native
from gamlib.kernels.conditions import Mlp


def channel_gate(
    x: Tensor,
    mlp: Mlp,
    out: Tensor,
    spatial: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    is_needed: bool = True,
) -> Tensor:
    """x times its channel gate, written into `out`; hidden rows [N H W, C/r or more], behind the ReLU.

    Args:
        x: the map.
        mlp: weights and biases.
        out: memory for the gated map.
        spatial: the gradient of the whole block, the logits of the spatial gate, and memory for the gradient by these,
            which the backward pass begins with: all of it in one reading of x.
        is_needed: whether the gated map is; else `out` may stay as it is.
    """
    if native.fits(x):
        by_position = x.permute(0, 2, 3, 1).contiguous()
        hidden = x.new_empty(by_position.shape[:3].numel(), native.filled(len(mlp[0])))
        given = x, by_position, [value.contiguous() for value in mlp], out if is_needed else None
        native.library().channel_gate(*given, hidden, *(spatial or (None,) * 3))
        return hidden
    hidden = torch.addmm(mlp[1], rows(x), mlp[0].t()).relu_()
    torch.mul(x, _gate(mlp, hidden, x), out=out)
    if spatial is not None:
        grad_output, logits, of_logits = spatial
        spatial_gate_gradient(grad_output, out, logits, of_logits)
    return hidden


def channel_gate_gradients(
    x: Tensor,
    mlp: Mlp,
    hidden: Tensor,
    grad_output: Tensor,
    further: Tensor | None = None,
    logits: Tensor | None = None,
) -> list[Tensor]:
    """Gradients by x and by the MLP's four.

    Args:
        x: the map.
        mlp: weights and biases.
        hidden: what `channel_gate` returned.
        grad_output: the gradient of its map; or a part of it, the other one being
        further: times sigmoid(logits).
        logits: of the spatial gate.
    """
    if native.fits(x):
        by_position = x.permute(0, 2, 3, 1).contiguous()
        of_x, of_mlp = torch.empty_like(by_position), [native.empty_like(value) for value in mlp]
        given = x, by_position, [value.contiguous() for value in mlp], hidden, grad_output, further, logits
        native.library().channel_gate_gradients(*given, of_x, of_mlp)
        return [of_x.permute(0, 3, 1, 2), *of_mlp]
    w1, _, w2, _ = mlp
    gate = _gate(mlp, hidden, x)
    of_gated = grad_output if further is None or logits is None else grad_output.addcmul(further, logits.sigmoid())
    of_logits = rows(_through_sigmoid(torch.mul(of_gated, x, out=empty_in_channels_last(x)), gate))
    of_w2, of_b2 = (hidden.t() @ of_logits).t(), of_logits.sum(0)  # in this order faster where C/r is small
    of_hidden = (of_logits @ w2).mul_(hidden > 0)
    of_x = torch.mul(of_gated, gate, out=empty_in_channels_last(x))
    rows(of_x).addmm_(of_hidden, w1)
    return [of_x, of_hidden.t() @ rows(x), of_hidden.sum(0), of_w2, of_b2]


def spatial_gate(x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """x sigmoid(logits), written into `out`."""
    if not native.fits(x):
        return torch.mul(x, logits.sigmoid(), out=out)
    native.library().gate(x, x, logits, None, out)
    return out


def spatial_gate_gradient(grad_output: Tensor, x: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    """The gradient of `spatial_gate` by its logits, written into `out`; that by x is grad_output sigmoid(logits)."""
    if not native.fits(x):
        return _through_sigmoid(torch.mul(grad_output, x, out=out), logits.sigmoid())
    native.library().gate(x, x, logits, grad_output, out)
    return out


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C]; the same memory if x is in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps(values: Tensor, like: Tensor) -> Tensor:
    """Rows [N H W, c] -> [N, c, H, W] of the same memory, with N, H and W of `like`."""
    batch, _, height, width = like.shape
    return values.view(batch, height, width, -1).permute(0, 3, 1, 2)


def empty_in_channels_last(x: Tensor) -> Tensor:
    """Memory for a map like x."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def with_rows(x: Tensor) -> Tensor:
    """x, copied if the channels of a position do not lie one after the other."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def in_order_of(x: Tensor, out: Tensor) -> Tensor:
    """A map in x's order of memory: channels first, or last."""
    channels_first = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous() if channels_first else out


def _gate(mlp: Mlp, hidden: Tensor, x: Tensor) -> Tensor:
    return maps(torch.addmm(mlp[3], hidden, mlp[2].t()).sigmoid_(), x)


def _through_sigmoid(grad_output: Tensor, gate: Tensor) -> Tensor:
    """The gradient before a sigmoid, in the memory of the one behind it."""
    return torch.ops.aten.sigmoid_backward.grad_input(grad_output, gate, grad_input=grad_output)
