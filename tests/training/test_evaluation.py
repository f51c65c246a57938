"""Predictions and the errors of a run speak of the same classes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gamlib.training.evaluation import evaluate, forward, predict, ranked
from gamlib.training.parallel import Group
from gamlib.training.recipes import RECIPES


class Ties(nn.Module):
    """Ten scores, all or most of them equal, that depend on the order of the images in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = x.mean((1, 2, 3))[:, None].expand(-1, 10).round(decimals=1).clone()
        scores[:, 3] += float(x.is_contiguous(memory_format=torch.channels_last))
        return scores


class Batches:
    """Forty images in batches of eight."""

    test_size = 40

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        for _ in range(5):
            yield torch.randn(8, 3, 4, 4), torch.randint(5, (8,))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_the_error_of_a_run_is_that_of_its_predictions(amp: bool, channels_last: bool) -> None:
    model, batches, group = Ties(), Batches(), Group(torch.device("cpu"))
    config = replace(RECIPES["digits"], amp=amp, channels_last=channels_last)

    def scores(images: Tensor) -> Tensor:
        found: Tensor = forward(model, images, config)
        return found

    _, top1_error, top5_error = evaluate(scores, batches.test(), group)
    predicted, labels = predict(model, batches, group, config)  # type: ignore[arg-type]
    assert top1_error == 100 * float((predicted != labels).double().mean())
    assert predicted.unique().tolist() == [3 if channels_last else 0] and top5_error == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_scores_the_lower_class_is_first(dtype: torch.dtype) -> None:
    scores = torch.randn(200, 20).mul(2).round().to(dtype)
    assert torch.equal(ranked(scores, 1)[:, 0], scores.argmax(1))
    assert ranked(torch.zeros(1, 4), 5).tolist() == [[0, 1, 2, 3]]
    distinct = torch.randn(200, 20)
    assert torch.equal(ranked(distinct, 5), distinct.topk(5).indices)
