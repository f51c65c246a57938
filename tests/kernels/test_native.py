"""The C files of `gamlib/kernels/c` against torch: products of matrices, gates, and a compiler that may be missing.

Without a C compiler everything is skipped but what GAM does then.
"""

import ctypes
import mmap
import os
import shlex
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from near import ON_CPU, Values, block_and_map, equations, with_gradients
from torch import Tensor

from gamlib import GAM, accelerate
from gamlib.kernels import backends, gates, native

pytestmark = pytest.mark.slow

EPSILON = 2.0**-24  # of a rounding
HAS_COMPILER = shutil.which("cc") is not None and torch.backends.openmp.is_available()
compiled = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler `cc` here, or a torch without OpenMP")
SHAPES = [*product((1, 2, 5, 6, 7, 13), (1, 3, 15, 16, 17, 31, 48, 64, 65, 130), (1, 4, 7, 64))]  # M, N, K


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def far(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


# Products


def strided(x: Tensor) -> Tensor:
    memory = x.new_full((2 * len(x), 3 * x.shape[1] + 1, 2 * x.shape[2] + 3), torch.nan)
    memory[1::2, 1::3, 2:-1:2] = x
    return memory[1::2, 1::3, 2:-1:2]


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x.contiguous(),
    "columns": lambda x: x.mT.contiguous().mT,
    "strided": strided,
    "strided columns": lambda x: strided(x.mT).mT,
    "last first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "one matrix": lambda x: x[:1].expand_as(x),
    "one number a row": lambda x: x[..., :1].expand_as(x),
}


def guarded(batch: int, m: int, n: int) -> tuple[Tensor, Tensor]:
    """Memory for matrices, full of NaN, in a memory of sevens."""
    memory = torch.full((batch + 2, m + 2, n + 40), 7.0)
    out = memory[1:-1, 1:-1, 20:-20]
    out.fill_(torch.nan)
    return memory, out


def assert_product(a: Tensor, b: Tensor) -> None:
    """Every number is written, within the roundings of its sum, and nothing beside them."""
    memory, out = guarded(len(a), a.shape[1], b.shape[2])
    assert native.products(a, b, out=out) is out
    error = (out.double() - a.double() @ b.double()).abs()
    assert (error <= (a.shape[2] + 1) * EPSILON * (a.double().abs() @ b.double().abs())).all(), (a.shape, b.shape)
    out.fill_(7.0)
    assert (memory == 7.0).all(), (a.shape, b.shape)


@compiled
@pytest.mark.parametrize("order_of_b", ORDERS)
@pytest.mark.parametrize("order_of_a", ORDERS)
def test_a_product_is_that_of_torch_for_every_shape_and_order(order_of_a: str, order_of_b: str) -> None:
    torch.manual_seed(0)
    few = SHAPES if order_of_a == "rows" or order_of_b == "rows" else SHAPES[::7]
    for m, n, k in few:
        assert_product(ORDERS[order_of_a](torch.randn(3, m, k)), ORDERS[order_of_b](torch.randn(3, k, n)))


@compiled
@pytest.mark.parametrize(("m", "n", "k"), [(200, 300, 260), (1, 1000, 3), (1000, 1, 5), (49, 96, 1000)])
@pytest.mark.parametrize("number", [1, 2])
def test_a_product_beyond_one_panel_is_that_of_torch(m: int, n: int, k: int, number: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, m, k), torch.randn(2, k, n)
    with threads(number):
        for left, right in product((a, ORDERS["columns"](a)), (b, ORDERS["columns"](b))):
            assert_product(left, right)


