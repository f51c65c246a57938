"""What is asked of SLURM and told to it, with commands that only print. A real SLURM is in tests/slurm."""

import errno
import fcntl
import inspect
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from filelock import FileLock
from submitit.core.utils import DelayedSubmission
from typer.testing import CliRunner

from ablation.cli import app
from ablation.config import RunConfig
from ablation.console import slurm_options as slurm_options_of_the_command
from ablation.errors import ConfigError
from ablation.execution import FORMER, arrays, dispatch, housekeeping, slurm, slurm_options
from ablation.execution.execute import forward_signals
from ablation.execution.pool import SlurmJob
from ablation.results import report
from ablation.runs import Run, RunFailed, RunStopped
from ablation.status import Status, this_process

Finish = Callable[..., Run]
Commands = Callable[[str, str], Path]
GONE = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"  # of squeue, asked for one job


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Puts shell scripts before everything else on the PATH; each call's arguments are a line of the file it gives."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm_options, "DEFAULTS", tmp_path / "gamlib.toml")
    slurm.max_array_size.cache_clear()
    monkeypatch.setattr(slurm, "_unanswered", -math.inf)

    def command(name: str, script: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
        (folder / name).chmod(0o755)
        return calls

    for name in ("srun", "squeue", "sacct", "scancel"):  # submitit asks whether there is an srun
        command(name, "")
    command("scontrol", "echo 'MaxArraySize            = 401'")
    return command


@pytest.fixture
def sbatch(commands: Commands, tmp_path: Path) -> Path:
    """Gives every submission the next number, from 1."""
    return commands("sbatch", f'n=$(cat {tmp_path}/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > {tmp_path}/n\n'
                              'echo "Submitted batch job $n"')  # fmt: skip


def runs(number: int) -> list[Run]:
    return [Run(RunConfig(seed=seed)) for seed in range(number)]


def submitted(job_id: str, **changes: Any) -> Run:
    (run,) = runs(1)
    run.queue(job_id, "slurm")
    if changes:
        run.write_status(**changes)
    return run


def submit(todo: list[Run], options: dict[str, Any] | None = None) -> list[Run]:
    return arrays.submit(todo, slurm_options.parameters(options or {}), {})


def status(run: Run) -> Status:
    return slurm.statuses([run])[run]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The project's and the user's file of options, neither of them there yet."""
    monkeypatch.setattr(slurm_options, "base_folder", lambda: tmp_path)
    monkeypatch.setattr(slurm_options, "DEFAULTS", tmp_path / "gamlib.toml")
    return tmp_path / "pyproject.toml", tmp_path / "gamlib.toml"


def test_the_command_line_goes_before_the_users_file_and_that_before_the_projects(files: tuple[Path, Path]) -> None:
    project, user = files
    project.write_text(
        '[tool.gamlib.slurm]\npartition = "p"\naccount = "p"\nqos = "p"\nslurm = {comment = "p", mail_user = "p"}\n'
    )
    user.write_text('[slurm]\naccount = "u"\nqos = "u"\ntimeout = 240\nmem = 8.5\nsetup = "module load x"\n')
    options = {"gpus": None, "slurm": ["qos=c", "comment=c", "exclusive"]}
    assert slurm_options.parameters(options) == {
        "slurm_partition": "p",
        "timeout_min": 240,
        "mem_gb": 8.5,
        "slurm_setup": ["module load x"],
        "slurm_signal_delay_s": 120,
        "slurm_additional_parameters": {
            **{"requeue": True, "account": "u", "qos": "c", "comment": "c", "mail-user": "p", "exclusive": True}
        },
    }


def test_what_were_options_of_their_own_are_still_read_from_everywhere(files: tuple[Path, Path]) -> None:
    """And in whatever form they are given, they come after one another or in each other's place."""
    former = {"account": "a", "qos": "b", "constraint": "c", "array_parallelism": 2, "setup": ["one", "two"]}
    texts = ["account=a", "qos=b", "--constraint=c", "array-parallelism=2", "setup=one", "setup=two"]
    found = slurm_options.parameters(former)
    assert (found["slurm_array_parallelism"], found["slurm_setup"]) == (2, ["one", "two"])
    for form in ({"slurm": texts}, {"slurm": former}, slurm_options.merged(former)):
        assert slurm_options.parameters(form) == found
    files[1].write_text('[slurm]\naccount = "a"\nqos = "b"\nslurm = {constraint = "c", array_parallelism = 2}\n')
    assert slurm_options.parameters({"setup": ["one", "two"]}) == found
    assert slurm_options.merged(former, {"mem": 2, "slurm": ["qos=x", "setup=three"]}) == {
        "mem": 2,
        "slurm": {"account": "a", "qos": "x", "constraint": "c", "array-parallelism": 2, "setup": ["three"]},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": -1}, "gpus=-1: allowed: a whole number from 0"),
        ({"cpus": 0}, "cpus=0: allowed: a whole number from 1"),
        ({"cpus": True}, "cpus=True: allowed: a whole number from 1"),
        ({"timeout": 1.5}, "timeout=1.5: allowed: a whole number from 1"),
        ({"array_parallelism": 0}, "array-parallelism=0: allowed: a whole number from 1"),
        ({"slurm": ["array-parallelism=x"]}, "array-parallelism=x: allowed: a whole number from 1"),
        ({"mem": 0.0}, "mem=0.0: allowed: a number above 0"),
        ({"mem": float("inf")}, "mem=inf: allowed: a number above 0"),
        ({"memory": 8}, "memory is not a parameter: did you mean mem? There are partition, gpus"),
        ({"slurm": ["=3"]}, "slurm='=3': allowed: key=value"),
        ({"runs_per_job": 0}, "runs_per_job=0: allowed: a whole number from 1"),
        ({"runs_per_job": 2, "at_once": 3}, "at_once=3: allowed: 1 to 2, the runs of a job; see runs_per_job"),
        ({"at_once": 2}, "at_once=2: allowed: 1 to 1"),
        ({"slurm": ["python"]}, "python=True: allowed: a command"),
        ({"slurm": {"python": " "}}, "python= : allowed: a command"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], message: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        slurm_options.parameters(given)


def test_every_option_of_the_command_is_one_that_submission_knows() -> None:
    def command(slurm: dict[str, Any]) -> None: ...

    options = set(inspect.signature(slurm_options_of_the_command(command)).parameters)
    assert options == {*slurm_options.SlurmOptions.model_fields, *FORMER}


@pytest.mark.parametrize("text", ["[slurm", "slurm = 3", "[slurm]\nmemory = 3", "[slurm]\nslurm = 3"])
def test_a_file_of_defaults_that_is_wrong_is_named(text: str, files: tuple[Path, Path]) -> None:
    files[1].write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(files[1]))):
        slurm_options.parameters({})


