"""The options that the commands of `gamlib` share, and how they speak when something is wrong."""

import inspect
import signal
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from gamlib.lab.config import ConfigError
from gamlib.lab.screen import err

BAD_INPUT, FAILED, STOPPED = 2, 1, 130
PANEL = "SLURM jobs (defaults: ~/.config/gamlib.toml or pyproject.toml)"

Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--parameter", metavar="KEY=VALUE", help="A value of the configuration; may be given many times."
    ),
]
Studies = Annotated[
    list[str], typer.Argument(metavar="STUDY...", help="submodules, max_pooling, benchmark, or a YAML file.")
]
Arms = Annotated[
    list[str] | None,
    typer.Option(help="Arms, such as 'ResNet-18*'; may be given many times. By default all.", show_default=False),
]
Dataset = Annotated[
    str | None, typer.Option(help="The data set to run on; by default the study's own, most often digits.")
]
LastDataset = Annotated[str | None, typer.Option(help="Of which data set; by default the one last submitted.")]
Submitted = Annotated[str, typer.Argument(metavar="STUDY", help="The name of a study that was submitted.")]
Seeds = Annotated[
    str | None, typer.Option(help="Seeds, such as 0-4 or 0,3,7; by default the study's own, most often 0-2.")
]
Cluster = Annotated[
    str, typer.Option(help="local: a queue on this machine. slurm: submitit jobs. debug: in this process.")
]
Workers = Annotated[int | None, typer.Option(help="Local runs at once; by default one for every core, four at most.")]
SLURM = {  # options of every command that submits; the names are those of gamlib.lab.slurm_options.NAMES
    "partition": Annotated[str | None, typer.Option(help="SLURM partition.", rich_help_panel=PANEL)],
    "account": Annotated[str | None, typer.Option(help="Account that pays.", rich_help_panel=PANEL)],
    "qos": Annotated[str | None, typer.Option(help="Quality of service.", rich_help_panel=PANEL)],
    "constraint": Annotated[str | None, typer.Option(help="Features that a node must have.", rich_help_panel=PANEL)],
    "gpus": Annotated[int | None, typer.Option(help="GPUs of a job.", rich_help_panel=PANEL)],
    "cpus": Annotated[int | None, typer.Option(help="Cores of a job.", rich_help_panel=PANEL)],
    "mem": Annotated[float | None, typer.Option(help="Memory of a job in GB.", rich_help_panel=PANEL)],
    "timeout": Annotated[
        int | None, typer.Option(help="Minutes before a job saves and queues again.", rich_help_panel=PANEL)
    ],
    "array_parallelism": Annotated[int | None, typer.Option(help="Jobs of an array at once.", rich_help_panel=PANEL)],
    "setup": Annotated[list[str] | None, typer.Option(help="A shell command before each job.", rich_help_panel=PANEL)],
    "slurm": Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch.", rich_help_panel=PANEL),
    ],
}
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the SLURM jobs are submitted.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which runs exist and which would run, with all values.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def speaks_plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input, failures and Ctrl-C end a command with one line and an exit code, not with a traceback."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        # A terminated command stops as one that got Ctrl-C: it stops its jobs and says where every run stands.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            from gamlib.lab.runs import RunFailed  # takes a second or two, in which Ctrl-C must end as plainly

            command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            complain(str(stop) or "stopped; what is done stays done, and the same command goes on from here", STOPPED)
        except ConfigError as error:
            complain(str(error), BAD_INPUT)
        except RunFailed as error:
            complain(str(error), FAILED)
        except OSError as error:
            complain(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)

    return wrapper


def takes_slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `SLURM` for a command, which gets those that were given as its keyword `slurm`."""

    @wraps(command)
    def wrapper(**values: Any) -> None:
        given = {key: value for key in SLURM if (value := values.pop(key)) not in (None, [])}
        command(**values, slurm=given)

    own = [one for one in inspect.signature(command).parameters.values() if one.name != "slurm"]
    more = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for key, kind in SLURM.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {one.name: one.annotation for one in (*own, *more)}
    return wrapper


def complain(text: str, code: int) -> None:
    """Say what is wrong, in one line, and end the command.

    Raises:
        typer.Exit: always.
    """
    err.print(text, style="red", markup=False, highlight=False)
    raise typer.Exit(code)
