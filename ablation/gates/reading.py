"""What a network makes of one image, block by block: the gates, read by forward hooks, and Grad-CAM around a block."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gamlib.attention import BAM, CBAM, GAM, MECHANISMS, SE, CopiedGAM, TripletAttention, UngatedGAM
from gamlib.backbones.attached import Attended, ReZero
from gamlib.backbones.attention_branch import AttentionBranch

Outputs: TypeAlias = Mapping[str, list[Tensor]]  # of the children of a block, call by call, without the batch


@dataclass(frozen=True)
class Gates:
    """The gates of one block for one image; `channel` and `spatial` from 0 to 1, None where the block has no such gate.

    Args:
        channel: [C]; [C, H, W] where every position has its own, as in GAM. BAM's is sigmoid(Mc) alone, TAM's the mean
            of the two gates that know channels. CopiedGAM has none unless it has the sigmoid.
        spatial: [1, H, W]; [C, H, W] where every channel has its own, as in GAM. BAM's is sigmoid(Ms) alone.
        factor: what the block multiplies its input by, [C, H, W]: the product of both, but for BAM, TAM, ABN and
            CopiedGAM, whose channel factor without a sigmoid may be any number.
    """

    channel: Tensor | None
    spatial: Tensor | None
    factor: Tensor


def _in_turn(channel: Tensor | None, spatial: Tensor | None) -> Gates:
    """Gates by both of which the input is multiplied, or by the one that there is."""
    maps = [gate[:, None, None] if gate.ndim == 1 else gate for gate in (channel, spatial) if gate is not None]
    return Gates(channel, spatial, torch.stack(torch.broadcast_tensors(*maps)).prod(0))


def _gam(outputs: Outputs) -> Gates:
    return _in_turn(*(outputs[name][0] if name in outputs else None for name in ("channel", "spatial")))


def _se(outputs: Outputs) -> Gates:
    return _in_turn(outputs["mlp"][0].sigmoid(), None)


def _cbam(outputs: Outputs) -> Gates:
    return _in_turn(torch.stack(outputs["mlp"]).sum(0).sigmoid(), outputs["norm"][0].sigmoid())


def _bam(outputs: Outputs) -> Gates:
    channel, spatial = outputs["mlp"][0], outputs["convs"][0]
    return Gates(channel.sigmoid(), spatial.sigmoid(), 1 + (channel[:, None, None] + spatial).sigmoid())


def _tam(outputs: Outputs) -> Gates:
    over_hc, over_cw = outputs["over_hc"][0].permute(2, 1, 0), outputs["over_cw"][0].permute(1, 0, 2)
    spatial = outputs["over_hw"][0]
    return Gates((over_hc + over_cw) / 2, spatial, (over_hc + over_cw + spatial) / 3)


def _copied(outputs: Outputs) -> Gates:
    spatial = outputs["spatial_attention"][0].sigmoid()
    if "channel_gate" in outputs:
        return _in_turn(outputs["channel_gate"][0], spatial)
    return Gates(None, spatial, outputs["channel_attention"][0].movedim(-1, 0) * spatial)


def _abn(outputs: Outputs) -> Gates:
    spatial = outputs["gate"][0].sigmoid()
    return Gates(None, spatial, 1 + spatial)


def _told(channel: Tensor | None, spatial: Tensor | None) -> Gates:
    of_channels, of_places = (None if gate is None else gate[0] for gate in (channel, spatial))
    if of_channels is not None and of_channels.shape[1:] == (1, 1):
        of_channels = of_channels.flatten()
    return _in_turn(of_channels, of_places)


READERS: dict[type[nn.Module], Callable[[Outputs], Gates]] = {
    GAM: _gam,
    SE: _se,
    CBAM: _cbam,
    BAM: _bam,
    TripletAttention: _tam,
    CopiedGAM: _copied,
    AttentionBranch: _abn,
}


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks of a network by their names, as `named_modules` has them.

    A class of one's own is among them if it has a method `gates`: x [N, C, H, W] -> the channel gate, [N, C, 1, 1] or
    [N, C, H, W], and the spatial one, [N, 1, H, W] or [N, C, H, W]; one of them may be None.

    Raises:
        ValueError: there is none, or one of a mechanism that no reader is written for.
    """
    kinds = (*READERS, *MECHANISMS.values())
    modules = network.named_modules()
    found = {name: module for name, module in modules if isinstance(module, kinds) or _tells(module)}
    for name, block in found.items():
        if isinstance(block, UngatedGAM):
            raise ValueError(f"{name} is an UngatedGAM: it has branches where GAM has gates")
        if not isinstance(block, tuple(READERS)) and not _tells(block):
            raise ValueError(
                f"{name} is a {type(block).__name__}, whose gates cannot be read: READERS in "
                f"ablation/gates/reading.py has {', '.join(kind.__name__ for kind in READERS)}"
            )
    if not found:
        raise ValueError(f"this {type(network).__name__} has no attention block with gates to look at")
    return found