@compiled
@pytest.mark.parametrize("n", [1, 17, 49, 65])
def test_nothing_is_read_behind_a_product(n: int) -> None:
    """Its memory ends where a page ends that the process has, before one that it has not."""
    size = 2**16
    memory = mmap.mmap(-1, 2 * size)
    whole = torch.frombuffer(memory, dtype=torch.float32)
    behind = ctypes.c_void_p(whole.data_ptr() + size)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(behind, ctypes.c_size_t(size), 0) == 0, ctypes.get_errno()
    out = whole[size // 4 - 3 * n : size // 4].view(1, 3, n)
    a, b = torch.randn(1, 3, 300), torch.randn(1, 300, n)  # a sum in parts, which are added to what lies there
    torch.testing.assert_close(native.products(a, b, out=out), a @ b, rtol=1e-4, atol=1e-4)
    assert protect(behind, ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_WRITE) == 0


@compiled
def test_a_long_sum_is_made_of_parts() -> None:
    """One chain would lose every 1 after 2^24, whose next number in float32 is 2 further."""
    ones = torch.ones(1, 1, 4097)
    ones[0, 0, 0] = 2.0**24
    lost = 2**24 + 4096 - native.products(ones, torch.ones(1, 4097, 1)).double().item()
    assert lost <= 128 + 4096 / 128, lost


@compiled
def test_a_new_product_is_contiguous_and_float64_is_computed_by_torch() -> None:
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(3, 4, 5, dtype=dtype), torch.randn(3, 5, 17, dtype=dtype)
        found = native.products(a, b)
        assert found.is_contiguous() and found.dtype == dtype
        torch.testing.assert_close(found, a @ b)


@compiled
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0), (0, 0, 0, 0)])
def test_a_product_with_nothing_in_it_is_that_of_torch(shape: tuple[int, int, int, int]) -> None:
    batch, m, n, k = shape
    a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
    assert torch.equal(native.products(a, b), torch.bmm(a, b))


@compiled
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [5, 16, 70])
def test_what_is_no_number_reaches_its_row_or_column_and_no_other(n: int, bad: float) -> None:
    a, b = torch.rand(2, 7, 9) + 1, torch.rand(2, 9, n) + 1
    for which, at in (("a", (1, 3, 4)), ("b", (0, 4, n - 1))):
        left, right = a.clone(), b.clone()
        (left if which == "a" else right)[at] = bad
        for order in ("rows", "columns"):
            found = native.products(ORDERS[order](left), ORDERS[order](right))
            torch.testing.assert_close(found, torch.bmm(left, right), equal_nan=True)
            assert (~found.isfinite()).sum() == (n if which == "a" else 7)


# Gates


def values_of_the_gates(channels: int, hidden: int, size: tuple[int, int, int], dtype: torch.dtype) -> Values:
    """By `gates.py`, in numbers that float32 can hold, in maps of different orders and in memory full of NaN."""
    torch.manual_seed(0)
    drawn = [torch.randn(shape) / shape[-1] ** 0.5 for shape in ((hidden, channels), (channels, hidden))]
    w1, w2, b1, b2 = (v.to(dtype) for v in (*drawn, torch.randn(hidden), torch.randn(channels)))
    batch, height, width = size

    def a_map(order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        values = torch.randn(*size, channels).permute(*order, 3).contiguous()
        back = [order.index(axis) for axis in range(3)]
        return values.permute(*back, 3).permute(0, 3, 1, 2).to(dtype)

    x, gradient, further, logits = a_map(), a_map((1, 2, 0)), a_map((0, 2, 1)), a_map((2, 0, 1))
    mlp = w1, b1, w2, b2
    out = torch.full((height, width, batch, channels), torch.nan, dtype=dtype).permute(2, 3, 0, 1)
    of_logits, gated = out.clone(), torch.full_like(x, torch.nan)
    kept = gates.channel_gate(x, mlp, out)
    names = "x", "w1", "b1", "w2", "b2"
    alone = gates.channel_gate_gradients(x, mlp, kept, gradient.clone())
    both = gates.channel_gate_gradients(x, mlp, kept, gradient.clone(), further, logits)
    gates.spatial_gate(x, logits, gated)
    gates.spatial_gate(x, logits, of_logits, gradient)
    found = {"gated": out, "hidden": kept[:, :hidden], "spatial": gated, "of logits": of_logits}
    return (
        found
        | {f"alone {n}": v for n, v in zip(names, alone, strict=True)}
        | {f"both {n}": v for n, v in zip(names, both, strict=True)}
    )


@compiled
@pytest.mark.parametrize("size", [(3, 5, 7), (1, 1, 1), (1, 48, 1), (2, 7, 7)])
@pytest.mark.parametrize("hidden", [1, 4, 16, 17, 32])
@pytest.mark.parametrize("channels", [16, 48, 64])
def test_gates_and_their_gradients_are_those_of_torch(channels: int, hidden: int, size: tuple[int, int, int]) -> None:
    assert native.library() is not None
    exact = values_of_the_gates(channels, hidden, size, torch.float64)  # by torch, whose gates other tests hold
    limit = 2e-6 if hidden > 1 else 2e-5  # the gradient of b1 is then one sum, whose parts cancel
    for number in (1, 2):
        with threads(number):
            found = values_of_the_gates(channels, hidden, size, torch.float32)
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in exact.items()}
        apart = {name: far(found[name], exact[name]) for name in exact}
        assert {name: error for name, error in apart.items() if not error < limit} == {}


