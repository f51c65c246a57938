"""Random blocks, maps and circumstances: a fast form equals the plain one in float64, or both refuse.

    python tests/kernels/fuzz.py --cases 10000 --seed 0      (make fuzz)

A case is drawn from its number alone, so `--only N` runs it again. Of a case that ends the process, the number stands
last on the terminal. Where rounding takes the input of a rectifier over zero, gradients jump: a case that fails is
drawn again with other numbers of the same shapes, and counts if it fails again.
"""

import argparse
import copy
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from near import ON_CPU
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gamlib import GAM, accelerate
from gamlib.kernels.direct import LARGEST

Outcome = dict[str, Tensor] | str  # values and gradients by name, or "refused"
LIMIT = {torch.float64: 1e-10, torch.float32: 2e-5}  # of a norm; float32 rounds up to some 2e-6 at these sizes


class Wrapped(Tensor):
    """Float32 to whoever asks, held as whole numbers: its memory is not what it says."""

    scale = 0.05

    @staticmethod
    def __new__(cls, value: Tensor) -> "Wrapped":
        """A tensor that shares nothing with the value."""
        found: Wrapped = Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        return found

    def __init__(self, value: Tensor) -> None:
        self.held = (value / self.scale).round().clamp(-127, 127).to(torch.int8)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """By the numbers that are meant."""

        def meant(value: Any) -> Any:
            return value.held.to(value.dtype) * cls.scale if isinstance(value, Wrapped) else value

        if function is torch.ops.aten.detach.default:
            return cls(meant(args[0]))
        return function(*map(meant, args), **{name: meant(value) for name, value in (kwargs or {}).items()})


class Doubling(TorchFunctionMode):
    """Sigmoids are twice as large."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch, but for sigmoids."""
        found = function(*args, **(kwargs or {}))
        return 2 * found if function in (Tensor.sigmoid, torch.sigmoid) else found


def half(module: nn.Module, *rest: Any) -> Any:
    """Half of what a hook is given."""
    return rest[-1] * 0.5


LEAVES = ("channel.mlp.0", "channel.mlp.2", "spatial.squeeze", "spatial.expand")
LAYERS = ("channel", "channel.mlp", "channel.mlp.1", "spatial", "spatial.relu", "spatial.pool", *LEAVES)

CHANGES: dict[str, Callable[[GAM, random.Random], object]] = {
    "none": lambda block, draw: None,
    "frozen": lambda block, draw: [value.requires_grad_(draw.random() < 0.5) for value in block.parameters()],
    "forward hook": lambda block, draw: a_layer(block, draw).register_forward_hook(half),
    "pre-hook": lambda block, draw: a_layer(block, draw).register_forward_pre_hook(
        lambda module, given: (given[0] * 0.5,)
    ),
    "backward hook": lambda block, draw: a_layer(block, draw).register_full_backward_hook(
        lambda module, of_inputs, of_outputs: tuple(g if g is None else 0.5 * g for g in of_inputs)  # type: ignore[misc]
    ),
    "constant forward": lambda block, draw: make_constant(block, draw, "forward"),
    "constant branch": lambda block, draw: make_constant(block, draw, "branch"),
    "another weight": lambda block, draw: other_shape(block, draw),
    "tied": lambda block, draw: tie(block),
    "channels_last weights": lambda block, draw: block.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "sliced weights": lambda block, draw: spread(block),
    "wrapped": lambda block, draw: None,  # see `build`
    "negated": lambda block, draw: None,  # see `arrange`
    "another type": lambda block, draw: a_layer(block, draw, LEAVES).double(),
}


def a_layer(block: GAM, draw: random.Random, among: tuple[str, ...] = LAYERS) -> nn.Module:
    """One that is there."""
    return block.get_submodule(draw.choice([name for name in among if has(block, name)]))


def has(block: GAM, name: str) -> bool:
    """Whether a submodule of that name is there."""
    return getattr(block, name.partition(".")[0]) is not None


