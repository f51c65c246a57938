"""A notebook through papermill, in a kernel of this interpreter."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ablation.paths import folders
from ablation.runs import BATCH, RunFailed

if TYPE_CHECKING:
    from ablation.execution.forked_kernel import ForkedKernel

FORK = "gamlib-fork"  # the name by which Jupyter knows the provisioner
# jsonschema, of papermill's, would spend seconds on a grammar of web addresses that notebooks have no use for.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def execute_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    log: IO[str],
    environment: Mapping[str, str],
    kernel: "ForkedKernel | None" = None,
) -> None:
    """Execute a notebook through papermill, in this interpreter whatever kernel specifications the machine has.

    The kernel is a new process, or one that was forked for it; then the log must be a file.

    The output is left whole under its name however the execution ends. In the main thread nbclient takes SIGINT and
    SIGTERM, and shuts the kernel down within seconds.

    Raises:
        RunFailed: the kernel died; the message says by which signal.
        papermill.exceptions.PapermillExecutionError: a cell raised.
    """
    import papermill  # late: who dispatches has no need of it
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning.factory import KernelProvisionerFactory
    from nbclient.exceptions import DeadKernelError

    # Not in pyproject.toml: a checkout that is not installed has no entry points.
    found = EntryPoint(FORK, "ablation.execution.forked_kernel:ForkProvisioner", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.instance().provisioners[FORK] = found

    here = folders()  # now: papermill changes the working directory of this process, too
    processes: list[subprocess.Popen[bytes] | ForkedKernel] = []
    short = "/tmp" if len(tempfile.gettempdir()) > 60 else None  # the path of a socket ends at 107 bytes
    with tempfile.TemporaryDirectory(prefix="gam-", dir=short, ignore_cleanup_errors=True) as sockets:

        class ThisInterpreter(AsyncKernelManager):
            """Starts this Python as the kernel. Sockets in a folder of its own: no two kernels meet on a TCP port."""

            def __init__(self, **traits: Any) -> None:
                connection = str(Path(sockets) / "kernel.json")
                super().__init__(**{**traits, "transport": "ipc", "connection_file": connection})

            @property
            def kernel_spec(self) -> KernelSpec:
                argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
                provisioner = {"provisioner_name": FORK, "config": {"kernel": kernel}}
                metadata = {"kernel_provisioner": provisioner} if kernel else {}
                return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=metadata)

            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                env = {**os.environ, **here, BATCH: "1", **environment}
                await super().start_kernel(**{**options, "env": env, "stdout": log, "stderr": log})
                processes.append(self.provisioner.process)  # type: ignore[union-attr]

        part = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
        try:
            papermill.execute_notebook(
                notebook,
                part,
                dict(parameters),
                cwd=notebook.parent,
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                kernel_manager_class=ThisInterpreter,
                shutdown_kernel="immediate",  # taking torch down politely takes seconds, and all is written
            )
        except DeadKernelError:
            code = processes[-1].poll()
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            hint = " (killed, or out of memory)" if code == -9 else ""
            raise RunFailed(f"the kernel died {how}{hint}") from None
        finally:
            if part.exists():
                part.replace(output)
