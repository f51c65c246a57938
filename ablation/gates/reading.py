"""The gates of attention blocks for one image, read by forward hooks while the network computes."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gamlib.attention import BAM, CBAM, GAM, MECHANISMS, SE, TripletAttention, UngatedGAM
from gamlib.backbones.attention_branch import AttentionBranch

LEGIBLE = 8  # positions along a side from which a spatial gate can be read
Outputs: TypeAlias = Mapping[str, list[Tensor]]  # of the children of a block, call by call, without the batch
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


def _gam(outputs: Outputs) -> Parts:
    channel, spatial = (outputs[name][0] if name in outputs else None for name in ("channel", "spatial"))
    both = [gate for gate in (channel, spatial) if gate is not None]
    return channel, spatial, both[0] * both[1] if len(both) == 2 else both[0]


def _se(outputs: Outputs) -> Parts:
    channel = outputs["mlp"][0].sigmoid()
    return channel, None, channel[:, None, None]


def _cbam(outputs: Outputs) -> Parts:
    channel, spatial = torch.stack(outputs["mlp"]).sum(0).sigmoid(), outputs["norm"][0].sigmoid()
    return channel, spatial, channel[:, None, None] * spatial


def _bam(outputs: Outputs) -> Parts:
    channel, spatial = outputs["mlp"][0], outputs["convs"][0]
    return channel.sigmoid(), spatial.sigmoid(), 1 + (channel[:, None, None] + spatial).sigmoid()


def _tam(outputs: Outputs) -> Parts:
    over_hc, over_cw = outputs["over_hc"][0].permute(2, 1, 0), outputs["over_cw"][0].permute(1, 0, 2)
    channel, spatial = (over_hc + over_cw) / 2, outputs["over_hw"][0]
    return channel, spatial, (over_hc + over_cw + spatial) / 3


def _abn(outputs: Outputs) -> Parts:
    spatial = outputs["gate"][0].sigmoid()
    return None, spatial, 1 + spatial


READERS: dict[type[nn.Module], Callable[[Outputs], Parts]] = {
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
        ValueError: there is none, or one of a mechanism that no reader is written for.
    """
    kinds = (*READERS, *MECHANISMS.values())
    found = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
    for name, block in found.items():
        if isinstance(block, UngatedGAM):
            raise ValueError(f"{name} is an UngatedGAM: it has branches where GAM has gates")
        if not isinstance(block, tuple(READERS)):
            raise ValueError(
                f"{name} is a {type(block).__name__}, whose gates cannot be read: READERS in "
                f"ablation/gates/reading.py has {', '.join(kind.__name__ for kind in READERS)}"
            )
    if not found:
        raise ValueError(f"this {type(network).__name__} has no attention block, so there are no gates to look at")
    return found


@torch.no_grad()
def read_gates(network: nn.Module, image: Tensor) -> dict[str, Gates]:
    """The gates of every attention block for one image, by the blocks' names, in evaluation mode.

    Nothing of the network changes; of a block that is called several times the last call counts.

    Args:
        image: [3, H, W] float, as the network takes it.

    Raises:
        ValueError: another shape, or a network without attention blocks.
    """
    batch, known = batch_of(image), blocks(network)
    outputs: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in known}
    found: dict[str, Gates] = {}

    def keep(name: str, child: str, _: nn.Module, __: Any, output: Tensor) -> None:
        outputs[name][child].append(output[0])

    def read(name: str, block: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        reader = next(reader for kind, reader in READERS.items() if isinstance(block, kind))
        channel, spatial, factor = reader(outputs[name])
        found[name] = Gates(channel, spatial, factor.expand(inputs[0].shape[1:]))
        outputs[name].clear()

    with ExitStack() as hooks, evaluation_mode(network):
        for name, block in known.items():
            for child, module in block.named_children():
                hooks.enter_context(module.register_forward_hook(partial(keep, name, child)))
            hooks.enter_context(block.register_forward_hook(partial(read, name)))
        network(batch)
    return {name: found[name] for name in known if name in found}


def choose_layer(gates: Mapping[str, Gates], layer: str | None = None) -> str:
    """The name of a block: `layer`, or by default the deepest whose map has 8x8 positions, else the first largest.

    Raises:
        ValueError: there is no such block.
    """
    sides = {name: min(gate.factor.shape[1:]) for name, gate in gates.items()}
    legible = [name for name, side in sides.items() if side >= LEGIBLE]
    layer = layer or (legible[-1] if legible else max(sides, key=lambda name: sides[name]))
    if layer not in gates:
        raise ValueError(f"layer={layer!r}: allowed: {', '.join(gates)}")
    return layer


def batch_of(image: Tensor) -> Tensor:
    """A batch of one image; a ValueError where that is not [3, H, W]."""
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image of shape {list(image.shape)}: allowed: [3, H, W]")
    return image[None]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; afterwards every module has the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
