"""The backends of an accelerated GAM against its equations: numbers, gradients, memory, and when which one is taken."""

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from near import ON_CPU, Values, block_and_map, equations, residual, with_gradients
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ablation.gates.reading import read_gates
from gamlib import GAM, accelerate, build_model, kernels
from gamlib.attention import LowRankGAM, SeparableGAM, UngatedGAM
from gamlib.kernels import backends, fourier, native
from gamlib.kernels.direct import LARGEST

pytestmark = pytest.mark.slow

SUBMODULES = ("ch+sp", "ch", "sp")
TINY = [(1, 1), (1, 4), (2, 2), (4, 4)]
SIZES = [*TINY, (3, 5), (8, 7), (13, 3), (28, 28)]
# Of a norm, in float32: what two exact computations of these small maps may differ by; float64 has nine digits more
WITHIN = {torch.float64: 1e-12, torch.float32: 5e-6}
# ImageNet at 32 images and CIFAR at 64, of ResNet-18
STAGES = [(32, 64, 56), (32, 128, 28), (32, 256, 14), (32, 512, 7), (64, 64, 32), (64, 128, 16), (64, 256, 8)]
STAGES = [*STAGES, (64, 512, 4)]

engines = pytest.mark.parametrize("engine", ON_CPU)
submodules_ = pytest.mark.parametrize("submodules", SUBMODULES)
types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def sizes_of(engine: str) -> list[tuple[int, int]]:
    return [size for size in SIZES if engine != "dense" or max(size) <= LARGEST]


