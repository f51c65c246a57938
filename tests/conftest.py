import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from started import Lent, server

from ablation.config import RunConfig
from ablation.paths import ROOT
from ablation.runs import Run
from gamlib.files import locked

LABEL = np.arange(40) % 10
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
torch.set_num_threads(1)  # tests run side by side; threads that wait for each other's cores take ten times as long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "long")):
            item.add_marker("quick")
    gc.freeze()  # what is imported: statsmodels collects garbage before each correction, for a third of a second


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and figures of a test lie in its own folder, whatever the repository holds."""
    monkeypatch.setenv("GAM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GAM_FIGURES", str(tmp_path / "figures"))
    return tmp_path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that execute the tests of this session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture
def counted(places: Path, shared: Path) -> None:
    """Commands know the networks that those of other tests have counted, and need no torch for it."""
    (shared / "parameters.txt").touch()
    (places / "runs").mkdir()
    (places / "runs" / ".parameters.txt").symlink_to(shared / "parameters.txt")


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process reports and runs is executed by forks of the session's server."""
    from ablation.execution import dispatch
    from ablation.results import report

    monkeypatch.setattr(report, "execute_notebook", lambda *arguments: server().execute_notebook(*arguments))
    monkeypatch.setattr(dispatch, "ForkServer", Lent)


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is committed or about to be (`git add`): a study run here writes other figures beside it."""
    folder = tmp_path_factory.mktemp("committed")
    copied = subprocess.run(["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={folder}/"], check=False)
    return ROOT if copied.returncode else folder  # no git checkout, or one of somebody else's


@pytest.fixture(scope="session")
def site(shared: Path) -> Path:
    """The website, by `make site`, which builds it when something of it has changed."""
    with locked(shared / "site.lock"):
        command = ["make", "-C", str(ROOT), "-o", f"{sys.prefix}/.ready", "site", f"VENV={sys.prefix}"]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert made.returncode == 0, made.stdout
    return ROOT / "site"


@pytest.fixture
def survives(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Called at the end of a test with the fault that it was about; the last line of all counts them."""
    return lambda fault: request.node.user_properties.append(("survived", fault))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    faults = [value for report in passed for key, value in report.user_properties if key == "survived"]
    for fault in faults:
        terminalreporter.write_line(f"survived: {fault}")
    if faults:
        terminalreporter.write_line(f"{len(faults)} faults survived")


@pytest.fixture
def finish() -> Callable[..., Run]:
    """Leave the files of a finished run without training it: the machinery's tests need outcomes, not networks."""

    def finished(config: RunConfig, error: float, **changes: Any) -> Run:
        run = Run(config)
        run.queue()
        values = {
            "signature": run.signature,
            "epochs": 2,
            "top1_error": error,
            "top5_error": error / 4,
            "test_loss": 0.5,
            "train_loss": 0.25,
            "train_top1_error": 1.0,
            "parameters": 2_800_000,
            "flops": 9_900_000 + 10_000 * len(config.submodules or ""),
            "seconds": 3.0,
            "source": "0123456789abcdef",
        }
        from ablation.status import Result

        epochs = [{"epoch": e, "top1_error": error + 20 / e, "train_loss": 1 / e, "test_loss": 1 / e} for e in (1, 2)]
        rest = {"train_top1_error": 1.0, "images_per_second": 500.0, "peak_memory_mib": 640.0}
        made = {"commit": "8fbcf0f" + 33 * "0", "clean": True, "device": "cpu", "earlier": []}
        import json

        run.write("metrics.jsonl", "".join(json.dumps(epoch | rest) + "\n" for epoch in epochs))
        run.write("provenance.json", json.dumps(made))
        run.write_predictions(LABEL, LABEL)
        run.write("result.json", Result.model_validate(values | changes).model_dump_json())
        return run

    return finished


@pytest.fixture
def finish_all(finish: Callable[..., Run]) -> Callable[..., None]:
    """Finish the runs of a plan, given an error for each seed of each arm; one that is None stays as it is."""

    def all_finished(plan: Any, errors: Mapping[str, Sequence[float | None]], **changes: Any) -> None:
        for arm, configs in plan.arms.items():
            for config, error in zip(configs, errors[arm], strict=True):
                if error is not None:
                    finish(config, error, **changes)

    return all_finished
