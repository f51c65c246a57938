"""The networks of finished runs, as initialised, along training and at its end."""

import warnings
from pathlib import Path

import torch
from torch import nn

from ablation.runs import Run, RunFailed, all_runs
from ablation.studies import Plan
from ablation.study_files import PAPER_STUDIES
from gamlib.backbones import build_model
from gamlib.training.checkpoint import kept, read

GATELESS = ("none", "gam_no_gate")


def finished_runs(dataset: str | None = None) -> list[Run]:
    """The runs with attention, of a data set or of all, that are done and whose last weights are there."""
    return [
        run
        for run in all_runs()[0]
        if dataset in (None, run.config.dataset)
        and run.config.attention not in GATELESS
        and run.result() is not None
        and run.config.epochs in epochs_of(run)
    ]


def runs_by_arm(plan: Plan) -> dict[str, Run]:
    """The first run of each arm with attention that is done and whose weights can be read; a warning names the others.

    Raises:
        RunFailed: there is no such run.
    """
    found: dict[str, Run] = {}
    for arm, configs in plan.arms.items():
        for run in (Run(config) for config in configs if config.attention not in GATELESS):
            if arm in found or run.result() is None:
                continue
            try:
                load_network(run)
                found[arm] = run
            except RunFailed as error:
                warnings.warn(f"not shown: {error}", stacklevel=2)
    if not found:
        name = plan.study.name if plan.study.name in PAPER_STUDIES else f"studies/{plan.study.name}.yaml"
        chosen = "".join(f" -p {key}={value}" for key, value in plan.overrides.items())
        command = f"gamlib study {name} --dataset {plan.dataset} --seeds {','.join(map(str, plan.seeds))}{chosen}"
        raise RunFailed(f"no run with attention of {plan.name} is done: `{command}` makes them")
    return found


def epochs_of(run: Run) -> list[int]:
    """After how many epochs the network of a finished run is known: 0, as initialised, and those that were kept.

    Raises:
        RunFailed: the run is not done.
    """
    if run.result() is None:
        raise RunFailed(f"{run.folder.name} is {run.status().state}: only the gates of a run that is done can be read")
    return [0, *(epoch for epoch in range(1, run.config.epochs + 1) if _weights(run, epoch).exists())]


def load_network(run: Run, epoch: int | None = None) -> nn.Module:
    """The network of a finished run after its last epoch or another one of `epochs_of`, in evaluation mode on the CPU.

    Raises:
        RunFailed: the run is not done, or these weights were not kept, or cannot be read.
    """
    config, known = run.config, epochs_of(run)
    epoch = config.epochs if epoch is None else epoch
    path = _weights(run, epoch)
    if epoch not in known:
        raise RunFailed(
            f"{path} is not there: the weights after epoch {epoch} were not kept or are removed; there are those after "
            f"{', '.join(map(str, known))}. Remove the folder and the same command trains anew"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as training began
        network = build_model(**config.architecture() | ({"weights": None} if epoch else {})).eval()
    if epoch == 0:
        return network
    try:
        state = read(path)
        if state["identity"] != config.identity() or state["epoch"] != epoch:
            raise ValueError("it is of another run or epoch")
        network.load_state_dict(state["model"])
    except (OSError, ValueError, RuntimeError) as error:
        raise RunFailed(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from None
    return network


def load_networks(run: Run) -> dict[int, nn.Module]:
    """The networks of a finished run along training, by `epochs_of`; errors are those of `load_network`."""
    return {epoch: load_network(run, epoch) for epoch in epochs_of(run)}


def _weights(run: Run, epoch: int) -> Path:
    return run.folder / "checkpoint.pt" if epoch == run.config.epochs else kept(run.folder, epoch)
