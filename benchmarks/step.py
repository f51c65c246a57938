"""Where the time of a run of `make study` goes: of a training step, of the whole run, and of its notebook.

    python benchmarks/step.py                          four minutes, see --help
    python benchmarks/step.py --arms baseline --quick  seconds, to see that it works

The arms are those of `studies/submodules.yaml`, with the digits and their recipe. What torch.profiler saw of the steps
of some epochs is summed by part: an operator's time is that of the innermost part it belongs to. It cannot look into
GAM's block, which is two operators; of the arms `ch` and `sp` one has its linear layers alone, the other its
convolutions. A run is timed by the CPU time of its one thread, in which other work on the machine counts less than in
wall time, though it takes caches and memory from it. Its notebook, timed by papermill, says what its kernel does beside
training.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest import mock

import arguments
import pandas as pd
import torch
import typer
from about import about
from torch.profiler import ProfilerActivity, profile, record_function

from ablation.config import RunConfig
from ablation.console import out, plain_errors, print_frame
from ablation.execution import train
from ablation.runs import BATCH, Run
from ablation.study_files import find_study
from gamlib import build_model
from gamlib.data import images
from gamlib.data.batches import FromMemory, Stream
from gamlib.files import write_whole
from gamlib.training import checkpoint, loop

STUDY, LEAD = "submodules", 2  # epochs before those that are looked at
PARTS = {  # by the beginning of an operator's name, without that of autograd's own wrapper
    "new memory": ("aten::empty", "aten::resize_"),
    "convolution, forward": ("aten::conv2d",),
    "convolution, backward": ("ConvolutionBackward0",),
    "GAM's block, forward": ("gamlib::gam", "GAMFunction"),
    "GAM's block, backward": ("gamlib::gam_backward", "GAMFunctionBackward"),
    "BatchNorm": ("aten::batch_norm", "NativeBatchNormBackward0"),
    "ReLU": ("aten::relu", "ReluBackward0"),
    "pooling": ("aten::max_pool2d", "aten::adaptive_avg_pool2d", "MaxPool2D", "MeanBackward"),
    "loss": ("aten::cross_entropy_loss", "NllLossBackward0", "LogSoftmaxBackward0"),
    "optimiser": ("Optimizer.",),
    "input": ("input",),
}
LONGEST = sorted(((start, part) for part, starts in PARTS.items() for start in starts), key=lambda one: -len(one[0]))
Row = dict[str, Any]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Recorded(FromMemory):
    """Batches whose making the profiler sees as one part."""

    def train(self, epoch: int, batch_size: int, first: int = 0) -> Stream:
        """See `Batches`."""
        stream = super().train(epoch, batch_size, first)
        while True:
            with record_function("input"):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch


def fitting(config: RunConfig, **options: Any) -> tuple[torch.nn.Module, Iterator[dict[str, float]]]:
    """A run's network and its epochs, without its folder."""
    batches = Recorded(
        images.load(config.dataset), torch.device("cpu"), pad=config.pad, flip=config.flip, seed=config.seed
    )
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture())
    return model, loop.fit(model, batches, config.training(), **options)


def of_step(config: RunConfig, epochs: int) -> Row:
    """Milliseconds of a step by part; `rest` is what no part is made of, Python's and the profiler's own time too."""
    seconds: list[float] = []
    last = 0.0

    def after_step(_: int) -> None:
        nonlocal last
        now = time.process_time()
        seconds.append(now - last)
        last = now

    untested = ({"test_loss": 0.0, "top1_error": 0.0, "top5_error": 0.0}, torch.zeros(0), torch.zeros(0))
    with mock.patch.object(loop, "evaluate", return_value=untested):
        _, fit = fitting(config, on_step=after_step)
        for _ in range(LEAD):
            next(fit)
        plain, last = list[float](), time.process_time()
        for _ in range(epochs):
            seconds, last = [], time.process_time()
            next(fit)
            plain += seconds
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            began = time.perf_counter()  # as the profiler counts, whatever else the processor does
            for _ in range(epochs):
                next(fit)
            profiled = 1e6 * (time.perf_counter() - began)
    found = Counter[str]()
    for event in seen.events():
        found[_part(event)] += event.self_cpu_time_total
    found["rest"] += profiled - found.total()
    step = 1e3 * median(plain)
    return {"step": step} | {part: step * found[part] / profiled for part in [*PARTS, "rest"]}


