"""Whether the blocks that `benchmarks/gam.py` measures compute what they should, as others do and float64 does."""

from dataclasses import dataclass

import torch
from blocks import KNOWN, Block, Setting, Shape
from torch import Tensor

from gamlib import accelerate

POSITIONS = 1568  # of the images that go through float64, whose convolutions are slow; one image at least


@dataclass(frozen=True)
class Agreement:
    """Relative errors, each the largest of the output's, the input's gradient's and the weights' gradients'."""

    difference: float  # from the subject that gives the same numbers, over the whole batch
    same_error: float  # that subject's own from float64, over some images
    error: float | None = None  # of this one, likewise

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether it is rounding: four times the other's own, for the benchmark; the tests are stricter."""
        limit = 4 * self.same_error + 8 * torch.finfo(dtype).eps
        # Over a whole batch a ReLU or two, open for one and shut for the other by rounding, are worth 2e-3.
        close = self.difference <= max(0.01, self.same_error + limit)
        return close and (self.error is None or self.error <= limit)


def agreement(name: str, shape: Shape, setting: Setting) -> Agreement | None:
    """How far a subject's numbers are from those it should give; None where it gives its own."""
    if not (same := KNOWN[name].same):
        return None
    few = Shape(shape.network, min(shape.batch, max(1, POSITIONS // shape.size**2)), shape.channels, shape.size)
    exact = _results(same, few, Setting(setting.device, torch.float64), rounded=setting)
    largest = max(float(one.norm()) for one in exact)
    # A convolution's bias has no gradient where a BatchNorm takes the mean away: what is there is rounding alone.
    real = [index for index, one in enumerate(exact) if float(one.norm()) > 1e-9 * largest]

    def furthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
        pairs = [(ours[index], theirs[index]) for index in real]
        return max(float((one - two).norm() / two.norm()) for one, two in pairs)

    difference = furthest(_results(name, shape, setting), _results(same, shape, setting))
    same_error = furthest(_results(same, few, setting), exact)
    if KNOWN[name].compiled:  # every other shape would be compiled anew
        return Agreement(difference, same_error)
    backend = Block(name, shape, setting).backend.get("training", "")
    return Agreement(difference, same_error, furthest(_results(name, few, setting, backend=backend), exact))


def _results(
    name: str, shape: Shape, setting: Setting, rounded: Setting | None = None, backend: str = ""
) -> list[Tensor]:
    block = Block(name, shape, setting)
    if rounded is not None:  # the exact block gets the numbers that the others get
        with torch.no_grad():
            for tensor in (block.x, block.gradient):
                tensor.copy_(tensor.to(rounded.maps))
            for tensor in (*block.module.parameters(), *block.still.parameters()):
                tensor.copy_(tensor.to(rounded.dtype))
    if backend:  # fewer images may be computed by another one
        for module in (block.module, block.still):
            accelerate(module, backend)
    return [result.detach().double().contiguous() for mode in ("training", "inference") for result in block.call(mode)]