# Tiny maps of float32 are computed in one call of `c/dense.c`, which has a backward pass of its own.
kinds = pytest.mark.parametrize(
    ("engine", "dtype"),
    [*((engine, torch.float64) for engine in ON_CPU), ("dense", torch.float32)],
    ids=[*ON_CPU, "one call"],
)
each = pytest.mark.parametrize(
    ("engine", "size"),
    [pytest.param(engine, size, id=f"{engine}-{size[0]}x{size[1]}") for engine in ON_CPU for size in sizes_of(engine)],
)


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not computed by the plain block fails."""

    def refuse(backend: str, *rest: object) -> Tensor:
        raise AssertionError(f"computed by {backend}")

    monkeypatch.setattr(kernels, "compute", refuse)


@pytest.fixture(params=["native", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Float32 by `native`, and as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler here")
    backends.fastest.cache_clear()
    yield request.param
    backends.fastest.cache_clear()


def fast(channels: int, *values: Any, backend: str = "auto", **options: Any) -> kernels.FastGAM:
    block = accelerate(GAM(channels, *values, **options), backend)
    assert isinstance(block, kernels.FastGAM)
    return block


def block_of(engine: str) -> kernels.FastGAM:
    torch.manual_seed(0)
    block = fast(16, 4, backend=engine)
    for value in block.parameters():
        nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return block


def fitting(engine: str) -> tuple[int, int]:
    return (3, 4) if engine == "dense" else (9, 6)


def given(
    engine: str, dtype: torch.dtype, submodules: str = "ch+sp", reduction: int = 4, size: tuple[int, int] | None = None
) -> tuple[kernels.FastGAM, Tensor, Tensor]:
    block, x, gradient = block_and_map(16, reduction, submodules, (2, *(size or fitting(engine))), dtype)
    accelerate(block.to(dtype), engine)
    assert isinstance(block, kernels.FastGAM)
    return block, x.to(dtype), gradient.to(dtype)


def distances(found: Values, wanted: Values) -> dict[str, float]:
    """Of every tensor to the wanted one, as a part of its norm."""
    assert found.keys() == wanted.keys()
    assert all(found[name].shape == wanted[name].shape for name in wanted)
    pairs = {name: (found[name].double(), value.double()) for name, value in wanted.items()}
    return {
        name: ((ours - value).norm() / value.norm().clamp(min=1e-30)).item() for name, (ours, value) in pairs.items()
    }


def assert_equals_plain(block: kernels.FastGAM, x: Tensor, gradient: Tensor, engine: str) -> None:
    """Values and the gradients of the map and of every parameter."""
    assert block.backend_for(x) == engine
    found = with_gradients(block, x, gradient, block)
    apart = distances(found, with_gradients(block, x, gradient, equations(block)))
    assert {name: far for name, far in apart.items() if not far <= WITHIN[x.dtype]} == {}


# Numbers


@submodules_
@each
def test_values_and_gradients_are_those_of_the_plain_block_at_every_size(
    engine: str, size: tuple[int, int], submodules: str
) -> None:
    assert_equals_plain(*given(engine, torch.float64, submodules, size=size), engine)


@pytest.mark.parametrize("hidden", [1, 2, 16])
@types
@engines
def test_values_and_gradients_are_those_of_the_plain_block_for_any_number_of_hidden_channels(
    engine: str, dtype: torch.dtype, hidden: int
) -> None:
    assert_equals_plain(*given(engine, dtype, reduction=16 // hidden), engine)


def sliced(x: Tensor) -> Tensor:
    """The same numbers, none of them beside another one."""
    return torch.stack([torch.full_like(x, torch.nan), x, x], -1)[..., 1]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a slice": sliced,
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1, :, :1].expand_as(x),
    "one number": lambda x: x[:1, :1, :1, :1].expand_as(x),  # the gradient of a sum
    "one image": lambda x: x[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@types
@engines
def test_memory_order_of_a_map_does_not_matter(engine: str, dtype: torch.dtype, layout: str) -> None:
    block, x, gradient = given(engine, dtype)
    x = LAYOUTS[layout](x)
    assert_equals_plain(block, x, gradient[: len(x)], engine)


@pytest.mark.parametrize("layout", LAYOUTS)
@submodules_
@types
@engines
def test_memory_order_of_a_gradient_does_not_matter(
    engine: str, dtype: torch.dtype, submodules: str, layout: str
) -> None:
    block, x, gradient = given(engine, dtype, submodules)
    gradient = LAYOUTS[layout](gradient)
    assert_equals_plain(block, x[: len(gradient)], gradient, engine)


@pytest.mark.parametrize("layout", ["channels_last", "slices"])
@types
@engines
def test_memory_order_of_the_parameters_does_not_matter(engine: str, dtype: torch.dtype, layout: str) -> None:
    """Training in channels_last puts the weights of convolutions into it too."""
    block, x, gradient = given(engine, dtype)
    for value in block.parameters():
        if layout == "slices":
            value.data = sliced(value.data)
        elif value.ndim == 4:
            value.data = value.data.contiguous(memory_format=torch.channels_last)
    assert_equals_plain(block, x, gradient, engine)


@pytest.mark.parametrize(
    ("engine", "size", "channels", "reduction"),
    [
        pytest.param(engine, size, channels, reduction, id=f"{engine}-{channels}-{reduction}-{size}x{size}")
        for engine, among in {"direct": (7, 8, 14, 56), "fourier": (4, 7, 8, 14, 56), "dense": (1, 2, 4)}.items()
        for size in among
        for channels, reduction in ((64, 16), (32, 4), (48, 2), (512, 16))
        if size <= 8 or channels < 512
    ],
)
def test_float32_is_at_most_twice_as_far_from_float64_as_the_plain_block_is(
    engine: str, size: int, channels: int, reduction: int, arithmetic: str
) -> None:
    """In the order of memory in which that rounds more. Below 1.2e-7, one unit in the last place, all is exact."""
    images = 1 if size > 14 else 4
    block, x, gradient = block_and_map(channels, reduction, "ch+sp", (images, size, size), torch.float32)
    exact = with_gradients(block, x, gradient, equations(block))
    accelerate(block.float(), engine)
    assert isinstance(block, kernels.FastGAM) and block.backend_for(x.float()) == engine
    x, gradient = x.float(), gradient.float()
    orders = [LAYOUTS[order](x) for order in ("NCHW", "channels_last")]
    errors = [distances(with_gradients(block, inputs, gradient, equations(block)), exact) for inputs in orders]
    found = distances(with_gradients(block, x, gradient, block), exact)
    limits = {name: max(*(2 * far[name] for far in errors), 1.2e-7) for name in exact}
    assert {name: (far, limits[name]) for name, far in found.items() if not far <= limits[name]} == {}


@types
@engines
def test_numbers_without_gradients_are_those_with_them(engine: str, dtype: torch.dtype, arithmetic: str) -> None:
    block, x, _ = given(engine, dtype)
    with torch.no_grad():
        found = block(x)
    assert found.grad_fn is None and block(x).grad_fn is not None
    torch.testing.assert_close(found, block(x).detach(), rtol=0, atol=0)


@types
@engines
def test_what_is_no_number_is_not_hidden(engine: str, dtype: torch.dtype, arithmetic: str) -> None:
    """A training that diverges has to be seen: the plain block's NaN are NaN."""
    block, x, _ = given(engine, dtype)
    x[0, 3, 1, 2] = torch.nan
    wanted = equations(block)(x)
    assert wanted.isnan().any() and not wanted.isnan().all()
    assert (block(x).isnan() | ~wanted.isnan()).all()


