"""What computes a GAM block, by name, and which of them is the fastest for a map.

A backend computes a block in few passes over its maps. Eager PyTorch keeps every intermediate map for the backward pass
and writes each to new memory. Here only the squeezed map (C/r channels), the logits of the spatial gate and what an
engine asks for are kept beside the input; what else the backward pass needs costs less to compute again than to keep.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gamlib.kernels import gates, native
from gamlib.kernels.conditions import Kernels, Mlp, Weights, split
from gamlib.kernels.direct import LARGEST, Dense, Direct
from gamlib.kernels.fourier import Fourier, length
from gamlib.kernels.memory import in_channels_last, in_order_of, with_rows, workspace

DENSE_UP_TO = 2  # H and W, whatever the channels are
CALLS = 3e8  # products that could be computed while the calls of the other backends are made, measured
# How many times as fast torch's convolution multiplies as `native.products`, or as torch's matrix product, measured
ADVANTAGE = {("AVX512", True): 1.5, ("AVX512", False): 3.5, ("AVX2", True): 1.2, ("AVX2", False): 1.5}


class Fused:
    """Channel gate and spatial gate of GAM, of which either may be missing, around an engine's two 7x7 convolutions.

    An engine likes its maps in an order of memory of its own (`workspace`), and a map comes into it by the product that
    makes it, not by a copy. `convolve` gives its map in memory of its own, then, where it is to be differentiated, what
    `gradients` needs beside the input and the weight, as many tensors for both convolutions; if it gives any, then
    `gradients` looks at the shape of x and not at its numbers. It gives those by the map, in memory of their own, and
    by the weight.
    """

    def __init__(self, engine: Direct | Fourier | Dense) -> None:
        self.engine = engine

    @property
    def gates(self) -> Any:
        """A module with the functions of `gates.py`."""
        return gates

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        """The block's map [N, C, H, W]; where it is to be differentiated, then what `backward` needs."""
        mlp, kernels = split(weights)
        if kernels is None:
            return [in_order_of(x, self._gated(x, mlp, in_channels_last(x)))]
        gated = self._gated(x, mlp, self.engine.workspace("gated", x))
        squeezed, *of_squeeze = self.engine.convolve(gated, kernels[0], differentiates)
        logits, *of_expand = self.engine.convolve(squeezed.relu_(), kernels[1], differentiates)
        out = in_order_of(x, self.gates.spatial_gate(gated, logits, in_channels_last(x)))
        return [out, squeezed, logits, *of_squeeze, *of_expand] if differentiates else [out]

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        """The gradients of x and of each weight."""
        (mlp, kernels), gates, engine, grad_output = split(weights), self.gates, self.engine, with_rows(grad_output)
        gated = engine.workspace("gated", x)
        if kernels is None:
            return gates.channel_gate_gradients(x, mlp, gates.channel_gate(x, mlp, gated), grad_output)
        squeezed, logits, *kept = saved
        middle = len(kept) // 2
        of_logits = engine.workspace("logits", x)
        if mlp is None:
            gates.spatial_gate(gated.copy_(x), logits, of_logits, grad_output)
        else:
            hidden = gates.channel_gate(x, mlp, gated, (grad_output, logits, of_logits), is_needed=not kept)
        of_squeezed, of_k2 = engine.gradients(of_logits, squeezed, kernels[1], kept[middle:])
        torch.ops.aten.threshold_backward.grad_input(of_squeezed, squeezed, 0, grad_input=of_squeezed)
        of_gated, of_k1 = engine.gradients(of_squeezed, gated, kernels[0], kept[:middle])
        if mlp is None:
            return [of_gated.addcmul_(grad_output, logits.sigmoid()), of_k1, of_k2]
        return [*gates.channel_gate_gradients(x, mlp, hidden, of_gated, grad_output, logits), of_k1, of_k2]

    def _gated(self, x: Tensor, mlp: Mlp | None, out: Tensor) -> Tensor:
        """What the channel gate makes of x, or x if there is none, written into `out`."""
        if mlp is None:
            return out.copy_(x)
        self.gates.channel_gate(x, mlp, out)
        return out


