"""A server that has imported what runs need, and forks: a job and its kernel begin in milliseconds, not in seconds.

The forkserver of multiprocessing would do, were it not for its processes: they execute the caller's script again, and
one without a guard would dispatch its study once more in each of them. Its forks cannot fork themselves from it either.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn, Self

from ablation.provenance import source_hash
from ablation.runs import RunFailed, first_line
from gamlib.signals import held_back

COMMAND = (sys.executable, "-P", "-m", "ablation.execution.forkserver")
PRELOADED = (
    *("torch._dynamo", "pandas", "matplotlib.pyplot", "ablation.results.figures"),
    *("ablation.execution.train", "ablation.execution.dispatch", "papermill", "ablation.execution.forked_kernel"),
)


class Job:
    """A job in a process that a server has forked, as who started it sees it."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self._connection, self.pid = connection, pid
        self.error: str | None = None  # why it failed, "" if it did not; None until its end and if it left no word

    def ended(self, seconds: float = 0) -> bool:
        """Whether its process has ended, or does so within some seconds."""
        with suppress(OSError):  # closed, or reset by one that was killed
            while self._connection.poll(seconds):
                try:
                    self.error = self._connection.recv()
                except EOFError:
                    self._connection.close()
            return False
        return True

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            RunFailed: it failed, or was killed; the message says why.
        """
        while not self.ended(60):
            pass
        if self.error != "":
            raise RunFailed(self.error or "its job was killed")


class ForkServer:
    """Starts jobs as forks of one process, which it starts anew when that was killed; jobs outlive both."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}

    def _launch(self) -> None:
        self._control, its = socket.socketpair()
        with its, held_back(signal.SIGTERM, signal.SIGUSR2):  # which jobs hear of when they execute a run
            self._process = subprocess.Popen(
                [*COMMAND, "server", str(its.fileno())],
                pass_fds=[its.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )

    def start(self, function: Callable[..., object], *arguments: object) -> Job:
        """A process of its own that calls a function, with a `kernel` beside its arguments: one that can be launched.

        Args:
            function: of a module that can be imported; its arguments can be pickled. `kernel` is a `ForkedKernel`, or
                None where a fork would not work.

        Raises:
            RunFailed: the server ends before it starts a job; the message is its last line.
        """
        for _ in range(2):
            own, its = Pipe()
            with its, suppress(OSError):
                if self._process.poll() is not None:
                    self._control.close()
                    self._launch()
                socket.send_fds(self._control, [b"0"], [its.fileno()])
            with suppress(OSError, EOFError):  # of a server that has just been killed
                own.send((function, arguments))
                return Job(own, own.recv())
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._output.seek(0)
        said = self._output.read().splitlines() or ["its server was killed"]
        raise RunFailed(f"no job can be started: {said[-1]}")

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile("w+")
        self._launch()
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.kill()  # what it has forked goes on
        self._process.wait()
        self._output.close()


def name_process(name: str) -> None:
    """Give this process a name of its own, of at most 15 bytes, by which `ps` and `top` tell forks apart."""
    with suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(name)


def serve(control: socket.socket) -> NoReturn:
    """Fork for every connection that comes, until whoever sends them is gone."""
    name_process("gamlib-server")
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel that starts would
    gc.disable()  # nothing that is imported is garbage
    for name in PRELOADED:
        import_module(name)
    source_hash()  # of the code that is imported, whatever becomes of its files
    forks = sys.platform == "linux" and threading.active_count() == 1  # a fork has none of the other threads
    gc.freeze()  # or the first collection would write to the pages that forks share
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            os._exit(0)  # Python would spend seconds on taking down what was imported
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            os.setsid()
            if not forks:
                os.set_inheritable(descriptors[0], True)
                os.execv(sys.executable, [*COMMAND, "job", str(descriptors[0])])
            try:
                work(Connection(descriptors[0]), fork=True)
            finally:  # also where who asked for it is gone: Python would wait for the kernel, and that for this process
                os._exit(0)
        os.close(descriptors[0])


def work(connection: Connection, fork: bool) -> None:
    """Do the job that a connection brings, and say how it ended."""
    function, arguments = connection.recv()
    kernel = None
    if fork:
        from ablation.execution.forked_kernel import ForkedKernel

        name_process("gamlib-job")
        kernel = ForkedKernel(but=connection)
    connection.send(os.getpid())
    error = ""
    try:
        function(*arguments, kernel=kernel)
    except BaseException as exception:
        error = first_line(exception)
    with suppress(OSError):  # who started it may be gone
        connection.send(error)


if __name__ == "__main__":
    from ablation.execution import forkserver  # under the name that others import it by

    role, descriptor = sys.argv[1], int(sys.argv[2])
    if role == "server":
        forkserver.serve(socket.socket(fileno=descriptor))
    else:
        forkserver.work(Connection(descriptor), fork=False)
