"""Whole networks with GAM, which `benchmarks/gam.py` measures too: the time of a training step, the memory of one.

Every variant lives in a process of its own, since the C library's allocator is set for a whole process. `NCHW` is the
network as people train it; `loop` is the same as gamlib's loop has it: channels_last, and on a CPU memory that is kept.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import psutil
import torch
from timing import CLASSES, LR, Child, Failed, Given, Line, Pace
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib import accelerate, build_model
from gamlib.data.datasets import DATASETS
from gamlib.training import loop
from gamlib.training.recipes import RECIPES


@dataclass(frozen=True)
class Network:
    """One to measure."""

    attention: str
    accelerated: bool  # as the loop does it on a CPU; on a GPU by "triton"
    loop: bool  # as gamlib's loop runs it; else NCHW


STEPS = {
    "plain NCHW": Network("gam", False, loop=False),  # what the others are compared with
    "plain loop": Network("gam", False, loop=True),
    "ours loop": Network("gam", True, loop=True),
    "none NCHW": Network("none", False, loop=False),
    "none loop": Network("none", False, loop=True),
}
MEMORY = {name: one for name, one in STEPS.items() if one.attention == "gam"}
WITHOUT = {"plain NCHW": "none NCHW", "plain loop": "none loop", "ours loop": "none loop"}  # each one's own


@dataclass(frozen=True)
class Work:
    """What is asked of every variant."""

    backbone: str
    stem: str
    batch_size: int
    size: int
    device: str
    threads: int
    repetitions: int
    steps: int = 1  # of a repetition
    width: float = 1.0
    warm_up: int = 8  # steps, before the first repetition: the heap still grows in the first ones, a page at a time

    @property
    def title(self) -> str:
        """For a table's head."""
        width = f", width {self.width:g}" * (self.width != 1)
        where = (
            f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else self.device
        )
        return f"{self.backbone} + GAM{width}, {self.batch_size} images of {self.size}×{self.size}, {where}"


Told = Callable[[str], object]
Outcome = tuple[dict[str, list[tuple[float, float]]], dict[str, str]]  # what the variants answered; why others failed


def step_times(work: Work, tell: Told) -> Outcome:
    """Seconds of a training step and peak MiB of the process, for each repetition, taken in turns."""
    children: dict[str, Child] = {}
    found, failed, order = {name: list[tuple[float, float]]() for name in STEPS}, dict[str, str](), random.Random(0)
    try:
        for name, network in STEPS.items():
            children[name] = Child(_train, work, network)
        for repetition in range(1 + work.repetitions):
            for name in order.sample(list(STEPS), len(STEPS)):
                tell(f"step {name}")
                if name in failed:
                    continue
                try:
                    seconds, peak = children[name].ask("steps", 0 if repetition else work.warm_up, work.steps)
                except Failed as failure:
                    failed[name] = str(failure)
                    continue
                if repetition:
                    found[name].append((seconds / work.steps, peak))
    finally:
        _end(children)
    return {name: ones for name, ones in found.items() if name not in failed}, failed


def memory(work: Work, tell: Told) -> Outcome:
    """MiB that autograd holds between forward and backward, and the peak above what the network takes before."""
    found, failed = dict[str, list[tuple[float, float]]](), dict[str, str]()
    for name, network in MEMORY.items():
        tell(f"memory {name}")
        child = Child(_hold, work, network)
        try:
            found[name] = [child.ask("steps", 0, 1)]
        except Failed as failure:
            failed[name] = str(failure)
        finally:
            _end({name: child})
    return found, failed


def _end(children: dict[str, Child]) -> None:
    for child in children.values():
        child.line.close()
    for child in children.values():
        child.end()


def _made(work: Work, network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    """The network and one batch."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    model = build_model(work.backbone, network.attention, CLASSES, work.stem, width=work.width).to(work.device)
    if network.accelerated:
        accelerate(model, "triton" if work.device == "cuda" else "auto")
    else:
        loop.accelerate = lambda model, backend: model  # type: ignore[attr-defined]
    images = torch.randn(work.batch_size, 3, work.size, work.size).to(work.device)
    return model, images, torch.randint(0, CLASSES, (work.batch_size,)).to(work.device)


def _train(line: Line, work: Work, network: Network) -> None:
    """Steps of gamlib's loop on one batch, again and again."""
    model, images, labels = _made(work, network)
    if not network.loop:
        loop.keep_memory = lambda: None  # type: ignore[attr-defined]
    pace = Pace(line, torch.device(work.device))
    batches = Given(lambda _: repeat((images, labels)), work.batch_size * 10_000)
    config = replace(RECIPES["cifar"], lr=LR, batch_size=work.batch_size, epochs=1)
    config = replace(config, amp=work.device == "cuda", channels_last=network.loop)
    for _ in loop.fit(model, batches, config, on_step=pace.after_step):
        pass


def _hold(line: Line, work: Work, network: Network) -> None:
    """One forward and one backward pass; the weights' gradients count, an optimiser's memory does not."""
    model: Any
    model, images, labels = _made(work, network)
    cuda = work.device == "cuda"
    if network.loop:
        layout: Any = torch.channels_last
        model, images = model.to(memory_format=layout), images.to(memory_format=layout)
        if not cuda:
            loop.keep_memory()
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers(), images, labels)}
    held: dict[int, int] = {}  # bytes of the storages that autograd keeps, each once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    line.recv()
    before = _start(cuda)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast(work.device, torch.bfloat16, enabled=cuda):
            scores = model(images)
        loss = F.cross_entropy(scores.float(), labels)
    loss.backward()
    line.send((sum(held.values()) / 2**20, _peak(cuda) - before))


def _start(cuda: bool) -> float:
    """MiB taken now, from which on the peak counts."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError):  # what building the network took for a moment is no part of the peak
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss / 2**20


def _peak(cuda: bool) -> float:
    return loop.peak_memory(torch.device("cuda" if cuda else "cpu"))


def turns(work: Work) -> int:
    """How often `tell` is called for a step's table."""
    return len(STEPS) * (1 + work.repetitions)


def works(device: str, threads: int, quick: bool) -> dict[str, Work]:
    """By the part of the benchmark: a step of ResNet-18 and of the study's network, and the memory of a large one."""
    small = 0.25 if quick else 1.0
    cuda = device == "cuda"
    repetitions, warm_up = (2, 1) if quick else (20 if cuda else 7, 8)
    batch = 8 if quick else 256 if cuda else 64
    step = Work("resnet18", "cifar", batch, 32, device, threads, repetitions, 20 if cuda else 2, small, warm_up)
    data, batch = DATASETS["digits"], RECIPES["digits"].batch_size
    study = replace(step, stem=data.stem, width=data.width, batch_size=batch, threads=1, steps=20, warm_up=50)
    if quick:
        study = replace(study, steps=2, warm_up=2)
    batch, size = (2, 64) if quick else (64 if cuda else 8, 224)
    memory = Work("resnet50", "imagenet", batch, size, device, threads, 1, 1, small)
    return {"step": step, "study": study, "memory": memory}