def _tells(module: nn.Module) -> bool:
    """Whether it is a block of one's own that tells its gates."""
    return not isinstance(module, Attended) and callable(getattr(module, "gates", None))


@torch.no_grad()
def read_gates(network: nn.Module, image: Tensor) -> dict[str, Gates]:
    """The gates of every attention block for one image, by the blocks' names, in evaluation mode.

    Nothing of the network changes; of a block that is called several times the last call counts.

    Args:
        image: [3, H, W] float, as the network takes it.

    Raises:
        ValueError: another shape, or a network without attention blocks.
    """
    batch, known = _batch_of(image), blocks(network)
    shapes: dict[str, torch.Size] = {}
    outputs: dict[str, defaultdict[str, list[Tensor]]] = {}

    told: dict[str, Gates] = {}

    def begin(name: str, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[name], outputs[name] = inputs[0].shape[1:], defaultdict(list)
        if _tells(block):
            told[name] = _told(*block.gates(inputs[0]))  # type: ignore[operator]

    def keep(name: str, child: str, _: nn.Module, __: Any, output: Tensor) -> None:
        outputs[name][child].append(output[0])

    with ExitStack() as hooks, _evaluation_mode(network):
        for name, block in known.items():
            hooks.enter_context(block.register_forward_pre_hook(partial(begin, name)))
            for child, module in block.named_children():
                hooks.enter_context(module.register_forward_hook(partial(keep, name, child)))
        network(batch)
    found = {}
    for name in (name for name in known if name in outputs):
        readers = (read for kind, read in READERS.items() if isinstance(known[name], kind))
        gates = told[name] if name in told else next(readers)(outputs[name])
        found[name] = replace(gates, factor=gates.factor.expand(shapes[name]))
    return found


def grad_cam(network: nn.Module, image: Tensor, layer: str, label: int) -> tuple[Tensor, Tensor]:
    """Grad-CAM for a class before and after an attention block: two maps [H, W] of the image's size, from 0 to 1.

    Selvaraju et al. 2016, https://arxiv.org/abs/1610.02391, as the package grad-cam computes it. Each map is stretched
    between its own least and greatest value; all zeros where nothing speaks for the class. The gradients that the
    network's parameters hold are cleared.

    Args:
        image: [3, H, W] float, as the network takes it.
        layer: name of a block, see `blocks`. It follows another module, in a Sequential or as `attach` puts it. The map
            after a block with a share is the one that the share was applied to.
        label: the class whose score is explained.

    Raises:
        ValueError: another shape, no such block, or one that follows no module (ABN's branch).
    """
    from pytorch_grad_cam import GradCAM  # late: with OpenCV and scikit-learn it takes seconds
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if layer not in (known := blocks(network)):
        raise ValueError(f"layer={layer!r}: allowed: {', '.join(known)}")
    before, after = _around(network, layer)
    batch = _batch_of(image).clone().requires_grad_()  # a frozen network has gradients too
    maps = []
    with _evaluation_mode(network), torch.enable_grad():
        for target in (before, after):
            # A copy of the map: residual blocks add to it in place, after grad-cam has seen it and before it is used.
            with GradCAM(network, [target], reshape_transform=torch.clone) as cam:
                found = cam(batch, [ClassifierOutputTarget(label)])[0]
            maps.append(torch.from_numpy(found / found.max() if found.any() else found))  # its maximum can be below 1
    network.zero_grad()
    return maps[0], maps[1]


def _around(network: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """The module in front of a block, and the block, with its share where it has one."""
    name, block = layer.rpartition(".")[0], network.get_submodule(layer)
    parent = network.get_submodule(name)
    if isinstance(parent, ReZero):
        return _around(network, name)
    siblings = list(parent.children())
    place = siblings.index(block)
    if not isinstance(parent, nn.Sequential | Attended) or place == 0:
        raise ValueError(f"layer={layer!r} follows no module in a Sequential: Grad-CAM has no place before it")
    return siblings[place - 1], block


def _batch_of(image: Tensor) -> Tensor:
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image of shape {list(image.shape)}: allowed: [3, H, W]")
    return image[None]


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; afterwards every module has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