@compiled
def test_gates_write_nothing_beside_their_maps() -> None:
    for compute in (gates.spatial_gate, lambda x, logits, out: gates.spatial_gate(x, logits, out, x)):
        memory = torch.full((2 + 2, 5 + 2, 7 + 2, 48 + 32), 7.0)
        out = memory[1:-1, 1:-1, 1:-1, 16:-16].permute(0, 3, 1, 2)
        x = torch.randn(2, 48, 5, 7).contiguous(memory_format=torch.channels_last)
        out.fill_(torch.nan)
        compute(x, x, out)
        assert out.isfinite().all()
        out.fill_(7.0)
        assert (memory == 7.0).all()
    memory = torch.full((2 + 2, 5 + 2, 7 + 2, 48 + 32), 7.0)
    out = memory[1:-1, 1:-1, 1:-1, 16:-16].permute(0, 3, 1, 2)
    gates.channel_gate(
        x, (torch.randn(3, 48), torch.randn(3), torch.randn(48, 3), torch.randn(48)), out.fill_(torch.nan)
    )
    assert out.isfinite().all()
    out.fill_(7.0)
    assert (memory == 7.0).all()


def our_sigmoid(logits: Tensor) -> Tensor:
    rows = torch.nn.functional.pad(logits, (0, -len(logits) % 16)).view(-1, 16, 1, 1)
    return gates.spatial_gate(torch.ones_like(rows), rows, torch.full_like(rows, torch.nan)).flatten()[: len(logits)]


@compiled
def test_a_sigmoid_is_within_three_units_in_the_last_place() -> None:
    """Where it is a normal number, above -87.3. Measured: 2.34, and as much for torch's own."""
    logits = torch.cat([torch.linspace(-87.3, 90, 400_001), torch.linspace(-1e-3, 1e-3, 2001), torch.tensor([-0.0])])
    exact = logits.double().sigmoid()
    unit = torch.exp2(exact.log2().floor() - 23)
    error = ((our_sigmoid(logits).double() - exact).abs() / unit).max().item()
    assert error <= 3, error


@compiled
def test_a_sigmoid_of_a_number_that_is_extreme_is_0_or_1_and_of_none_is_none() -> None:
    least = 1.2e-38  # what float32 has without losing digits
    low = our_sigmoid(torch.tensor([-87.4, -88.0, -89.0, -100.0, -1e4, -3e38, -torch.inf]))
    assert (low >= 0).all() and (low <= least).all()
    assert (our_sigmoid(torch.tensor([20.0, 87, 88, 89, 100.0, 1e4, 3e38, torch.inf])) == 1).all()
    assert our_sigmoid(torch.tensor([torch.nan, -torch.nan])).isnan().all()
    logits = torch.tensor([100.0, -100.0, torch.inf, -torch.inf]).repeat(4).view(1, 16, 1, 1)
    ones = torch.ones_like(logits)
    assert gates.spatial_gate(ones, logits, ones.clone(), ones).abs().max() <= least


