"""Timing in turns: every repetition calls all that is compared, in an order drawn anew, and gives one ratio for each.

A machine that is slower for a minute is so for both sides of a ratio, which are taken from the same repetition. What is
reported is the median of the ratios, and the least and the largest.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn import functional as F

Call = Callable[[], object]
SHORTEST = 0.01  # seconds of a turn: shorter calls are repeated within it


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    seconds: float  # of the repetitions together; the least number of them is taken in any case
    least: int
    most: int = 50
    of_rare: int = 3  # repetitions of what is measured for scale, at most


def in_turns(
    calls: Mapping[tuple[str, str], Call], plan: Plan, device: str, rare: Collection[str] = ()
) -> dict[tuple[str, str], list[float]]:
    """Seconds of one call, for each repetition, by subject and mode; of rare subjects in the first repetitions only.

    The calls have been warmed up.
    """
    order, found = random.Random(0), {key: list[float]() for key in calls}
    modes = list(dict.fromkeys(mode for _, mode in calls))
    numbers = {key: _number(call, device) for key, call in calls.items()}
    began, done = time.perf_counter(), 0
    while calls:
        for mode in order.sample(modes, len(modes)):  # what is compared lies close together
            keys = [key for key in calls if key[1] == mode and (key[0] not in rare or done < plan.of_rare)]
            for key in order.sample(keys, len(keys)):
                found[key].append(seconds(calls[key], numbers[key], device))
        done += 1
        if done >= plan.most or (done >= plan.least and time.perf_counter() - began > plan.seconds):
            break
    return found


def _number(call: Call, device: str) -> int:
    shortest = SHORTEST if device == "cpu" else 2 * SHORTEST
    return max(1, min(100, int(shortest / max(1e-6, seconds(call, 1, device)))))


def seconds(call: Call, number: int, device: str) -> float:
    """Of one out of a number of calls."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(number):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / number
    began = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - began) / number


def ratios(base: list[float], subject: list[float]) -> tuple[float, float, float]:
    """How many times as fast as the base: median, least and largest over the repetitions that both have."""
    found = [theirs / ours for theirs, ours in zip(base, subject, strict=False)]  # a rare one has the first ones only
    return median(found), min(found), max(found)


@dataclass(frozen=True)
class Peaks:
    """The most that this machine was seen to do, with the threads that the blocks get."""

    product_gflops: float  # of matrices of 2048x2048 (8192 on a GPU)
    convolution_gflops: float  # the best of some 3x3 and 7x7 convolutions in channels_last
    copy_gb: float  # per second, read and written, of a map that no cache holds

    @property
    def gflops(self) -> float:
        """The larger one: what shares are of."""
        return max(self.product_gflops, self.convolution_gflops)


def peaks(device: str, dtype: torch.dtype, quick: bool = False) -> Peaks:
    """Measure them: the best of what takes a second or two each."""
    at_least = 0.1 if quick else 1.5
    size = 512 if quick else 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = 2 * size**3 / _best(lambda: a @ b, device, at_least)
    convolution = 0.0
    for channels, edge, kernel in [(256, 14, 3), (128, 28, 3), (256, 14, 7)][: 1 if quick else 3]:
        batch = 4 if quick else 16 if device == "cpu" else 256
        x = torch.randn(batch, channels, edge, edge, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, kernel, kernel, device=device, dtype=dtype)
        x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (x, weight))
        work = 2 * x.numel() * channels * kernel**2

        def convolve(x: torch.Tensor = x, weight: torch.Tensor = weight, pad: int = kernel // 2) -> torch.Tensor:
            return F.conv2d(x, weight, padding=pad)

        convolution = max(convolution, work / _best(convolve, device, at_least))
    source = torch.ones((2**22 if quick else 2**26 if device == "cpu" else 2**29), device=device)
    copy = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Peaks(product / 1e9, convolution / 1e9, moved / _best(lambda: copy.copy_(source), device, at_least) / 1e9)


def _best(call: Call, device: str, at_least: float) -> float:
    """Seconds of one call, the least of many: what else runs on the machine should leave a moment alone."""
    with torch.no_grad():
        call()
        began, found = time.perf_counter(), list[float]()
        while len(found) < 7 or time.perf_counter() - began < at_least:
            found.append(seconds(call, 10 if device == "cuda" else 1, device))
        return min(found)