# Gradients


def tiny(engine: str, submodules: str, dtype: torch.dtype = torch.float64) -> tuple[GAM, Tensor]:
    size, channels = (1, 2, 3) if engine == "dense" else (1, 3, 4), 2 if dtype == torch.float64 else 16
    block, x, _ = block_and_map(channels, 1, submodules, size, dtype)
    accelerate(block.to(dtype), engine)
    x = x.to(dtype).requires_grad_()
    assert isinstance(block, kernels.FastGAM) and block.backend_for(x) == engine
    return block, x


@submodules_
@engines
def test_gradients_are_those_of_differences(engine: str, submodules: str) -> None:
    block, x = tiny(engine, submodules)
    inputs = (x, *block.parameters())
    assert torch.autograd.gradcheck(lambda *_: block(x), inputs, fast_mode=submodules != "ch")
    assert torch.autograd.gradgradcheck(lambda *_: block(x), inputs, fast_mode=True)


@kinds
def test_second_derivatives_are_those_of_the_plain_block(engine: str, dtype: torch.dtype) -> None:
    block, x = tiny(engine, "ch+sp", dtype)

    def penalty(compute: Callable[[Tensor], Tensor]) -> Values:
        (gradient,) = torch.autograd.grad(compute(x).square().sum(), x, create_graph=True)
        inputs = {"x": x, **dict(block.named_parameters())}
        found = torch.autograd.grad(gradient.square().sum(), list(inputs.values()))
        return dict(zip(inputs, found, strict=True))

    assert max(distances(penalty(block), penalty(equations(block))).values()) < WITHIN[dtype]


ONLY: dict[str, Callable[[str], bool]] = {
    "the map": lambda name: name == "x",
    "the weights": lambda name: name != "x",
    "the map and the channel gate": lambda name: not name.startswith("spatial"),
    "the map and the spatial gate": lambda name: not name.startswith("channel"),
    "the channel gate": lambda name: name.startswith("channel"),
    "biases": lambda name: name.endswith("bias"),
    "the last convolution": lambda name: name == "spatial.expand.weight",
}


@pytest.mark.parametrize("only", ONLY)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@kinds
def test_what_is_frozen_gets_no_gradient_and_the_others_get_theirs(
    engine: str, dtype: torch.dtype, twice: bool, only: str
) -> None:
    block, x = tiny(engine, "ch+sp", dtype)
    inputs = {"x": x, **dict(block.named_parameters())}
    for name, value in inputs.items():
        value.requires_grad_(ONLY[only](name))

    def gradients(compute: Callable[[Tensor], Tensor]) -> Values:
        for value in inputs.values():
            value.grad = None
        wanted = [value for value in inputs.values() if value.requires_grad]
        loss = compute(x).square().sum()
        if twice:
            loss = sum(g.square().sum() for g in torch.autograd.grad(loss, wanted, create_graph=True))  # type: ignore[assignment]
        loss.backward()
        return {name: value.grad.clone() for name, value in inputs.items() if value.grad is not None}

    found = gradients(block)
    assert found.keys() == {name for name in inputs if ONLY[only](name)}
    assert max(distances(found, gradients(equations(block))).values()) < WITHIN[dtype]


