"""The blocks that `benchmarks/gam.py` measures, and the shapes that it measures them at.

A new subject is one entry of `SUBJECTS`. One that gives another's numbers names it in `same`: it gets that one's
weights and is compared with it (`agreement.py`) before anything is timed.
"""

import copy
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

import torch
from copied import Copied, CopiedByOurs
from torch import Tensor, nn

from gamlib import accelerate
from gamlib.attention import GAM, MECHANISMS
from gamlib.kernels import BACKENDS, FastGAM

PASSES = {"inference": 1, "forward": 1, "backward": 2, "training": 3}  # over all products, by mode
MAPS = {"inference": 2, "forward": 2, "backward": 3, "training": 5}  # that must be read or written


@dataclass(frozen=True)
class Subject:
    """A block to measure."""

    make: Callable[[int], nn.Module]  # from the channels
    same: str = ""  # the subject whose numbers it gives, if any
    bases: tuple[str, ...] = ("plain",)  # subjects it is compared with, where they are measured; the first one first
    table: bool = False  # whether it has a table of its own
    channels_last: bool = True  # its input, gradient and weights, as gamlib's loop has them; else NCHW
    compiled: bool = False
    scale: bool = False  # another mechanism, measured to see what attention costs


def _timm(name: str, channels: int) -> nn.Module:
    from timm.layers import create_attn  # type: ignore[import-not-found, unused-ignore]

    return create_attn(name, channels)


def _ours(channels: int, backend: str = "auto", **options: Any) -> nn.Module:
    return accelerate(GAM(channels, **options), backend)


SUBJECTS: dict[str, Subject] = {
    "plain": Subject(GAM, bases=(), channels_last=False),  # as people write it; all others are compared with it too
    "plain channels_last": Subject(GAM),
    "ours": Subject(_ours, same="plain", bases=("plain", "plain channels_last", "plain compiled"), table=True),
    "plain r=4": Subject(partial(GAM, reduction=4), channels_last=False),
    "ours r=4": Subject(partial(_ours, reduction=4), same="plain r=4", bases=("copied", "plain r=4"), table=True),
    "copied": Subject(Copied, channels_last=False),
    "copied by ours": Subject(CopiedByOurs, same="copied", bases=("copied",), table=True),
    **{name: Subject(kind, scale=True) for name, kind in MECHANISMS.items() if name != "gam"},
    "timm SE": Subject(partial(_timm, "se"), scale=True),
    "timm CBAM": Subject(partial(_timm, "cbam"), scale=True),
}
COMPILED = {
    "plain compiled": Subject(GAM, same="plain", compiled=True),
    "ours compiled": Subject(_ours, same="plain", bases=("plain", "plain compiled"), compiled=True, table=True),
    "copied compiled": Subject(Copied, same="copied", bases=("copied",), channels_last=False, compiled=True),
}
ALL_COMPILED = COMPILED | {  # other mechanisms too, which takes minutes: measured where it is asked for
    f"{name} compiled": Subject(kind, bases=("plain", name), compiled=True, scale=True)
    for name, kind in MECHANISMS.items()
    if name != "gam"
}
BY_BACKEND = {f"ours:{name}": Subject(partial(_ours, backend=name), same="plain") for name in BACKENDS}
GATES = {  # the channel gate alone
    "plain ch": Subject(partial(GAM, submodules="ch")),
    "ours ch": Subject(partial(_ours, submodules="ch"), same="plain ch", bases=("plain ch",), table=True),
}
KNOWN = SUBJECTS | ALL_COMPILED | BY_BACKEND | GATES


def missing() -> dict[str, str]:
    """Subjects that cannot be measured here, and why."""
    if importlib.util.find_spec("timm"):
        return {}
    return {name: "timm is not installed: pip install timm" for name in SUBJECTS if name.startswith("timm")}


@dataclass(frozen=True)
class Shape:
    """A map [batch, channels, size, size], and the network at whose stage it is met."""

    network: str
    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}×{self.channels}×{self.size}×{self.size}"

    @property
    def elements(self) -> int:
        """Of the map."""
        return self.batch * self.channels * self.size**2

    def flops(self, hidden: int) -> int:
        """Of plain GAM's forward pass: its MLP and its two convolutions with all 49 taps, padding too."""
        return 2 * 2 * (49 + 1) * self.elements * hidden


def subjects(shape: Shape, *, compiled: bool = False, backends: bool = False, gates: bool = False) -> list[str]:
    """What is compared at a shape by default: at stages of ResNet-50, which take long, GAM of r = 16 alone."""
    names = ["plain", "plain channels_last", "ours", *(BY_BACKEND if backends else ()), *(GATES if gates else ())]
    if "ResNet-50" not in shape.network:
        few = shape.network == "tiny"
        names += [name for name, one in SUBJECTS.items() if name not in names and not (few and one.scale)]
    return names + [name for name in COMPILED if compiled and ("copied" in names or "copied" not in name)]


def shapes(group: str, cuda: bool = False) -> list[Shape]:
    """The stages of a network, by a name of `GROUPS`; with 256 images on a GPU."""
    batch, places = GROUPS[group]
    return [Shape(group, 256 if cuda else batch, channels, size) for channels, size in places]


