"""Published runs, trained again: whether that gives what was published.

A run that is trained again is
    bit-identical: all metrics of every epoch but times and memory, the predictions and the errors are those published;
    within its arm's interval: its top-1 error and the published one both lie within the 95 % prediction interval of the
        arm's other published seeds. Another processor or version of torch rounds otherwise, and a training amplifies
        that to what another seed would give; so this is how far one more run of the arm may lie, not the narrower
        interval of the mean. The published error itself is left out of it, or a false one would vouch for itself. Of
        honest runs one in twenty lies outside, and with two other seeds the interval is wide: `statistics.prediction95`
    nothing to judge by: it differs, and the arm has fewer than two other seeds of different errors
    not reproduced: none of these, or it failed.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd
from filelock import Timeout

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution.dispatch import dispatch
from ablation.named_files import copied
from ablation.parameter_counts import NAME
from ablation.paths import cores, runs_root
from ablation.provenance import source_hash
from ablation.results import publication, statistics
from ablation.results.frames import load
from ablation.results.records import ERRORS, Record, known
from ablation.runs import Run
from ablation.status import duration

IDENTICAL, WITHIN = "bit-identical", "within its arm's interval"
UNJUDGED, NOT = "nothing to judge by", "not reproduced"
OTHER_IMAGES = "its test images are others"
ORIGIN = {"processor": "device", "cpu_capability": "cpu_capability", "threads": "threads", "torch": "torch"}
ORIGIN |= {"commit": "commit", "code": "source"}  # what differs is told of these


@dataclass(frozen=True)
class Verdict:
    """What training again says of a published run. Errors in percent, times of training in seconds.

    differences: of hardware and code by name, as published and as here; what is the same on both is left out.
    """

    run: str
    verdict: str
    reason: str
    published: float
    here: float | None
    published_seconds: float
    seconds: float | None
    low: float
    high: float
    others: int
    differences: Mapping[str, tuple[str, str]]
    folder: Path

    @property
    def reproduced(self) -> bool:
        """Whether it is."""
        return self.verdict in (IDENTICAL, WITHIN)

    def __str__(self) -> str:
        if self.here is None:
            return f"{self.run}: {self.verdict}: {self.reason}"
        times = f"trained in {duration(self.published_seconds)}, here in {duration(self.seconds or 0)}"
        said = self.verdict
        if self.verdict == UNJUDGED:
            said = f"differs by {self.here - self.published:+.2f} points, {UNJUDGED} (other seeds: {self.others})"
        error = f"top-1 error {self.published:.2f} %"
        if self.verdict != IDENTICAL:
            error += f", here {self.here:.2f} %; {self.reason}"
        if self.verdict in (WITHIN, NOT) and not math.isnan(self.low):
            error += f"; 95 % prediction interval of {self.others} other seeds {self.low:.2f} to {self.high:.2f} %"
        lines = [f"{self.run}: {said}: {error}; {times}"]
        if self.differences:
            pairs = (f"{name} {before}, here {now}" for name, (before, now) in self.differences.items())
            lines.append(f"    differs: {'; '.join(pairs)}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Its values, and those that are not known as None."""
        return known(vars(self) | {"folder": str(self.folder), "reproduced": self.reproduced})


def verified(chosen: Sequence[Record], cluster: str = "local", slurm: Mapping[str, Any] | None = None) -> list[Verdict]:
    """Train published runs again, apart from the user's, and say of each what that gives.

    What it leaves is removed when all is said, but of runs that are not reproduced; stopped, the same call goes on.

    Raises: as `train`.
    """
    with _apart() as folder:
        for record in chosen:
            check(record)
        for record in chosen:
            took, where = duration(record.row["seconds"]), os.path.relpath(folder)
            print(f"{record}: trained in {took} when it was published, now again in {where}", flush=True)
        failed = train(chosen, cluster, slurm)
        verdicts = [judge(record, failed) for record in chosen]
        for verdict in verdicts:
            print(verdict)
        _remove(verdicts)
    for left in sorted({str(verdict.folder) for verdict in verdicts if verdict.folder.exists()}):
        print(f"what was trained is kept in {os.path.relpath(left)}; the same command judges that until it is removed")
    return verdicts


@contextmanager
def _apart() -> Iterator[Path]:
    """Have the folder of runs be `verify/` in it while the block lasts, for all that is started, too; the folder."""
    before, folder = os.environ.get("GAM_RUNS"), runs_root() / "verify"
    os.environ["GAM_RUNS"] = str(folder)
    try:
        yield folder
    finally:
        del os.environ["GAM_RUNS"]
        if before is not None:
            os.environ["GAM_RUNS"] = before


def check(record: Record) -> None:
    """Find a configuration one that can be trained here, as it stands.

    Raises:
        ConfigError: its images, weights or code are not there or others, or a value is refused, or lacks.
    """
    values = record.config.model_dump(exclude={"tensorboard"}, warnings=False)
    try:
        here = RunConfig(**values | {"attention": record.attention()})
    except ConfigError as error:
        raise ConfigError(f"{record} cannot be trained here: {error}") from None
    published = record.config.identity()
    for key in sorted((published | here.identity()).keys() - {"attention"}):
        if (was := published.get(key)) != (now := here.identity().get(key)):
            raise ConfigError(f"{record} cannot be trained here: {key}={was!r}: here that is {now!r}")