def make_constant(block: GAM, draw: random.Random, method: str) -> None:
    """A method of a submodule replaced, as an ablation is patched."""
    setattr(a_layer(block, draw, ("channel", "spatial")), method, lambda x: torch.full_like(x, 0.25))


def other_shape(block: GAM, draw: random.Random) -> None:
    """One weight of another shape."""
    value = a_layer(block, draw, LEAVES)._parameters["weight"]
    assert value is not None
    shape = list(value.shape)
    axis = draw.randrange(len(shape))
    shape[axis] = max(1, shape[axis] + draw.choice((-1, 1, 16)))
    value.data = torch.randn(shape, dtype=value.dtype)


def spread(block: GAM) -> None:
    """No number of a weight lies beside another one."""
    for value in block.parameters():
        value.data = sliced(value.data)


def tie(block: GAM) -> None:
    """Both layers of the MLP have one weight, where their shapes allow it."""
    if block.channel is not None and block.channel.mlp[0].weight.shape == block.channel.mlp[2].weight.shape:
        block.channel.mlp[2].weight = block.channel.mlp[0].weight


def sliced(x: Tensor) -> Tensor:
    """The same numbers, none of them beside another one."""
    return torch.stack([torch.full_like(x, torch.nan), x], -1)[..., 1]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": sliced,
    "turned": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1, :, :1].expand_as(x),
    "one number": lambda x: x[:1, :1, :1, :1].expand_as(x),
    "off by one": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "a function mode": Doubling,
    "a device": partial(torch.device, "cpu"),
}
AFTER = ("once", "once", "twice", "under autocast", "batched", "batched by vmap")


class Case:
    """What is drawn of a case: its structure by the number, its values by the attempt."""

    def __init__(self, number: int, seed: int, attempt: int) -> None:
        draw = random.Random(f"{seed} {number}")
        self.engine = draw.choice(("auto", *ON_CPU))
        self.channels = draw.choice((draw.randint(1, 8), draw.randint(1, 112), 16 * draw.randint(1, 7)))
        divisors = [r for r in range(1, self.channels + 1) if self.channels % r == 0]
        self.reduction = draw.choice(divisors)
        self.submodules = draw.choice(("ch+sp", "ch+sp", "ch", "sp"))
        largest = LARGEST if self.engine == "dense" or draw.random() < 0.3 else 14
        given = self.channels if draw.random() < 0.85 else draw.choice((draw.randint(1, 112), 2 * self.channels))
        self.shape = draw.randint(0 if draw.random() < 0.03 else 1, 5), given, *(draw.randint(1, largest) for _ in "HW")
        self.dtype = draw.choice((torch.float32, torch.float32, torch.float64))
        self.change = draw.choice([*["none"] * len(CHANGES), *CHANGES])
        self.layout, self.of_gradient = draw.choice([*LAYOUTS]), draw.choice([*LAYOUTS])
        self.around = draw.choice([*["nothing"] * len(AROUND), *AROUND])
        self.after = draw.choice(AFTER)
        self.of_input = draw.random() < 0.8
        self.draw = draw
        self.values = f"{seed} {number} {attempt}"

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items() if name not in ("draw", "values"))

    def build(self) -> tuple[GAM, GAM]:
        """The block, and what it should compute as the plain block in float64."""
        torch.manual_seed(random.Random(self.values).randrange(2**31))
        block = accelerate(GAM(self.channels, self.reduction, self.submodules), self.engine)
        for value in block.parameters():
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
        CHANGES[self.change](block.to(self.dtype), self.draw)
        if self.change == "wrapped":
            layer = a_layer(block, self.draw, LEAVES)
            wrapped = Wrapped(layer._parameters["weight"].detach())  # type: ignore[union-attr]
            layer._parameters["weight"] = nn.Parameter(wrapped.held.to(self.dtype) * Wrapped.scale, requires_grad=False)
        exact = copy.deepcopy(block).double()
        accelerate(exact, "plain")
        if self.change == "wrapped":
            layer._parameters["weight"] = nn.Parameter(wrapped, requires_grad=False)
        return block, exact

    def arrange(self) -> tuple[Tensor, Tensor]:
        """The map and its gradient."""
        x = LAYOUTS[self.layout](torch.randn(self.shape, dtype=self.dtype))
        gradient = LAYOUTS[self.of_gradient](torch.randn(self.shape, dtype=self.dtype))
        if self.change == "negated":
            x, gradient = torch._neg_view(x), torch._neg_view(gradient)
        return x, gradient


