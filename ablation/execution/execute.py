"""The job of a run: its notebook through papermill, in a kernel of our own choosing."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from ablation.execution.signals import forward_signals
from ablation.paths import NOTEBOOKS
from ablation.provenance import SOURCE, source_hash
from ablation.runs import BATCH, JOB, REMOVED, Run, RunFailed, RunStopped
from gamlib.signals import held_back


def this_job() -> tuple[str, str]:
    """The cluster and the id of the job that this process is, as submitit has them; two empty texts outside of one."""
    import submitit  # late: a report has no need of it

    try:
        job = submitit.JobEnvironment()
    except RuntimeError:
        return "", ""
    return job.cluster, job.job_id


def execute(run: Run, environment: Mapping[str, str]) -> None:
    """The job of a run: its notebook through papermill, and the truth about how that ended.

    Args:
        run: what to run; nothing happens when it is done.
        environment: variables for the kernel beside those of this process.

    Raises:
        RunStopped: a signal or a request stopped it, and its state is saved.
        RunFailed: a cell failed, the kernel died, or no whole result was left; the message is the reason in one line.
    """
    cluster, job_id = this_job()

    def ask(by: str) -> None:
        owner = run.status()
        if (owner.host, owner.pid) != (socket.gethostname(), os.getpid()):
            raise RunStopped(f"another process has the run, and this one was stopped by {by} while it waited")
        run.ask_to_stop(by)

    claimed = run.claim(cluster, job_id, since=psutil.Process().create_time())
    with forward_signals(ask) as take_signals, claimed as mine:
        run.recover_notebook()
        for path in run.partial_notebooks():
            path.unlink()
        if not mine:
            return
        with (run.folder / "log.txt").open("a", buffering=1) as log:
            job = f"{cluster} job {job_id or 'none'}, process {os.getpid()}"
            print(f"--- attempt {run.status().attempts}, {job}", file=log)
            try:
                if environment.get(SOURCE, source_hash()) != source_hash():
                    run.write_status(error="its code is not the one that it was submitted with")
                if by := run.asked_to_stop():
                    raise RunStopped(f"stopped by {by} before it began")
                execute_notebook(
                    NOTEBOOKS / "run.ipynb",
                    run.folder / "run.ipynb",
                    run.config.model_dump(),
                    log,
                    {**environment, JOB: run.signature},
                    on_start=take_signals,
                )
            except BaseException as error:
                traceback.print_exc(file=log)
                if run.removed():
                    raise RunStopped(REMOVED) from None
                if getattr(error, "ename", "") == RunStopped.__name__:  # papermill's, of a cell that raised it
                    raise RunStopped(error.evalue) from None  # type: ignore[attr-defined]
                raise


def execute_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    log: IO[str],
    environment: Mapping[str, str],
    on_start: Callable[[], object] | None = None,
) -> None:
    """Execute a notebook through papermill, in this interpreter whatever kernel specifications the machine has.

    The output is left whole under its name however the execution ends. `on_start` is called before the kernel
    starts, with SIGINT and SIGTERM free; without it nbclient has them, and shuts the kernel down within seconds.

    Raises:
        RunFailed: the kernel died; the message says by which signal.
        papermill.exceptions.PapermillExecutionError: a cell raised.
    """
    # jsonschema would spend seconds on a grammar of web addresses that notebooks have no use for.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill  # late: who dispatches has no need of it
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    exit_codes: list[int | None] = []
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
                return KernelSpec(argv=argv, display_name="Python 3", language="python")

            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                if on_start is not None:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        asyncio.get_running_loop().remove_signal_handler(number)
                    on_start()
                env = {**os.environ, BATCH: "1", **environment}
                # SLURM sends a signal to all processes of a job: the kernel hears it when training does, not before.
                with held_back(signal.SIGTERM, signal.SIGUSR2):
                    await super().start_kernel(**{**options, "env": env, "stdout": log, "stderr": log})

            async def is_alive(self) -> bool:  # type: ignore[override]
                alive = await super().is_alive()
                if not alive and self.provisioner is not None:
                    exit_codes.append(await self.provisioner.poll())
                return alive

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
            )
        except DeadKernelError:
            code = next((code for code in exit_codes if code), None)
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            hint = " (killed, or out of memory)" if code == -9 else ""
            raise RunFailed(f"the kernel died {how}{hint}") from None
        finally:
            if part.exists():
                part.replace(output)