def train(chosen: Sequence[Record], cluster: str = "local", slurm: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Train published runs, that were checked, where runs lie by now; why some failed, by signature.

    What present code has trained there, or begun, is gone on from. Runs get the threads that they had, on this machine.

    Raises:
        ConfigError: see `dispatch`; nothing was trained.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    groups: dict[int | None, list[RunConfig]] = {}
    for record in chosen:
        config = record.config.model_copy(update={"tensorboard": False})
        run, origins = Run(config), record.rows("origins")
        threads = pd.to_numeric(origins.get("threads", pd.Series(dtype=float)), errors="coerce").dropna().tolist()
        if run.folder.is_dir() and _source(run) not in (None, source_hash()):
            with suppress(Timeout), run.lock(timeout=0):  # or another command is just training it
                run.archive()
        copied(config.attention, run.folder, publication.code_file(config, record.folder))
        workers = max(1, cores() // int(threads[-1])) if threads and threads[-1] >= 1 and cluster == "local" else None
        groups.setdefault(workers, []).append(config)
    progresses = [dispatch(configs, cluster, workers, slurm=slurm) for workers, configs in groups.items()]
    return {run.signature: reason for progress in progresses for run, reason in progress.failed.items()}


def _source(run: Run) -> str | None:
    """The code that has trained a run last, or begun it; None if that is not known."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((run.folder / "provenance.json").read_text())["source"])
    return None


def judge(record: Record, failed: Mapping[str, str]) -> Verdict:
    """Compare a published run with the one that `train` has left."""
    run, published, others = Run(record.config), record.row, record.others()
    low, high = statistics.prediction95(others)
    values = {"run": str(record), "published": published["top1_error"], "published_seconds": published["seconds"]}
    values |= {"low": low, "high": high, "others": len(others), "folder": run.folder}
    plan = record.plan.model_copy(update={"arms": {record.arm: [record.config]}, "seeds": [record.config.seed]})
    if (result := run.result()) is None:
        reason = failed.get(run.signature) or run.status().error or "it has no result"
        return Verdict(verdict=NOT, reason=reason, here=None, seconds=None, differences={}, **values)
    again = replace(record, plan=plan, results=load(plan))
    reason, pair = _first_difference(record, again), (float(published["top1_error"]), result.top1_error)
    if not reason or reason == OTHER_IMAGES:
        verdict = NOT if reason else IDENTICAL
    elif math.isnan(low):
        verdict = UNJUDGED
    else:
        verdict = WITHIN if all(low <= error <= high for error in pair) else NOT
    origins = zip(ORIGIN, _origins(record.rows("origins")), _origins(again.rows("origins")), strict=True)
    differences = {name: (was, now) for name, was, now in origins if was and now and was != now}
    values |= {"here": result.top1_error, "seconds": result.seconds, "differences": differences}
    return Verdict(verdict=verdict, reason=reason, **values)


def _first_difference(record: Record, again: Record) -> str:
    """Where what was trained again first differs from what was published, in words; nothing if it does not."""
    from gamlib.training.loop import MEASURED

    given, now = (of.predicted().to_numpy() for of in (record, again))
    if given.shape != now.shape or (given[:, 0] != now[:, 0]).any():
        return OTHER_IMAGES
    published, here = (
        frame.drop(columns=[*MEASURED], errors="ignore").set_index("epoch")
        for frame in (record.rows("epochs"), _as_published(again.rows("epochs")))
    )
    if published.index.tolist() != here.index.tolist():
        return f"it has {len(published)} epochs, here {len(here)}"
    if len(other := published.compare(here.reindex(columns=published.columns))):
        return f"metrics differ from epoch {other.index[0]} on"
    if wrong := int((given != now).sum()):
        return f"{wrong} predictions differ"
    row, now_row = record.row, _as_published(again.rows("runs")).iloc[0]
    return next((f"{name} differs" for name in ERRORS if row[name] != now_row[name]), "")


def _as_published(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame as it is read when it was published: an earlier pandas reads a number's last bit otherwise."""
    return pd.read_csv(StringIO(frame.to_csv(index=False)))


def _origins(frame: pd.DataFrame) -> list[str]:
    """What is known of `ORIGIN`, each as a text: of several origins all that differ, nothing where none says it."""
    texts, short = [], frame["commit"].map(lambda commit: str(commit)[:7], na_action="ignore")
    frame = frame.assign(torch=frame.get("versions", short).map(_torch), commit=short)
    for column in ORIGIN.values():
        known = frame.get(column, pd.Series(dtype=object)).dropna()
        texts.append(" + ".join(dict.fromkeys(str(value).removesuffix(".0") for value in known)))
    return texts


def _torch(versions: Any) -> str | None:
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(versions)["torch"])
    return None


def _remove(verdicts: Sequence[Verdict]) -> None:
    """Remove what runs left that are reproduced, in every study; nobody else has their folder."""
    kept = {verdict.folder for verdict in verdicts if not verdict.reproduced}
    for folder in {verdict.folder for verdict in verdicts} - kept:
        rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()
    (runs_root() / NAME).unlink(missing_ok=True)
    with suppress(OSError):
        runs_root().rmdir()