@engines
def test_a_graph_that_is_kept_gives_the_same_gradients_again(engine: str) -> None:
    block, x, gradient = given(engine, torch.float32)
    inputs = [x.requires_grad_(), *block.parameters()]
    out = block(x)
    first, second = (torch.autograd.grad(out, inputs, gradient, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


# Memory


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("size", [(3, 4), (1, 3), (4, 1)])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "none"])
@submodules_
@engines
def test_output_lies_in_memory_as_that_of_the_plain_block(
    engine: str, submodules: str, gradients: bool, size: tuple[int, int], layout: str
) -> None:
    block, x, _ = given(engine, torch.float32, submodules, size=size)
    x = LAYOUTS[layout](x)
    with torch.set_grad_enabled(gradients):
        strides = [value.stride() for value in (block(x), equations(block)(x), x)]
    along = [axis for axis, number in enumerate(x.shape) if number > 1]
    assert len({tuple(stride[axis] for axis in along) for stride in strides}) == 1


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@submodules_
@kinds
def test_output_may_be_changed_in_place(engine: str, dtype: torch.dtype, submodules: str, layout: str) -> None:
    """A residual block adds its input to it."""
    block, x, gradient = given(engine, dtype, submodules)
    x = LAYOUTS[layout](x)

    found, wanted = (with_gradients(block, x, gradient, residual(compute)) for compute in (block, equations(block)))
    assert max(distances(found, wanted).values()) < WITHIN[dtype]


@submodules_
@engines
def test_input_and_weights_that_change_before_the_backward_pass_are_noticed(engine: str, submodules: str) -> None:
    block, x, _ = given(engine, torch.float32, submodules)
    last = [*block.parameters()][-2 if submodules == "ch" else -1]
    for value in (x, last):
        for compute in (block, equations(block)):
            out = compute(x.requires_grad_())
            with torch.no_grad():
                value.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()


@engines
def test_neither_input_nor_gradient_nor_weights_are_changed(engine: str) -> None:
    block, x, gradient = given(engine, torch.float32)
    held = [x, gradient, *block.parameters()]
    for layout in ("NCHW", "channels_last"):
        x.data, gradient.data = LAYOUTS[layout](x), LAYOUTS[layout](gradient)
        before = [value.detach().clone() for value in held]
        with_gradients(block, x, gradient, block)
        with torch.no_grad():
            block(x)
        assert all(map(torch.equal, held, before))


# Which one is taken


@pytest.mark.parametrize(("batch", "channels", "size"), STAGES)
def test_an_engine_computes_the_stages_of_resnet18(batch: int, channels: int, size: int, arithmetic: str) -> None:
    x = torch.empty(1).expand(batch, channels, size, size)
    assert fast(channels).backend_for(x) in ON_CPU
    with torch.no_grad():
        assert fast(channels, reduction=4).backend_for(x) in ON_CPU


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_the_smallest_maps_are_dense(size: tuple[int, int], arithmetic: str) -> None:
    x = torch.empty(8, 64, *size)
    assert fast(64).backend_for(x) == fast(64, submodules="sp").backend_for(x) == "dense"


