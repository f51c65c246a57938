import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from filelock import FileLock

from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution import pool
from ablation.execution.dispatch import dispatch
from ablation.execution.execute import execute
from ablation.execution.housekeeping import leftovers
from ablation.execution.progress import Progress, ProgressFile, seconds_left
from ablation.runs import PROGRESS, Run, RunFailed, RunStopped, all_runs
from ablation.status import TrainingProgress, duration, this_process
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


def test_who_queues_a_run_as_it_begins_does_not_undo_its_attempt(finish: Finish) -> None:
    """Two commands at once: the second has read the status before the first owns the run, and writes it after that."""
    run = Run(RunConfig())
    run.queue()
    before = (run.folder / "status.json").read_text()
    with run.claim():
        run.write("status.json", before)
        finish(run.config, 5.0)
    assert run.status().attempts == 1


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
        progress.show([stopped, left])
        finish(done.config, 5.0)
        progress.ended(done, 3.2, "")
        stopped.write_status(state="preempted")
        progress.ended(stopped, 1, "why")
    lines = [text.rpartition("\r")[2] for text in output.getvalue().split("\n")]
    first, second = (line for line in lines if "top-1 error" in line or "STOPPED" in line)
    assert first.startswith(f"{done.folder.name}  top-1 error 5.00 %  (3 s)  [1 of 3 runs done, 2 running, 0 failed, ")
    assert second == f"{stopped.folder.name}  STOPPED: why  (1 s)  [1 of 3 runs done, 2 running, 1 failed, 3 s left]"
    assert ("0 of 3 runs done, 2 running, 0 failed " in output.getvalue()) == terminal
    assert (len(progress.runs), progress.failed) == (3, {stopped: "why"})


def training(run: Run, **values: Any) -> TrainingProgress:
    """Have a run say that this process trains it, and how far it has come."""
    progress = TrainingProgress(**{"epoch": 37, "epochs": 60, "top1_error": 4.23, "seconds": 2000, **values})
    run.write_status(state="running", **this_process())
    run.write(PROGRESS, progress.model_dump_json())
    return progress


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (119, "119 s"), (125, "2 min"), (3569, "59 min"), (3599, "1 h 0 min"), (7290, "2 h 2 min")],
)
def test_a_time_is_said_as_precisely_as_it_is_needed(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_of_a_run_that_trains_only_what_is_known_is_said() -> None:
    assert str(TrainingProgress(epoch=1, epochs=60)) == "epoch 1/60"
    assert str(TrainingProgress(epoch=1, epochs=60, seconds_left=30)) == "epoch 1/60 · 30 s left"
    assert str(TrainingProgress(epoch=37, epochs=60, top1_error=4.23, seconds_left=710)) == (
        "epoch 37/60 · 4.2 % · 12 min left"
    )


def test_how_far_a_run_is_counts_while_it_runs_and_goes_when_it_ends() -> None:
    run = Run(RunConfig())
    left = training(run, seconds_left=710)
    assert run.progress() == left
    run.write_status(state="running", pid=NO_PROCESS)  # it was killed
    assert run.status().state == "lost" and run.progress() is None
    with pytest.raises(RunFailed), run.claim():
        assert run.status().state == "running" and run.progress() is None, "what the killed one has left"
        run.write(PROGRESS, left.model_dump_json())
        assert run.progress() == left
    assert not (run.folder / PROGRESS).exists()


def test_a_run_says_how_far_it_is_every_few_seconds_and_how_long_it_takes_from_its_second_step_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, now = Run(RunConfig(epochs=4)), 100.0
    run.write_status(state="running", **this_process())
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = ProgressFile(run, steps=8, test_steps=2)  # which goes on after two epochs: a test takes as long as 2 steps
    before = [{"top1_error": 9.0}, {"top1_error": 7.5}]
    file.write(17, before)
    assert run.progress() == TrainingProgress(epoch=3, epochs=4, top1_error=7.5)
    now += 1
    file.write(18, before)
    assert run.progress() == TrainingProgress(epoch=3, epochs=4, top1_error=7.5), "a moment ago it said something"
    now += 6
    file.write(24, before)
    assert run.progress() == TrainingProgress(epoch=3, epochs=4, top1_error=7.5, seconds=40, seconds_left=12)
    now += 3
    file.write(25, [*before, {"top1_error": 5.0}])
    assert run.progress() == TrainingProgress(epoch=4, epochs=4, top1_error=5, seconds=40, seconds_left=9)


def test_a_run_that_cannot_say_how_far_it_is_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(RunConfig())
    run.write_status(state="running", **this_process())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        ProgressFile(run, steps=8, test_steps=2).write(1, [])
    assert run.progress() is None
    (run.folder / ".lock").touch()
    assert not run.removed()
    shutil.rmtree(run.folder)
    ProgressFile(run, steps=8, test_steps=2).write(1, [])
    assert not run.folder.exists(), "it was removed, and may be another's by now"


def test_the_time_left_of_a_study_is_that_of_its_runs_as_many_at_once_as_now() -> None:
    def at(seconds: float, left: float) -> TrainingProgress:
        return TrainingProgress(epoch=1, epochs=2, seconds=seconds, seconds_left=left)

    new = TrainingProgress(epoch=1, epochs=2)
    assert seconds_left([new, None], waiting=4) is None
    assert seconds_left([at(60, 20)], waiting=0) == 20
    assert seconds_left([at(60, 20), at(100, 40)], waiting=4) == (20 + 40 + 4 * 80) / 2
    assert seconds_left([at(60, 20), new], waiting=4, ended=[100]) == (20 + 80 + 4 * 80) / 2
    assert seconds_left([at(60, 10), at(500, 400)], waiting=0) == 400, "of the one that takes longest"
    assert seconds_left([], waiting=2, ended=[30]) == 60


def test_the_live_line_says_how_far_the_runs_are_and_the_time_left_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run(RunConfig(seed=seed)) for seed in range(4)]
    training(runs[0], seconds=600, seconds_left=120)
    training(runs[1], epoch=12, seconds=1000, seconds_left=480)
    monkeypatch.setattr(sys, "stdout", output := StringIO())
    monkeypatch.setattr(output, "isatty", lambda: True)

    def line(*running: Run) -> str:
        progress._looked = -1e9  # some seconds later
        progress.show(running)
        return str(progress._bar.desc)

    with Progress(runs) as progress:
        counts = "0 of 4 runs done, {} running, 0 failed"
        assert line(*runs[:2]) == counts.format(2) + ", 18 min left; epoch 37/60, 12/60"
        assert line(runs[0]) == counts.format(1) + ", 32 min left; epoch 37/60 · 4.2 % · 2 min left"
    with Progress(runs[:1]) as progress:
        assert line(runs[0]) == "0 of 1 runs done, 1 running, 0 failed; epoch 37/60 · 4.2 % · 2 min left"
        runs[0].write_status(state="failed")
        assert "; epoch 37/60" in line(runs[0]), "its process is about to end"
    monkeypatch.setenv("GAM_BATCH", "1")
    monkeypatch.setattr(Run, "progress", Mock(side_effect=AssertionError("nobody watches")))
    with Progress(runs) as progress:
        progress.show(runs[:2])