@compiled
def test_the_mlps_rectifier_lets_through_what_is_no_number() -> None:
    x = torch.randn(1, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    x[0, 5, 1, 1] = torch.nan
    mlp = torch.randn(2, 16), torch.randn(2), torch.randn(16, 2), torch.randn(16)
    out = torch.empty_like(x)
    gates.channel_gate(x, mlp, out)
    assert out[0, :, 1, 1].isnan().all() and out.isnan().sum() == 16


# Threads


def used(block: GAM, x: Tensor, gradient: Tensor) -> Values:
    return with_gradients(block, x, gradient, block)


def small(engine: str) -> tuple[GAM, Tensor, Tensor]:
    size = (40, 4, 4) if engine == "dense" else (5, 9, 10)
    block, x, gradient = block_and_map(48, 4, "ch+sp", size, torch.float32)
    accelerate(block.float(), engine)
    return block, x.float(), gradient.float()


@compiled
@pytest.mark.parametrize("engine", ON_CPU)
def test_one_thread_and_two_agree_and_the_same_number_gives_the_same_bits(engine: str) -> None:
    given = small(engine)
    runs = []
    for number in (1, 2, 2, 1):
        with threads(number):
            runs.append(used(*given))
    one, two, two_again, one_again = runs
    for name in one:
        assert torch.equal(one[name], one_again[name]) and torch.equal(two[name], two_again[name]), name
        assert far(one[name], two[name].double()) < 2e-6, name


@compiled
@pytest.mark.parametrize("engine", ON_CPU)
def test_other_threads_of_python_may_compute_at_the_same_time(engine: str) -> None:
    given = small(engine)
    wanted = used(*given)
    found: list[Values] = []

    def compute() -> None:
        with threads(1):  # counts in this thread
            found.extend(used(*given) for _ in range(5))

    workers = [threading.Thread(target=compute) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 10
    assert all(far(values[name], wanted[name].double()) < 2e-6 for values in found for name in wanted)


# Compiling


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of a user who never compiled; afterwards what was there before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GAM_COMPILER", raising=False)
    backends.fastest.cache_clear()
    native.library.cache_clear()
    yield tmp_path / "cache" / "gamlib"
    backends.fastest.cache_clear()
    native.library.cache_clear()


def compiler(folder: Path, line: str) -> str:
    """A compiler that is a line of a shell; what names it in GAM_COMPILER."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
    return shlex.quote(str(path))


@pytest.fixture
def quick(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler that does not optimise: what is kept and found again is the same, in a tenth of the time."""
    monkeypatch.setenv("GAM_COMPILER", found := compiler(tmp_path, 'exec cc "$@" -O0'))
    return found


def assert_works(by_native: bool) -> None:
    assert (native.library() is not None) == by_native
    for engine in ("auto", *ON_CPU):
        block, x, gradient = block_and_map(16, 4, "ch+sp", (2, 4, 3), torch.float32)
        accelerate(block, engine)
        exact = with_gradients(block, x, gradient, equations(block))
        found = used(block.float(), x.float(), gradient.float())
        assert max(far(found[name], exact[name]) for name in exact) < 5e-6


@compiled
def test_it_is_compiled_once_and_nothing_else_is_left(cache: Path) -> None:
    assert_works(by_native=True)
    (found,) = cache.iterdir()
    assert found.suffix == ".so"
    time = found.stat().st_mtime_ns
    native.library.cache_clear()
    assert_works(by_native=True)
    assert [*cache.iterdir()] == [found] and found.stat().st_mtime_ns == time


@pytest.mark.parametrize("compiler", ["", " ", "no-such-cc", "false", "true", "'cc", "/"])
def test_without_a_compiler_torch_computes_the_same(
    cache: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAM_COMPILER", compiler)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RuntimeWarning)
        assert_works(by_native=False)
    said = [str(one.message) for one in told if "its C files were not compiled: " in str(one.message)]
    assert len(said) == bool(compiler.strip()), "none is missed where none is wanted"
    assert not cache.exists() or not [path for path in cache.iterdir() if path.suffix != ".so" or "tmp" in path.name]


@pytest.mark.parametrize("line", ["flags\t\t: avx2", "Features\t: fp sve", "CPU part\t: 0xd40", "isa\t\t: rv64gcv"])
def test_another_processor_gets_a_library_of_its_own(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "processor\t: 0\n" + line
    monkeypatch.setattr(Path, "read_text", lambda path: told)
    before = native._processor()
    told = told.replace("processor\t: 0", "processor\t: 1")
    assert native._processor() == before
    told += "2"
    assert native._processor() != before


NOTHING_INSIDE = """
while [ "$1" != -o ]; do shift; done
echo 'int none;' | cc -shared -x c - -o "$2"
"""


@compiled
def test_a_library_without_the_functions_is_not_used_and_not_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAM_COMPILER", compiler(tmp_path, NOTHING_INSIDE))
    with pytest.warns(RuntimeWarning, match="its C files were not compiled"):
        assert_works(by_native=False)
    assert not [*cache.iterdir()]


@compiled
def test_flags_may_follow_a_compilers_name_and_make_another_library(
    cache: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_works(by_native=True)
    native.library.cache_clear()
    monkeypatch.setenv("GAM_COMPILER", f"{quick} -DANOTHER")
    assert_works(by_native=True)
    assert len([*cache.iterdir()]) == 2


@compiled
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["a file in its place", "a file in the place of its parent", "nobody's home"])
def test_a_cache_that_cannot_be_written_is_done_without(
    cache: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    if fault == "a file in its place":
        cache.parent.mkdir()
        cache.touch()
    elif fault == "a file in the place of its parent":
        cache.parent.touch()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def unknown() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", unknown)
    assert_works(by_native=True)


@compiled
@pytest.mark.parametrize("left", [b"", b"not a library", b"\x7fELF\x02\x01\x01"])
def test_a_damaged_library_in_the_cache_is_done_without(cache: Path, quick: str, left: bytes) -> None:
    found = native._compiled(shlex.split(quick), cache)
    found.write_bytes(left)
    assert_works(by_native=True)


BOTH = """
touch {folder}/$$
for _ in $(seq 1000); do [ "$(ls {folder} | wc -l)" -ge 2 ] && break; sleep 0.02; done
exec cc "$@" -O0
"""


@compiled
def test_two_processes_may_compile_at_once_into_one_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compiler waits for the other one."""
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    monkeypatch.setenv("GAM_COMPILER", compiler(tmp_path, BOTH.format(folder=shlex.quote(str(waiting)))))
    command = "from gamlib.kernels import native; raise SystemExit(native.library() is None)"
    with subprocess.Popen([sys.executable, "-c", command]) as other:
        assert_works(by_native=True)
        assert other.wait(60) == 0
    assert len([*waiting.iterdir()]) == 2
    (found,) = cache.iterdir()
    assert found.name.startswith("native-")


# Memory

UNDER_WATCH = """
import torch
from itertools import product
from fuzz import failures
from near import ON_CPU
from gamlib import GAM, accelerate
from gamlib.kernels import native
native.SECONDS = 900  # with the sanitizer the compiler takes minutes
assert native.library() is not None
for number in (1, 2):
    torch.set_num_threads(number)
    for m, n, k in product((1, 2, 5, 6, 7, 13), (1, 3, 16, 17, 31, 64, 65, 130), (1, 4, 7, 64)):
        for turn_a, turn_b in product((False, True), repeat=2):
            a = torch.randn(2, k, m).mT if turn_a else torch.randn(2, m, k)
            b = torch.randn(2, n, k).mT if turn_b else torch.randn(2, k, n)
            torch.testing.assert_close(native.products(a, b), torch.bmm(a, b), rtol=1e-3, atol=1e-3)
    for engine, channels, hidden, submodules in product(ON_CPU, (16, 48, 64), (1, 4, 16), ("ch+sp", "ch", "sp")):
        for size in ((1, 1), (2, 3), (4, 4)) + (((7, 7), (9, 5)) if engine != "dense" else ()):
            block = accelerate(GAM(channels, channels // hidden, submodules), engine)
            x = torch.randn(3, channels, *size, requires_grad=True)
            block(x).sum().backward()
assert not [line for number in range(400) for line in failures(number, seed=1)]
print("watched")
"""


@compiled
@pytest.mark.long
def test_no_memory_is_touched_that_was_not_asked_for(cache: Path, tmp_path: Path) -> None:
    """By GCC's address sanitizer, which also watches torch's memory; and nothing undefined is done."""
    library, exceptions = (
        subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")  # what torch raises passes through the sanitizer
    )
    if not Path(library).is_absolute():
        pytest.skip("no address sanitizer beside this C compiler")
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
    watched = compiler(tmp_path, f'exec cc "$@" -Og {flags}')  # -O3, which it is given, would take four times as long
    environment = {**os.environ, "LD_PRELOAD": f"{library} {exceptions}", "GAM_COMPILER": watched}
    environment |= {"ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0"}
    environment |= {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
    }  # threads that spin would take other tests' cores
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", UNDER_WATCH], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "watched\n"), done.stderr[-3000:]
