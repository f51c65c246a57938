"""The training loop: one for every network and data set.

It can be stopped at any step, and goes on as if it had not been, to the last bit: every random number follows from the
seed, the epoch and the step. So one seed, device and number of threads give the same losses, errors and weights however
often a training was interrupted; on a GPU as far as its kernels are deterministic.
"""

import ctypes
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gamlib.data.batches import Batches, seed_of, sizes
from gamlib.kernels import accelerate
from gamlib.training.checkpoint import Checkpoints, State
from gamlib.training.choices import Augmentation, average_of, optimizer_of, schedule_of
from gamlib.training.parallel import Group
from gamlib.training.recipes import TrainingConfig

MEASURED = ("seconds", "images_per_second", "peak_memory_mib")  # metrics that another execution gives otherwise
CHECK_EVERY = 50  # steps on a GPU between two looks at the losses: each look waits for the GPU


class Stopped(Exception):
    """Training was asked to stop, and its state saved; the message says by what and where."""


def fit(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    *,
    group: Group | None = None,
    checkpoints: Checkpoints | None = None,
    save_seconds: float = 600.0,
    stop: Callable[[], str] = lambda: "",
    on_step: Callable[[int], object] = lambda done: None,
    on_test: Callable[[Tensor, Tensor], object] = lambda predicted, label: None,
) -> Iterator[dict[str, float]]:
    """Train a network in place, and give the metrics of every epoch when it ends, those before a checkpoint too.

    Losses are cross entropies in nats, errors in percent, `peak_memory_mib` is the GPU's, or the process's on a CPU.
    The test images are looked at once an epoch, for the curve: nothing is chosen by them, and the outcome of a run is
    its last epoch. With `ema` they are looked at with the averaged weights, which the network has when all epochs are
    over. `train_loss` is of the augmented images, and `train_top1_error` counts against the labels before mixing; `lr`
    is that of the epoch's last step.

    Args:
        model: [N, 3, H, W] float -> scores [N, num_classes], on the device. In training mode it may give a tuple of
            them: the first predict and are what the metrics speak of, the loss is the sum over all.
        group: the processes that train together, each calling this; by default this one alone, where the model is.
        checkpoints: where states are kept, at every epoch's end, every `save_seconds` between, and on a stop; training
            goes on from the last one there is.
        stop: asked after every step; a text that is not empty says by what the training is to be stopped.
        on_step: called after every step with the number of steps since the first epoch began.
        on_test: called after every epoch that was trained here, with the predicted classes and labels of `evaluate`.

    Raises:
        FloatingPointError: a loss or weight is not finite; the message names epoch, step and the last good checkpoint.
        Stopped: `stop` said so.
        CheckpointError: a state cannot be saved, or is of another configuration.
    """
    group = group or Group(next(model.parameters()).device)
    device, on_cpu = group.device, group.device.type == "cpu"
    exact = config.deterministic or on_cpu
    torch.use_deterministic_algorithms(exact)
    # By default new memory is then filled with NaN, in case a program reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    if on_cpu:
        keep_memory()
        if config.amp:
            exact_gradients(model)
        accelerate(model, "plain" if config.compile else "auto")  # what is compiled are the equations
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    steps = sizes(batches.train_size, config.batch_size)
    optimizer, augment = optimizer_of(model, config), Augmentation(config)
    schedule, average = schedule_of(optimizer, config, len(steps)), average_of(model, config)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    parts |= {"schedule": schedule} if schedule else {}
    parts |= {"ema": average.module} if average else {}
    state = State(parts, steps, group, checkpoints)
    if average:
        average.n_averaged.fill_(state.epoch * len(steps) + state.step)
    wrapped = group.wrap(model, exact)
    trained = compiled(wrapped, config)
    tested = trained if wrapped is model and not average else compiled(average.module if average else model, config)

    def save_if_due() -> None:
        """Save when asked to stop, or when the time has come: all processes at the same step."""
        by = stop()
        asked, due = group.any(bool(by), time.monotonic() - state.saved_at > save_seconds)
        if asked or due:
            state.refuse_divergence()
            state.save()
        if asked:
            where = f"epoch {state.epoch + 1} of {config.epochs} after {state.step} of {len(steps)} steps"
            raise Stopped(f"stopped by {by or 'another process'} in {where}")

    yield from state.metrics
    while state.epoch < config.epochs:
        save_if_due()
        began = time.perf_counter() - state.seconds
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model.train()
        if schedule is None:
            state.lr = config.lr_at(state.epoch)
            for parameters in optimizer.param_groups:
                parameters["lr"] = state.lr
        with closing(batches.train(state.epoch, config.batch_size, state.step)) as stream:
            for images, labels in stream:
                torch.manual_seed(seed_of(config.seed, state.epoch, state.step, group.rank))  # augmentation, dropout
                images, mixing = augment(images)
                outputs = forward(trained, images, config)
                branches = outputs if isinstance(outputs, tuple) else (outputs,)
                targets = labels if mixing is None else mixing @ F.one_hot(labels, branches[0].shape[1]).float()
                losses = [
                    F.cross_entropy(scores.float(), targets, label_smoothing=config.label_smoothing, reduction="sum")
                    for scores in branches
                ]
                share = 1 / steps[state.step]  # of the whole batch, of which this process may have a part
                optimizer.zero_grad()
                # Gradients are averaged over the processes, and the loss is the sum over all.
                (torch.stack(losses).sum() * (share * group.world)).backward()
                optimizer.step()
                if schedule is not None:
                    state.lr = float(schedule.get_last_lr()[0])
                    schedule.step()
                if average is not None:
                    average.update_parameters(model)
                state.losses[state.step] = losses[0].detach() * share
                state.wrong += (branches[0].argmax(1) != labels).sum()
                state.step += 1
                state.seconds = time.perf_counter() - began
                on_step(state.epoch * len(steps) + state.step)
                if on_cpu or state.step % CHECK_EVERY == 0:
                    state.refuse_divergence()
                save_if_due()
        state.refuse_divergence()
        metrics = {"epoch": state.epoch + 1, "lr": state.lr} | state.training_metrics()
        state.seconds = time.perf_counter() - began

        model.eval()
        # Several processes may have unequally many test batches: those listen again when they are through.
        listen = save_if_due if group.world == 1 else lambda: None
        of_test, *predictions = evaluate(tested, batches, group, config, listen)
        metrics |= of_test
        if not math.isfinite(loss := metrics["test_loss"]):
            raise FloatingPointError(f"training diverged: the test loss is {loss} {state.place()}")
        metrics |= {"seconds": state.seconds, "images_per_second": sum(steps) / state.seconds}
        metrics |= {"peak_memory_mib": peak_memory(device)}
        on_test(*predictions)
        state.end_epoch(metrics)
        yield metrics
    if average is not None:
        model.load_state_dict(average.module.state_dict())