def test_a_run_took_as_long_as_its_last_execution_or_its_training(finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    result = run.result()
    assert result is not None and run.took(result) == result.seconds == 3
    os.utime(run.folder / "provenance.json", ns=(0, (run.folder / "result.json").stat().st_mtime_ns - 10**10))
    assert run.took(result) == pytest.approx(10)
    (run.folder / "provenance.json").unlink()
    assert run.took(result) == 3


def test_jobs_are_stopped_though_nobody_reads_what_a_dispatch_prints_any_more() -> None:
    begun = threading.Event()

    def start(_: object, run: Run, *__: object) -> Mock:
        run.write_status(state="running", **this_process() | {"pid": NO_PROCESS})
        begun.set()
        return Mock(pid=NO_PROCESS, ended=lambda _=0: bool(run.asked_to_stop()))

    def press_ctrl_c(running: object) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    progress = Mock(write=Mock(side_effect=BrokenPipeError), show=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        pool.execute_all([run := Run(RunConfig())], [{}], progress, Mock(start=start))
    assert run.asked_to_stop() == "its dispatcher" and progress.write.called


def test_ctrl_c_that_comes_while_a_process_starts_stops_its_run() -> None:
    def start(_: object, run: Run, *__: object) -> Mock:
        signal.raise_signal(signal.SIGINT)
        run.write_status(state="running", **this_process() | {"pid": NO_PROCESS})
        return Mock(pid=NO_PROCESS, error=None, ended=lambda _=0: bool(run.asked_to_stop()))

    with pytest.raises(KeyboardInterrupt):
        pool.execute_all([run := Run(RunConfig())], [{}], Mock(), Mock(start=start))
    assert run.asked_to_stop() == "its dispatcher"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_another_has_under_way_does_not_fail_with_the_server_of_this_command() -> None:
    def start(_: object, run: Run, *__: object) -> Mock:
        run.write_status(state="running", host="elsewhere", pid=1)
        raise RunFailed("no job can be started")

    progress = Mock()
    pool.execute_all([run := Run(RunConfig())], [{}], progress, Mock(start=start))
    assert run.status().state == "running"
    assert progress.ended.call_args.args[::2] == (run, "no job can be started")


def test_a_run_has_failed_whose_job_has_ended_and_is_still_in_the_systems_table() -> None:
    def start(_: object, run: Run, *__: object) -> Mock:
        run.write_status(
            state="running", **this_process()
        )  # as alive as a process that was killed may look for a moment
        return Mock(pid=os.getpid(), error=None, ended=lambda _=0: True)

    pool.execute_all([run := Run(RunConfig())], [{}], Mock(), Mock(start=start))
    assert run.status().state == "failed" and "its process ended without a word" in run.status().error


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
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert visible(1, 4) == [""] * 4 and visible(2, 4) == [""] * 4, "the run says that there are no GPUs"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(pool, "GPU_DRIVERS", [os.devnull])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for usable in (True, False):  # a driver may be too old, which counts them all the same
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        assert visible(1, 4) == (["0", "1", "0", "1"] if usable else [""] * 4)


def test_a_request_that_came_while_its_process_was_still_to_start_stops_a_run() -> None:
    run = Run(RunConfig(epochs=1, width=0.25, train_fraction=0.1))
    since = psutil.Process().create_time() - 60  # otherwise those since its process count
    run.queue()
    run.ask_to_stop("gamlib cancel")
    os.utime(run.folder / "stop", (since + 1, since + 1))
    with pytest.raises(RunStopped, match="stopped by gamlib cancel before it began"):
        execute(run, {}, since=since)
    assert run.status().state == "preempted"
