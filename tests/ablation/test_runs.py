import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from filelock import FileLock

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution import pool
from ablation.execution.dispatch import dispatch
from ablation.execution.execute import execute
from ablation.execution.housekeeping import leftovers
from ablation.execution.progress import Progress
from ablation.runs import Run, RunFailed, RunStopped, all_runs
from ablation.status import this_process
from gamlib.files import write_whole

Finish = Callable[..., Run]
NO_PROCESS = 2**22 + 1  # more than Linux counts up to


def test_a_run_is_done_only_with_a_whole_result_of_its_own(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    assert run.status().state == "done"
    whole = (run.folder / "result.json").read_text()
    for damaged in ("", whole[: len(whole) // 2], "{}", whole.replace(run.signature, "f" * 64)):
        (run.folder / "result.json").write_text(damaged)
        assert run.result() is None and run.status().state != "done"


def test_a_run_that_says_done_without_a_result_has_failed(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    run.write_status(state="done")
    (run.folder / "result.json").unlink()
    assert run.status().state == "failed"
    assert "result.json" in run.status().error


def test_an_exception_leaves_failed_and_one_line() -> None:
    run = Run(RunConfig())
    with pytest.raises(ZeroDivisionError), run.claim():
        raise ZeroDivisionError("first line\nsecond")
    status = run.status()
    assert (status.state, status.error, status.attempts) == ("failed", "ZeroDivisionError: first line", 1)


def test_an_end_without_a_result_is_a_failure() -> None:
    run = Run(RunConfig())
    with pytest.raises(RunFailed), run.claim():
        pass
    assert run.status().state == "failed"


def test_ctrl_c_leaves_preempted() -> None:
    run = Run(RunConfig())
    with pytest.raises(KeyboardInterrupt), run.claim():
        assert run.status().state == "running"
        raise KeyboardInterrupt
    assert run.status().state == "preempted"


def test_a_stop_leaves_preempted_with_its_place() -> None:
    run = Run(RunConfig())
    with pytest.raises(RunStopped), run.claim():
        raise RunStopped("stopped by SIGTERM in epoch 2 of 20 after 3 of 7 steps")
    assert (run.status().state, run.status().error[:18]) == ("preempted", "stopped by SIGTERM")


def test_who_asks_to_stop_is_known_at_once() -> None:
    """A job that took SLURM's word for anybody's request would not be queued again."""
    run = Run(RunConfig())
    run.folder.mkdir(parents=True)
    seen: set[str] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(run.asked_to_stop())

    reader = threading.Thread(target=read)
    reader.start()
    asked, began = 0, time.monotonic()
    while asked < 300 or ("SIGUSR2" not in seen and time.monotonic() < began + 60):  # until both have had their turn
        run.ask_to_stop("SIGUSR2")
        (run.folder / "stop").unlink()
        asked += 1
    over.set()
    reader.join()
    assert seen == {"", "SIGUSR2"}


def test_a_request_to_stop_is_for_the_job_that_runs_and_not_for_the_next() -> None:
    run = Run(RunConfig())
    run.queue()
    assert run.asked_to_stop() == ""
    run.ask_to_stop("a test")
    with pytest.raises(RunFailed), run.claim(since=time.time() - 60):
        assert run.asked_to_stop() == "a test"
    run.queue()
    assert run.asked_to_stop() == ""  # it has been heard
    run.ask_to_stop("a test")
    with pytest.raises(RunFailed), run.claim(since=time.time() + 60):
        assert run.asked_to_stop() == ""
    run.ask_to_stop("a test")
    with pytest.raises(RunFailed), run.claim():
        assert run.asked_to_stop() == ""


def test_a_run_whose_owner_is_gone_is_lost() -> None:
    run = Run(RunConfig())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for state in ("running", "queued"):
        run.write_status(state=state, host=os.uname().nodename, pid=gone.pid)
        assert run.status().state == "lost"
    run.write_status(state="running", host="elsewhere", pid=gone.pid)
    assert run.status().state == "running"
    stale = json.loads((run.folder / "status.json").read_text()) | {"heartbeat": "2020-01-01T00:00:00+00:00"}
    (run.folder / "status.json").write_text(json.dumps(stale))
    assert run.status().state == "lost"


def test_a_process_that_began_later_under_the_number_of_the_owner_is_not_the_owner() -> None:
    run = Run(RunConfig())
    for state in ("running", "queued"):
        run.write_status(state=state, host=os.uname().nodename, pid=os.getpid())
        assert run.status().state == state
        before = json.loads((run.folder / "status.json").read_text()) | {"heartbeat": "2020-01-01T00:00:00+00:00"}
        (run.folder / "status.json").write_text(json.dumps(before))
        assert run.status().state == "lost"


def test_what_is_set_aside_twice_is_kept_twice() -> None:
    run = Run(RunConfig())
    for text in ("first", "second", "third"):
        run.write("log.txt", text)
        run.archive()
    kept = {path.parent.name: path.read_text() for path in run.folder.glob("*/log.txt")}
    assert kept == {"before-unknown": "first", "before-unknown-2": "second", "before-unknown-3": "third"}


def test_what_is_done_is_not_owned_again(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    with run.claim() as mine:
        assert not mine


def test_a_damaged_status_does_not_hide_a_result(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    (run.folder / "status.json").write_text("{")
    assert run.status().state == "done"


def test_foreign_folders_are_named_and_left_out(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    for name, text in (("damaged", "{"), ("moved", (run.folder / "config.json").read_text()), ("list", "[]")):
        write_whole(run.folder.parent / name / "config.json", text)
    runs, foreign = all_runs()
    assert [found.folder for found in runs] == [run.folder]
    assert [folder.name for folder in foreign] == ["damaged", "list", "moved"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_run_whose_folder_is_removed_stops_and_leaves_what_is_there_now_alone() -> None:
    run = Run(RunConfig())
    with pytest.raises(RunStopped, match="its folder was removed while it ran"), run.claim():
        assert run.asked_to_stop() == ""
        shutil.rmtree(run.folder)
        run.folder.mkdir()  # as another who claims it: nothing kept it out
        (run.folder / ".lock").touch()
        run.asked_to_stop()
    assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_a_heartbeat_that_is_no_time_is_an_old_one() -> None:
    run = Run(RunConfig())
    run.write_status(state="running", host="elsewhere", pid=1)
    status = json.loads((run.folder / "status.json").read_text()) | {"heartbeat": ""}
    (run.folder / "status.json").write_text(json.dumps(status))
    assert run.status().state == "lost"


def test_a_run_whose_job_was_killed_after_its_result_gets_the_notebook_that_was_left(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    for number, text in enumerate(("older", "last")):
        part = run.folder / f".run.{number}.ipynb"
        part.write_text(text)
        os.utime(part, (number, number))
    with FileLock(run.folder / ".lock"):
        dispatch([run.config], "debug")
        assert not (run.folder / "run.ipynb").exists(), "its job may still be writing it"
    dispatch([run.config], "debug")
    assert (run.folder / "run.ipynb").read_text() == "last"
    assert leftovers(checkpoints=False) == [run.folder / ".run.0.ipynb"]


@pytest.mark.parametrize("terminal", [True, False])
def test_every_end_of_a_run_is_a_line_and_somebody_who_watches_sees_a_bar(
    terminal: bool, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, stopped, left = (Run(RunConfig(seed=seed)) for seed in range(3))
    monkeypatch.setattr(sys, "stdout", output := StringIO())
    monkeypatch.setattr(output, "isatty", lambda: terminal)
    with Progress([done, stopped, left]) as progress:
        progress.show(2)
        finish(done.config, 5.0)
        progress.ended(done, 3.2, "")
        stopped.write_status(state="preempted")
        progress.ended(stopped, 1, "why")
    lines = [text.rpartition("\r")[2] for text in output.getvalue().split("\n")]
    first, second = (line for line in lines if "top-1 error" in line or "STOPPED" in line)
    assert first.startswith(f"{done.folder.name}  top-1 error 5.00 %  (3 s)  [1 of 3 runs done, 2 running, 0 failed, ")
    assert second == f"{stopped.folder.name}  STOPPED: why  (1 s)  [1 of 3 runs done, 2 running, 1 failed, 0:00 left]"
    assert ("0 of 3 runs done, 2 running, 0 failed " in output.getvalue()) == terminal
    assert (len(progress.runs), progress.failed) == (3, {stopped: "why"})


def test_jobs_are_stopped_though_nobody_reads_what_a_dispatch_prints_any_more() -> None:
    begun = threading.Event()

    def start(_: object, run: Run, *__: object) -> Mock:
        run.write_status(state="running", **this_process() | {"pid": NO_PROCESS})
        begun.set()
        return Mock(pid=NO_PROCESS, ended=lambda _=0: bool(run.asked_to_stop()))

    def press_ctrl_c(running: int) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    progress = Mock(write=Mock(side_effect=BrokenPipeError), show=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        pool.execute_all([run := Run(RunConfig())], [{}], progress, Mock(start=start))
    assert run.asked_to_stop() == "its dispatcher" and progress.write.called


@pytest.mark.parametrize(
    ("error", "state", "stays"),
    [("stopped by SIGUSR2 before it began", "queued", True), ("ValueError: no", "failed", False)],
)
def test_a_run_leaves_its_job_of_several_when_it_fails_and_not_when_the_job_is_stopped(
    error: str, state: str, stays: bool
) -> None:
    run = Run(RunConfig())
    run.queue("1", "slurm", shared=True)
    start = Mock(return_value=Mock(pid=NO_PROCESS, error=error, ended=lambda _=0: True))
    pool.execute_all([run], [{}], Mock(), Mock(start=start), job=pool.SlurmJob("1", [], 1))
    assert (run.status().state, run.status().belongs_to("1"), start.call_count) == (state, stays, 1)
    pool.execute_all([run], [{}], Mock(), Mock(start=start), job=pool.SlurmJob("1", [], 1))
    assert start.call_count == 1 + stays


def test_a_job_of_several_that_is_told_to_end_ends_its_runs_and_says_by_what() -> None:
    run, told = Run(RunConfig()), list[str]()
    run.queue("1", "slurm", shared=True)

    def start(*_: object) -> Mock:
        run.write_status(state="running", **this_process() | {"pid": NO_PROCESS})
        told.append("SIGUSR2")
        return Mock(pid=NO_PROCESS, error=None, ended=lambda _=0: bool(run.asked_to_stop()))

    with pytest.raises(RunStopped, match="SIGUSR2"):
        pool.execute_all([run], [{}], Mock(), Mock(start=start), job=pool.SlurmJob("1", told, 60))
    assert run.asked_to_stop() == "SIGUSR2"
    assert run.status().error == "stopped by SIGUSR2 before it could save" and run.status().belongs_to("1")


def test_runs_at_once_share_the_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def visible(devices: int, workers: int) -> list[str]:
        runs = [Run(RunConfig(seed=seed, devices=devices, batch_size=30)) for seed in range(5)]
        return [one["CUDA_VISIBLE_DEVICES"] for one in pool.environments_of(runs, workers, {})]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible(1, 4) == ["2", "5", "2", "5"]  # more than there are GPUs
    assert visible(2, 4) == ["2,5"]
    with pytest.raises(ConfigError, match="devices=3: allowed: 1 to 2, the GPUs of this machine"):
        visible(3, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible(1, 4) == [""] * 4


def test_a_request_that_came_while_its_process_was_still_to_start_stops_a_run() -> None:
    run = Run(RunConfig(epochs=1, width=0.25, train_fraction=0.1))
    since = psutil.Process().create_time() - 60  # otherwise those since its process count
    run.queue()
    run.ask_to_stop("gamlib cancel")
    os.utime(run.folder / "stop", (since + 1, since + 1))
    with pytest.raises(RunStopped, match="stopped by gamlib cancel before it began"):
        execute(run, {}, since=since)
    assert run.status().state == "preempted"