def test_what_a_node_takes_down_goes_on_unless_that_is_not_wanted() -> None:
    assert slurm_options.parameters({})["slurm_additional_parameters"] == {"requeue": True}
    assert slurm_options.parameters({"slurm": ["no-requeue"]})["slurm_additional_parameters"] == {"no-requeue": True}


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 15), (4, 60), (8, 120), (14 * 24 * 60, 120)])
def test_a_run_is_told_to_stop_in_time_and_not_much_earlier(minutes: int, seconds: int) -> None:
    assert slurm_options.parameters({"timeout": minutes})["slurm_signal_delay_s"] == seconds


def test_squeue_is_asked_first_and_sacct_for_the_rest(commands: Commands) -> None:
    commands("squeue", "printf '7_0 RUNNING\\n7_1 PENDING\\n9 RUNNING\\n'")
    asked = commands("sacct", "printf '7_0|FAILED\\n7_2|CANCELLED by 1000\\n8|TIMEOUT\\n'")
    assert slurm.states({"7_0", "7_1", "7_2", "7_3", "8", "6"}) == {
        "7_0": ("RUNNING", ""),
        "7_1": ("PENDING", ""),
        "7_2": ("CANCELLED", ""),
        "7_3": ("", ""),  # squeue has others of its array
        "8": ("TIMEOUT", ""),
    }
    assert "6,7,8" in asked.read_text()


def test_a_slurm_that_does_not_answer_leaves_the_folders_word(commands: Commands) -> None:
    run = submitted("7")
    commands("squeue", "exit 1")
    assert slurm.states({"7"}) is None
    assert status(run).state == "queued"


@pytest.mark.parametrize("state", sorted(slurm.WAITING))
def test_a_job_waits_only_if_squeue_has_it(state: str, commands: Commands) -> None:
    """What was put back into the queue and then cancelled has such a state in the accounts for ever."""
    run = submitted("7_0")
    commands("sacct", f"echo '7_0|{state}'")
    commands("squeue", GONE)
    assert status(run).state == "lost"
    commands("squeue", f"echo '7_0 {state}'")
    assert status(run).state == "queued"


@pytest.mark.parametrize("answer", ["7_0", "7_0|", "|", "", "\\377\\376|\\377", "7_0 FAILED"])
def test_an_answer_that_makes_no_sense_is_none(answer: str, commands: Commands) -> None:
    commands("sacct", f"printf '{answer}\\n'")
    commands("squeue", "printf '\\377\\n'")
    assert slurm.states({"7_0"}) == {}


def test_an_empty_answer_is_no_evidence_that_a_job_is_gone(commands: Commands) -> None:
    run = submitted("7")
    assert status(run).state == "queued"
    commands("squeue", GONE)
    assert status(run).state == "lost"


