"""The whole path with real jobs, real kernels and real signals: what a run leaves when things go well, and when not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from started import Command, of_test, wait_for

from ablation.config import RunConfig
from ablation.execution.train import train
from ablation.paths import share_of_cores
from ablation.results.frames import read_predictions
from ablation.runs import Run
from gamlib.files import write_whole
from gamlib.training.loop import MEASURED

NOT_INSTALLED = """
import os, sys
from multiprocessing import Pipe
from pathlib import Path
from jupyter_client.provisioning import factory

factory.entry_points = lambda **_: ()
from ablation.execution.forked_kernel import ForkedKernel
from ablation.execution.kernel import execute_notebook

kernel = ForkedKernel(but=Pipe()[0])
with open("log.txt", "a") as log:
    execute_notebook(Path("one.ipynb").absolute(), Path("out.ipynb").absolute(), {}, log, {}, kernel)
print(os.getpid())
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counted")]
SMALL = ["-p", "epochs=1", "-p", "width=0.25", "-p", "train_fraction=0.2"]
ENDLESS = ["-p", "epochs=100000", "-p", "width=0.25", "-p", "train_fraction=0.2"]


def start(*arguments: str) -> Command:
    """The command as a fork of what has imported all, and its server as a fork of it."""
    return Command(*arguments)


def start_anew(*arguments: str) -> "subprocess.Popen[str]":
    """The command as a shell starts it."""
    command = [sys.executable, "-m", "ablation.cli", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell has it ignored in the background
    )


