"""What a network makes of an image: its prediction, the gates of one block, and Grad-CAM before and after the block.

Grad-CAM is Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391, as the package grad-cam computes it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ablation.gates.reading import Gates, batch_of, blocks, choose_layer, evaluation_mode, read_gates
from ablation.gates.samples import Sample
from gamlib.backbones.attention_branch import AttentionBranch


@dataclass(frozen=True)
class Explanation:
    """What one network makes of one sample, and its block `layer` with it.

    `before` and `after` are Grad-CAM around the block for the class `label`, [H, W] from 0 to 1; None for ABN, whose
    branch is no block. `predicted` is the class that the network finds, `confidence` its probability.
    """

    sample: Sample
    layer: str
    gates: Gates
    before: Tensor | None
    after: Tensor | None
    label: int
    predicted: int
    confidence: float


def explain(network: nn.Module, sample: Sample, layer: str | None = None) -> Explanation:
    """Explain a sample by its class, or by the predicted one where that is not known.

    Args:
        layer: name of an attention block, see `choose_layer`.

    Raises:
        ValueError: the network has no such block, or none at all.
    """
    gates = read_gates(network, sample.input)
    layer = choose_layer(gates, layer)
    with evaluation_mode(network), torch.no_grad():
        probabilities = network(batch_of(sample.input))[0].softmax(0)
    predicted = int(probabilities.argmax())
    label = predicted if sample.label is None else sample.label
    branch = isinstance(blocks(network)[layer], AttentionBranch)
    before, after = (None, None) if branch else grad_cam(network, sample.input, layer, label)
    return Explanation(
        sample, layer, gates[layer], before, after, label, predicted, confidence=float(probabilities[predicted])
    )


def grad_cam(network: nn.Module, image: Tensor, layer: str, label: int) -> tuple[Tensor, Tensor]:
    """Grad-CAM for a class before and after an attention block: two maps [H, W] of the image's size, from 0 to 1.

    Each is stretched between its own least and greatest value; all zeros where nothing speaks for the class. The
    gradients that the network's parameters hold are cleared.

    Args:
        image: [3, H, W] float, as the network takes it.
        layer: name of a block, see `blocks`. It follows another module in a Sequential, as `attach` puts it.
        label: the class whose score is explained.

    Raises:
        ValueError: another shape, no such block, or one that follows no module (ABN's branch).
    """
    from pytorch_grad_cam import GradCAM  # late: with OpenCV and scikit-learn it takes seconds
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if layer not in (known := blocks(network)):
        raise ValueError(f"layer={layer!r}: allowed: {', '.join(known)}")
    parent = network.get_submodule(layer.rpartition(".")[0])
    siblings = list(parent.children())
    place = siblings.index(known[layer])
    if not isinstance(parent, nn.Sequential) or place == 0:
        raise ValueError(f"layer={layer!r} follows no module in a Sequential: Grad-CAM has no place before it")
    batch = batch_of(image).clone().requires_grad_()  # a frozen network has gradients too
    maps = []
    with evaluation_mode(network), torch.enable_grad():
        for target in (siblings[place - 1], known[layer]):
            # A copy of the map: residual blocks add to it in place, after grad-cam has seen it and before it is used.
            with GradCAM(network, [target], reshape_transform=torch.clone) as cam:
                found = cam(batch, [ClassifierOutputTarget(label)])[0]
            maps.append(torch.from_numpy(found / found.max() if found.any() else found))  # its maximum can be below 1
    network.zero_grad()
    return maps[0], maps[1]
