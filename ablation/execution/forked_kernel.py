"""A kernel that is a fork of its job, where that has imported already what the kernel would spend seconds on."""

import os
import signal
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Instance

from ablation.execution.forkserver import name_process
from gamlib.signals import held_back


class ForkedKernel(ForkProcess):
    """A fork of this process that waits until it is launched as a kernel, and ends if this process does before.

    Make it before there is any thread, any event loop or anything computed: a fork does not survive those. It has of
    `subprocess.Popen` what LocalProvisioner uses.
    """

    stdin = stdout = stderr = None

    def __init__(self, but: Connection) -> None:
        """Fork; `but` is a connection of this process's that the fork does not keep open."""
        self._launches, launch = Pipe()
        super().__init__(target=_become_kernel, args=(launch, (self._launches, but)))
        with held_back(signal.SIGTERM, signal.SIGUSR2):  # which SLURM sends to all processes of a job
            self.start()
        launch.close()

    def launch(self, arguments: list[str], directory: str, log: str, environment: Mapping[str, str]) -> None:
        """Become a kernel with the arguments of ipykernel, in a directory, writing to a log."""
        self._launches.send((arguments, directory, log, dict(environment)))

    def poll(self) -> int | None:
        """The exit code, the negative of a signal's number; None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for its end, and return the exit code."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)  # type: ignore[arg-type]  # it has started


def _become_kernel(launch: Connection, others: tuple[Connection, ...]) -> None:
    for connection in others:
        connection.close()
    os.setsid()
    name_process("gamlib-kernel")
    try:
        arguments, directory, log, environment = launch.recv()
    except EOFError:
        return  # the job has ended
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    app = IPKernelApp.instance(parent_handle=os.getppid())
    app.initialize(arguments)
    app.start()


class ForkProvisioner(LocalProvisioner):
    """Launches a fork in place of a new process. `execute_notebook` tells Jupyter of it."""

    kernel = Instance(ForkedKernel)

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Have the fork become the kernel; of the command it takes ipykernel's arguments."""
        self.process, self.pid, self.pgid = self.kernel, self.kernel.pid, self.kernel.pid  # type: ignore[assignment]
        self.cwd = options.get("cwd") or os.getcwd()
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.kernel.launch(arguments, self.cwd, options["stdout"].name, options["env"])
        return self.connection_info