def finished(process: "Command | subprocess.Popen[str]") -> tuple[int | None, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def kernel_of(run: Run) -> psutil.Process:
    """The kernel of a run that trains: its job is a process with no other child."""
    (kernel,) = psutil.Process(run.status().pid).children()
    return kernel


def small(**values: object) -> Run:
    return Run(RunConfig(**{"epochs": 1, "width": 0.25, "train_fraction": 0.2, **values}))


def endless(**values: object) -> Run:
    return small(epochs=100000, **values)


def test_a_study_ends_in_figures_and_a_second_one_trains_nothing(places: Path) -> None:
    code, output = finished(start_anew("study", "submodules", "--seeds", "0", *SMALL, "--report"))
    assert code == 0, output
    assert "6 of 6 runs done, 0 of them before" in output
    for kind in ("pdf", "png", "csv", "tex"):
        assert (places / "figures" / f"submodules-digits.{kind}").stat().st_size > 100
    run = small(submodules="sp")
    notebook = nbformat.read(run.folder / "run.ipynb", as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["interpreter"] == sys.executable
    assert provenance["threads"] == share_of_cores()
    assert (run.folder / "log.txt").read_text().count("epoch ") == 1
    assert len(run.metrics()) == 1
    before = [path.stat().st_mtime_ns for path in (places / "runs").rglob("*.json*")]
    executed = places / "runs" / "studies" / "submodules-digits.ipynb"
    reported = executed.stat().st_mtime_ns
    code, output = finished(start("study", "submodules", "--seeds", "0", *SMALL, "--report"))
    assert (code, "6 of 6 runs done, 6 of them before" in output) == (0, True), output
    after = [path.stat().st_mtime_ns for path in (places / "runs" / "digits").rglob("*.json*")]
    assert set(after) <= set(before)
    assert executed.stat().st_mtime_ns == reported and "ch+sp" in output  # nor is a report made that stands already


@pytest.mark.long
def test_two_runs_of_one_seed_have_the_same_bits(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or beside another run of a study, forked or not, and whatever kernel specifications the machine has."""
    broken = {"argv": ["/bin/false", "{connection_file}"], "display_name": "broken", "language": "python"}
    write_whole(places / "jupyter" / "kernels" / "python3" / "kernel.json", json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(places / "jupyter"))
    values = ["-p", "epochs=2", *SMALL[2:]]
    study = places / "beside.yaml"
    study.write_text("arms:\n  this: {}\n  other: {attention: none}\n")
    run = Run(RunConfig(epochs=2, width=0.25, train_fraction=0.2, seed=5))
    commands = {
        "a forked kernel": ["study", str(study), "--seeds", "5"],
        "a kernel that starts anew": ["run", "-p", "seed=5", "--cluster", "debug"],
    }
    curves = []
    for kernel, command in commands.items():
        monkeypatch.setenv("GAM_RUNS", str(places / kernel))
        code, output = finished(start(*command, *values))
        assert code == 0, output
        run = Run(run.config)
        assert kernel in (run.folder / "log.txt").read_text()
        result = run.result()
        assert result is not None and result.top1_error == run.metrics()["top1_error"].iloc[-1]
        curves.append(run.metrics().drop(columns=list(MEASURED)))
    pd.testing.assert_frame_equal(curves[0], curves[1], check_exact=True)


def test_a_run_that_diverges_fails_alone(tmp_path: Path) -> None:
    study = tmp_path / "two.yaml"
    study.write_text("arms:\n  wild: {lr: 1e30}\n  tame: {}\n")
    code, output = finished(start("study", str(study), "--seeds", "0", "--workers", "1", *SMALL))
    wild, tame = small(lr=1e30), small()
    assert code == 1 and tame.status().state == "done"
    assert (wild.status().state, wild.status().error[:38]) == ("failed", "FloatingPointError: training diverged:")
    assert "1 of 2 runs done" in output and str(wild.folder / "log.txt") in output
    assert "FloatingPointError" in (wild.folder / "log.txt").read_text()
    assert "FloatingPointError" in (wild.folder / "run.ipynb").read_text()


@pytest.mark.parametrize(
    ("victim", "reason"),
    [("kernel", "the kernel died by signal 9 (killed, or out of memory)"), ("job", "its process ended without a word")],
)
def test_a_killed_process_is_a_failure_and_not_a_success(victim: str, reason: str) -> None:
    process = start("run", *ENDLESS)
    run = endless()
    wait_for(lambda: not run.metrics().empty)
    assert run.status().state == "running"
    (kernel_of(run) if victim == "kernel" else psutil.Process(run.status().pid)).kill()
    code, output = finished(process)
    assert (code, run.status().state) == (1, "failed"), output
    assert reason in run.status().error
    assert run.status().error in output and run.result() is None
    wait_for(lambda: not of_test(), 15)
    if victim == "kernel":
        nbformat.validate(nbformat.read(run.folder / "run.ipynb", as_version=4))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The metrics of a run of eight epochs that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAM_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        return train(small(epochs=8)).metrics().drop(columns=list(MEASURED))


@pytest.mark.parametrize("victim", ["kernel", "job", "signalled job"])
def test_a_run_that_was_killed_or_stopped_ends_in_the_bits_of_one_that_was_not(
    victim: str, undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole machinery around it: dispatcher, job, papermill, kernel."""
    monkeypatch.setenv("GAM_CHECKPOINT_MINUTES", "0")
    command = ["run", "-p", "epochs=8", *SMALL[2:]]
    process = start(*command)
    run = small(epochs=8)
    wait_for(lambda: not run.metrics().empty)
    if victim == "kernel":
        kernel_of(run).kill()
    else:
        psutil.Process(run.status().pid).send_signal(signal.SIGKILL if victim == "job" else signal.SIGUSR2)
    assert finished(process)[0] == 1
    wait_for(lambda: not of_test(), 15)
    if victim == "signalled job":
        assert run.status().state == "preempted"
        assert run.status().error.startswith("stopped by SIGUSR2 in epoch ")
    code, output = finished(start(*command))
    assert code == 0, output
    assert run.status().attempts == 2
    pd.testing.assert_frame_equal(run.metrics().drop(columns=list(MEASURED)), undisturbed, check_exact=True)


@pytest.mark.long
def test_a_run_on_two_devices_is_launched_from_its_notebook_and_leaves_no_process_when_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "training" / "on_cpu"), prepend=os.pathsep)
    values = {"width": 0.25, "train_fraction": 0.2, "devices": 2}
    command = ["run", *(text for key, value in values.items() for text in ("-p", f"{key}={value}"))]
    process = start_anew(*command, "-p", "epochs=100000")
    long = Run(RunConfig(**values, epochs=100000))
    wait_for(lambda: not long.metrics().empty)
    kernel = kernel_of(long)
    workers = kernel.children(recursive=True)
    assert len(workers) >= 2
    kernel.kill()
    assert finished(process)[0] == 1
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 15)
    code, output = finished(start_anew(*command, "-p", "epochs=2"))
    assert code == 0, output
    run = Run(RunConfig(**values, epochs=2))
    assert len(run.metrics()) == 2 and run.status().state == "done"
    (predicted, label), result = read_predictions(run), run.result()
    right = predicted == label
    assert result is not None and 100 * (1 - right.mean()) == pytest.approx(result.top1_error)
    assert (run.folder / "log.txt").read_text().count("top-1 error") == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_what_is_done_and_no_process(how: signal.Signals, tmp_path: Path) -> None:
    study = tmp_path / "three.yaml"
    study.write_text("arms:\n  short: {epochs: 1}\n  long: {epochs: 100000}\n  never: {epochs: 100001}\n")
    rest = SMALL[2:]
    process = start("study", str(study), "--seeds", "0", "--workers", "1", *rest)
    wait_for(lambda: not endless().metrics().empty)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: to every process of the command
    else:
        process.send_signal(how)
    code, output = finished(process)
    assert code == 130, output
    states = [Run(RunConfig(epochs=e, width=0.25, train_fraction=0.2)).status().state for e in (1, 100000, 100001)]
    assert states == ["done", "preempted", "missing"]
    assert endless().status().error.startswith("stopped by its dispatcher in epoch ")
    assert (endless().folder / "checkpoint.pt").exists()
    wait_for(lambda: not of_test(), 15)


