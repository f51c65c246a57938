"""GAM's kernels for a GPU: in Triton's interpreter on a CPU, and through its compiler, without a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import afresh, interpreted
from near import Values, assert_as_near, block_and_map, equations, residual, with_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gamlib import GAM, accelerate
from gamlib.kernels import FastGAM, backends, conditions
from gamlib.kernels.operators import compute

pytestmark = pytest.mark.slow

CASES = [  # channels, reduction, submodules, [N, H, W]
    pytest.param(24, 4, "ch+sp", (2, 5, 7), id="24 channels, 6 hidden"),
    pytest.param(64, 16, "ch+sp", (3, 6, 5), id="64 channels, 4 hidden"),
    pytest.param(40, 4, "ch+sp", (1, 9, 3), id="40 channels, 10 hidden"),
    pytest.param(320, 16, "ch+sp", (2, 3, 7), id="320 channels in blocks"),
    pytest.param(64, 4, "ch", (2, 5, 7), id="ch"),
    pytest.param(144, 4, "ch", (1, 3, 11), id="ch in blocks"),
    pytest.param(24, 4, "sp", (2, 5, 7), id="sp"),
    pytest.param(16, 8, "ch+sp", (2, 7, 9), id="16 channels, 2 hidden"),
    pytest.param(64, 4, "ch+sp", (1, 1, 1), id="one position"),
]
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with interpreted() as module:
        yield module


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel should write and does not is NaN."""
    empty_like, new_empty = torch.empty_like, Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))


def by_kernels(gpu: Any, block: GAM, x: Tensor) -> Tensor:
    weights = conditions._weights(block)
    assert weights
    return compute("triton", x, weights)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "reduction", "submodules", "size"), CASES)
@pytest.mark.usefixtures("poison")
def test_values_and_gradients_are_as_near_to_the_exact_ones_as_those_of_the_plain_block(
    gpu: Any, channels: int, reduction: int, submodules: str, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    block, x, gradient = block_and_map(channels, reduction, submodules, size, dtype)
    exact = with_gradients(block, x, gradient, equations(block))
    block.to(dtype)
    in_channels_last = x.to(dtype, memory_format=torch.channels_last)  # where a CPU's convolutions round differently
    plain = with_gradients(block, in_channels_last, gradient, equations(block))
    found = with_gradients(block, x.to(dtype), gradient, lambda x: by_kernels(gpu, block, x))
    assert found["output"].is_contiguous(), "as x is"
    assert_as_near(found, plain, exact)


def test_parameters_may_be_of_float32_where_the_map_is_not_as_under_autocast(gpu: Any) -> None:
    block, x, gradient = block_and_map(24, 4, "ch+sp", (2, 5, 7), torch.bfloat16)
    exact = with_gradients(block, x, gradient, equations(block))
    block.bfloat16()
    plain = with_gradients(block, x.bfloat16(), gradient, equations(block))
    block.float()
    found = with_gradients(block, x.bfloat16(), gradient, lambda x: by_kernels(gpu, block, x))
    assert_as_near(found, plain, exact)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "hidden"), [(24, 6), (144, 36)], ids=["one block", "blocks"])
