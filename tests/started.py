"""What tests start: processes found by what they were given, and forks of one process that has imported all.

Python and torch take seconds to start, a Jupyter kernel ten. So the tests of a session have one server (of
`ablation.execution.forkserver`), which forks for them commands and notebooks with their kernels.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Self
from unittest import mock

import psutil
from tqdm import tqdm

from ablation.execution import forkserver, pool
from ablation.execution.forkserver import ForkServer, Job
from ablation.paths import share_of_cores
from ablation.runs import RunFailed

ENVIRONMENT = {**os.environ}  # before a test has changed it
PRELOADED = ("ablation.cli", "ablation.results.report", "statsmodels.stats.multitest", "sklearn.datasets", "seaborn")


def processes(word: str, *settings: str) -> list[psutil.Process]:
    """Those with a word in their name or command line and settings, `NAME=value`, in their environment; no zombies."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:  # not by psutil: SLURM's steps write their names over the beginning of their environment
            environment = {*Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")}
        except OSError:
            continue
        names = [process.info["name"] or "", *(process.info["cmdline"] or [])]
        named = any(word in part for part in names)
        if named and environment.issuperset(setting.encode() for setting in settings):
            found.append(process)
    return found


def of_test(word: str = "", *settings: str) -> list[psutil.Process]:
    """Those of this test, whose runs lie in its folder; without a word, forks for this test as well."""
    found = processes(word, f"GAM_RUNS={os.environ['GAM_RUNS']}", *settings)
    return found if word or settings else [*{*found, *_forks()}]


def _forks() -> list[psutil.Process]:
    """Those that write to a file in the folder of this test: the environment of a fork is that of its server."""
    folder, found = str(Path(os.environ["GAM_RUNS"]).parent), []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            if process.pid != os.getpid() and any(link.startswith(f"{folder}/") for link in links):
                found.append(process)
    return found


def wait_for(happened: Callable[[], object], seconds: float = 120, every: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)


class Server(ForkServer):
    """A server that has imported what commands and reports need besides."""

    def _launch(self) -> None:
        with mock.patch.object(forkserver, "COMMAND", (sys.executable, "-P", __file__)):
            super()._launch()

    def begin(self, function: Callable[..., object], *arguments: object) -> Job:
        """A process that calls a function as this one would: in this folder, in this environment."""
        return self.start(_as_here, os.getcwd(), {**os.environ}, function, *arguments)

    def execute_notebook(
        self,
        notebook: Path,
        output: Path,
        parameters: Mapping[str, Any],
        log: IO[str],
        environment: Mapping[str, str],
        kernel: None = None,
    ) -> None:
        """As `kernel.execute_notebook`, in a forked kernel; what fails is a RunFailed."""
        self.begin(_execute_notebook, notebook, output, dict(parameters), log.name, dict(environment)).wait()


class Lent:
    """In place of a `ForkServer` that is started for a few runs: jobs are forks of the session's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Now: a server has the environment of its start.
        self._server, self._environment = server(), {**os.environ, **environment}

    def start(self, function: Callable[..., object], *arguments: object) -> Job:
        return self._server.start(_as_here, os.getcwd(), self._environment, function, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@cache
def server() -> Server:
    """The server of this session."""
    threads = dict.fromkeys(pool.THREAD_VARIABLES, str(share_of_cores()))
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        started = Server(threads).__enter__()
    atexit.register(started.__exit__)
    return started


class Command:
    """The command `gamlib` in a fork, alike to a `subprocess.Popen`; its output is written to a file."""

    def __init__(self, *arguments: str) -> None:
        folder = Path(os.environ["GAM_RUNS"]).parent  # by which `of_test` finds it
        descriptor, self._output = tempfile.mkstemp(".txt", "command-", folder)
        os.close(descriptor)
        self._job = server().begin(_gamlib, arguments, self._output)
        self.pid = self._job.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs, -9 if it was killed."""
        if not self._job.ended():
            return None
        return -signal.SIGKILL if self._job.error is None else int(self._job.error)

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Wait for its end; its output."""
        if not self._job.ended(timeout):
            raise subprocess.TimeoutExpired("gamlib", timeout, Path(self._output).read_text())
        wait_for(lambda: not psutil.pid_exists(self.pid))
        return Path(self._output).read_text(), None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        self.communicate(60)


# In a fork


def _as_here(
    folder: str, environment: dict[str, str], function: Callable[..., object], *arguments: object, kernel: object
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments, kernel=kernel)


def _execute_notebook(*arguments: Any, kernel: Any) -> None:
    """Without a word from papermill to the kernel while a cell runs: after one it can miss the cell's end."""
    from nbclient.output_widget import OutputWidget

    from ablation.execution.kernel import execute_notebook

    def send(*_: object, **__: object) -> None:
        raise AssertionError("an output was captured by a widget")

    notebook, output, parameters, log_name, environment = arguments
    with mock.patch.object(OutputWidget, "send", send), open(log_name, "a", buffering=1) as log:
        execute_notebook(notebook, output, parameters, log, environment, kernel)


class _Fork:
    """A fork of this process, with what `ForkServer` uses of `subprocess.Popen`."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._process = get_context("fork").Process(target=function)
        self._process.start()
        self.kill, self.pid = self._process.kill, self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


def _launch(server: Any, anew: Callable[[ForkServer], None] = ForkServer._launch) -> None:
    """Launch the server of a command as a fork of it, or as usual when it has threads or jobs by now.

    A fork would keep the connections of those jobs open, by whose closing they are seen to end.
    """
    if len(psutil.Process().threads()) > 1 or hasattr(server, "_process"):
        return anew(server)
    server._control, its = socket.socketpair()

    def serve() -> None:
        server._control.close()
        os.setsid()
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, signal.SIG_DFL)
        os.environ.update(server._environment)
        for number in (1, 2):
            os.dup2(server._output.fileno(), number)
        forkserver.serve(its)

    with its:
        server._process = _Fork(serve)


def _gamlib(arguments: tuple[str, ...], output: str, kernel: Any) -> None:
    """Be the command; the exit code is the message of what is raised."""
    kernel.kill()
    kernel.wait()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)  # stays open, in the forks of this one too
    for number in (1, 2):
        os.dup2(descriptor, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR2])  # which the server holds back
    ForkServer._launch = _launch  # type: ignore[assignment, method-assign]
    sys.argv, code = ["gamlib", *arguments], 0
    tqdm.monitor_interval = 0  # its thread, of which a command that starts anew has no fork
    try:
        from ablation.cli import app

        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    raise RunFailed(str(code))


if __name__ == "__main__":
    sys.modules["started"] = sys.modules["__main__"]  # under the name that tests import it by
    forkserver.PRELOADED = (*forkserver.PRELOADED, *PRELOADED)  # type: ignore[assignment]
    forkserver.serve(socket.socket(fileno=int(sys.argv[2])))