@pytest.mark.parametrize(("channels", "one_call"), [(64, True), (64, False), (2048, True)])
def test_small_maps_are_dense_where_that_is_one_call_and_not_much_more_arithmetic(
    channels: int, one_call: bool
) -> None:
    found = backends.fastest(64, channels, 4, 4, channels // 16, True, one_call)
    assert (found == "dense") == (one_call and channels == 64)


def test_a_channel_gate_alone_is_direct() -> None:
    for size in (1, 4, 56):
        assert fast(64, submodules="ch").backend_for(torch.empty(2, 64, size, size)) == "direct"


@engines
def test_the_backend_that_is_asked_for_is_taken(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name, backend in backends.BACKENDS.items():
        forward = backend.forward

        def seen(*rest: Any, name: str = name, forward: Callable[..., list[Tensor]] = forward) -> list[Tensor]:
            taken.append(name)
            return forward(*rest)

        monkeypatch.setattr(backend, "forward", seen)
    block, x, _ = given(engine, torch.float32)
    block(x)
    with torch.no_grad():
        block(x)
    assert block.backend_for(x) == engine and taken == 2 * [engine]


@pytest.mark.usefixtures("no_engines")
def test_plain_is_taken_where_the_one_asked_for_cannot_be() -> None:
    x = torch.randn(1, 16, LARGEST + 1, 2)
    for engine, inputs in (("dense", x), ("dense", x.mT.contiguous()), ("triton", x)):
        block = block_of(engine)
        assert block.backend_for(inputs) == "plain"
        assert torch.equal(block(inputs), equations(block)(inputs))


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    allowed = "auto, plain, direct, fourier, dense, triton"
    block = GAM(16)
    with pytest.raises(ValueError, match=f"^backend='winograd': allowed: {allowed}$"):
        accelerate(block, "winograd")
    assert type(block) is GAM and ", ".join(kernels.CHOICES) == allowed


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize("engine", ["auto", *ON_CPU])
def test_a_usual_call_is_computed_by_an_engine(engine: str) -> None:
    """Without which the tests below would say nothing."""
    block, x = block_of(engine), torch.randn(2, 16, *fitting(engine))
    with pytest.raises(AssertionError, match="computed by"):
        block(x)


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        pytest.param({"groups": 2}, GAM, id="groups"),
        pytest.param({"gate_max_pool": True}, GAM, id="gate_max_pool"),
        pytest.param({}, LowRankGAM, id="low rank"),
        pytest.param({}, SeparableGAM, id="separable"),
        pytest.param({}, UngatedGAM, id="no gate"),
        pytest.param({"submodules": "ch"}, UngatedGAM, id="no channel gate"),
        pytest.param({"submodules": "sp"}, UngatedGAM, id="no spatial gate"),
    ],
)
@engines
def test_variants_are_computed_as_they_are_written(engine: str, options: dict[str, Any], kind: type[GAM]) -> None:
    block = accelerate(kind(16, 4, **options), engine)
    x = torch.randn(1, 16, 3, 3)
    assert isinstance(block, kernels.FastGAM) == (kind is GAM)
    assert torch.equal(block(x), kind.forward(block, x))


def replaced(name: str, layer: Callable[[], nn.Module]) -> Callable[[GAM], None]:
    parent, _, child = name.rpartition(".")
    return lambda block: setattr(block.get_submodule(parent), child, layer())


REPLACED: dict[str, Callable[[GAM], None]] = {
    "dilated": replaced("spatial.squeeze", lambda: nn.Conv2d(16, 4, 7, padding=6, dilation=2, bias=False)),
    "grouped": replaced("spatial.squeeze", lambda: nn.Conv2d(16, 4, 7, padding=3, groups=2, bias=False)),
    "smaller": replaced("spatial.expand", lambda: nn.Conv2d(4, 16, 3, padding=1, bias=False)),
    "with a bias": replaced("spatial.expand", lambda: nn.Conv2d(4, 16, 7, padding=3)),
    "reflecting": replaced(
        "spatial.squeeze", lambda: nn.Conv2d(16, 4, 7, padding=3, bias=False, padding_mode="reflect")
    ),
    "normed": replaced("spatial.squeeze", lambda: nn.Sequential(nn.Conv2d(16, 4, 7, padding=3), nn.BatchNorm2d(4))),
    "another activation": replaced("spatial.relu", nn.SiLU),
    "shuffled": replaced("spatial.shuffle", lambda: nn.ChannelShuffle(2)),
    "another activation of the MLP": replaced("channel.mlp.1", nn.GELU),
    "without a bias": replaced("channel.mlp.0", lambda: nn.Linear(16, 4, bias=False)),
    "dropout": lambda block: block.get_submodule("channel.mlp").append(nn.Dropout(0.0)),  # type: ignore[operator]
    "pruned": lambda block: prune.random_unstructured(block.get_submodule("spatial.squeeze"), "weight", 0.5),
    "weight norm": lambda block: nn.utils.parametrizations.weight_norm(block.get_submodule("channel.mlp.0")),
}


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize("change", REPLACED)
@engines
def test_layers_that_somebody_replaced_are_computed_as_they_are(engine: str, change: str) -> None:
    torch.manual_seed(0)
    block, x = block_of(engine).eval(), torch.randn(1, 16, *((4, 4) if engine == "dense" else (9, 6)))
    REPLACED[change](block)
    assert block.backend_for(x) == "plain"
    assert torch.equal(block(x), equations(block)(x))


