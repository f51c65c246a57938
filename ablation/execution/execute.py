"""The job of a run: its notebook through papermill, in a kernel of our own choosing; and the signals that it gets."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from ablation.paths import NOTEBOOKS
from ablation.provenance import SOURCE, source_hash
from ablation.runs import BATCH, JOB, REMOVED, Run, RunFailed, RunStopped
from gamlib.signals import held_back

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@contextmanager
def forward_signals(to: Callable[[str], object]) -> Iterator[None]:
    """While the block lasts, SIGTERM, SIGUSR2 and SIGINT do nothing but call `to` with their name.

    It makes a request of them in the run's folder, which training reads after every step: so they reach the process
    that trains, wherever they come from. That is a grandchild in a session of its own, and would end without a word.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = {number: signal.signal(number, lambda number, _: to(signal.Signals(number).name)) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, previous in before.items():
            signal.signal(number, previous)


def this_job() -> tuple[str, str]:
    """The cluster and the id of the job that this process is, as submitit has them; two empty texts outside of one."""
    import submitit  # late: a report has no need of it

    with suppress(RuntimeError):
        job = submitit.JobEnvironment()
        return job.cluster, job.job_id
    return "", ""


def execute(run: Run, environment: Mapping[str, str]) -> None:
    """The job of a run: its notebook through papermill, and the truth about how that ended.

    Args:
        run: what to run; nothing happens when it is done.
        environment: variables for the kernel beside those of this process.

    Raises:
        RunStopped: a signal or a request stopped it, and its state is saved.
        RunFailed: a cell failed, the kernel died, or no whole result was left; the message is the reason in one line.
    """
    (cluster, job_id), owned = this_job(), threading.Event()

    def ask(by: str) -> None:
        if not owned.is_set() and not run.status().mine():
            raise RunStopped(f"another process has the run, and this one was stopped by {by} while it waited")
        run.ask_to_stop(by)

    with forward_signals(ask), run.claim(cluster, job_id, since=psutil.Process().create_time()) as mine:
        if not mine:
            return
        owned.set()  # whatever a late submitter writes into its status
        with (run.folder / "log.txt").open("a", buffering=1) as log, ThreadPoolExecutor(1) as thread:
            job = f"{cluster} job {job_id or 'none'}, process {os.getpid()}"
            print(f"--- attempt {run.status().attempts}, {job}", file=log)
            try:
                if environment.get(SOURCE, source_hash()) != source_hash():
                    run.write_status(error="its code is not the one that it was submitted with")
                if by := run.asked_to_stop():
                    raise RunStopped(f"stopped by {by} before it began")
                values, output = run.config.model_dump(), run.folder / "run.ipynb"
                # A thread, since nbclient takes SIGINT and SIGTERM for itself in the main one. SLURM sends a signal to
                # all processes of a job: the kernel, which has the thread's mask, hears it when training does.
                with held_back(signal.SIGTERM, signal.SIGUSR2):
                    executed = thread.submit(
                        execute_notebook,
                        *(NOTEBOOKS / "run.ipynb", output, values, log, {**environment, JOB: run.signature}),
                    )
                executed.result()
            except BaseException as error:
                traceback.print_exc(file=log)
                if run.removed():
                    raise RunStopped(REMOVED) from None
                if getattr(error, "ename", "") == RunStopped.__name__:  # papermill's, of a cell that raised it
                    raise RunStopped(error.evalue) from None  # type: ignore[attr-defined]
                raise


def execute_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, Any], log: IO[str], environment: Mapping[str, str]
) -> None:
    """Execute a notebook through papermill, in this interpreter whatever kernel specifications the machine has.

    The output is left whole under its name however the execution ends. In the main thread nbclient takes SIGINT and
    SIGTERM, and shuts the kernel down within seconds.

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

    processes: list[subprocess.Popen[bytes]] = []
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
                env = {**os.environ, BATCH: "1", **environment}
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
            )
        except DeadKernelError:
            code = processes[-1].poll()
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            hint = " (killed, or out of memory)" if code == -9 else ""
            raise RunFailed(f"the kernel died {how}{hint}") from None
        finally:
            if part.exists():
                part.replace(output)