@pytest.mark.usefixtures("poison")
def test_every_kernel_is_its_equations(gpu: Any, channels: int, hidden: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps, weights = ("x", "s", "dy", "convolved"), ("w1", "b1", "w2", "b2")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(maps, (37, channels))  # two blocks of rows or more, one not full
    shapes |= zip(weights, ((hidden, channels), (hidden,), (channels, hidden), (channels,)), strict=True)
    drawn = {name: torch.randn(shape).mul(0.5).to(dtype) for name, shape in shapes.items()}
    assert (gpu.tiles(channels, hidden, dtype)["BC"] >= channels) == (channels == 24)

    def equations(kind: torch.dtype) -> Values:
        v = {name: value.to(kind).requires_grad_() for name, value in drawn.items()}
        g = v["x"] * (torch.relu(v["x"] @ v["w1"].t() + v["b1"]) @ v["w2"].t() + v["b2"]).sigmoid()
        gated = g.detach().requires_grad_()
        y = gated * v["s"].sigmoid()
        dg, ds = torch.autograd.grad(y, (gated, v["s"]), v["dy"])
        inputs = [v[name] for name in ("x", *weights)]
        alone = torch.autograd.grad(g, inputs, v["dy"], retain_graph=True)
        both = torch.autograd.grad(g, inputs, dg + v["convolved"])
        return named(g.detach(), y.detach(), ds, alone, both)

    def named(g: Tensor, y: Tensor, ds: Tensor, alone: Any, both: Any) -> Values:
        gradients = {f"d{n} {k}": d for k, ds in (("alone", alone), ("both", both)) for n, d in enumerate(ds)}
        return {name: value.squeeze() for name, value in ({"g": g, "y": y, "ds": ds} | gradients).items()}

    x, s, dy, convolved = (drawn[name][:, :, None, None] for name in maps)
    mlp = [drawn[name] for name in weights]
    g, again, ds, y, ds_of_g = (torch.empty_like(x) for _ in range(5))
    u = gpu.channel_gate(x, mlp, g)
    assert torch.equal(gpu.channel_gate(x, mlp, again, (dy, s, ds)), u) and torch.equal(again, g)
    gpu.spatial_gate(g, s, y)
    gpu.spatial_gate(g, s, ds_of_g, dy)
    alone, both = (gpu.channel_gate_gradients(x, mlp, u, *given) for given in ((dy,), (convolved, dy, s)))
    plain, exact = equations(dtype), equations(torch.float64)
    assert_as_near(named(g, y, ds, alone, both), plain, exact)
    assert_as_near(named(g, y, ds_of_g, alone, both), plain, exact)


def test_the_memory_formats_of_a_map_and_of_its_gradient_do_not_matter(gpu: Any) -> None:
    block, x, gradient = block_and_map(24, 4, "ch+sp", (2, 5, 7), torch.float32)
    block, x, gradient = block.float(), x.float(), gradient.float()
    strided = torch.stack([x, x], -1)[..., 1]
    wanted = with_gradients(block, x, gradient, lambda x: by_kernels(gpu, block, x))
    for same in (x.contiguous(memory_format=torch.channels_last), strided):
        for g in (gradient, gradient.contiguous(memory_format=torch.channels_last)):
            found = with_gradients(block, same, g, lambda x: by_kernels(gpu, block, x))
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    expanded = with_gradients(block, x, torch.ones(()).expand_as(x), lambda x: by_kernels(gpu, block, x))
    ones = with_gradients(block, x, torch.ones_like(x), lambda x: by_kernels(gpu, block, x))
    torch.testing.assert_close(expanded, ones, rtol=0, atol=0)


def test_no_gate_is_kept_and_nothing_without_gradients(gpu: Any) -> None:
    block, x, _ = block_and_map(64, 16, "ch+sp", (1, 2, 3), torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value), lambda value: value):
        by_kernels(gpu, block.float(), x.float())
    maps = [value for value in kept if value.ndim == 4 and value.shape[-1] == 3]
    assert sorted(value.shape[1] for value in maps) == [4, 64, 64]
    with torch.no_grad():
        assert by_kernels(gpu, block, x.float()).grad_fn is None


