"""How fast GAM is here, against the block as people write it, the block that is widely copied, and other mechanisms.

    gamlib bench                                       about 10 minutes on two cores, see --help
    gamlib bench --quick                               half a minute: small maps and networks, to see that it works
    gamlib bench --parts blocks --shapes tiny --subjects 'ours,ours r=4,copied' --csv table.csv
    python benchmarks/gam.py                           the same

`plain` is the block as it is written: permute, Linear, NCHW convolutions, eager. `ours` is `accelerate(GAM(channels))`
with a channels_last map, as gamlib's loop has it; `copied` is what circulates under the paper's name (r = 4, biases,
BatchNorm), and `ours r=4` does its arithmetic in our block. Before anything is timed, their outputs and gradients are
compared with plain's and with float64's; a block whose numbers are not plain's within rounding is not timed, and the
command exits with 1. `error` is ours from float64 over plain's own.

All subjects of a shape are called in turns in one process (`turns.py`), fp32 on a CPU, bfloat16 on a GPU (with --amp
weights stay fp32, under autocast), or as --dtype says; a GPU's convolutions of fp32 may use TF32, by torch's default.
`training` is forward and backward, with gradients of the map and all weights, `inference` forward in eval mode without
autograd; on a GPU --csv has the backward pass alone too, and the peak of memory that a call adds. GFLOP/s are the plain
algorithm's arithmetic over the time, whatever is computed instead: the MLP and 2x49 taps, padding too, three times that
for training; less arithmetic can so exceed the peak, which is the larger of a matrix product and the best convolution
measured here. The share of bandwidth is what must be moved at least (forward: the map read, the output written;
training: the map and the gradient read again, a gradient written) over what a copy moves in that time; maps that a
cache holds can exceed it.

Networks are measured in processes of their own (`networks.py`): a training step of ResNet-18 + GAM at 32x32 in gamlib's
loop, and as people train it, NCHW with the allocator as it is; the same for the network of `make study`, half as wide,
on one core, behind a stem that leaves maps from 8x8 to 1x1; and what ResNet-50 + GAM at 224x224 holds for its backward
pass. The C library's allocator is left as it is for the blocks, unless --keep-memory has it as the loop has.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import agreement
import arguments
import blocks
import networks
import tables
import torch
import typer
from about import about
from agreement import Agreement
from blocks import KNOWN, Block, Setting, Shape
from tqdm import tqdm
from turns import Peaks, Plan, in_turns, peaks, ratios

from ablation.console import plain_errors
from ablation.errors import ConfigError
from ablation.paths import cores
from ablation.runs import RunFailed
from gamlib.files import write_whole
from gamlib.training.loop import keep_memory

PARTS = ("blocks", "step", "study", "memory")
Row = dict[str, Any]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@plain_errors()
def main(
    parts: Annotated[str, typer.Option(help="By default all: blocks,step,study,memory.")] = "",
    shapes: Annotated[
        str, typer.Option(help=f"By default all: {', '.join(blocks.GROUPS)}; on a GPU those of ImageNet.")
    ] = "",
    subjects: Annotated[
        str,
        typer.Option(help="Such as 'plain,ours r=4'; by default those that are compared at a shape; all; compiled."),
    ] = "",
    seconds: Annotated[str, typer.Option(metavar="N", help="Of a shape's repetitions: 12; 1 with --quick.")] = "",
    repetitions: Annotated[str, typer.Option(metavar="N", help="At least: 5; 2 with --quick.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Under torch.compile too; by default on a GPU.")
    ] = None,
    implementations: Annotated[
        bool, typer.Option("--implementations", help="Every backend of ours, where it can be used.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="By default float32, on a GPU bfloat16; or both, with a comma.")] = "",
    amp: Annotated[bool, typer.Option("--amp", help="On a GPU: fp32 weights under autocast.")] = False,
    kept: Annotated[
        bool, typer.Option("--keep-memory", help="Blocks with the allocator as gamlib's loop has it.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small maps and networks: does it work?")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables as benchmarks/README.md has them.")] = False,
    file: Annotated[
        Path | None, typer.Option("--csv", help="Write all rows here too, every repetition's time.")
    ] = None,
) -> None:
    """GAM against the plain block, the widely copied one and other mechanisms: blocks, a training step, memory.

    By default it takes about 10 minutes on two cores; with --quick half a minute; --compile takes minutes more.
    """
    device = arguments.device(device)
    cuda = device == "cuda"
    if amp and not cuda:
        raise ConfigError("amp: allowed with device='cuda' only")
    if amp and dtype:
        raise ConfigError(f"dtype={dtype!r}: allowed without --amp only")
    types = arguments.names("dtype", dtype or ("bfloat16" if cuda and not amp else "float32"), ("bfloat16", "float32"))
    chosen = arguments.names("parts", parts, PARTS) if parts else list(PARTS)
    default = [group for group in blocks.GROUPS if "ImageNet" in group] if cuda else list(blocks.GROUPS)
    groups = arguments.names("shapes", shapes, blocks.GROUPS) if shapes else default
    maps = blocks.SMALL if quick and not shapes else [one for group in groups for one in blocks.shapes(group, cuda)]
    also = {"compiled": cuda if compiled is None else compiled, "backends": implementations, "gates": cuda}
    many = {"all": blocks.SUBJECTS, "compiled": blocks.ALL_COMPILED}
    if subjects:
        named = arguments.names("subjects", subjects, [*many, *KNOWN])
        wanted = ["plain", *(one for name in named for one in many.get(name, [name]))]
        names = {one: list(dict.fromkeys(wanted)) for one in maps}
    else:
        names = {one: blocks.subjects(one, **also) for one in maps}
    plan = Plan(
        arguments.number("seconds", seconds, 1 if quick else 12),
        arguments.number("repetitions", repetitions, 2 if quick else 5),
    )
    settings = [Setting(device, getattr(torch, name), amp) for name in types]
    works = networks.works(device, cores(), quick)
    if file:
        write_whole(file, "")  # a place that cannot be written to is known at once
    torch.set_num_threads(cores())
    if kept and not cuda:
        keep_memory()
    total = sum(2 * len(some) for some in names.values()) * len(types) if "blocks" in chosen else 0
    total += sum(networks.turns(works[part]) for part in ("step", "study") if part in chosen)
    total += len(networks.MEMORY) * ("memory" in chosen)
    show = tables.Tables(markdown)
    machine = about(device, cores()) | {"gpu": torch.cuda.get_device_name() if cuda else "", "command": _command()}
    try:
        with tqdm(total=total, unit="turn", desc="measuring") as bar:
            bench = _Bench(settings[0], plan, peaks(device, settings[0].maps, quick), machine, file, bar)
            for setting in settings if "blocks" in chosen else ():
                if setting is not bench.setting:
                    bench.setting, bench.peaks = setting, peaks(device, setting.maps, quick)
                for shape, some in names.items():
                    bench.shape(shape, some)
                with bar.external_write_mode():
                    show.blocks(bench.rows, setting)
            for part in [part for part in works if part in chosen]:
                rows = bench.network(part, works[part])
                with bar.external_write_mode():
                    show.network(part, works[part].title, rows)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the tables above, and the rows of --csv, are whole") from None
    show.footer(bench.rows, bench.peaks, machine, cores(), kept or cuda)
    for name, why in blocks.missing().items():
        if any(name in some for some in names.values()):
            show.note(f"{name}: not measured: {why}")
    if any(row["failed"] for row in bench.rows if row["subject"] not in blocks.missing()):
        raise RunFailed("not everything could be measured, or agrees")


def _command() -> str:
    return shlex.join(["gamlib", "bench", *sys.argv[1:]])


@dataclass
class _Bench:
    """Measures, and collects rows: one for each subject, mode and what it is compared with."""

    setting: Setting
    plan: Plan
    peaks: Peaks
    machine: Row
    file: Path | None
    bar: "tqdm[Any]"
    rows: list[Row] = field(default_factory=list)

    def shape(self, shape: Shape, names: Sequence[str]) -> None:
        """Measure blocks at a shape."""
        agreements: dict[str, Agreement | None] = {}
        ready, failed = dict[str, Block](), {name: why for name, why in blocks.missing().items() if name in names}
        torch.compiler.reset()
        for name in names:
            self._tell(f"{shape} {name}")
            if name in failed:
                continue
            try:
                agreements[name] = found = agreement.agreement(name, shape, self.setting)
                if found is not None and not found.holds(self.setting.maps):
                    failed[name] = f"other numbers than {KNOWN[name].same}: {found}"
                    continue
                ready[name] = block = Block(name, shape, self.setting)
                for mode in blocks.modes(name, self.setting):
                    block.call(mode)
            except Exception as error:  # a compiler that is not there, memory that is not enough
                ready.pop(name, None)
                failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if unused := [
            name for name in ready if name in blocks.BY_BACKEND and ready[name].backend["training"] != name[5:]
        ]:
            ready = {name: block for name, block in ready.items() if name not in unused}
        calls = {
            (name, mode): partial(block.call, mode)
            for name, block in ready.items()
            for mode in blocks.modes(name, self.setting)
        }
        times = in_turns(calls, self.plan, self.setting.device, [name for name in ready if KNOWN[name].scale])
        self.bar.update(len(names))
        where = {"part": "blocks", "network": shape.network, "map": str(shape)}
        where |= {"dtype": self.setting.name, "device": self.setting.device}
        new: list[Row] = [where | {"subject": name, "failed": why} for name, why in failed.items()]
        for name, mode in times:
            row = (
                where
                | {"subject": name, "mode": mode, "failed": ""}
                | self._block(ready[name], mode, times[name, mode])
            )
            if (found := agreements[name]) is not None:
                row |= vars(found)
            new += _compared(row, {base: times.get((base, mode)) for base in KNOWN[name].bases})
        self._keep(new)

    def _block(self, block: Block, mode: str, times: list[float]) -> Row:
        seconds, flops = median(times), block.flops(mode)
        row: Row = {"backend": block.backend.get(mode, ""), "seconds": seconds}
        if flops:
            gflops = flops / seconds / 1e9
            row |= {"gflops": gflops, "of_peak": gflops / self.peaks.gflops}
        row["of_copy"] = block.least_bytes(mode) / seconds / 1e9 / self.peaks.copy_gb
        return row | {"peak_mib": block.peak_mib(mode), "repetitions": len(times), "times": list(times)}

    def network(self, part: str, work: networks.Work) -> list[Row]:
        """Measure training steps, or memory."""
        found, failed = (networks.memory if part == "memory" else networks.step_times)(work, self._tell)
        where = {
            "part": part,
            "network": work.title,
            "device": work.device,
            "dtype": "bfloat16" if work.device == "cuda" else "float32",
        }
        new: list[Row] = [where | {"subject": name, "failed": why} for name, why in failed.items()]
        bases: dict[str, list[float] | None] = {"plain NCHW": [one for one, _ in found.get("plain NCHW", ())]}
        for name, answers in found.items():
            first, peak = [one for one, _ in answers], max(peak for _, peak in answers)
            row = where | {"subject": name, "failed": "", "peak_mib": peak}
            if part == "memory":
                row |= {"held_mib": first[0]}
                if "plain NCHW" in found:
                    held, most = found["plain NCHW"][0]
                    row |= {"held_ratio": first[0] / held, "peak_ratio": peak / most}
                new.append(row)
                continue
            row |= {"mode": "training", "seconds": median(first), "repetitions": len(first), "times": first}
            if own := [one for one, _ in found.get(networks.WITHOUT.get(name, ""), ())]:
                row |= dict(zip(("cost", "cost_min", "cost_max"), ratios(first, own), strict=True))
            new += _compared(row, bases if name not in bases else {})
        self._keep(new)
        return new

    def _keep(self, new: list[Row]) -> None:
        self.rows += [row | self.machine | vars(self.peaks) for row in new]
        if self.file:
            texts = [row | {"times": " ".join(f"{one:.7f}" for one in row.get("times", ()))} for row in self.rows]
            write_whole(self.file, tables.frame(texts).to_csv(index=False))

    def _tell(self, what: str) -> None:
        self.bar.set_postfix_str(what)
        self.bar.update()


def _compared(row: Row, bases: dict[str, list[float] | None]) -> list[Row]:
    """The row once for each base that was measured; as it is if there is none."""
    rows = [
        row | {"base": base} | dict(zip(("ratio", "ratio_min", "ratio_max"), ratios(times, row["times"]), strict=True))
        for base, times in bases.items()
        if times
    ]
    return rows or [row]


if __name__ == "__main__":
    app()