def test_squeue_is_asked_for_the_very_jobs_and_no_variable_changes_its_answer(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("LOGNAME", "somebody")
    asked = commands("squeue", 'test -z "$SQUEUE_PARTITION" && echo "7_0 PENDING Resources here"')
    assert slurm.states({"7_0"}) == {"7_0": ("PENDING", "Resources here")}
    assert asked.read_text().endswith("-j 7\n") and "-u" not in asked.read_text().split()


def test_tasks_that_never_began_are_one_line_of_sacct(commands: Commands) -> None:
    commands("sacct", "printf '7_[1-3,5%%2]|CANCELLED by 0\n7_[8...]|FAILED\n'")
    known = slurm.states({f"7_{task}" for task in range(9)})
    assert known == {f"7_{task}": ("CANCELLED", "") for task in (1, 2, 3, 5)}


@pytest.mark.parametrize(
    ("reason", "error"),
    [("JobHeldUser", "waits: JobHeldUser"), ("launch failed requeued held", "waits: launch failed requeued held"),
     ("None", ""), ("", "")],
)  # fmt: skip
def test_a_run_that_waits_says_why(reason: str, error: str, commands: Commands) -> None:
    run = submitted("7")
    commands("squeue", f"echo '7 PENDING {reason}'")
    assert (status(run).state, status(run).error) == ("queued", error)


def test_a_slurm_that_hangs_is_waited_for_once(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    run = submitted("7")
    hanging = [commands(name, "exec sleep 60") for name in ("squeue", "sacct", "scancel")]
    began = time.monotonic()
    for _ in range(5):
        assert status(run).state == "queued"
    assert time.monotonic() < began + 30
    with pytest.raises(ConfigError, match="SLURM cannot be reached"):
        housekeeping.cancel([run])
    assert hanging[0].read_text().count("\n") == 1 and not hanging[1].exists() and not hanging[2].exists()
    monkeypatch.setattr(slurm, "SILENCE", 0.0)
    commands("squeue", GONE)
    assert status(run).state == "lost"


def test_the_shells_options_are_the_last_ones_and_its_others_none(
    sbatch: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in {"PARTITION": "shell", "ACCOUNT": "shell", "TIMELIMIT": "7", "NO_REQUEUE": "1"}.items():
        monkeypatch.setenv(f"SBATCH_{key}", value)
    options = slurm_options.parameters({"partition": "mine"})
    assert (options["slurm_partition"], options["timeout_min"]) == ("mine", 1440)
    assert options["slurm_additional_parameters"]["account"] == "shell"
    commands("sbatch", f'env > {tmp_path}/env; echo "Submitted batch job 1"')
    arrays.submit(runs(1), options, {})
    assert "SBATCH_" not in (tmp_path / "env").read_text()
    assert os.environ["SBATCH_TIMELIMIT"] == "7"


def test_a_job_starts_python_by_the_command_that_it_is_given(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slurm, "max_array_size", lambda: 2)  # two submissions, the same options for both
    commands("sbatch", f'cat "$1" >> {tmp_path}/scripts; echo "Submitted batch job $$"')
    command = "apptainer exec --nv --bind=/etc/slurm gam.sif python"
    submit(runs(3), {"slurm": [f"python={command}", "setup=module load apptainer"]})
    script = (tmp_path / "scripts").read_text()
    assert script.count(f" {command} -u -m submitit.core._submit ") == 2
    assert script.count("\nmodule load apptainer\n") == 2 and sys.executable not in script


def test_what_sbatch_has_queued_without_an_answer_is_cancelled(commands: Commands) -> None:
    cancelled = commands("scancel", "")
    commands("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2; exit 1")
    with pytest.raises(ConfigError, match="timed out"):
        submit(runs(1))
    (record,) = (runs(1)[0].folder.parents[1] / "submitit").glob("*.submitting")
    assert cancelled.read_text() == f"--quiet --name {record.stem}\n"
    with arrays.submission_lock():
        pass
    assert cancelled.read_text() == 2 * f"--quiet --name {record.stem}\n" and not record.exists()


def test_more_gpus_than_devices_are_refused_before_anything_is_submitted(sbatch: Path) -> None:
    with pytest.raises(ConfigError, match=r"gpus=2: allowed: 1, as many as the runs of a job at once have devices"):
        submit([*runs(1), Run(RunConfig(devices=2))], {"gpus": 2})
    assert not sbatch.exists()


def test_a_file_system_without_locks_is_refused_before_anything_is_submitted(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
            with pytest.raises(ConfigError, match=f"has no file locks .{os.strerror(number)}.; set GAM_RUNS"):
                dispatch.dispatch([RunConfig()], "slurm", wait=False)
            with pytest.raises(ConfigError, match="has no file locks"), Run(RunConfig()).claim():
                pass
    assert not sbatch.exists()


def test_a_job_in_another_folder_has_its_runs_where_it_was_submitted(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submitted = Mock(return_value=[])
    monkeypatch.setattr(arrays, "submit", submitted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAM_RUNS", "mine")
    dispatch.dispatch([RunConfig()], "slurm", wait=False)
    assert submitted.call_args.args[2]["GAM_RUNS"] == str(tmp_path / "mine")


def test_without_the_notebooks_nothing_is_submitted_or_written(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    for module in (dispatch, report):
        monkeypatch.setattr(module, "NOTEBOOKS", places / "site-packages" / "notebooks")
    for start in (lambda: dispatch.dispatch([RunConfig()], "slurm", wait=False), report.complexity_report):
        with pytest.raises(ConfigError, match="not there; it comes with gamlib: install that again"):
            start()
    assert not sbatch.exists() and not (places / "runs").exists()


def test_what_was_submitted_in_parts_is_cancelled_and_tried_again_in_whole(
    sbatch: Path, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gamlib(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    study = tmp_path / "two.yaml"
    study.write_text("arms:\n  plain: {attention: none}\n  gam: {}\n")
    options = ("--cluster", "slurm", "--no-wait")
    gamlib("study", str(study), "--seeds", "0-1", "--mem", "8", *options)
    gamlib("study", str(study), "--seeds", "2-3", *options)
    commands("squeue", "for j in 1 2; do for t in 0 1 2 3; do echo ${j}_$t PENDING; done; done")
    assert "8 queued" in gamlib("status", "two")
    commands("sbatch", "echo 'sbatch: error: no' >&2; exit 1")
    assert CliRunner().invoke(app, ["study", str(study), "--seeds", "7", *options]).exit_code == 2
    assert "8 queued" in gamlib("status", str(study)), "a submission that was refused changes nothing"
    cancelled = commands("scancel", "")
    commands(
        "squeue", f"test -e {cancelled} || for j in 1 2; do for t in 0 1 2 3; do echo ${{j}}_$t PENDING; done; done"
    )
    commands("sacct", "printf '1_[0-3]|CANCELLED by 0\n2_[0-3]|CANCELLED by 0\n'")
    assert "8 runs stopped" in gamlib("cancel", "two")
    assert cancelled.read_text() == "--quiet 1_0 1_1 1_2 1_3 2_0 2_1 2_2 2_3\n"
    commands("sbatch", f'n=$(cat {tmp_path}/n); echo $((n + 1)) > {tmp_path}/n; echo "Submitted batch job $((n + 1))"')
    assert gamlib("retry", "two", "--no-wait").count("4 runs submitted") == 2
    texts = [path.read_text() for path in (tmp_path / "runs" / "submitit").glob("[34]_submission.sh")]
    assert sorted("--mem=8GB" in text for text in texts) == [False, True], "each with its own options"


def test_runs_that_have_failed_are_removed_if_asked(commands: Commands) -> None:
    run = submitted("7")
    (run.folder / ".lock").touch()
    (run.folder / ".run.4711.ipynb").touch()
    commands("sacct", "echo '7|FAILED'")
    assert ".run.4711.ipynb" in (shown := CliRunner().invoke(app, ["gc"]).output) and "config.json" not in shown
    assert "config.json" in CliRunner().invoke(app, ["gc", "--failed"]).output and run.folder.exists()
    assert "removed" in CliRunner().invoke(app, ["gc", "--failed", "--yes"]).output
    assert not run.folder.exists()


def test_a_state_that_is_not_known_is_shown_and_no_failure(commands: Commands) -> None:
    run = submitted("7")
    commands("squeue", "echo '7 POWER_UP_NODE'")
    now = status(run)
    assert (now.state, now.error) == ("queued", "SLURM says POWER_UP_NODE")


def test_a_run_whose_job_died_without_a_word_gets_one_job_however_often_it_is_submitted(
    sbatch: Path, commands: Commands
) -> None:
    run = submitted("7_0")
    run.write_status(state="running", host="elsewhere", pid=1)  # killed a moment ago: its heartbeat is fresh
    commands("sacct", "echo '7_0|FAILED'")
    assert submit([run]) == [run]
    assert (run.status().state, run.status().job_id) == ("queued", "1")
    commands("squeue", "echo '1 PENDING'")
    assert submit([run]) == []
    assert len(sbatch.read_text().splitlines()) == 1


def test_a_job_that_began_before_its_submission_was_written_down_goes_on() -> None:
    run = submitted("7", state="running", host="elsewhere", pid=1)
    run.queue("7", "slurm")
    assert run.status().state == "running"


@pytest.mark.parametrize("state", sorted(slurm.ENDED - {"COMPLETED"}))
@pytest.mark.parametrize("said", ["queued", "running"])
def test_every_end_of_slurms_is_told_with_the_last_line_of_the_log(state: str, said: str, commands: Commands) -> None:
    run = submitted("7_0")
    if said == "running":
        run.write_status(state="running", host="elsewhere", pid=1)
    commands("sacct", f"echo '7_0|{state}'")
    assert status(run).error == f"{state}: its job left no word"
    slurm.log_of("7_0").parent.mkdir(parents=True)
    slurm.log_of("7_0").write_text("first\nslurmstepd: error: what SLURM says\n\n")
    now = status(run)
    assert (now.state, now.error) == ("failed", f"{state}: slurmstepd: error: what SLURM says")


@pytest.mark.parametrize(
    ("cause", "after"),
    [
        ("OSError: [Errno 37] No locks available", "submitit INFO: line\n" * 1000),
        ("cp: error: No space left on device", "submitit INFO: line\n" * 1000),
        ("slurmstepd: error: Exceeded job memory limit", ""),  # without cgroups SLURM calls it FAILED
        ("what it printed last", ""),
        ("what SLURM says", "a-run  FAILED: OSError: another's  (3 s)  [1 of 4 runs done, 0 running, 1 failed]\n"),
        ("", ""),
    ],
)
def test_a_cause_is_found_wherever_it_stands_in_a_log(cause: str, after: str, commands: Commands) -> None:
    """srun's own lines come last, and are the cause only if there is nothing else."""
    run = submitted("7")
    commands("sacct", "echo '7|FAILED'")
    slurm.log_of("7").parent.mkdir(parents=True)
    of_srun = "srun: error: n0: task 0: Exited with exit code 1"
    slurm.log_of("7").write_text(f"{cause}\n{after}{of_srun}\n")
    assert status(run).error == f"FAILED: {cause or of_srun}"


@pytest.mark.parametrize(
    ("said", "known", "state", "error"),
    [
        ("queued", "PENDING", "queued", ""),
        ("queued", None, "lost", "SLURM does not know its job 7 any more"),
        ("queued", "RUNNING", "queued", ""),
        ("running", "RUNNING", "running", ""),
        ("running", "PENDING", "queued", ""),
        ("running", None, "running", ""),
        ("running", "COMPLETED", "failed", "COMPLETED: its job left no word"),
        ("preempted", "PENDING", "queued", ""),
        ("preempted", "COMPLETING", "running", "why"),
        ("failed", "COMPLETING", "running", "why"),
        ("preempted", "CANCELLED", "preempted", "CANCELLED: why"),
        ("failed", "FAILED", "failed", "why"),
        ("failed", "OUT_OF_MEMORY", "failed", "OUT_OF_MEMORY: why"),
        ("failed", None, "failed", "why"),
    ],
)  # fmt: skip
def test_the_folder_speaks_first_and_slurm_where_it_knows_better(
    said: str, known: str | None, state: str, error: str, commands: Commands
) -> None:
    run = submitted("7")
    why = "why" if said in ("failed", "preempted") else ""
    run.write_status(state=said, host="elsewhere", pid=1, error=why)
    commands("squeue", f"echo '7 {known}'" if known else GONE)
    now = status(run)
    assert (now.state, now.error) == (state, error)


def test_a_job_that_is_gone_with_an_old_heartbeat_is_lost(commands: Commands) -> None:
    run = submitted("7", state="running", host="elsewhere", pid=1)
    text = (run.folder / "status.json").read_text()
    stamp = run.status().heartbeat
    (run.folder / "status.json").write_text(text.replace(stamp, "2026-01-01T00:00:00+00:00"))
    assert status(run).state == "lost"
    commands("squeue", "echo '7 RUNNING'")
    assert status(run).state == "running", "SLURM knows that it runs: the file system may be slow"


def test_runs_done_before_are_none_of_slurms_business(finish: Finish, commands: Commands) -> None:
    run = finish(RunConfig(), 5.0)
    run.write_status(cluster="slurm", job_id="7")
    commands("squeue", "echo '7 PENDING'")
    assert status(run).state == "done"


def test_a_study_is_one_array_split_where_slurm_wants_it(sbatch: Path, commands: Commands) -> None:
    commands("scontrol", "echo 'MaxArraySize            = 4'")
    todo = runs(7)
    submitted = submit(todo, {"array_parallelism": 2})
    assert submitted == todo
    assert [run.status().job_id for run in todo] == ["1_0", "1_1", "1_2", "2_0", "2_1", "2_2", "3"]
    assert {run.status().state for run in todo} == {"queued"}
    assert not list((todo[0].folder.parents[1] / "submitit").glob("*.submitting"))


def test_who_is_in_the_queue_is_not_submitted_again(sbatch: Path, commands: Commands) -> None:
    todo = runs(3)
    submit(todo[:2])
    commands("squeue", "printf '1_0 PENDING\\n1_1 RUNNING\\n'")
    assert submit(todo) == todo[2:]
    assert len(sbatch.read_text().splitlines()) == 2


@pytest.mark.parametrize("said", ["queued", "preempted", "failed"])
def test_nothing_is_submitted_while_slurm_does_not_say_whether_a_run_has_a_job(
    said: str, sbatch: Path, commands: Commands
) -> None:
    first, other = runs(2)
    first.queue("7", "slurm")
    first.write_status(state=said)
    commands("squeue", "exit 1")
    with pytest.raises(ConfigError, match="squeue does not answer"):
        submit([first, other])
    assert not sbatch.exists()
    commands("squeue", "")
    assert submit([first, other]) == [other], "an empty answer says nothing"
    commands("squeue", GONE)
    assert submit([first]) == [first]


def test_a_refusal_leaves_nothing_and_says_why(commands: Commands) -> None:
    commands("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1")
    with pytest.raises(ConfigError, match="sbatch refused: Batch job submission failed: Invalid qos specification"):
        submit(runs(2), {"slurm": ["qos=gold"]})
    assert [run.status().state for run in runs(2)] == ["missing", "missing"]
    assert not list((runs(1)[0].folder.parents[1] / "submitit").glob("*.submitting"))


def test_jobs_of_a_submission_that_was_killed_are_cancelled_by_the_next(sbatch: Path, commands: Commands) -> None:
    cancelled = commands("scancel", "")
    folder = runs(1)[0].folder.parents[1] / "submitit"
    folder.mkdir(parents=True)
    (folder / "gamlib-0123456789ab.submitting").touch()
    submit(runs(1))
    assert "--name gamlib-0123456789ab" in cancelled.read_text()
    assert not list(folder.glob("*.submitting"))


def test_runs_on_several_devices_ask_for_as_many_gpus(sbatch: Path, commands: Commands) -> None:
    several = Run(RunConfig(devices=4, batch_size=32))
    submit([*runs(1), several])
    texts = [path.read_text() for path in (several.folder.parents[1] / "submitit").glob("[0-9]*_submission.sh")]
    assert sorted("--gpus-per-node=4" in text for text in texts) == [False, True]


@pytest.mark.parametrize(("gpus", "asked"), [(1, 4), (0, 0), (None, 4)])
def test_a_run_gets_as_many_gpus_as_it_has_devices_unless_it_is_to_have_none(
    gpus: int | None, asked: int, sbatch: Path
) -> None:
    several = Run(RunConfig(devices=4, batch_size=32))
    submit([several], {"gpus": gpus})
    (path,) = (several.folder.parents[1] / "submitit").glob("[0-9]*_submission.sh")
    assert f"--gpus-per-node={asked}\n" in path.read_text()


def test_several_runs_are_one_task_of_an_array(sbatch: Path) -> None:
    todo = runs(5)
    assert submit(todo, {"runs_per_job": 2, "at_once": 2, "gpus": 2}) == todo
    assert [run.status().job_id for run in todo] == ["1_0", "1_0", "1_1", "1_1", "1_2"]
    assert [run.status().shared for run in todo] == [True] * 4 + [False]
    job = DelayedSubmission.load(todo[0].folder.parents[1] / "submitit" / "1_1_submitted.pkl")
    assert [run.signature for run in job.args[0]] == [run.signature for run in todo[2:4]] and job.args[2] == 2
    with pytest.raises(ConfigError, match="gpus=3: allowed: 2"):
        submit(todo, {"runs_per_job": 4, "at_once": 2, "gpus": 3})


def test_runs_of_a_job_share_its_cores(sbatch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "submit", submit := Mock(return_value=[]))
    for cpus, at_once, threads in ((8, 4, "2"), (2, 4, "1"), (8, 1, "8")):
        options = {"cpus": cpus, "runs_per_job": 4, "at_once": at_once}
        dispatch.dispatch([RunConfig()], "slurm", wait=False, slurm=options)
        assert submit.call_args.args[2]["OMP_NUM_THREADS"] == threads


def test_a_run_that_has_failed_in_a_job_of_several_is_submitted_again_at_once(sbatch: Path, commands: Commands) -> None:
    failed, other = todo = runs(2)
    submit(todo, {"runs_per_job": 2})
    commands("squeue", "echo '1 RUNNING None'")
    failed.write_status(state="failed", error="no", job_id="")  # as its job does
    assert submit(todo) == [failed]
    assert failed.status().slurm_jobs() == ["2"] and status(other).job_id == "1"


@pytest.mark.parametrize("its_job_has_seen_it", [True, False])
def test_of_a_job_of_several_runs_some_are_cancelled(
    its_job_has_seen_it: bool, commands: Commands, sbatch: Path, tmp_path: Path
) -> None:
    waiting, training, other = todo = runs(3)
    submit(todo, {"runs_per_job": 3})
    training.write_status(state="running", **this_process())
    commands("squeue", f"test -e {tmp_path}/scancel.calls || echo '1 RUNNING None'")
    end = {"state": "preempted", "error": "stopped"} | ({"job_id": ""} if its_job_has_seen_it else {})
    threading.Timer(0.5, lambda: training.write_status(**end)).start()
    left = housekeeping.cancel([waiting, training])
    assert [left[run].error for run in (waiting, training)] == ["cancelled before it began", "stopped"]
    assert training.asked_to_stop() == "gamlib cancel" and not waiting.status().belongs_to("1")
    assert not (tmp_path / "scancel.calls").exists() and status(other).state == "queued"
    housekeeping.cancel([other])
    assert (tmp_path / "scancel.calls").read_text() == "--quiet 1\n"


@pytest.fixture
def job_of_several(places: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Run]]:
    """Executes job 1 of some runs, but for what happens to them; those that it would execute."""

    def execute(todo: list[Run], happens: Callable[[], object] = lambda: None) -> list[Run]:
        for key, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1"}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
        monkeypatch.setattr(arrays, "ForkServer", MagicMock())
        executed: list[Run] = []

        def execute_all(runs: list[Run], *_: object, job: SlurmJob) -> None:
            executed.extend(runs)
            happens()
            if job.told:
                raise RunStopped(job.told[0])

        monkeypatch.setattr(arrays, "execute_all", execute_all)
        arrays.train_several_on_slurm(todo, {}, 2, places / "x.submitting", 60)
        return executed

    return execute


def test_a_job_of_several_waits_until_they_know_of_it_and_passes_over_what_is_done_or_has_left(
    finish: Finish, places: Path, job_of_several: Callable[..., list[Run]]
) -> None:
    mine, has_another, has_left, local = todo = [Run(RunConfig(seed=seed)) for seed in range(1, 5)]
    (places / "x.submitting").touch()

    def tell() -> None:
        for run, job_id in ((mine, "1"), (has_another, "2"), (has_left, "")):
            run.queue(job_id, "slurm", shared=True)
        local.write_status(state="failed", cluster="local", job_id="1")  # its process had that number
        (places / "x.submitting").unlink()

    threading.Timer(0.5, tell).start()
    with pytest.raises(RunFailed, match="1 of 1 runs are not done"):
        job_of_several([finish(RunConfig(), 5.0), *todo], lambda: mine.write_status(state="failed"))
    mine.write_status(job_id="")
    assert job_of_several(todo) == []


def test_a_job_of_several_whose_submission_does_not_end_says_so(
    places: Path, job_of_several: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "SUBMISSION_SECONDS", 0)
    (places / "x.submitting").touch()
    with pytest.raises(RunFailed, match="its submission does not end"):
        job_of_several(runs(1))


def test_a_run_that_takes_no_step_leaves_a_job_of_several_and_the_others_go_on(
    commands: Commands, job_of_several: Callable[..., list[Run]]
) -> None:
    stuck, other = todo = runs(2)
    for run in todo:
        run.queue("1", "slurm", shared=True)
    attempts = iter(range(100))

    def told() -> None:
        stuck.write_status(state="preempted", error="stopped by SIGUSR2 before it began")
        other.write_status(state="preempted", error=f"stopped by SIGUSR2 in epoch {next(attempts)}")
        signal.raise_signal(signal.SIGUSR2)

    for _ in range(arrays.FRUITLESS + 1):
        assert job_of_several(todo, told) == todo
    assert stuck.status().state == "failed" and "its time limit is too short" in stuck.status().error
    assert not stuck.status().belongs_to("1")
    assert job_of_several(todo, told) == [other]


@pytest.mark.parametrize("answers", [True, False])
def test_a_job_of_several_that_is_told_to_stop_is_queued_again_for_what_is_not_done(
    answers: bool, commands: Commands, job_of_several: Callable[..., list[Run]]
) -> None:
    stopped, _, failed = todo = runs(3)
    for run in todo:
        run.queue("1", "slurm", shared=True)
    calls = commands("scontrol", "" if answers else "echo 'requeue is disabled' >&2; exit 1")

    def told() -> None:
        stopped.write_status(state="preempted", error="stopped by SIGUSR2 in epoch 3")
        failed.write_status(state="failed", error="no", job_id="")
        signal.raise_signal(signal.SIGUSR2)

    if answers:
        job_of_several(todo, told)
    else:
        with pytest.raises(RunFailed, match="3 of 3 runs are not done"):
            job_of_several(todo, told)
    assert calls.read_text() == "requeue 1\n"
    state = "queued" if answers else "preempted"
    assert [run.status().state for run in todo] == [state, state, "failed"]
    assert stopped.status().error.startswith("stopped by SIGUSR2 in epoch 3")


def test_a_job_of_several_that_is_cancelled_is_not_queued_again(
    commands: Commands, job_of_several: Callable[..., list[Run]]
) -> None:
    todo = runs(2)
    for run in todo:
        run.queue("1", "slurm", shared=True)
    calls = commands("scontrol", "")
    with pytest.raises(RunStopped, match="stopped by SIGTERM"):
        job_of_several(todo, lambda: signal.raise_signal(signal.SIGTERM))
    assert not calls.exists()


def test_retry_takes_the_options_of_the_submission_but_for_those_given(
    sbatch: Path, commands: Commands, tmp_path: Path
) -> None:
    def gamlib(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    study = tmp_path / "two.yaml"
    study.write_text("arms:\n  plain: {attention: none}\n  gam: {}\n")
    options = ("--cluster", "slurm", "--partition", "gpu", "--mem", "8", "--no-wait")
    assert gamlib("study", str(study), "--seeds", "0", *options)[0] == 0
    both = [Run(RunConfig(attention="none")), Run(RunConfig())]
    commands("squeue", "printf '1_0 PENDING\\n'")
    commands("sacct", "printf '1_1|OUT_OF_MEMORY\\n'")
    code, output = gamlib("status", "two")
    assert code == 0 and "OUT_OF_MEMORY" in output and "1 queued, 1 failed" in output, output
    code, output = gamlib("retry", "two", "--mem", "16", "--no-wait")
    assert code == 0 and "1 runs submitted" in output, output
    assert [run.status().job_id for run in both] == ["1_0", "2"]
    texts = [path.read_text() for path in (both[0].folder.parents[1] / "submitit").glob("[0-9]*_submission.sh")]
    assert sorted("--mem=16GB" in text for text in texts) == [False, True]
    assert all("--partition=gpu" in text and "--requeue" in text for text in texts)
    commands("squeue", "printf '1_0 PENDING\\n2 PENDING\\n'")
    assert "nothing to retry" in gamlib("retry", "two")[1]
    cancelled = commands("scancel", "")
    commands("squeue", "")
    commands("sacct", "printf '1_0|CANCELLED\\n1_1|OUT_OF_MEMORY\\n2|CANCELLED\\n'")
    assert "nothing is queued or running" in gamlib("cancel", "two")[1]
    assert not cancelled.exists()


def test_a_job_that_was_queued_again_by_hand_is_seen_and_cancelled(commands: Commands, tmp_path: Path) -> None:
    run = submitted("1_0")
    run.queue("2", "slurm")  # in the place of the first, which had failed
    assert run.status().slurm_jobs() == ["2", "1_0"]
    waits = f"test -e {tmp_path}/scancel.calls && echo 1_0 CANCELLED None || echo 1_0 PENDING BeginTime"
    commands("squeue", f"{waits}; echo 2 FAILED None")
    now = slurm.statuses([run], must_know=True)[run]
    assert (now.state, now.job_id, now.error) == ("queued", "1_0", "waits: BeginTime")
    cancelled = commands("scancel", "")
    housekeeping.cancel([run])
    assert cancelled.read_text() == "--quiet 1_0\n"
    run.write_status(job_id="1_0", state="running")
    assert run.status().slurm_jobs() == ["1_0", "2"]
    commands("squeue", "printf '1_0 FAILED\n2 FAILED\n'")
    assert slurm.statuses([run], must_know=True)[run].state == "failed"


def test_a_job_of_a_run_that_is_done_is_cancelled_too(commands: Commands, finish: Finish) -> None:
    run = finish(RunConfig(), 5.0)
    run.write_status(job_id="3", cluster="slurm", state="done")
    commands("squeue", "echo '3 PENDING Resources'")
    cancelled = commands("scancel", "")
    assert housekeeping.cancel([run]) == {}
    assert cancelled.read_text() == "--quiet 3\n"


@pytest.mark.parametrize(("of_the_other", "executed"), [("PENDING", 0), ("RUNNING", 0), ("FAILED", 1)])
def test_a_job_ends_if_the_run_has_another_one(
    of_the_other: str, executed: int, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted("2")
    commands("squeue", f"printf '1 RUNNING\n2 {of_the_other}\n'")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(arrays, "execute", execute := Mock())
    arrays.train_on_slurm(run, {})
    assert execute.call_count == executed
    assert run.status().job_id == "2"


@pytest.mark.parametrize(("attempts", "when"), [(0, "before it began"), (1, "while it waited to go on")])
def test_cancel_says_what_it_left(attempts: int, when: str, commands: Commands, tmp_path: Path) -> None:
    run = submitted("1", attempts=attempts)
    commands("squeue", f"test -e {tmp_path}/scancel.calls || echo '1 PENDING'")
    commands("sacct", "echo '1|CANCELLED'")
    left = housekeeping.cancel([run])
    assert (left[run].state, left[run].error) == ("preempted", f"CANCELLED: cancelled {when}")
    assert (tmp_path / "scancel.calls").read_text() == "--quiet 1\n"


def test_a_cluster_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on the PATH of this machine"):
        dispatch.dispatch([RunConfig()], "slurm")
    assert not (places / "runs").exists()


def test_leftovers_are_those_of_runs_that_are_done(finish: Finish, places: Path) -> None:
    from ablation.execution.housekeeping import leftovers

    done, failed = finish(RunConfig(seed=0), 5.0), Run(RunConfig(seed=1))
    done.write_status(state="done", cluster="slurm", job_id="7_0")
    failed.queue("7_1", "slurm")
    failed.write_status(state="failed", error="why")
    folder = places / "runs" / "submitit"
    folder.mkdir()
    names = {
        "7_0_submitted.pkl",
        "7_0_0_log.out",
        "7_0_0_result.pkl",
        "7_1_submitted.pkl",
        "7_1_0_log.out",
        "5_submitted.pkl",
    }
    for name in [*names, ".lock", ".submission_file_of_a_killed_one.sh"]:
        (folder / name).touch()
    for number in ("7_0", "7_1"):
        (folder / f".submission_file_{number}.sh").symlink_to(f"{number}_submission.sh")
    names |= {".submission_file_of_a_killed_one.sh", ".submission_file_7_0.sh"}
    for run in (done, failed):
        (run.folder / "checkpoint.pt").touch()
    (folder / "gamlib-0123456789ab.submitting").touch()
    assert leftovers(checkpoints=False) == [], "jobs of a submission that was killed are still to be cancelled"
    (folder / "gamlib-0123456789ab.submitting").unlink()
    assert {path.name for path in leftovers(checkpoints=False)} == {n for n in names if not n.startswith("7_1")}
    assert {path for path in leftovers(checkpoints=True) if path.suffix == ".pt"} == {done.folder / "checkpoint.pt"}
    shown = CliRunner().invoke(app, ["gc"]).output
    assert "7_0_submitted.pkl" in shown and "6 files, 0.0 MiB would be removed with --yes" in shown
    assert (folder / "5_submitted.pkl").exists()
    assert "6 files, 0.0 MiB removed" in CliRunner().invoke(app, ["gc", "--yes"]).output
    left = [".lock", ".submission_file_7_1.sh", "7_1_0_log.out", "7_1_submitted.pkl"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert "nothing to remove" in CliRunner().invoke(app, ["gc"]).output
    assert (done.folder / "checkpoint.pt").exists()


def test_results_of_other_code_are_told_and_done_again_if_asked(
    finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finish(RunConfig(), 5.0)
    assert run.stale(), "the fixture's source is none of this code's"
    assert "done by other code" in CliRunner().invoke(app, ["status"]).output

    def executed(again: Run, _: Any) -> None:
        assert again.result() is None and again.status().state == "missing"
        assert (again.folder / "before-0123456789abcdef" / "result.json").exists()
        finish(again.config, 4.0)

    monkeypatch.setattr(dispatch, "execute", executed)
    with FileLock(run.folder / ".lock"), monkeypatch.context() as patch:
        patch.setattr(dispatch, "execute", lambda again, _: None)
        dispatch.dispatch([run.config], "debug", rerun_stale=True)
    assert run.stale(), "another has it under way"
    assert dispatch.dispatch([run.config], "debug").failed == {}
    assert run.result().top1_error == 5.0  # type: ignore[union-attr]
    tally = dispatch.dispatch([run.config], "debug", rerun_stale=True)
    assert tally.failed == {} and run.result().top1_error == 4.0  # type: ignore[union-attr]


def test_watch_ends_when_all_have_ended(finish: Finish) -> None:
    finish(RunConfig(), 5.0)
    began = time.monotonic()
    output = CliRunner().invoke(app, ["status", "--watch"]).output
    assert "1 done" in output and time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("script", "said", "times"),
    [
        ("exit 0", True, 1),
        ("echo 'slurm_requeue error: Invalid job id specified' >&2; exit 1", False, 1),
        ("echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1", False, 4),
        ('test $(wc -l < "$0.calls") -ge 3', True, 3),
    ],
)
def test_a_job_is_queued_again_as_soon_as_slurm_answers(
    script: str, said: bool, times: int, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PAUSES", (0, 0, 0))
    calls = commands("scontrol", "")
    commands("scontrol", script.replace("$0.calls", str(calls)))
    assert slurm.requeue("7_1") is said
    assert calls.read_text() == times * "requeue 7_1\n"


def test_a_job_that_slurm_ends_does_not_ask_to_be_queued_again(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM ends all processes of a job that it queues again, the one among them that asked for it."""
    monkeypatch.setattr(slurm, "PAUSES", (0, 0))
    calls, signals = commands("scontrol", "kill -TERM $PPID $$; sleep 9"), list[str]()
    with forward_signals(signals.append):
        assert slurm.requeue("7", signals)
    assert signals == ["SIGTERM"] and calls.read_text() == "requeue 7\n"
    assert slurm.requeue("7", signals) and calls.read_text() == "requeue 7\n"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_a_job_that_waits_for_a_run_ends_that_job_alone(
    number: int, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted("7", state="running", host="elsewhere", pid=1)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = (run.folder / "status.json").read_bytes()
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(RunStopped, match="another process has the run"):
            arrays.train_on_slurm(run, {})
        timer.join()
    assert not run.asked_to_stop()
    assert (run.folder / "status.json").read_bytes() == before
