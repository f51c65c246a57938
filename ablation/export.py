"""A trained network to give away: weights, configuration and a model card, which `gamlib.load` reads."""

import json
from contextlib import suppress
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import Any

from ablation.config import RunConfig, title
from ablation.gates.runs import normalisation
from ablation.named_files import copied
from ablation.paths import runs_root
from ablation.results import frames, statistics
from ablation.runs import Run, RunFailed
from ablation.status import Result
from ablation.studies import Plan
from gamlib.data.datasets import FOLDER, DatasetError
from gamlib.files import replacing, write_whole
from gamlib.sources import split_hash, without_folder

CARD = """# {name}

{question}

| | |
|---|---|
{rows}

## Use
```python
import gamlib

network = gamlib.load("this folder")  # in evaluation mode: [N, 3, H, W] -> scores [N, {classes}]
```
{normalised}{code}

## What it is not for
It is one run of an ablation study: it was trained to compare attention mechanisms, not to be used. What it does with
images other than {images} is unknown. Its scores are not calibrated. The interval above is of the test images alone;
another seed gives another network.

## Where it comes from
{origin}
"""


def find_run(name: str) -> Run:
    """A run by the path of its folder, or by the folder's name, of which the beginning will do if it is the only one.

    Raises:
        RunFailed: there is no such run, or there are several.
    """
    folders = (
        [Path(name)] if (Path(name) / "config.json").is_file() else sorted(runs_root().glob(f"*/{escape(name)}*/"))
    )
    if len(folders) != 1:
        which = ", ".join(folder.name for folder in folders[:5]) or "`gamlib status` lists the runs"
        raise RunFailed(f"run {name!r}: {'several begin so' if folders else 'there is none of that name'}: {which}")
    try:
        values = json.loads((folders[0] / "config.json").read_text())
        values.pop("signature")
        run = Run(RunConfig.recorded(values))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunFailed(f"{folders[0]} is no run: config.json: {error}") from None
    run.folder = folders[0].absolute()
    return run


def export(run: Run, folder: Path) -> list[Path]:
    """Write `model.safetensors`, `config.json`, `README.md` and the file of a mechanism of one's own; their paths.

    Raises:
        RunFailed: the run is not done, or its weights or predictions cannot be used.
    """
    import torch
    from safetensors.torch import save

    from gamlib import load

    result = run.result()
    if result is None:
        raise RunFailed(f"{run.folder.name} is {run.status().state}: only a run that is done can be exported")
    try:
        network = load(run.folder)
        predicted, label = frames.read_predictions(run)
    except (OSError, ValueError, KeyError) as error:
        raise RunFailed(f"{run.folder.name} cannot be exported: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    values = {**run.config.model_dump(), "attention": without_folder(run.config.attention), "signature": run.signature}
    values["dataset"] = _dataset(run.config)
    if values["weights"]:
        values["weights"] = Path(split_hash(values["weights"])[0]).name
    written = [folder / "model.safetensors", folder / "config.json", folder / "README.md"]
    with replacing(written[0]) as file:
        file.write(save({key: value.contiguous() for key, value in network.state_dict().items()}))
    write_whole(written[1], json.dumps(values, indent=2) + "\n")
    attention = copied(copied(run.config.attention, run.folder), folder)
    own = [Path(split_hash(attention)[0].rpartition(":")[0])] if attention != run.config.attention else []
    with torch.no_grad():
        classes = network(torch.zeros(1, 3, 64, 64)).shape[1]
    write_whole(written[2], _card(run, result, classes, int((predicted != label).sum()), len(label), own))
    return [*written, *own]


def _card(run: Run, result: Result, classes: int, misses: int, images: int, own: list[Path]) -> str:
    from scipy.stats import binomtest

    config = run.config
    low, high = (100 * end for end in binomtest(misses, images).proportion_ci(method="wilson"))
    rows = {
        "network": f"{config.backbone} at width {config.width:g}, {result.parameters:,} parameters",
        "attention": without_folder(config.attention) + "".join(f", {k}={v}" for k, v in _options(config).items()),
        "data": f"{_dataset(config)}, {images} {config.evaluate_on} images",
        "top-1 error": f"{result.top1_error:.2f} % ({low:.2f} to {high:.2f} %: Wilson's 95 % interval over images)",
        "top-5 error": f"{result.top5_error:.2f} %",
        "training": f"seed {config.seed}, {config.epochs} epochs, {result.seconds:.0f} s",
    }
    question = "One run that belongs to no study that was submitted here."
    for plan in Plan.saved():
        for arm, configs in plan.arms.items():
            if run.signature in {other.signature for other in configs}:
                question = f"Arm **{arm}** of the study {plan.study.name}: {plan.study.question}"
                rows |= _of_arm(configs)
    normalised = "Images are normalised as those that it was trained on, by their mean and deviation."
    with suppress(DatasetError, OSError):
        mean, std = (tuple(round(float(v), 3) for v in value.flatten()) for value in normalisation(config))
        normalised = f"Images are normalised by channel: (x - {mean}) / {std}, x from 0 to 255."
    code = f"\n\nLoading executes [{own[0].name}]({own[0].name}), which defines the mechanism." if own else ""
    return CARD.format(
        name=config.name,
        question=question,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        classes=classes,
        normalised=normalised,
        code=code,
        images=_dataset(config),
        origin=_origin(run),
    )


def _dataset(config: RunConfig) -> str:
    """A data set as it is called, without the folder that it lies in."""
    return Path(title(config.dataset)).name.removeprefix(FOLDER)


def _options(config: RunConfig) -> dict[str, Any]:
    fields = ("submodules", "reduction", "groups", "gate_max_pool", "stages")
    return {key: value for key in fields if (value := getattr(config, key)) is not None} | (config.options or {})


def _of_arm(configs: list[RunConfig]) -> dict[str, str]:
    """The arm's mean over its finished seeds, if there are several."""
    errors = [result.top1_error for result in (Run(config).result() for config in configs) if result is not None]
    if len(errors) < 2:
        return {}
    low, high = statistics.ci95(errors)
    mean, half = sum(errors) / len(errors), (high - low) / 2
    return {"the arm's top-1 error": f"{mean:.2f} ± {half:.2f} % (mean and 95 % interval over {len(errors)} seeds)"}


def _origin(run: Run) -> str:
    try:
        origin = json.loads((run.folder / "provenance.json").read_text())
        versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
        made = (
            f"gamlib at commit {origin['commit'] or 'unknown'}, code {origin['source']}; {versions}; {origin['device']}"
        )
    except (OSError, ValueError, KeyError):
        made = "gamlib; provenance.json is not there"
    ended = datetime.fromtimestamp((run.folder / "result.json").stat().st_mtime).date()
    return f"{made}. It ended on {ended}; signature {run.signature}."
