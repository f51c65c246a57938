"""Training of one run, as `notebooks/run.ipynb` calls it."""

import json
import os
import time
from contextlib import nullcontext

import torch
from tqdm.auto import tqdm

from gamlib.backbones import build_model
from gamlib.lab.places import share_of_cores
from gamlib.lab.provenance import provenance, source_hash
from gamlib.lab.runs import BATCH, JOB, Result, Run
from gamlib.training import data, loop
from gamlib.training.recipes import DATASETS


def train(run: Run) -> Run:
    """Train a run's network unless that is done, and leave `metrics.jsonl` and `result.json` in its folder.

    In a terminal or in Jupyter a bar shows the progress; under papermill each epoch prints one line.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    owned = os.environ.get(JOB) == run.signature
    if not owned:  # as a job would: one share of the cores, and so the same bits
        torch.set_num_threads(share_of_cores())
    with nullcontext(True) if owned else run.claim() as mine:
        if mine:
            _train(run, quiet=BATCH in os.environ)
    return run


def _train(run: Run, quiet: bool) -> None:
    config, began = run.config, time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    run.write("provenance.json", json.dumps(provenance(name, torch.get_num_threads()), indent=2))
    images = data.load(config.dataset, config.train_fraction, config.evaluate_on).to(device)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture()).to(device)
    recipe = config.training_recipe()
    dataset = DATASETS[config.dataset]
    steps = len(list(loop.steps(len(images.train), recipe.batch_size, torch.Generator())))
    lines: list[str] = []
    with tqdm(total=recipe.epochs * steps, unit="step", disable=quiet, desc=config.name) as bar:
        for metrics in loop.fit(
            model,
            images,
            recipe,
            seed=config.seed,
            pad=dataset.pad,
            flip=dataset.flip,
            amp=config.amp,
            compile=config.compile,
            channels_last=config.channels_last,
            on_step=bar.update,
        ):
            lines.append(json.dumps(metrics))
            run.write("metrics.jsonl", "\n".join(lines) + "\n")
            bar.set_postfix(loss=f"{metrics['train_loss']:.3f}", error=f"{metrics['top1_error']:.2f} %")
            if quiet:
                print(
                    f"epoch {metrics['epoch']:3.0f}/{recipe.epochs}  loss {metrics['train_loss']:.4f}  "
                    f"top-1 error {metrics['top1_error']:.2f} %  {metrics['images_per_second']:.0f} images/s",
                    flush=True,
                )
    result = Result(
        signature=run.signature,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=time.perf_counter() - began,
        source=source_hash(),
        epochs=recipe.epochs,
        **{key: metrics[key] for key in Result.model_fields.keys() & metrics.keys() - {"epochs", "seconds"}},
    )
    run.write("result.json", result.model_dump_json(indent=2))