def outcome(case: Case, block: GAM, x: Tensor, gradient: Tensor) -> Outcome:
    """Values and gradients of a block for a case; "refused" where it raises."""
    x = x.detach().requires_grad_(case.of_input)
    inputs = {"x": x, **dict(block.named_parameters())}
    wanted = {name: value for name, value in inputs.items() if value.requires_grad}
    try:
        with AROUND[case.around]():
            out = block(x)
        found = {"output": out.detach().clone()}
        if not out.requires_grad or not wanted:
            return found
        return found | dict(zip(wanted, derivatives(case, out, [*wanted.values()], gradient), strict=True))
    except (RuntimeError, ValueError, IndexError):
        return "refused"


def derivatives(case: Case, out: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Gradients in the way of the case; zeros where there are none."""
    options = {"allow_unused": True, "materialize_grads": True}
    if case.after == "twice":
        first = torch.autograd.grad(out, inputs, gradient, create_graph=True, **options)
        penalty = sum(value.square().sum() for value in first)
        found = torch.autograd.grad(penalty, inputs, **options)  # type: ignore[arg-type]
    elif case.after == "under autocast":
        with torch.autocast("cpu", torch.bfloat16, enabled=out.dtype != torch.float64):  # the exact one is not cast
            found = torch.autograd.grad(out, inputs, gradient, **options)
    elif case.after == "batched":
        batch = torch.stack([gradient, -2 * gradient])
        found = torch.autograd.grad(out, inputs, batch, is_grads_batched=True, **options)
    elif case.after == "batched by vmap":
        batch = torch.stack([gradient, -2 * gradient])
        found = torch.func.vmap(lambda g: torch.autograd.grad(out, inputs, g, retain_graph=True, **options))(batch)
    else:
        found = torch.autograd.grad(out, inputs, gradient, **options)
    return [value.detach() for value in found]


def differences(found: Outcome, wanted: Outcome, limit: float) -> list[str]:
    """What is further from the wanted numbers than a part of their norm, each as a line."""
    if isinstance(found, str) or isinstance(wanted, str):
        return [] if found == wanted else ["refused, and the plain block not, or the other way round"]
    if found.keys() != wanted.keys():
        return [f"{sorted(found)} instead of {sorted(wanted)}"]
    lines = []
    for name, value in wanted.items():
        far = (found[name].to(value.dtype) - value).norm() / value.norm().clamp(min=1e-6)
        if found[name].shape != value.shape or not far <= limit:
            lines.append(f"{name}: off by {far:.1e} of its norm")
    return lines


def failures(number: int, seed: int) -> list[str]:
    """What is wrong with a case, with two draws of its values; nothing where one of them is right."""
    for attempt in range(2):
        case = Case(number, seed, attempt)
        block, exact = case.build()
        x, gradient = case.arrange()
        found = outcome(case, block, x, gradient)
        lines = differences(found, outcome(case, exact, x.double(), gradient.double()), LIMIT[case.dtype])
        if lines:  # unless the plain block ran: autocast, for one, casts its operations
            accelerate(block, "plain")
            lines = lines if differences(found, outcome(case, block, x, gradient), 0.0) else []
        if not lines:
            return []
    return [f"case {number} of seed {seed}: {case}", *(f"    {line}" for line in lines)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--only", type=int, help="this case alone")
    given = parser.parse_args()
    numbers = range(given.cases) if given.only is None else [given.only]
    wrong = 0
    for number in numbers:
        print(f"\r{number}", end="", file=sys.stderr, flush=True)
        lines = failures(number, given.seed)
        wrong += bool(lines)
        if lines:
            print("\r" + "\n".join(lines), flush=True)
    print(f"\r{len(numbers) - wrong} of {len(numbers)} cases are right")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
