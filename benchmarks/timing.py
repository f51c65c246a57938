"""Variants of a training loop, each in a process of its own, timed in turns: what `benchmarks/training.py` measures.

The C library's allocator is set for a whole process, and the peak of memory is a process's too: so every variant lives
in its own. One works at a time: it takes some steps, says how long they took, and waits inside its loop, after a step,
until it is asked again. It is in one epoch all the while, and ended before the evaluation: its times are of steps
alone. A repetition asks all, in a new order: a slower minute is slower for all.
"""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection
from statistics import median
from typing import TypeAlias

import plain_loop
import psutil
import torch
from torch import Tensor

from ablation.runs import RunFailed
from gamlib import build_model
from gamlib.data.batches import Batches, FromMemory, Stream, mean_and_std
from gamlib.data.images import Images
from gamlib.training import loop
from gamlib.training.recipes import RECIPES, TrainingConfig

CLASSES = 10
LR = 0.01
Request = tuple[str, int, int]  # "steps" or "batches" alone, how many of them before the clock starts, how many after
Line: TypeAlias = "Connection[tuple[float, float] | str, Request]"  # a variant's end: it answers, or says what failed


@dataclass(frozen=True)
class Variant:
    """A loop: the plain one, or gamlib's with what makes it fast."""

    config: TrainingConfig | None  # None: the plain loop
    in_memory: bool = True  # the images lie on the device; else the plain loop's DataLoader feeds gamlib's loop
    keeps_memory: bool = True  # the allocator does, on a CPU
    compiled: bool = False  # the network, in the plain loop


def variants(cuda: bool) -> dict[str, Variant]:
    """What there is to compare on a GPU or on a CPU, by name."""
    ours = replace(RECIPES["cifar"], amp=cuda, channels_last=True)
    both = {
        "plain": Variant(None),
        "gamlib": Variant(ours),
        "no-channels-last": Variant(replace(ours, channels_last=False)),
        "dataloader": Variant(ours, in_memory=False),
        "compile": Variant(replace(ours, compile=True)),
        "plain-compile": Variant(None, compiled=True),
    }
    if cuda:
        graphs = Variant(replace(ours, compile=True, cuda_graphs=True))
        return both | {"no-amp": Variant(replace(ours, amp=False)), "cuda-graphs": graphs}
    return both | {"no-kept-memory": Variant(ours, keeps_memory=False), "amp": Variant(replace(ours, amp=True))}


@dataclass(frozen=True)
class Work:
    """What every variant of one network is asked to do; a turn is `lead` steps and then `steps` whose time counts."""

    network: str
    attention: str
    width: float
    batch_size: int
    device: str
    threads: int
    warm_up: int
    lead: int
    steps: int
    repetitions: int

    @property
    def workers(self) -> int:
        """Of the DataLoader."""
        return 4 if self.device == "cuda" else 2

    @property
    def images(self) -> int:
        """Of the one epoch: the DataLoader's workers have more to load until the last step is taken."""
        return self.batch_size * (self.warm_up + self.repetitions * (self.lead + self.steps) + 2 * self.workers + 1)


