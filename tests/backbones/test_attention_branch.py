"""ABN against the equations of its paper."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gamlib import build_model
from gamlib.backbones.attention_branch import AttentionBranchNetwork


def network(backbone: str = "resnet18", **arguments: Any) -> AttentionBranchNetwork:
    torch.manual_seed(0)
    model = build_model(backbone, "abn", num_classes=7, width=0.25, **arguments)
    assert isinstance(model, AttentionBranchNetwork)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2"])
def test_values_and_gradients_are_those_of_the_equations(backbone: str, training: bool) -> None:
    """x' = (1 + M(x)) * x feeds the last stage; the branch scores classes by the mean of its response to each."""
    model = network(backbone).train(training)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()  # it would differ from one pass to the next
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    branch: Any = model.attention_branch

    def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
        mean, var = norm.running_mean, norm.running_var
        if training:
            mean = x.mean((0, 2, 3))
            var = (x - mean[:, None, None]).square().mean((0, 2, 3))
        mean, var, weight, bias = (v[:, None, None] for v in (mean, var, norm.weight, norm.bias))
        return (x - mean) / (var + norm.eps).sqrt() * weight + bias

    x = model.trunk(images)
    norm, to_classes, class_norm, _ = branch.to_classes
    deep = branch.stage(x)
    assert deep.shape[-2:] == x.shape[-2:]  # the copy of the last stage has stride 1
    responses = normed(class_norm, torch.einsum("kc,nchw->nkhw", to_classes.weight[:, :, 0, 0], normed(norm, deep)))
    responses = responses.clamp(min=0)
    scores = torch.einsum("kc,nchw->nk", branch.scores.weight[:, :, 0, 0], responses) / responses[0, 0].numel()
    height, width = x.shape[-2:]
    padded = F.pad(responses, (1, 1, 1, 1))
    seen = sum(
        torch.einsum(
            "c,nchw->nhw",
            branch.gate[0].weight[0, :, row, column],
            padded[:, :, row : row + height, column : column + width],
        )
        for row in range(3)
        for column in range(3)
    )
    attention = (1 + torch.tanh(normed(branch.gate[1], seen[:, None]) / 2)) / 2  # type: ignore[index]
    stage, classifier = model.perception_branch
    wanted = classifier(stage((1 + attention) * x))

    found_attention, found_scores = branch(x)
    torch.testing.assert_close(found_attention, attention, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_scores, scores, rtol=0, atol=1e-10)
    found = model(images)
    if training:
        found, scores_of_training = found
        torch.testing.assert_close(scores_of_training, scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    inputs = [images, *model.parameters()]
    ours = torch.autograd.grad(found.sum() + found_scores.square().sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad(wanted.sum() + scores.square().sum(), inputs)
    for left, right in zip(ours, theirs, strict=True):
        scale = max(1.0, float(right.abs().max()))  # deep layers have gradients of some thousands
        torch.testing.assert_close(left / scale, right / scale, rtol=0, atol=1e-10)


def test_in_training_it_gives_both_branches_and_in_evaluation_the_one_that_predicts() -> None:
    model, x = network(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    outputs = model.train()(x)
    assert isinstance(outputs, tuple) and [tuple(scores.shape) for scores in outputs] == [(4, 7), (4, 7)]
    predicted = model.eval()(x)
    assert isinstance(predicted, torch.Tensor) and predicted.shape == (4, 7)


def test_the_branch_is_a_copy_in_shape_and_not_in_weights() -> None:
    model: Any = build_model("resnet18", "abn", num_classes=7, width=0.25)
    ours, theirs = (
        dict(model.attention_branch.stage.named_parameters()),
        dict(model.perception_branch[0].named_parameters()),
    )
    assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}
    assert not torch.equal(ours["0.conv1.weight"], theirs["0.conv1.weight"])