class OneCall(Fused):
    """The whole block in one call of `c/dense.c`: on tiny maps calls take longer than products. Else as `Fused`."""

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        mlp, kernels = split(weights)
        if kernels is None or not native.fits(x):
            return super().forward(x, weights, differentiates)
        out, saved = in_channels_last(x), x.new_empty(native.library().dense_keeps(x, len(kernels[0])))
        native.library().dense(x, *_for_one_call(x, mlp, kernels), differentiates, saved, out.permute(0, 2, 3, 1))
        return [in_order_of(x, out), saved] if differentiates else [in_order_of(x, out)]

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        mlp, kernels = split(weights)
        if kernels is None or not native.fits(x):
            return super().backward(grad_output, x, weights, saved)
        rows, mlp, kernels = _for_one_call(x, mlp, kernels)
        of_rows, of_mlp = torch.empty_like(rows), mlp and [*map(torch.empty_like, mlp)]
        of_kernels = [*map(torch.empty_like, kernels)]
        given = x, rows, mlp, kernels, saved[0], grad_output.permute(0, 2, 3, 1).contiguous()
        memory = workspace("dense", x, len(saved[0]))
        native.library().dense_gradients(*given, memory, of_rows, of_mlp, of_kernels)
        return [of_rows.permute(0, 3, 1, 2), *(of_mlp or ()), *of_kernels]


def _for_one_call(x: Tensor, mlp: Mlp | None, kernels: Kernels) -> tuple[Tensor, Any, Any]:
    """Kernels stay as they are if their taps lie one after the other or behind the channels."""
    k1, k2 = (k if k.is_contiguous(memory_format=torch.channels_last) else k.contiguous() for k in kernels)
    return x.permute(0, 2, 3, 1).contiguous(), mlp and [value.contiguous() for value in mlp], (k1, k2)


class Triton(Fused):
    """Gates by Triton, convolutions by cuDNN, with weights of the map's type, to which autocast would cast them."""

    @property
    def gates(self) -> Any:
        from gamlib.kernels import triton_gates  # when it is used: Triton may not be there

        return triton_gates

    def forward(self, x: Tensor, weights: Weights, differentiates: bool) -> list[Tensor]:
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            return super().forward(x, tuple(value.to(x.dtype) for value in weights), differentiates)

    def backward(self, grad_output: Tensor, x: Tensor, weights: Weights, saved: Any) -> list[Tensor]:
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            found = super().backward(grad_output, x, tuple(value.to(x.dtype) for value in weights), saved)
        return [of.to(value.dtype) for of, value in zip(found, (x, *weights), strict=True)]


BACKENDS: dict[str, Fused] = {
    "direct": Fused(Direct()),
    "fourier": Fused(Fourier()),
    "dense": OneCall(Dense()),
    "triton": Triton(Direct(lanes=0)),
}
CHOICES = ("auto", "plain", *BACKENDS)


def choose(wanted: str, x: Tensor, weights: Weights, differentiates: bool) -> str:
    """A name of `BACKENDS` for a map that fits: the one wanted, or with "auto" the fastest; "plain" where it cannot be.

    On a GPU "auto" is "plain": what has not run on a kind of device is not its default there.
    """
    if x.is_cuda:
        return "triton" if wanted == "triton" and _triton_can(x.device) else "plain"
    if wanted == "triton" or (wanted == "dense" and max(x.shape[2:]) > LARGEST):
        return "plain"
    kernels = split(weights)[1]
    hidden = 0 if kernels is None else len(kernels[0])
    return wanted if wanted != "auto" else fastest(*x.shape, hidden, differentiates, native.fits(x))


@lru_cache(maxsize=256)
def fastest(
    batch: int, channels: int, height: int, width: int, hidden: int, differentiates: bool, in_one_call: bool = False
) -> str:
    """The backend on a CPU for maps [N, C, H, W] and C/r hidden channels, by what each multiplies and how fast.

    `in_one_call` says whether `dense` is one call for the whole block.
    """
    if not hidden:
        return "direct"
    if max(height, width) <= DENSE_UP_TO:
        return "dense"
    rows, columns = length(height), length(width)
    along = rows * height * width + 2 * rows * columns * width  # of one channel of one map, there or back
    of_weights = rows * columns * 49
    maps, weights = (4, 4) if differentiates else (2, 0)  # transformed; without gradients a weight's is cached
    convolutions = 6 if differentiates else 2
    directly = convolutions * 49 * batch * height * width * channels * hidden
    transforms = maps * batch * (channels + hidden) * along + weights * channels * hidden * of_weights
    by_fourier = transforms + convolutions * 2 * rows * columns * batch * channels * hidden
    if in_one_call and max(height, width) <= LARGEST:
        densely = convolutions * (height * width) ** 2 * batch * channels * hidden
        if densely < CALLS + min(by_fourier, directly):
            return "dense"
    kind = torch.backends.cpu.get_cpu_capability(), native.library() is not None
    return "fourier" if by_fourier * ADVANTAGE.get(kind, min(ADVANTAGE.values())) < directly else "direct"


@cache
def _triton_can(device: torch.device) -> bool:
    """Whether Triton is installed, and has products of bfloat16 for this GPU."""
    try:
        import gamlib.kernels.triton_gates  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