@pytest.mark.parametrize("submodules", ["ch+sp", "ch", "sp"])
def test_a_residual_block_may_change_the_output_in_place(gpu: Any, submodules: str) -> None:
    block, x, gradient = block_and_map(24, 4, submodules, (2, 5, 7), torch.float32)
    block, x, gradient = block.float(), x.float(), gradient.float()

    found = with_gradients(block, x, gradient, residual(lambda x: by_kernels(gpu, block, x)))
    wanted = with_gradients(block, x, gradient, residual(equations(block)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_that_of_the_plain_block(gpu: Any) -> None:
    block, x, _ = block_and_map(16, 4, "ch+sp", (1, 2, 3), torch.float32)
    block, x = block.float(), x.float().requires_grad_()

    def penalty(compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(compute(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, *block.parameters()])

    torch.testing.assert_close(penalty(lambda x: by_kernels(gpu, block, x)), penalty(equations(block)))


@pytest.fixture
def pretended() -> Iterator[Tensor]:
    """A map in channels_last on a GPU that need not be there: it has a shape, but no numbers."""
    with FakeTensorMode(), torch.device("cuda"):
        yield torch.empty(2, 64, 8, 8).to(memory_format=torch.channels_last)


def of(dtype: torch.dtype, backend: str, *values: Any, **options: Any) -> FastGAM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        block = accelerate(GAM(*values, **options), backend)
        assert isinstance(block, FastGAM)
        return block
    finally:
        torch.set_default_dtype(before)


def by(backend: str, x: Tensor, dtype: torch.dtype | None = None, **options: Any) -> str:
    return of(dtype or x.dtype, backend, x.shape[1], **options).backend_for(x)


def test_a_gpu_has_the_kernels_where_they_are_asked_for_and_can_be_used(
    pretended: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it has the plain block: what has not run on a kind of device is not its default."""
    monkeypatch.setattr(backends, "_triton_can", lambda device: True)
    monkeypatch.setattr(conditions, "is_readable", lambda x: True)  # the pretended map is a fake one
    monkeypatch.setattr(conditions, "has_torch_function", lambda tensors: False)
    x, half = pretended, pretended.bfloat16()
    assert by("auto", x) == by("auto", half) == by("direct", x) == "plain"
    assert by("triton", x) == by("triton", x.contiguous()) == by("triton", half) == "triton"
    assert by("triton", x.double()) == by("triton", half, dtype=torch.float32) == "plain"
    assert by("triton", x, groups=2) == of(x.dtype, "triton", 32).backend_for(x) == "plain"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert by("triton", half, dtype=torch.float32) == "triton"
    assert by("triton", x) == by("triton", half, dtype=torch.float16) == "plain"


def test_transformed_functions_take_the_plain_block_which_has_every_derivative() -> None:
    block, x, _ = block_and_map(16, 4, "ch+sp", (2, 3, 3), torch.float32)
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(block(x).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: block(x).sum())(x), wanted)


def test_without_triton_a_gpu_has_the_plain_block(pretended: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    backends._triton_can.cache_clear()
    with afresh():
        monkeypatch.setitem(sys.modules, "triton", None)  # as good as not installed
        monkeypatch.setattr(conditions, "is_readable", lambda x: True)
        monkeypatch.setattr(conditions, "has_torch_function", lambda tensors: False)
        assert by("auto", pretended) == by("triton", pretended) == "plain"
    backends._triton_can.cache_clear()


def test_on_a_cpu_it_is_not_taken() -> None:
    x = torch.randn(1, 32, 3, 3).to(memory_format=torch.channels_last)
    block = of(x.dtype, "triton", 32)
    assert block.backend_for(x) == "plain"
    assert torch.equal(block(x), equations(block)(x))


def test_gamlib_does_not_import_triton() -> None:
    command = "import sys, gamlib; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_the_kernels_compile_for_a_gpu_read_every_map_once_and_spill_no_register(tmp_path: Path) -> None:
    """The interpreter takes what the compiler may not. In a process of its own: this one's kernels are interpreted."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))]
    found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert {name: report["spilled"] for name, report in found.items()} == dict.fromkeys(found, 0)
    assert all(report["shared"] <= 227 * 1024 for report in found.values())
    loads = {name: report["loads"] for name, report in found.items() if "in one block" in name}
    assert loads == {name: 8 if "backward" in name else 7 for name in loads} and len(loads) == 4