GROUPS: dict[str, tuple[int, list[tuple[int, int]]]] = {  # images on a CPU; channels and size
    "ResNet-18 ImageNet": (32, [(64, 56), (128, 28), (256, 14), (512, 7)]),
    "ResNet-18 CIFAR": (64, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    "ResNet-50 ImageNet": (4, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    "ResNet-50 CIFAR": (8, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    "tiny": (64, [(512, 2), (512, 1)]),
}
SMALL = [Shape("quick", 4, 32, 8), Shape("quick", 4, 64, 2)]  # to see that it works


@dataclass(frozen=True)
class Setting:
    """Where and in what the blocks are computed."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of maps and weights
    amp: bool = False  # bfloat16 autocast over float32 weights, as gamlib's loop has it with amp=true

    @property
    def maps(self) -> torch.dtype:
        """Of the maps."""
        return torch.bfloat16 if self.amp else self.dtype

    @property
    def name(self) -> str:
        """Of the type of the maps."""
        return str(self.maps).removeprefix("torch.")


def modes(subject: str, setting: Setting) -> list[str]:
    """What is timed of a subject; "training" is forward and backward. On a GPU all, but for compiled blocks.

    Those free what they keep for the backward pass in the first one, so that there is no second one to time.
    """
    one = KNOWN[subject]
    if setting.device == "cpu":
        return ["inference", *["forward"] * (not one.scale), "training"]
    return [mode for mode in PASSES if mode != "backward" or not one.compiled]


@dataclass
class Block:
    """A subject at a shape, ready to be called in every mode."""

    name: str
    shape: Shape
    setting: Setting
    subject: Subject = field(init=False)
    module: Any = field(init=False)  # in training mode
    still: Any = field(init=False)  # in eval mode
    backend: dict[str, str] = field(init=False, default_factory=dict)  # by mode

    def __post_init__(self) -> None:
        self.subject = KNOWN[self.name]
        torch.manual_seed(0)
        self.module = self.subject.make(self.shape.channels)
        if self.subject.same:
            self.module.load_state_dict(plain_weights(self.subject.same, self.shape.channels))
        layout: Any = torch.channels_last if self.subject.channels_last else torch.contiguous_format
        self.module.to(self.setting.device, self.setting.dtype, memory_format=layout)
        # Two modules, so that what one mode caches the other does not undo between two turns.
        self.still = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.x, self.gradient = (
            one.to(self.setting.device, self.setting.maps, copy=True, memory_format=layout) for one in maps(self.shape)
        )
        self.x.requires_grad_()
        if self.setting.device == "cuda":
            for module in (self.module, self.still):
                if isinstance(module, FastGAM) and module.backend == "auto":
                    accelerate(module, "triton")  # which no GPU takes by itself
        if isinstance(self.module, GAM) and not self.subject.compiled:
            with self._autocast():
                self.backend = dict.fromkeys(("training", "forward"), _backend(self.module, self.x))
                with torch.no_grad():
                    self.backend["inference"] = _backend(self.still, self.x.detach())
        self.called: Any = torch.compile(self.module, dynamic=False) if self.subject.compiled else self.module
        self.asked: Any = torch.compile(self.still, dynamic=False) if self.subject.compiled else self.still
        self.graph: Tensor | None = None

    def flops(self, mode: str) -> int | None:
        """Of the plain algorithm, where the subject is a GAM block with both submodules, or the copied one."""
        spatial = getattr(self.module, "spatial", None)
        hidden: int | None = None
        if type(self.module) in (GAM, FastGAM) and self.module.channel is not None and spatial is not None:
            hidden = spatial.squeeze.out_channels
        elif type(self.module) is Copied:
            hidden = self.module.spatial_attention[0].out_channels
        return hidden and PASSES[mode] * self.shape.flops(hidden)

    def least_bytes(self, mode: str) -> int:
        """What must be read and written: the map in, the map out; backwards the map, its gradients in and out."""
        return MAPS[mode] * self.shape.elements * self.x.element_size()

    def _autocast(self) -> Any:
        return torch.autocast(self.setting.device, torch.bfloat16) if self.setting.amp else nullcontext()

    def inputs(self) -> list[Tensor]:
        """What gradients are taken with respect to: the map and every weight."""
        return [self.x, *self.module.parameters()]

    def call(self, mode: str) -> list[Tensor]:
        """Compute: the output, or the gradients, or both with "training"."""
        if mode == "backward":  # of one graph, again and again
            if self.graph is None:
                self.graph = self._forward()
            return list(torch.autograd.grad(self.graph, self.inputs(), self.gradient, retain_graph=True))
        if mode == "inference":
            with torch.no_grad(), self._autocast():
                return [self.asked(self.x)]
        out = self._forward()
        if mode == "forward":
            return [out]
        return [out, *torch.autograd.grad(out, self.inputs(), self.gradient)]

    def peak_mib(self, mode: str) -> float | None:
        """MiB of the GPU that a call takes at its peak, beyond the map, the weights and what else lies there."""
        if self.setting.device == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.call(mode)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _forward(self) -> Tensor:
        with self._autocast():
            return self.called(self.x)


def _backend(block: GAM, x: Tensor) -> str:
    return block.backend_for(x) if isinstance(block, FastGAM) else "plain"


@cache
def plain_weights(name: str, channels: int) -> dict[str, Tensor]:
    """The weights of a subject, for another one with the same numbers."""
    torch.manual_seed(0)
    return KNOWN[name].make(channels).state_dict()


@lru_cache(maxsize=2)
def maps(shape: Shape) -> tuple[Tensor, Tensor]:
    """A map and a gradient of the output, the same for every subject."""
    draw = torch.Generator().manual_seed(1)
    size = (shape.batch, shape.channels, shape.size, shape.size)
    return torch.randn(size, generator=draw), torch.randn(size, generator=draw)
