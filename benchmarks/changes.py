"""What a change to the training of `make study` is worth, and whether it changes a bit: epochs in turns, CPU time.

    python benchmarks/changes.py                                         ten minutes, see --help
    python benchmarks/changes.py --arms baseline --epochs 1 --changes again    seconds, to see that it works

Every change trains a network of its own, from the same weights and batches. In each repetition each trains an epoch
with its test and its checkpoint, in an order drawn anew, on one thread. A ratio is of the CPU times of one repetition;
reported are the median of the ratios, and between which two half of them lie. `again` changes nothing: it shows what
is noise. Then come the values of `metrics.jsonl`, and the weights, that are not the same bit by bit.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any
from unittest import mock

import arguments
import pandas as pd
import torch
import typer
from about import about
from step import LEAD, STUDY, fitting
from torch import Tensor

from ablation.config import RunConfig
from ablation.console import out, plain_errors, print_frame
from ablation.execution.train import kept_epochs
from ablation.study_files import find_study
from gamlib.data import batches
from gamlib.files import write_whole
from gamlib.training import loop
from gamlib.training.checkpoint import Checkpoints, State

PRESENT, AGAIN = "present", "again"
Change = Callable[[], AbstractContextManager[Any]]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _optimiser(**options: bool) -> Change:
    return lambda: mock.patch.object(torch.optim, "SGD", partial(torch.optim.SGD, **options))


@contextmanager
def _filled() -> Iterator[None]:
    """As torch has it by default where algorithms are deterministic."""
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _in_parts(network: Any, images: Tensor, config: Any, *, whole: Any = loop.forward) -> Any:
    if torch.is_grad_enabled():
        return whole(network, images, config)
    return torch.cat([whole(network, part, config) for part in images.split(100)])


def _channels_first(config: RunConfig, *, training: Any = RunConfig.training) -> Any:
    return replace(training(config), channels_last=False)


def _every_other(state: State, *, save: Any = State.save) -> None:
    if state.epoch % 2 == 0:
        save(state)


CHANGES: dict[str, Change] = {
    PRESENT: nullcontext,
    AGAIN: nullcontext,
    "new memory filled with NaN": _filled,
    "SGD(foreach=True)": _optimiser(foreach=True),
    "SGD(fused=True)": _optimiser(fused=True),
    "maps in NCHW": lambda: mock.patch.object(RunConfig, "training", _channels_first),
    "inference_mode": lambda: mock.patch.object(
        loop,
        "evaluate",
        torch.inference_mode()(loop.evaluate.__wrapped__),  # type: ignore[attr-defined]
    ),
    "test in batches of 250": lambda: mock.patch.object(batches, "EVALUATION_BATCH", 250),
    "test in batches of 898": lambda: mock.patch.object(batches, "EVALUATION_BATCH", 898),
    "test in parts of 100": lambda: mock.patch.object(loop, "forward", _in_parts),
    "no fsync": lambda: mock.patch("os.fsync"),
    "a checkpoint in two epochs": lambda: mock.patch.object(State, "save", _every_other),
}


@app.command()
@plain_errors()
def main(
    named: Annotated[str, typer.Option("--arms", help="Names of the study's arms.")] = "baseline,ch+sp",
    changed: Annotated[str, typer.Option("--changes", help=f"By default all: {', '.join(CHANGES)}.")] = "",
    epochs: Annotated[str, typer.Option(metavar="N", help="Repetitions: 30.")] = "",
    file: Annotated[Path | None, typer.Option("--csv", help="Write the numbers here too.")] = None,
) -> None:
    """Changes to the training of `make study`, in turns: their CPU time as a ratio, and what has other bits."""
    number = arguments.number("epochs", epochs, 30)
    changes = [PRESENT, *arguments.names("changes", changed or ",".join(CHANGES), CHANGES)]
    torch.set_num_threads(1)
    plan = find_study(STUDY).plan(seeds="0", epochs=LEAD + number)
    rows = [
        {"arm": arm} | row
        for arm in arguments.names("arms", named, plan.arms)
        for row in compare(plan.arms[arm][0], list(dict.fromkeys(changes)), number)
    ]
    machine = about()
    print_frame(pd.DataFrame(rows))
    out.print(f"{number} repetitions; {machine['cpu']}, 1 thread, {machine['date']}, commit {machine['commit']}")
    if file:
        write_whole(file, pd.DataFrame([row | machine for row in rows]).to_csv(index=False))


def compare(config: RunConfig, changes: list[str], number: int) -> list[dict[str, Any]]:
    """A row for each change: milliseconds of an epoch, their ratio to the present, what has other bits."""
    models, epochs, order = dict[str, Any](), dict[str, Any](), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in changes}
    metrics: dict[str, list[dict[str, float]]] = {name: [] for name in changes}
    with ExitStack() as stack:
        for name in changes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            checkpoints = Checkpoints(folder, config.identity(), keep=kept_epochs(20))
            with CHANGES[name]():
                models[name], epochs[name] = fitting(config, checkpoints=checkpoints)
        for _ in range(LEAD + number):
            for name in order.sample(changes, len(changes)):
                with CHANGES[name]():
                    began = time.process_time()
                    metrics[name].append(next(epochs[name]))
                    times[name].append(time.process_time() - began)
    rows = []
    for name in changes:
        ratios = [one / two for one, two in zip(times[name][LEAD:], times[PRESENT][LEAD:], strict=True)]
        half = quantiles(ratios, n=4) if number > 1 else [ratios[0]] * 3
        pairs = list(zip(metrics[name], metrics[PRESENT], strict=True))
        other = [
            key for key in metrics[name][0] if key not in loop.MEASURED and any(a[key] != b[key] for a, b in pairs)
        ]
        states = zip(models[name].state_dict().values(), models[PRESENT].state_dict().values(), strict=True)
        other += [] if all(torch.equal(one, two) for one, two in states) else ["weights"]
        row = {"change": name, "ms": f"{1e3 * median(times[name][LEAD:]):.0f}", "ratio": f"{median(ratios):.3f}"}
        rows.append(row | {"half of them": f"{half[0]:.3f}–{half[2]:.3f}", "other bits": ", ".join(other) or "none"})
    return rows


if __name__ == "__main__":
    app()