@torch.no_grad()
def evaluate(
    network: Any, batches: Batches, group: Group, config: TrainingConfig, on_batch: Callable[[], object] = lambda: None
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Look once at every test image; every process of the group must call this, and each gets all of it.

    Args:
        network: in evaluation mode; it computes as it is trained by this `config`, see `forward`.
        on_batch: called after every batch.

    Returns:
        The metrics of the test; the predicted classes, int64 [test_size], which the errors count; and the labels.
    """
    loss = torch.zeros((), dtype=torch.float64, device=group.device)
    every = torch.zeros(3, batches.test_size, dtype=torch.int64, device=group.device)  # what is returned, hits in five
    parts: list[Tensor] = [every[:, :0]]
    with closing(batches.test()) as stream:
        for images, labels in stream:
            scores = forward(network, images, config).float()
            loss += F.cross_entropy(scores, labels, reduction="sum")
            # Of equal scores, which bfloat16 often gives, the lower class is first, as with `argmax`.
            best = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
            parts.append(torch.stack([best[:, 0], labels, (best == labels[:, None]).any(1).long()]))
            on_batch()
    every[:, group.rank :: group.world] = torch.cat(parts, dim=1)
    predicted, label, hit = group.total(every).cpu()
    number, misses, misses_in_five = len(label), int((predicted != label).sum()), int((hit == 0).sum())
    errors = {"top1_error": 100 * misses / number, "top5_error": 100 * misses_in_five / number}
    return {"test_loss": float(group.total(loss)) / number, **errors}, predicted, label


def compiled(model: nn.Module, config: TrainingConfig) -> Any:
    """What is called in a model's place: the model, or what torch.compile makes of it."""
    mode = "reduce-overhead" if config.cuda_graphs else "default"
    return torch.compile(model, dynamic=False, mode=mode) if config.compile else model


def forward(network: Any, images: Tensor, config: TrainingConfig) -> Any:
    """What a network, or what wraps or compiles it, gives for images [N, 3, H, W], in training and in tests alike.

    Under bfloat16 autocast or not, and in one order of memory, since other orders round otherwise.
    """
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp):
        return network(images.contiguous(memory_format=layout))


def keep_memory() -> None:
    """On a CPU, have the C library keep what a step frees for the next: the system would clear every page anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    m_trim_threshold, m_mmap_threshold = -1, -3
    # The second is the most that glibc before 2.35 takes.
    if mallopt is not None and (mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)):
        mallopt(m_trim_threshold, 2**31 - 1)


class _Conv2d(nn.Conv2d):
    """A convolution that autocast leaves in float32 where the kernel, dilated, is larger than what it goes over.

    On a CPU with bfloat16 instructions torch 2.11 (oneDNN) does not write all of the weight's gradient of such a
    convolution in bfloat16: where the kernel meets nothing but padding, which is most of a 7x7 one over 1x1 or 2x2
    pixels, whatever lay in memory stays and is taken for a gradient. It should be zero there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As torch's own."""
        extents = (1 + step * (taps - 1) for step, taps in zip(self.dilation, self.kernel_size, strict=True))
        if any(extent > size for extent, size in zip(extents, input.shape[2:], strict=True)):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def exact_gradients(model: nn.Module) -> None:
    """Make a network's convolutions safe for bfloat16 autocast on a CPU, in place: same parameters and names."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = _Conv2d


def peak_memory(device: torch.device) -> float:
    """In MiB: the most that torch took of the GPU in this epoch, or that this process had of the main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