def test_a_cancelled_study_says_what_it_left_and_ends(tmp_path: Path) -> None:
    study = tmp_path / "two.yaml"
    study.write_text("arms:\n  long: {epochs: 100000}\n  never: {epochs: 100001}\n")
    process = start("study", str(study), "--seeds", "0", "--workers", "1", *SMALL[2:])
    wait_for(lambda: not endless().metrics().empty)
    code, told = finished(start("cancel", "two"))
    assert code == 0 and "2 runs stopped" in told, told
    assert "preempted, stopped by gamlib cancel in epoch " in told
    assert "preempted, stopped by gamlib cancel before it began" in told
    code, output = finished(process)
    assert code == 1, output
    assert (endless().folder / "checkpoint.pt").exists() and not of_test()
    assert "nothing is queued or running" in finished(start("cancel", "two"))[1]


def test_a_second_command_leaves_a_running_run_alone() -> None:
    """It queues the same runs and is stopped; the first's run is still the first's."""
    first = start("run", *ENDLESS)
    run = endless()
    wait_for(lambda: run.status().state == "running")
    second = start("run", *ENDLESS)
    wait_for(lambda: len(of_test()) == 8)  # of each, the command, its server, a job and what would be its kernel
    time.sleep(2)
    assert run.status().state == "running"
    second.send_signal(signal.SIGINT)
    assert finished(second)[0] == 130
    assert run.status().state == "running"
    first.send_signal(signal.SIGINT)
    assert finished(first)[0] == 130
    assert run.status().state == "preempted"


def test_a_killed_command_leaves_its_job_in_peace_and_the_rest_to_the_next() -> None:
    process = start("run", *SMALL, "-p", "seed=1")
    run = small(seed=1)
    wait_for(lambda: run.status().state == "running")
    process.kill()
    process.wait()
    code, output = finished(start("run", *SMALL, "-p", "seed=1"))  # waits for the job of the first, then finds it done
    assert code == 0, output
    assert (run.status().state, run.status().attempts) == ("done", 1)


@pytest.mark.long
def test_runs_outlive_the_server_that_has_forked_them_and_the_next_get_another(tmp_path: Path) -> None:
    study = tmp_path / "five.yaml"
    study.write_text("arms:\n  r20: {epochs: 20}\n" + "".join(f"  r{n}: {{epochs: {n}}}\n" for n in (3, 4, 5, 6)))
    process = start("study", str(study), "--seeds", "0", *SMALL[2:])
    first = Run(RunConfig(epochs=20, width=0.25, train_fraction=0.2))
    wait_for(lambda: not first.metrics().empty)
    server = psutil.Process(first.status().pid).parent()
    assert server is not None
    server.kill()
    code, output = finished(process)
    assert code == 0 and "5 of 5 runs done" in output, output
    assert first.status().attempts == 1
    wait_for(lambda: not of_test(), 15)


@pytest.mark.long
def test_where_a_fork_would_not_work_jobs_start_anew_and_say_so(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(places), prepend=os.pathsep)
    code, output = finished(start_anew("run", *SMALL))
    assert code == 0, output
    assert "a kernel that starts anew" in (small().folder / "log.txt").read_text()


def test_a_checkout_that_is_not_installed_forks_its_kernels_too(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import os\nos.getppid()")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "one.ipynb")
    command = [sys.executable, "-c", NOT_INSTALLED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    (cell,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert cell.outputs[0].data["text/plain"] == done.stdout.strip()


def test_a_server_that_does_not_start_is_the_reason_why_runs_fail(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places / "sitecustomize.py").write_text("import sys\nif 'server' in sys.orig_argv: sys.exit('broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(places), prepend=os.pathsep)
    code, output = finished(start_anew("run", *SMALL))
    assert (code, small().status().state) == (1, "failed")
    assert "no job can be started: SystemExit: broken" in output
    assert small().status().error == "no job can be started: SystemExit: broken"


def test_two_commands_at_once_train_a_run_once() -> None:
    processes = [start("run", *SMALL, "-p", "seed=2") for _ in range(2)]
    assert [finished(process)[0] for process in processes] == [0, 0]
    assert small(seed=2).status().attempts == 1


@pytest.mark.long
def test_a_full_disk_fails_the_run_and_room_lets_it_finish(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = places / "full"
    full.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", full]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        monkeypatch.setenv("GAM_RUNS", str(full))
        (full / "filler").write_bytes(b"0" * 240_000)
        code, output = finished(start("run", "--cluster", "debug", *SMALL))
        assert code == 1, output
        assert small().result() is None
        assert "No space left" in output + small().status().error
        (full / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", full], check=True)
        code, output = finished(start("run", "--cluster", "debug", *SMALL))
        assert (code, small().status().state) == (0, "done"), output
    finally:
        subprocess.run(["umount", "-l", full], check=True)
