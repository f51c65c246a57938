"""The operations that equations of mechanisms are made of, written by hand, and the comparison of a block with them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]  # parameters and buffers of a block by their names

# A map of at least the window of 7, one with a side of less, one within half a window, and a single position.
SIZES = [(9, 9), (10, 6), (3, 2), (1, 1)]
sizes = pytest.mark.parametrize("size", SIZES, ids=[f"{height}x{width}" for height, width in SIZES])
grouped = pytest.mark.parametrize("groups", [1, 4])
pooled = pytest.mark.parametrize(
    ("submodules", "gate_max_pool"), [("ch+sp", False), ("ch+sp", True), ("ch", False), ("sp", False), ("sp", True)]
)
modes = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over the channels of [N, C, ...]."""
    rows = torch.einsum("kc,nc...->n...k", weight, x)
    return (rows if bias is None else rows + bias).movedim(-1, 1)


def taps(
    x: Tensor, kernel: tuple[int, int], dilation: int = 1, outside: float = 0.0
) -> Iterator[tuple[int, int, Tensor]]:
    """Row and column of every tap of a centred window, and what the positions of the map see there."""
    height, width = x.shape[-2:]
    above, left = (dilation * (size // 2) for size in kernel)
    padded = x.new_full((*x.shape[:-2], height + 2 * above, width + 2 * left), outside)
    padded[..., above : above + height, left : left + width] = x
    for row, column in product(*map(range, kernel)):
        yield row, column, padded[..., dilation * row :, dilation * column :][..., :height, :width]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1, dilation: int = 1) -> Tensor:
    """With zeros around the map; every tap is an einsum over the channels of a group."""
    outputs, inputs, height, width = weight.shape
    grouped, weight = x.unflatten(1, (groups, inputs)), weight.unflatten(0, (groups, -1))
    total = x.new_zeros(len(x), outputs, *x.shape[2:])
    for row, column, seen in taps(grouped, (height, width), dilation):
        total = total + torch.einsum("goc,ngchw->ngohw", weight[..., row, column], seen).flatten(1, 2)
    return total if bias is None else total + bias[:, None, None]


def max_pool(x: Tensor) -> Tensor:
    """Over 3x3 positions, stride 1."""
    return torch.stack([seen for _, _, seen in taps(x, (3, 3), outside=-torch.inf)]).amax(0)


def batch_norm(x: Tensor, weights: Weights, name: str, training: bool) -> Tensor:
    """By running statistics, or in training by those of the batch, which move the running ones by a tenth."""
    rows = x.movedim(1, -1)
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    if training:
        flat = rows.flatten(0, -2)
        weights[f"{name}.num_batches_tracked"] = weights[f"{name}.num_batches_tracked"] + 1
        weights[f"{name}.running_mean"] = 0.9 * mean + 0.1 * flat.detach().mean(0)
        weights[f"{name}.running_var"] = 0.9 * variance + 0.1 * flat.detach().var(0, correction=1)
        mean, variance = flat.mean(0), flat.var(0, correction=0)
    normed = (rows - mean) / (variance + 1e-5).sqrt()
    return (normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]).movedim(-1, 1)


def channel_scores(x: Tensor, weights: Weights) -> Tensor:
    """What GAM's Mc makes a gate of."""
    hidden = relu(linear(x, weights["channel.mlp.0.weight"], weights["channel.mlp.0.bias"]))
    return linear(hidden, weights["channel.mlp.2.weight"], weights["channel.mlp.2.bias"])


def spatial_scores(x: Tensor, weights: Weights, groups: int, gate_max_pool: bool) -> Tensor:
    """What GAM's Ms makes a gate of."""
    pooled = max_pool(x) if gate_max_pool else x
    hidden = relu(convolution(pooled, weights["spatial.squeeze.weight"], groups=groups))
    size = hidden.shape[1] // groups  # channel shuffle: the first of every group, then the second of every group, …
    hidden = hidden[:, [group * size + index for index, group in product(range(size), range(groups))]]
    return convolution(hidden, weights["spatial.expand.weight"], groups=groups)


def global_attention(
    x: Tensor, weights: Weights, submodules: str = "ch+sp", groups: int = 1, gate_max_pool: bool = False
) -> Tensor:
    """GAM's F2 = Mc(F1) * F1 and F3 = Ms(F2) * F2; its variants have weights of their own for the same windows."""
    if "ch" in submodules:
        x = sigmoid(channel_scores(x, weights)) * x
    if "sp" in submodules:
        x = sigmoid(spatial_scores(x, weights, groups, gate_max_pool)) * x
    return x


def residual_branches(
    x: Tensor, weights: Weights, submodules: str = "ch+sp", groups: int = 1, gate_max_pool: bool = False
) -> Tensor:
    """GAM without its gates: F2 = F1 / 2 + b / 4, b being what Mc makes a gate of, and F3 likewise by Ms of F2."""
    if "ch" in submodules:
        x = 0.5 * x + 0.25 * channel_scores(x, weights)
    if "sp" in submodules:
        x = 0.5 * x + 0.25 * spatial_scores(x, weights, groups, gate_max_pool)
    return x


@contextmanager
def one_thread() -> Iterator[None]:
    """More cost maps as small as these more than they save, and stall for seconds where the processors are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def assert_equal_with_gradients(
    block: nn.Module,
    channels: int,
    size: tuple[int, int],
    equations: Callable[[Tensor, Weights], Tensor],
    training: bool = False,
) -> None:
    """Output, every gradient and the buffers afterwards are those of the equations, for random weights and input."""
    torch.manual_seed(0)
    block.double().train(training)
    for name, value in block.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(std=value[0].numel() ** -0.5)  # no sigmoid saturates, or its gradients would say little
    x = torch.randn(3, channels, *size, dtype=torch.float64, requires_grad=True)
    factors = torch.randn_like(x)
    inputs = {"x": x, **dict(block.named_parameters())}
    buffers = dict(block.named_buffers())
    weights = inputs | {name: buffer.clone() for name, buffer in buffers.items()}

    def with_gradients(output: Tensor) -> Weights:
        gradients = torch.autograd.grad((output * factors).sum(), list(inputs.values()))
        return {"output": output} | {f"gradient of {name}": g for name, g in zip(inputs, gradients, strict=True)}

    wanted = with_gradients(equations(x, weights)) | {name: weights[name] for name in buffers}
    found = with_gradients(block(x)) | buffers
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