@pytest.mark.usefixtures("no_engines")
def test_plain_is_taken_under_autocast_and_for_types_of_half_the_size() -> None:
    block, x = block_of("auto"), torch.randn(1, 16, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == equations(block)(x).dtype
        assert block(x.bfloat16()).dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        assert block.to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.usefixtures("no_engines")
@pytest.mark.parametrize("layer", ["channel", "spatial", "spatial.squeeze", "channel.mlp.2", "all"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_who_looks_at_an_inner_layer_sees_it(layer: str, kind: str) -> None:
    block, x, seen = block_of("auto"), torch.randn(1, 16, 5, 5, requires_grad=True), []
    if layer == "all":
        register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    else:
        register = getattr(block.get_submodule(layer), f"register_{kind}_hook")
    handle = register(lambda module, *rest: seen.append(type(module)))
    try:
        block(x).sum().backward()
    finally:
        handle.remove()
    assert seen
    with pytest.raises(AssertionError, match="computed by"):
        block(x)


def test_a_hook_on_the_block_itself_changes_nothing() -> None:
    block, x, seen = block_of("auto"), torch.randn(1, 16, 5, 5), []
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert block.backend_for(x) in ON_CPU
    assert block(x) is seen[0]


def test_gates_are_read_where_engines_compute() -> None:
    torch.manual_seed(0)
    network, image = nn.Sequential(nn.Conv2d(3, 16, 3), block_of("auto")), torch.randn(3, 8, 8)
    gates = read_gates(network, image)["1"]
    with torch.no_grad():
        inside = network[0](image[None])
        torch.testing.assert_close(inside * gates.factor, network(image[None]), rtol=1e-5, atol=1e-6)
    assert gates.channel is not None and gates.spatial is not None


@pytest.mark.usefixtures("no_engines")
def test_transforms_of_functions_go_through_the_plain_block() -> None:
    block, x = block_of("auto").double(), torch.randn(3, 2, 16, 3, 5, dtype=torch.float64)
    plain = torch.stack([equations(block)(image) for image in x])
    torch.testing.assert_close(torch.func.vmap(block)(x), plain, rtol=0, atol=1e-12)

    def loss(x: Tensor) -> Tensor:
        return block(x).square().sum()

    (wanted,) = torch.autograd.grad(equations(block)(leaf := x[0].clone().requires_grad_()).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), wanted, rtol=0, atol=1e-12)
    tangent = torch.randn_like(x[0])
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(block(forward_ad.make_dual(x[0], tangent)))
    along = torch.func.jvp(equations(block), (x[0],), (tangent,))[1]
    torch.testing.assert_close(dual.tangent, along, rtol=0, atol=1e-12)
    assert along.norm() > 0


def test_a_transformed_function_may_call_a_block_that_it_does_not_transform() -> None:
    block, x, noise = block_of("auto"), torch.randn(2, 16, 3, 5), torch.randn(3, 2, 16, 3, 5)
    found = torch.func.vmap(lambda one: one * block(x))(noise)
    torch.testing.assert_close(found, noise * equations(block)(x))
    found = torch.func.grad(lambda one: (one * block(x)).sum())(noise[0])
    torch.testing.assert_close(found, equations(block)(x).detach())


def test_as_many_operations_are_counted_as_the_plain_block_has() -> None:
    counts = {}
    for backend in ("auto", "plain", "direct", "fourier"):
        block, x = accelerate(GAM(16, 4), backend), torch.randn(2, 16, 9, 6, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            block(x).sum().backward()
        counts[backend] = counter.get_total_flops()
    convolutions, mlp = 2 * 49 * 16 * 4, 2 * 16 * 4
    assert counts == dict.fromkeys(counts, 3 * 2 * 2 * 9 * 6 * (convolutions + mlp))


def test_a_mode_that_sees_operations_sees_two_that_hide_nothing() -> None:
    seen: list[str] = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            seen.append(str(function))
            return function(*arguments, **(options or {}))

    block, x = block_of("auto"), torch.randn(1, 16, 5, 5)
    with Seeing():
        block(x).backward(x)
    names = [name for name in seen if name.startswith("gamlib") or "conv" in name or "mm" in name]
    assert names == ["gamlib.gam.default", "gamlib.gam_backward.default"]


@pytest.mark.usefixtures("no_engines")
@pytest.mark.filterwarnings("ignore")  # jit is deprecated
def test_a_trace_and_an_exported_program_have_the_operations_of_the_equations() -> None:
    block, x = block_of("auto").eval(), torch.randn(2, 16, 5, 5)
    traced = torch.jit.trace(block, x, check_trace=False)
    assert str(traced.inlined_graph).count("aten::_convolution") == 2
    exported = torch.export.export(block, (x,))
    names = [str(node.target) for node in exported.graph.nodes]
    assert (names.count("aten.conv2d.default"), names.count("aten.linear.default")) == (2, 2)
    for program in (traced, exported.module()):
        torch.testing.assert_close(program(x), equations(block)(x))


def network() -> nn.Module:
    torch.manual_seed(0)
    return accelerate(build_model("resnet18", "gam", num_classes=10, stem="cifar", width=0.25))


def test_a_network_is_exported_from_the_plain_form() -> None:
    model, x = network().eval(), torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x,))
    names = [str(node.target) for node in exported.graph.nodes]
    assert names.count("aten.linear.default") == 2 * 8 + 1
    assert names.count("aten.conv2d.default") == 2 * 8 + 20
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_network_compiles_without_graph_breaks() -> None:
    model = network().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

        def trained(run: Callable[[Tensor], Tensor]) -> Values:
            model.zero_grad()
            out = run(x)
            out.square().sum().backward()
            gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            return {"output": out.detach(), **gradients}

        found, wanted = trained(compiled), trained(model)
    finally:
        torch.compiler.reset()
    assert len(wanted) == 1 + len([*model.parameters()])
    assert max(distances(found, wanted).values()) < 1e-9


# State


@pytest.mark.parametrize("backend", kernels.CHOICES)
def test_a_network_keeps_everything_but_its_blocks_classes_and_has_them_back(backend: str) -> None:
    torch.manual_seed(0)
    model, seen = build_model("resnet18", "gam", num_classes=10, stem="cifar", width=0.25).eval(), list[Tensor]()
    block, x = model.get_submodule("layer1.0.bn2.attention"), torch.randn(2, 3, 32, 32)
    block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, modules, kinds = dict(model.named_parameters()), [*model.modules()], [*map(type, model.modules())]
    wanted = model(x)
    assert accelerate(model, backend) is model
    assert sum(isinstance(module, kernels.FastGAM) for module in model.modules()) == 8 * (backend != "plain")
    after = dict(model.named_parameters())
    assert [*after] == [*before] and all(after[name] is value for name, value in before.items())
    assert all(map(torch.Tensor.is_set_to, optimizer.param_groups[0]["params"], after.values()))
    assert [*model.modules()] == modules and not any(module.training for module in modules)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    assert accelerate(accelerate(model, backend), "plain") is model
    assert [*map(type, model.modules())] == kinds and "backend" not in vars(block)
    assert torch.equal(model(x), wanted)


def by_pickle(block: GAM) -> GAM:
    return pickle.loads(pickle.dumps(block))


def by_torch(block: GAM) -> GAM:
    torch.save(block, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch])
