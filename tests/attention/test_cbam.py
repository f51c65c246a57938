"""CBAM against equations 1 to 3 of its paper, written out here."""

import pytest
import torch

from gamlib.attention import CBAM


@pytest.mark.parametrize("size", [(9, 6), (2, 3), (1, 1)])
def test_values_and_gradients_are_those_of_the_equations(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = CBAM(16, reduction=4).double().eval()
    torch.nn.init.normal_(block.norm.weight)
    block.norm.running_mean, block.norm.running_var = torch.full((1,), 0.3).double(), torch.full((1,), 2.0).double()
    x = torch.randn(3, 16, *size, dtype=torch.float64, requires_grad=True)
    weights = dict(block.named_parameters())

    def mlp(pooled: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("kc,nc->nk", weights["mlp.0.weight"], pooled) + weights["mlp.0.bias"]
        return torch.einsum("ck,nk->nc", weights["mlp.2.weight"], hidden.clamp(min=0)) + weights["mlp.2.bias"]

    flat = x.flatten(2)
    gate = 1 / (1 + torch.exp(-mlp(flat.sum(2) / flat.shape[2]) - mlp(flat.max(2).values)))
    refined = x * gate[:, :, None, None]
    pooled = torch.stack([refined.max(1).values, refined.sum(1) / 16], 1)
    height, width = size
    padded = torch.zeros(3, 2, height + 6, width + 6, dtype=torch.float64)
    padded[:, :, 3 : 3 + height, 3 : 3 + width] = pooled
    scores = torch.zeros(3, height, width, dtype=torch.float64)
    for row in range(7):
        for column in range(7):
            part = padded[:, :, row : row + height, column : column + width]
            scores = scores + torch.einsum("c,nchw->nhw", weights["conv.weight"][0, :, row, column], part)
    normed = (scores - block.norm.running_mean) / (2.0 + block.norm.eps) ** 0.5 * weights["norm.weight"] + weights[
        "norm.bias"
    ]
    wanted = refined / (1 + torch.exp(-normed))[:, None]

    found = block(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    inputs = [x, *block.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"), [({"reduction": 3}, "reduction=3"), ({"kernel_size": 4}, "kernel_size=4")]
)
def test_a_bad_value_is_refused_by_name(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CBAM(16, **{"reduction": 4, **values})
