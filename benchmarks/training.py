"""How fast a training step of gamlib is, against a plain loop, and what each thing that makes it fast is worth.

    python benchmarks/training.py                     about 25 minutes on two cores, see --help
    python benchmarks/training.py --quick             a minute: a small network, nothing compiled, to see that it works
    python benchmarks/training.py --check             that both loops train the same: their losses, step by step

Compared are whole steps, from the images in memory to the new weights, in images per second, and peak memory:
`plain` is `plain_loop.py`: PIL images, transformed one by one by a DataLoader (2 workers, 4 beside a GPU), NCHW, fp32;
`plain-compile` is the same, its network compiled. `gamlib` is `gamlib.training.loop.fit` on `FromMemory`,
channels_last, with memory kept by the allocator (CPU) or bf16 (GPU). The others are gamlib's with one thing changed:
off (`no-channels-last`, `no-kept-memory`, `no-amp`), fed by the plain loop's DataLoader (`dataloader`), or on where it
is off by default (`amp` on a CPU, `compile`, `cuda-graphs`).

The images are random uint8 of 32x32, the classes 10; no data set is needed. `timing.py` says how it is measured. To
know when reading: the plain loop's workers use the same cores, and go on loading for a moment, two batches each, when
it is the others' turn. On a CPU a step takes far longer than loading its batch, so that the plain loop gains nothing by
what it has in store; on a GPU as many steps as that are taken before the clock starts. Convolutions of fp32 may use
TF32 on a GPU, by torch's default, in every variant. Peak memory is the process's largest resident set, with some 400
MiB of Python and torch and without the DataLoader's workers; or the most that torch took of the GPU while the clock
ran, from which CUDA graphs hide a part. `input` is the time to get a batch from `FromMemory` alone, over a step's.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import arguments
import plain_loop
import torch
import typer
from about import about
from timing import CLASSES, Given, Outcome, Work, measure, random_images, variants
from torch import Tensor, nn
from tqdm import tqdm

from ablation.console import out, plain_errors, print_frame
from ablation.errors import ConfigError
from ablation.paths import cores
from ablation.runs import RunFailed
from gamlib import build_model
from gamlib.data.batches import FromMemory
from gamlib.files import write_whole
from gamlib.training import loop
from gamlib.training.recipes import RECIPES

ATTENTIONS = [name for name in build_model.attentions() if name != "abn"]  # whose loss is a sum of two
TOLERANCE, CHECKED = 1e-4, 20  # of losses; steps

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@plain_errors()
def main(
    networks: Annotated[str, typer.Option(help="By default resnet18,resnet50; resnet18 with --check or --quick.")] = "",
    attentions: Annotated[str, typer.Option(help="By default none,gam; gam with --quick.")] = "",
    named: Annotated[str, typer.Option("--variants", help="By default all; plain,gamlib of ResNet-50 on a CPU.")] = "",
    repetitions: Annotated[str, typer.Option(metavar="N", help="Turns of every variant: 5; 2 with --quick.")] = "",
    steps: Annotated[str, typer.Option(metavar="N", help="Of a turn: 3, on a GPU 50; 2 with --quick.")] = "",
    batch_size: Annotated[
        str, typer.Option(metavar="N", help="128; on a CPU 32 for all but ResNet-18; 32 with --check, 16 with --quick.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the width, nothing compiled: does it work?")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare losses; exit with 1 if they differ.")] = False,
    file: Annotated[Path | None, typer.Option("--csv", help="Write the tables here too, every turn's time.")] = None,
) -> None:
    """Training steps of gamlib against a plain loop's: images per second and peak memory.

    By default it takes about 25 minutes on two cores with 24 GB of memory; with --quick or --check a minute or two.
    """
    device = arguments.device(device)
    cuda = device == "cuda"
    work = Work(
        network="",
        attention="",
        width=0.25 if quick else 1.0,
        batch_size=arguments.number("batch_size", batch_size, 32 if check else 16 if quick else 128, least=2),
        device=device,
        threads=cores(),
        warm_up=20 if cuda else 2,
        lead=8 if cuda else 0,
        steps=arguments.number("steps", steps, 2 if quick else 50 if cuda else 3),
        repetitions=arguments.number("repetitions", repetitions, 2 if quick else 5),
    )
    backbones = networks or ("resnet18" if quick or check else "resnet18,resnet50")
    small = {} if cuda or batch_size or check or quick else {"batch_size": 32}  # two of ResNet-50 in 24 GB
    works = [
        replace(work, network=network, attention=attention, **(small if network != "resnet18" else {}))
        for network in arguments.names("networks", backbones, build_model.backbones())
        for attention in arguments.names("attentions", attentions or ("gam" if quick else "none,gam"), ATTENTIONS)
    ]
    chosen = arguments.names("variants", named, variants(cuda)) if named else []
    if check and (named or file):
        raise ConfigError("variants, csv: allowed without --check only")
    if check:
        _check(works)
    else:
        _measure({one: _variants(one, chosen) for one in works}, file)


def _variants(work: Work, chosen: Sequence[str]) -> list[str]:
    """Those for a network; always the plain loop, which the others are compared with."""
    known = variants(work.device == "cuda")
    if work.width < 1:  # to see that it works needs no minutes of compiling
        known = {name: one for name, one in known.items() if not (one.compiled or (one.config and one.config.compile))}
    elif work.device == "cpu" and work.network != "resnet18":
        known = {"gamlib": known["gamlib"]}
    return list(dict.fromkeys(["plain", *(chosen or known)]))


def _measure(plan: dict[Work, list[str]], file: Path | None) -> None:
    rows: list[dict[str, Any]] = []
    work = next(iter(plan))
    gpu = torch.cuda.get_device_name() if work.device == "cuda" else ""
    machine = about(work.device, work.threads) | {"gpu": gpu}
    if file:
        write_whole(file, "")  # a place that cannot be written to is known at once
    turns = sum(len(names) * (1 + work.repetitions) for work, names in plan.items())
    try:
        with tqdm(total=turns, unit="turn", desc="measuring") as bar:
            for work, names in plan.items():
                outcome = measure(work, names, partial(_tell, bar, work))
                new = [vars(work) | _row(work, name, outcome) | machine for name in names]
                rows += new
                if file:
                    write_whole(file, _frame(rows).to_csv(index=False))
                with bar.external_write_mode():
                    _show(work, new)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the tables above are whole") from None
    out.print(
        f"random images; medians of {work.repetitions} turns of {work.steps} steps; spread: least and largest ratio; "
        f"{machine['gpu'] or machine['cpu']}, {work.threads} threads, {machine['date']}, commit {machine['commit']}",
        markup=False,
        highlight=False,
    )
    if any(row["failed"] for row in rows):
        raise RunFailed("not every variant could be measured")


def _tell(bar: "tqdm[Any]", work: Work, variant: str) -> None:
    bar.set_postfix_str(f"{work.network} {work.attention} {variant}")
    bar.update()


def _row(work: Work, name: str, outcome: Outcome) -> dict[str, Any]:
    found, failed = outcome
    row: dict[str, Any] = {"variant": name, "failed": failed.get(name, "")}
    if name not in found:
        return row
    one = found[name]
    row["images_per_second"] = work.batch_size / median(one.seconds)
    if "plain" in found:
        ratios = [theirs / ours for theirs, ours in zip(found["plain"].seconds, one.seconds, strict=True)]
        row |= {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    turns = " ".join(f"{seconds:.6f}" for seconds in one.seconds)
    return row | {"peak_memory_mib": one.peak_mib, "input_share": one.input_share(), "seconds_per_step": turns}


def _show(work: Work, rows: Sequence[dict[str, Any]]) -> None:
    title = f"\n{work.network}, attention {work.attention}, width {work.width:g}, batches of {work.batch_size}"
    out.print(f"{title}, {work.device}", style="bold", markup=False, highlight=False)
    texts = [
        {
            "variant": row["variant"],
            "images/s": row["failed"] or f"{row['images_per_second']:.1f}",
            "against plain": f"{row['ratio']:.2f}" if "ratio" in row else "",
            "spread": f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}" if "ratio" in row else "",
            "peak MiB": "" if row["failed"] else f"{row['peak_memory_mib']:.0f}",
            "input": f"{row['input_share']:.2%}" if row.get("input_share") else "",
        }
        for row in rows
    ]
    print_frame(_frame(texts))


def _frame(rows: Sequence[dict[str, Any]]) -> Any:
    import pandas as pd  # late: the variants' processes import this file too

    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Compared:
    """Both loops over the same steps, and how far apart they are."""

    losses: list[float]  # of the plain loop
    differences: list[float]  # gamlib's losses from those
    rounding: list[float]  # the plain loop's own, when it starts from weights changed in their last bits
    weights: float  # how far the weights end from each other, over how far they have moved
    inputs: float  # largest difference of a pixel as the networks see it


def compare(work: Work, lr: float, *, calm: bool) -> Compared:
    """Train twice from the same weights, on the same images in the same order, without augmentation, in fp32.

    Each loop gets the images through its own pipeline. gamlib's is channels_last, as when it is timed.

    Args:
        work: the network, the size of a batch, the device.
        lr: learning rate.
        calm: start from a classifier of zeros; else rounding grows tenfold in a step, and soon all differ by chance.
    """
    device = torch.device(work.device)
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(False)  # as the plain loop has it; gamlib's sets it
    images = random_images(CHECKED * work.batch_size)
    source = FromMemory(images, device, seed=0)
    numbered = FromMemory(replace(images, train_labels=torch.arange(len(images.train))), device, seed=0)
    order = torch.cat([numbers for _, numbers in numbered.train(0, work.batch_size)]).tolist()
    mean, std = ((value / 255).tolist() for value in (source.mean, source.std))
    loader = plain_loop.loader(images.train, images.train_labels, mean, std, work.batch_size, 0, order)
    batches = list(source.train(0, work.batch_size))
    pairs = zip(batches, loader, strict=True)
    inputs = max(float((ours.cpu() - theirs).abs().max()) for (ours, _), (theirs, _) in pairs)
    torch.manual_seed(0)
    model: Any = build_model(work.network, work.attention, CLASSES, "cifar", width=work.width)
    if calm:
        nn.init.zeros_(model.get_submodule(model.classifier_name).weight)
    start, plain, rounded = _weights(model), copy.deepcopy(model).to(device), copy.deepcopy(model).to(device)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.mul_(1 + torch.finfo(weight.dtype).eps * torch.randint_like(weight, -1, 2))
    losses, again = (plain_loop.train(network, loader, device, lr) for network in (plain, rounded))
    config = replace(RECIPES["cifar"], lr=lr, milestones=(), batch_size=work.batch_size, epochs=CHECKED)
    config = replace(config, channels_last=True)
    single = Given(lambda epoch: [batches[epoch]], work.batch_size, batches[:1])  # fit tells the loss of an epoch
    epochs = loop.fit(model.to(device), single, config)
    differences = [abs(epoch["train_loss"] - loss) for epoch, loss in zip(epochs, losses, strict=True)]
    apart = float((_weights(model) - _weights(plain)).norm() / (_weights(plain) - start).norm())
    return Compared(losses, differences, [abs(a - b) for a, b in zip(again, losses, strict=True)], apart, inputs)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


def _check(works: Sequence[Work]) -> None:
    failed = False
    for work in works:
        typer.echo(f"{work.network} {work.attention}: {CHECKED} steps, six times", err=True)
        rows = []
        for lr, calm in ((0.01, True), (0.1, False)):
            one = compare(work, lr, calm=calm)
            failed |= calm and not max(one.differences) <= max(TOLERANCE, 2 * max(one.rounding))
            for name, values in {"gamlib": one.differences, "plain, last bits changed": one.rounding}.items():
                above = [f"step {step}" for step, value in enumerate(values, 1) if not value <= TOLERANCE]
                row = {"start": "classifier of zeros" if calm else "as initialised", "lr": lr, "from plain": name}
                row |= {"plain's losses": f"{min(one.losses):.3f}–{max(one.losses):.3f}"}
                row |= {"largest difference": f"{max(values):.1e}", f"above {TOLERANCE:g}": (above or ["never"])[0]}
                rows.append(row | {"weights": f"{one.weights:.1e}" if values is one.differences else ""})
        out.print(f"\n{work.network}, attention {work.attention}, batches of {work.batch_size}, {work.device}, fp32")
        print_frame(_frame(rows))
        out.print(f"inputs differ by {one.inputs:.1e} at most", highlight=False)
    out.print(
        f"\nLosses of {CHECKED} steps from the same weights, on the same random images in the same order, each loop\n"
        "with its own input pipeline, without augmentation. `weights`: how far apart they end, over how far they\n"
        "moved. The plain loop against itself, its first weights changed in their last bits, shows what rounding\n"
        "alone does: it grows from step to step, faster at a higher learning rate and with a larger classifier.",
        highlight=False,
    )
    if failed:
        raise RunFailed(f"from a classifier of zeros the losses differ by more than {TOLERANCE:g} and than by rounding")


if __name__ == "__main__":
    app()
