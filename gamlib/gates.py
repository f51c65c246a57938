"""What attention blocks do to one image: their gates, read by forward hooks, and Grad-CAM on both sides of a block.

Grad-CAM is Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391, as the package grad-cam computes it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gamlib.attention import BAM, CBAM, GAM, MECHANISMS, SE, TripletAttention
from gamlib.attention.gam_no_gate import UngatedGAM
from gamlib.backbones.attention_branch import AttentionBranch

Seen: TypeAlias = Mapping[str, list[Tensor]]  # what each child of a block put out, call by call, without the batch
Parts: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor]


@dataclass(frozen=True)
class Gates:
    """The gates of one block for one image; `channel` and `spatial` from 0 to 1, None where the block has no such gate.

    Args:
        channel: [C]; [C, H, W] where every position has its own, as in GAM. BAM's is sigmoid(Mc) alone, TAM's the mean
            of the two gates that know channels.
        spatial: [1, H, W]; [C, H, W] where every channel has its own, as in GAM. BAM's is sigmoid(Ms) alone.
        factor: what the block multiplies its input by, [C, H, W]: the product of both, but for BAM, TAM and ABN.
    """

    channel: Tensor | None
    spatial: Tensor | None
    factor: Tensor


def _gam(seen: Seen) -> Parts:
    channel, spatial = (seen[name][0] if name in seen else None for name in ("channel", "spatial"))
    both = [gate for gate in (channel, spatial) if gate is not None]
    return channel, spatial, both[0] * both[1] if len(both) == 2 else both[0]


def _se(seen: Seen) -> Parts:
    channel = seen["mlp"][0].sigmoid()
    return channel, None, channel[:, None, None]


def _cbam(seen: Seen) -> Parts:
    channel, spatial = torch.stack(seen["mlp"]).sum(0).sigmoid(), seen["norm"][0].sigmoid()
    return channel, spatial, channel[:, None, None] * spatial


def _bam(seen: Seen) -> Parts:
    channel, spatial = seen["mlp"][0], seen["convs"][0]
    return channel.sigmoid(), spatial.sigmoid(), 1 + (channel[:, None, None] + spatial).sigmoid()


def _tam(seen: Seen) -> Parts:
    over_hc, over_cw = seen["over_hc"][0].permute(2, 1, 0), seen["over_cw"][0].permute(1, 0, 2)
    channel, spatial = (over_hc + over_cw) / 2, seen["over_hw"][0]
    return channel, spatial, (over_hc + over_cw + spatial) / 3


def _abn(seen: Seen) -> Parts:
    spatial = seen["gate"][0].sigmoid()
    return None, spatial, 1 + spatial


READERS: dict[type[nn.Module], Callable[[Seen], Parts]] = {
    GAM: _gam,
    SE: _se,
    CBAM: _cbam,
    BAM: _bam,
    TripletAttention: _tam,
    AttentionBranch: _abn,
}


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks of a network by their names, as `named_modules` has them.

    Raises:
        ValueError: there is none, or one of a mechanism whose gates nobody can read yet.
    """
    kinds = (*READERS, *MECHANISMS.values())
    found = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    for name, block in found.items():
        if isinstance(block, UngatedGAM):
            raise ValueError(f"{name} is an UngatedGAM: it has branches where GAM has gates")
        if not isinstance(block, tuple(READERS)):
            raise ValueError(
                f"{name} is a {type(block).__name__}, whose gates cannot be read: READERS in gamlib/gates.py has "
                f"{', '.join(kind.__name__ for kind in READERS)}"
            )
    if not found:
        raise ValueError(f"this {type(network).__name__} has no attention block, so there are no gates to look at")
    return found


@torch.no_grad()
def read_gates(network: nn.Module, image: Tensor) -> dict[str, Gates]:
    """The gates of every attention block for one image, by the blocks' names, in evaluation mode.

    Nothing of the network changes; of a block that is called several times the last call counts.

    Args:
        image: [3, H, W] float, as the network is fed.

    Raises:
        ValueError: another shape, or a network without attention blocks.
    """
    batch, known, found = _batch(image), blocks(network), {}
    shapes: dict[str, torch.Size] = {}
    seen: dict[str, dict[str, list[Tensor]]] = {}

    def begin(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name], shapes[name] = defaultdict(list), inputs[0].shape[1:]

    def see(name: str, child: str, _: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name][child].append(output[0].clone())

    with _evaluating(network), ExitStack() as hooks:
        for name, block in known.items():
            hooks.callback(block.register_forward_pre_hook(partial(begin, name)).remove)
            for child, module in block.named_children():
                hooks.callback(module.register_forward_hook(partial(see, name, child)).remove)
        network(batch)
        for name, block in known.items():
            read = next(reader for kind, reader in READERS.items() if isinstance(block, kind))
            if name in seen:
                channel, spatial, factor = read(seen[name])
                found[name] = Gates(channel, spatial, factor.expand(shapes[name]))
    return found


@torch.no_grad()
def predict(network: nn.Module, image: Tensor) -> Tensor:
    """The probabilities of the classes for one image [3, H, W], in evaluation mode: [num_classes]."""
    with _evaluating(network):
        return network(_batch(image))[0].softmax(0)


def grad_cam(network: nn.Module, image: Tensor, layer: str, label: int) -> tuple[Tensor, Tensor]:
    """Grad-CAM for a class before and after an attention block: two maps [H, W] of the image's size, from 0 to 1.

    Each is stretched between its own least and greatest value; all zeros where nothing speaks for the class. The
    gradients that the network's parameters hold are cleared.

    Args:
        image: [3, H, W] float, as the network is fed.
        layer: name of a block, see `blocks`. It follows another module in a Sequential, as `attach` puts it.
        label: the class whose score is explained.

    Raises:
        ValueError: another shape, no such block, or one that follows no module (ABN's branch).
    """
    if layer not in (known := blocks(network)):
        raise ValueError(f"layer={layer!r}: allowed: {', '.join(known)}")
    parent = network.get_submodule(layer.rpartition(".")[0])
    siblings = list(parent.children())
    place = siblings.index(known[layer])
    if not isinstance(parent, nn.Sequential) or place == 0:
        raise ValueError(f"layer={layer!r} follows no module in a Sequential: Grad-CAM has no place before it")
    return _cam(network, image, siblings[place - 1], label), _cam(network, image, known[layer], label)


def _cam(network: nn.Module, image: Tensor, target: nn.Module, label: int) -> Tensor:
    from pytorch_grad_cam import GradCAM  # late: with OpenCV and scikit-learn it takes seconds
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    batch = _batch(image).clone().requires_grad_()  # a frozen network has gradients too
    # A copy of the map: residual blocks add to it in place, after grad-cam has seen it and before it is used.
    with _evaluating(network), torch.enable_grad(), GradCAM(network, [target], reshape_transform=torch.clone) as cam:
        found = cam(batch, [ClassifierOutputTarget(label)])[0]
    network.zero_grad()
    return torch.from_numpy(found / found.max() if found.any() else found)  # grad-cam does not quite where all is small


def _batch(image: Tensor) -> Tensor:
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image of shape {list(image.shape)}: allowed: [3, H, W]")
    return image[None]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
