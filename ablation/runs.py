"""A run's folder: who owns it, what happened in it. A run is done if and only if its `result.json` is whole."""

import json
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from glob import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ablation.config import RunConfig
from ablation.named_files import copied
from ablation.paths import require_locks, runs_root
from ablation.provenance import source_hash
from ablation.status import HEARTBEAT_SECONDS, UNDER_WAY, Result, Status, TrainingProgress, this_process
from gamlib.files import replacing, write_whole

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from filelock import FileLock
    from numpy.typing import NDArray

PREDICTIONS, PROGRESS = "predictions.npz", "progress.json"
JOB = "GAM_JOB"  # in the environment of a kernel: the signature of the run that a job around it owns
BATCH = "GAM_BATCH"  # in the environment of a kernel: nobody watches, print lines and no bars
REMOVED = "its folder was removed while it ran"

Model = TypeVar("Model", bound=BaseModel)


class RunFailed(RuntimeError):
    """A run ended without a whole result; the message says why in one line."""


class RunStopped(RunFailed):
    """A run was asked to stop, and its state is saved; the message says by what and where."""


class Run:
    """One configuration and its folder `<runs>/<dataset>/<readable-name>-<signature8>/`."""

    _inode = 0  # of its lock, since this object has first met one

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.signature = config.signature
        self.folder = runs_root() / config.dataset_name / f"{config.name}-{self.signature[:8]}"

    def __repr__(self) -> str:
        return f"Run({self.folder.name})"

    def result(self) -> Result | None:
        """The outcome, if the run is done: a whole `result.json` of this very configuration."""
        result = _read(Result, self.folder / "result.json")
        return result if result is not None and result.signature == self.signature else None

    def took(self, result: Result) -> float:
        """Seconds that a run took which is done: those of its last execution, or of its training if that is more."""
        with suppress(OSError):
            began, ended = ((self.folder / name).stat().st_mtime for name in ("provenance.json", "result.json"))
            return max(result.seconds, ended - began)
        return result.seconds

    def stale(self) -> bool:
        """Whether it is done, and other code than the present did it."""
        return (result := self.result()) is not None and result.source != source_hash()

    def archive(self) -> None:
        """Set aside what the run has left, into `before-<hash of its code>/` in its folder, or `…-2/` and so on."""
        result = self.result()
        name = f"before-{result.source if result else 'unknown'}"
        folders = (self.folder / (name if number == 1 else f"{name}-{number}") for number in count(1))
        kept = next(folder for folder in folders if not folder.exists())
        left = [path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        for path in sorted(left, key=lambda path: path.name != "result.json"):
            kept.mkdir(exist_ok=True)
            path.replace(kept / path.name)

    def metrics(self) -> "pd.DataFrame":
        """The epochs so far, one row each."""
        import pandas as pd  # late: a job that only watches a kernel has no need of it

        path = self.folder / "metrics.jsonl"
        return pd.DataFrame(map(json.loads, path.read_text().splitlines() if path.exists() else ()))

    def status(self) -> Status:
        """What `status.json` says, corrected by what is known better.

        A whole result is `done` whatever else is written; a run whose owner is gone is `lost`; a run that says it is
        done but has no whole result has `failed`.
        """
        status = _read(Status, self.folder / "status.json") or Status()
        if self.result() is not None:
            return status.model_copy(update={"state": "done", "error": ""})
        if status.state == "done":
            return status.model_copy(update={"state": "failed", "error": "its result.json is missing or damaged"})
        if status.state in UNDER_WAY and not status.alive():
            return status.model_copy(update={"state": "lost", "error": "the process that owned it is gone"})
        return status

    def progress(self) -> TrainingProgress | None:
        """How far it has come, if it is running and has said so."""
        running = self.status().state == "running"
        return _read(TrainingProgress, self.folder / PROGRESS) if running else None

    def write_status(self, **changes: Any) -> None:
        """Write `status.json` anew with some values changed, its heartbeat among them."""
        before = _read(Status, self.folder / "status.json") or Status()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = before.model_copy(update={**changes, "heartbeat": now})
        earlier = before.earlier_jobs if before.shared else before.slurm_jobs()
        status.earlier_jobs = [job_id for job_id in earlier if job_id != status.job_id]
        self.write("status.json", status.model_dump_json(indent=2))

    def write(self, name: str, text: str) -> None:
        """Write one file of the folder, see `write_whole`."""
        write_whole(self.folder / name, text)

    def write_predictions(self, predicted: "NDArray[np.integer]", label: "NDArray[np.integer]") -> None:
        """Leave `predictions.npz`: `predicted` and `label`, one or two bytes an image, compressed."""
        import numpy as np

        kind = np.uint8 if max(predicted.max(initial=0), label.max(initial=0)) < 256 else np.uint16
        with replacing(self.folder / PREDICTIONS) as file:
            np.savez_compressed(file, predicted=predicted.astype(kind), label=label.astype(kind))

    def queue(self, job_id: str = "", cluster: str = "local", shared: bool = False) -> None:
        """Say that the run waits, in this process or as a cluster's job, but not if it or that job runs already."""
        status = self.status()
        if status.state != "running" or (cluster == "slurm" and status.job_id != job_id):  # whose job has died
            self.write_config()
            self._forget_requests(math.inf)
            waits_in = this_process() if cluster == "local" else {"host": "", "pid": 0}
            self.write_status(state="queued", **waits_in, job_id=job_id, cluster=cluster, shared=shared, error="")

    def write_config(self) -> None:
        """Write `config.json`, and beside it the file of a mechanism of one's own, which may change meanwhile.

        Raises:
            ConfigError: it has changed since this run was configured.
        """
        copied(self.config.attention, self.folder)
        self.write("config.json", json.dumps({**self.config.model_dump(), "signature": self.signature}, indent=2))

    def architecture(self) -> dict[str, Any]:
        """The arguments of `build_model`, with what lies in this folder of a mechanism of one's own."""
        return self.config.architecture() | {"attention": copied(self.config.attention, self.folder)}

    def ask_to_stop(self, by: str) -> None:
        """Ask whoever trains this run to save its state after the present step and to end; `by` says who asks."""
        with suppress(OSError):
            try:
                write_whole(self.folder / "stop", by)  # without its word it would be anybody's request
            except OSError:
                (self.folder / "stop").touch()  # on a full disk that is enough

    def asked_to_stop(self) -> str:
        """By whom the run was asked to stop, or nothing.

        Raises:
            RunStopped: its folder was removed, and with it the lock that kept others out.
        """
        with suppress(OSError):
            return (self.folder / "stop").read_text() or "a request"
        if self.removed():
            raise RunStopped(REMOVED)
        return ""

    def removed(self) -> bool:
        """Whether its folder is not the one any more in which this object has first met the run's lock."""
        try:
            inode = (self.folder / ".lock").stat().st_ino
        except FileNotFoundError:
            inode = 0
        except OSError:
            return False
        self._inode = self._inode or inode
        return inode != self._inode

    def _forget_requests(self, before: float) -> None:
        with suppress(OSError):
            if (request := self.folder / "stop").stat().st_mtime < before:
                request.unlink()

    def recover_notebook(self) -> list[Path]:
        """What killed executions wrote their notebook to; for the owner of the run.

        A run that is done and whose job was killed after that gets the last one as its `run.ipynb`.
        """
        parts = sorted(self.folder.glob(".run.*.ipynb"), key=lambda path: path.stat().st_mtime)
        if parts and self.result() is not None and not (self.folder / "run.ipynb").exists():
            parts.pop().replace(self.folder / "run.ipynb")
        return parts

    def lock(self, timeout: float = -1) -> "FileLock":
        """What the owner holds; who wants it waits some seconds before `filelock.Timeout`, or with -1 for ever."""
        from filelock import FileLock  # late: who looks at a run has no need of it

        return FileLock(self.folder / ".lock", timeout=timeout)

    @contextmanager
    def claim(self, cluster: str = "", job_id: str = "", since: float = math.inf) -> Iterator[bool]:
        """Own the run while the block lasts; the state it ends in is written whatever happens.

        Only one process owns a run, so a second waits here. It gets False when it finds the run done after that.

        Args:
            cluster, job_id: of the job that this is, if it is one.
            since: when the job began; requests to stop from before were for another one, and are forgotten, as all
                are that the block has met.

        Raises:
            RunFailed: the block ended without an exception and without a whole result.
            ConfigError: the file system has no locks.
        """
        require_locks(self.folder)
        with self.lock():
            self._inode = (self.folder / ".lock").stat().st_ino
            parts = (part for part in self.folder.glob(".*.part") if not part.name.startswith((".status.", ".config.")))
            for path in [*self.recover_notebook(), *parts]:  # of killed owners; submitters write those two
                path.unlink()
            if self.result() is not None:
                yield False
                return
            self._forget_requests(since)
            (self.folder / PROGRESS).unlink(missing_ok=True)  # of an owner that was killed
            self.write_config()
            attempts = self.status().attempts + 1
            mine = {"state": "running", "attempts": attempts, **this_process(), "cluster": cluster, "job_id": job_id}
            self.write_status(error="", **mine)
            ended = threading.Event()

            def beat() -> None:  # and say whose it is: who submitted it may have written "queued" a moment late
                while not ended.wait(HEARTBEAT_SECONDS):
                    with suppress(OSError):  # a full disk must not end a run that has nothing to write just now
                        if not self.removed():
                            self.write_status(**mine)

            heart = threading.Thread(target=beat, daemon=True)
            heart.start()
            changes: dict[str, Any] = {"attempts": attempts, "state": "done", "error": ""}
            try:
                yield True
                if self.result() is None:
                    raise RunFailed("it ended without a whole result.json")
            except (RunStopped, KeyboardInterrupt) as stopped:
                changes |= {"state": "preempted", "error": str(stopped) or "stopped from outside"}
                raise
            except BaseException as error:
                changes |= {"state": "failed", "error": first_line(error)}
                raise
            finally:
                ended.set()
                heart.join()
                if not self.removed():  # or it is another's by now
                    self._forget_requests(math.inf)
                    with suppress(OSError):
                        (self.folder / PROGRESS).unlink()
                    self.write_status(**changes)


def first_line(error: BaseException) -> str:
    """An exception in one line: what the user's code raised, where papermill or submitit wrapped it."""
    name, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
    line = text.splitlines()[0] if text else "no message"
    return line if name in ("RunFailed", "RunStopped") else f"{name}: {line}"


def _read(model: type[Model], path: Path) -> Model | None:
    with suppress(OSError, ValidationError):
        return model.model_validate_json(path.read_bytes())
    return None


def all_runs(dataset: str | None = None) -> tuple[list[Run], list[Path]]:
    """Every run that has a folder (of one data set), and folders whose `config.json` is damaged or not their own."""
    runs, foreign = [], []
    for path in sorted(runs_root().glob(f"{escape(dataset or '') or '*'}/*/config.json")):
        try:
            values = json.loads(path.read_text())
            signature = values.pop("signature")
            run = Run(RunConfig.recorded(values))
            if (run.signature, run.folder) != (signature, path.parent):
                raise ValueError
            runs.append(run)
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            foreign.append(path.parent)
    return runs, foreign


def unique(configs: Iterable[RunConfig]) -> list[Run]:
    """The runs of some configurations in their order, each signature once."""
    return [Run(config) for config in {config.signature: config for config in configs}.values()]