def random_images(number: int, size: int = 32) -> Images:
    """Random pixels and labels: a step takes as long with them as with real ones."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, CLASSES, (number,), generator=draw)
    return Images(images, labels, images[:2], labels[:2])


@dataclass
class Measured:
    """What the turns of one variant gave."""

    seconds: list[float] = field(default_factory=list)  # of a step, one number for each repetition
    input_seconds: list[float] = field(default_factory=list)  # of a batch alone, likewise, where it was asked for
    peak_mib: float = 0.0

    def input_share(self) -> float | None:
        """What part of a step getting its batch takes, if nothing overlaps."""
        return median(self.input_seconds) / median(self.seconds) if self.input_seconds else None


Outcome = tuple[dict[str, Measured], dict[str, str]]  # what variants gave, and why those failed that did


class Failed(Exception):
    """A process failed or was killed; the message says why."""


def measure(work: Work, chosen: Sequence[str], tell: Callable[[str], object]) -> Outcome:
    """Time the variants in turns.

    Args:
        work: what each is to do.
        chosen: names out of `variants`.
        tell: called with a variant's name before each of its turns, of which there are 1 + `repetitions`.

    Raises:
        RunFailed: they do not fit into the memory side by side.
    """
    found, failed, order = {name: Measured() for name in chosen}, dict[str, str](), random.Random(0)
    children: dict[str, Child] = {}
    try:
        for name in chosen:
            children[name] = Child(_train, work, variants(work.device == "cuda")[name])
        for repetition in range(1 + work.repetitions):  # the first to warm up
            for name in order.sample(list(chosen), len(chosen)):
                tell(name)
                if name not in failed:
                    try:
                        _turn(work, children[name], found[name], warm_up=repetition == 0, with_input=name == "gamlib")
                    except Failed as failure:
                        failed[name] = str(failure)
    finally:
        for child in children.values():
            child.line.close()  # one that waits ends by this
        for child in children.values():
            child.end()
    return {name: one for name, one in found.items() if name not in failed}, failed


def _turn(work: Work, child: "Child", found: Measured, *, warm_up: bool, with_input: bool) -> None:
    if warm_up:
        _, most = child.ask("steps", 0, work.warm_up)
        free = psutil.virtual_memory().available / 2**20
        if work.device == "cpu" and free < most:
            raise RunFailed(f"a variant takes {most:.0f} MiB, and {free:.0f} are left: name fewer --variants")
        return
    seconds, peak_mib = child.ask("steps", work.lead, work.steps)
    found.peak_mib = max(found.peak_mib, peak_mib)
    found.seconds.append(seconds / work.steps)
    if with_input:
        found.input_seconds.append(child.ask("batches", 1, work.steps)[0] / work.steps)


class Child:
    """A process as its parent sees it: `train` is called there with its end of the line and the other arguments."""

    def __init__(self, train: Callable[..., None], *arguments: object) -> None:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["torchvision", "gamlib.training.loop"])  # imported once for all
        self.line, its_end = processes.Pipe()
        self.process = processes.Process(target=_serve, args=(its_end, train, *arguments))
        self.process.start()
        its_end.close()

    def ask(self, what: str, lead: int, counted: int) -> tuple[float, float]:
        """Seconds of what counts, and the peak of memory in MiB."""
        try:
            self.line.send((what, lead, counted))
            answer = self.line.recv()
        except (EOFError, OSError):
            self.process.join(10)
            raise Failed(f"its process ended with exit code {self.process.exitcode}") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    def end(self) -> None:
        """Wait until it has ended, but not for long."""
        self.process.join(20)
        self.process.terminate()
        self.process.join()


class Ended(Exception):
    """The parent wants no more steps."""


def _serve(line: Line, train: Callable[..., None], *arguments: object) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    multiprocessing.set_start_method("fork", force=True)  # for a DataLoader's workers: Linux's own, which starts warm
    try:
        with suppress(Ended):
            train(line, *arguments)
    except Exception as error:
        with suppress(OSError):
            line.send(" ".join(f"{type(error).__name__}: {error}".split())[:200])


def _train(line: Line, work: Work, variant: Variant) -> None:
    torch.set_num_threads(work.threads)
    device, images = torch.device(work.device), random_images(work.images)
    torch.manual_seed(0)
    model = build_model(work.network, work.attention, CLASSES, "cifar", width=work.width).to(device)
    mean, std = ((value / 255).tolist() for value in mean_and_std(images.train))
    loader = plain_loop.loader(images.train, images.train_labels, mean, std, work.batch_size, work.workers)
    if variant.config is None:
        torch.backends.cudnn.benchmark = True
        network = torch.compile(model) if variant.compiled else model
        plain_loop.train(network, loader, device, LR, Pace(line, device).after_step)
        return
    batches: Batches = Given(lambda _: ((x.to(device), y.to(device)) for x, y in loader), work.images)
    batches = FromMemory(images, device, seed=0, pad=4, flip=True) if variant.in_memory else batches
    if not variant.keeps_memory:
        loop.keep_memory = lambda: None
    config = replace(variant.config, lr=LR, batch_size=work.batch_size, epochs=1)
    pace = Pace(line, device, lambda: batches.train(1, work.batch_size))
    for _ in loop.fit(model, batches, config, on_step=pace.after_step):
        pass


@dataclass
class Given(Batches):
    """Batches for gamlib's loop that someone else makes, see `Batches`: of an epoch by its number, and of the test."""

    epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    train_size: int
    tested: Sequence[tuple[Tensor, Tensor]] = ()

    def __post_init__(self) -> None:
        self.test_size = sum(len(labels) for _, labels in self.tested)

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """Those of an epoch."""
        yield from self.epoch(epoch)

    def test(self) -> Stream:
        """Those of the test."""
        yield from self.tested


class Pace:
    """Lets a loop take the steps that are asked for, and no more: it waits in the call that comes after a step."""

    def __init__(self, line: Line, device: torch.device, feed: Callable[[], Iterator[object]] = lambda: iter(())):
        self.line, self.device, self.feed = line, device, feed
        self.synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.to_go, self.counted, self.began = 0, 0, 0.0
        self._wait()

    def after_step(self, _: int = 0) -> None:
        """Counts the step."""
        self.to_go -= 1
        if self.to_go == self.counted:
            self._start()
        elif self.to_go == 0:
            self._answer()
            self._wait()

    def _wait(self) -> None:
        """Until steps are asked for; batches alone are made here."""
        while True:
            try:
                what, lead, self.counted = self.line.recv()
            except (EOFError, OSError):
                raise Ended from None
            self.to_go = lead + self.counted
            batches = self.feed()
            if what == "batches":
                list(islice(batches, lead))
            self._start()
            if what == "steps":
                return
            for _ in islice(batches, self.counted):
                self.synchronise()
            self._answer()

    def _start(self) -> None:
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.began = time.perf_counter()

    def _answer(self) -> None:
        self.synchronise()
        try:
            self.line.send((time.perf_counter() - self.began, loop.peak_memory(self.device)))
        except OSError:
            raise Ended from None