@engines
def test_a_block_that_was_used_can_be_copied(engine: str, copied: Callable[[GAM], GAM]) -> None:
    block, x, gradient = given(engine, torch.float32)
    with_gradients(block, x, gradient, block)
    with torch.no_grad():
        block(x)
    other: Any = copied(block)
    assert other.backend_for(x) == engine
    with torch.no_grad():
        assert torch.equal(other(x), block(x))
        nn.init.zeros_(other.get_parameter("spatial.squeeze.weight"))
        assert not torch.equal(other(x), block(x))
        torch.testing.assert_close(other(x), equations(other)(x))


# Transforms of weights that are kept


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `fourier._of_taps` was called for."""
    called: list[Tensor] = []
    compute = fourier._of_taps

    def counted(taps: Tensor, *rest: Any) -> Tensor:
        called.append(taps)
        return compute(taps, *rest)

    monkeypatch.setattr(fourier, "_of_taps", counted)
    return called


def by_optimizer(block: GAM) -> None:
    for value in block.parameters():
        value.grad = torch.ones_like(value)
    torch.optim.SGD(block.parameters(), 0.1).step()


def by_loading(block: GAM) -> None:
    block.load_state_dict({name: 2 * value for name, value in block.state_dict().items()})


def by_assigning(block: GAM) -> None:
    block.load_state_dict({name: 2 * value for name, value in block.state_dict().items()}, assign=True)


def by_data(block: GAM) -> None:
    for value in block.parameters():
        value.data.mul_(2)


def by_other_data(block: GAM) -> None:
    for value in block.parameters():
        value.data = 2 * value.data


def by_one_number(block: GAM) -> None:
    for name in ("spatial.squeeze.weight", "spatial.expand.weight"):
        block.get_parameter(name).detach().numpy()[-1, -1, -1, -1] += 0.5


@pytest.mark.parametrize("change", [by_optimizer, by_loading, by_assigning, by_data, by_other_data, by_one_number])
@types
def test_transforms_of_weights_are_kept_until_the_weights_change(
    change: Callable[[GAM], None], dtype: torch.dtype, transforms: list[Tensor]
) -> None:
    block, x, _ = given("fourier", dtype)
    block.eval()
    with torch.no_grad():
        first = block(x)
        assert torch.equal(block(x), first) and len(transforms) == 2
    change(block)
    with torch.no_grad():
        second = block(x)
        assert len(transforms) == 4 and not torch.equal(second, first)
        assert distances({"": second}, {"": equations(block)(x)})[""] < WITHIN[dtype]
        block(x)
        assert len(transforms) == 4


def test_transforms_of_weights_are_those_of_the_map_at_hand(transforms: list[Tensor]) -> None:
    block, x, _ = given("fourier", torch.float64)
    with torch.no_grad():
        for inputs in (x, x[..., :-2], x, x.transpose(2, 3)):
            torch.testing.assert_close(block(inputs), equations(block)(inputs), rtol=0, atol=1e-12)
        inputs = x.transpose(2, 3)
        done = len(transforms)
        block(inputs.flip(0)[:1])  # of another batch, and of a view
        assert len(transforms) == done
    block.float()
    with torch.no_grad():
        torch.testing.assert_close(block(x.float()), equations(block)(x.float()))


def test_transforms_are_not_kept_where_weights_learn(transforms: list[Tensor]) -> None:
    block, x, _ = given("fourier", torch.float32)
    before = len(fourier._CACHE)
    for times in (1, 2):
        block(x)
        assert len(transforms) == 2 * times
    assert len(fourier._CACHE) == before


def test_transforms_of_weights_that_are_gone_are_gone() -> None:
    gc.collect()
    before = len(fourier._CACHE)
    block, x, _ = given("fourier", torch.float32)
    with torch.no_grad():
        block(x)
    assert len(fourier._CACHE) == before + 2
    del block
    gc.collect()
    assert len(fourier._CACHE) == before


MOMENTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@types
@engines
def test_what_is_kept_of_a_special_moment_serves_later(engine: str, dtype: torch.dtype, moment: str) -> None:
    """Matrices of a map's size are kept in the process; the first call must not leave any that others cannot use."""
    block, x, gradient = given(engine, dtype, size=(4, 3) if engine == "dense" else (11, 2))
    fourier._transforms.cache_clear()
    for context in (MOMENTS[moment], nullcontext, torch.no_grad):
        with context():
            found = block(x)
        assert distances({"": found.detach()}, {"": equations(block)(x).detach()})[""] < WITHIN[dtype]
    assert_equals_plain(block, x, gradient, engine)