def _part(event: Any) -> str:
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        if (found := next((part for start, part in LONGEST if name.startswith(start)), None)) is not None:
            return found
        event = event.cpu_parent
    return "rest"


def of_run(config: RunConfig, folder: Path) -> Row:
    """Seconds of CPU time of `train`, by part."""
    found = Counter[str]()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():  # a heartbeat
                return function(*given, **options)
            before, began = found.total(), time.thread_time()
            try:
                return function(*given, **options)
            finally:  # without what parts within it have counted
                found[part] += time.thread_time() - began - (found.total() - before)

        return call

    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"GAM_RUNS": str(folder), BATCH: "1"}))
        for part, holder, name in (
            ("evaluation", loop, "evaluate"),
            ("checkpoints", checkpoint.State, "save"),
            ("metrics and result", Run, "write"),
            ("counting FLOPs", train, "complexity"),
        ):
            stack.enter_context(mock.patch.object(holder, name, timed(part, getattr(holder, name))))
        fit = loop.fit

        def epochs(*given: Any, **options: Any) -> Iterator[dict[str, float]]:
            each = fit(*given, **options)
            while (metrics := timed("steps", next)(each, None)) is not None:
                yield metrics

        stack.enter_context(mock.patch.object(loop, "fit", epochs))
        timed("rest", train.train)(Run(config))
    parts = ("steps", "evaluation", "checkpoints", "metrics and result", "counting FLOPs", "rest")
    return {"run": found.total()} | {part: found[part] for part in parts}


def of_notebook(arm: str, folder: Path) -> Row:
    """Seconds of a run's notebook as papermill has them, and of the cell that trains."""
    command = [sys.executable, "-m", "ablation.cli", "study", STUDY, "--arms", arm, "--seeds", "0"]
    subprocess.run(command, env=os.environ | {"GAM_RUNS": str(folder)}, check=True, stdout=subprocess.DEVNULL)
    notebook = json.loads(next(folder.glob("*/*/run.ipynb")).read_text())
    cells = [cell["metadata"]["papermill"]["duration"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return {"notebook": notebook["metadata"]["papermill"]["duration"], "its training": max(cells)}


@app.command()
@plain_errors()
def main(
    named: Annotated[str, typer.Option("--arms", help="Names of the study's arms.")] = "baseline,ch,sp,ch+sp",
    epochs: Annotated[str, typer.Option(metavar="N", help="Looked at by the profiler: 10; 1 with --quick.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Runs of one epoch, no notebook: does it work?")] = False,
    file: Annotated[Path | None, typer.Option("--csv", help="Write the numbers here too.")] = None,
) -> None:
    """Where the time of a step, a run and its notebook goes, in milliseconds or seconds and percent."""
    number = arguments.number("epochs", epochs, 1 if quick else 10)
    torch.set_num_threads(1)
    plan = find_study(STUDY).plan(seeds="0", **{"epochs": 1} if quick else {})
    rows: list[Row] = []
    for arm in arguments.names("arms", named, plan.arms):
        (config,) = plan.arms[arm]
        with tempfile.TemporaryDirectory() as folder:
            tables = [of_step(config.model_copy(update={"epochs": LEAD + 2 * number}), number)]
            tables += [of_run(config, Path(folder, "run"))]
            tables += [] if quick else [of_notebook(arm, Path(folder, "notebook"))]
        for table in tables:
            (whole, total), *_ = table.items()
            unit = "ms" if whole == "step" else "s"
            rows += [
                {"arm": arm, "of": whole, "part": part, "unit": unit, "value": value, "share": value / total}
                for part, value in table.items()
            ]
    machine = about()
    for whole in ("step", "run", "notebook"):
        if found := [row for row in rows if row["of"] == whole]:
            _show(whole, found)
    out.print(f"{machine['cpu']}, 1 thread, {machine['date']}, commit {machine['commit']}", highlight=False)
    if file:
        write_whole(file, pd.DataFrame([row | machine for row in rows]).to_csv(index=False))


def _show(whole: str, rows: list[Row]) -> None:
    texts: dict[str, Row] = {}
    for row in rows:
        texts.setdefault(row["part"], {"part": row["part"]})[row["arm"]] = f"{row['value']:.2f} ({row['share']:.0%})"
    out.print(f"\na {whole}: {rows[0]['unit']} and percent", style="bold", markup=False, highlight=False)
    print_frame(pd.DataFrame(texts.values()))


if __name__ == "__main__":
    app()
