"""What a study needs of this machine, looked at one thing at a time: `gamlib doctor`."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ablation.errors import ConfigError
from ablation.execution import slurm
from ablation.paths import NOTEBOOKS, require, require_locks, runs_root
from ablation.runs import first_line
from gamlib.data.datasets import FOLDER, data_root

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
ENOUGH_GB = 1.0  # of free space; a small run takes 0.08 GB
OPTIONAL = {"timm": "its mechanisms", "tensorboard": "event files", "safetensors": "exported networks"}
SECONDS = 15  # for the driver to answer
# The oldest driver for a build for each major version of CUDA, "Minor Version Compatibility", table 1:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {"11": 450, "12": 525, "13": 580}


class Check(NamedTuple):
    """What was found: `state` is ok, note (a study can do without) or PROBLEM (it cannot), `text` what to do, too."""

    name: str
    state: str
    text: str


Found = tuple[str, str]


def checks() -> Iterator[Check]:
    """All that is looked at, each when it was: SLURM may take a quarter of a minute not to answer."""
    for name, look in LOOKS.items():
        try:
            yield Check(name, *look())
        except ConfigError as error:
            yield Check(name, PROBLEM, str(error))
        except Exception as error:  # what breaks here breaks a study
            yield Check(name, PROBLEM, first_line(error))


def show(as_json: bool) -> bool:
    """Print what was found, one line each, and last what stops a study; whether nothing does."""
    found = []
    for check in checks():
        found.append(check)
        if not as_json:
            print(f"{check.state:9}{check.name:10}{check.text}", flush=True)
    problems = [check.name for check in found if check.state == PROBLEM]
    if as_json:
        print(json.dumps([check._asdict() for check in found], indent=2))
    else:
        print(f"a study is stopped by: {', '.join(problems)}" if problems else "nothing stops a study")
    return not problems


def version() -> str:
    """The version of gamlib, as its package says it."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("gamlib")
    return "of a clone that is not installed"


def _python() -> Found:
    found, allowed = platform.python_version(), ""
    with suppress(metadata.PackageNotFoundError):
        allowed = metadata.metadata("gamlib")["Requires-Python"] or ""
    if found not in SpecifierSet(allowed):
        return PROBLEM, f"{found}: allowed: {allowed}; set up an environment of another Python"
    torch = find_spec("torch")
    if torch and torch.origin and torch.cached and sys.dont_write_bytecode and not Path(torch.cached).exists():
        where = Path(torch.origin).parents[1]
        cause = "as PYTHONDONTWRITEBYTECODE is set, each start compiles torch and others again, for seconds"
        return NOTE, f"{found}; {cause}; once for all: python -m compileall -q {where}"
    return OK, found


def _gamlib() -> Found:
    """The package, its notebooks, and the packages that it asks for."""
    require(NOTEBOOKS / "run.ipynb")
    with suppress(metadata.PackageNotFoundError):
        asked = map(Requirement, metadata.requires("gamlib") or ())
        needed = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": "lab"})]
        if lacking := [one for one in needed if not _satisfied(one)]:
            names = ", ".join(f"{one.name}{one.specifier}" for one in lacking)
            return PROBLEM, f"{version()} lacks {names}: pip install 'gamlib[lab]'"
    return OK, f"{version()}, its notebooks and studies in {NOTEBOOKS.parent}"


def _satisfied(requirement: Requirement) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    return False


def _torch() -> Found:
    import torch

    built = torch.version.cuda or torch.version.hip
    text = f"{torch.__version__}, built for {f'CUDA {built}' if built else 'the CPU'}"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if usable := torch.cuda.is_available():
            warned.clear()
            torch.cuda.init()  # which warns of GPUs that this build has no code for
    driver = _driver()
    said = f"driver {driver[0]}, up to CUDA {driver[1]}" if driver else "driver unknown"
    if usable:
        number = torch.cuda.device_count()
        text = f"{text}; {number} GPU{'s' * (number > 1)}, {said}"
        if not warned:
            return OK, text
        first = str(warned[0].message).strip().partition("\n")[0]
        return NOTE, f"{text}; torch warns: {first} Another build may have code for it (docs/install.md)"
    if driver is None:
        return OK, f"{text}; no GPU"
    return NOTE, f"{text}, cannot use the GPU ({said}): {_why_unusable(driver[0], built)}; runs use the CPU"


def _driver() -> tuple[str, str] | None:
    """The version of NVIDIA's driver and the newest CUDA that it knows, if there is one."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        if found := re.search(r"Driver Version: *(\S+).*?CUDA Version: *(\S+)", said):
            return found[1], found[2]
    return None


def _why_unusable(driver: str, built: str | None) -> str:
    """Why torch cannot use a GPU whose driver answers, and what to do: as far as the two versions tell."""
    if built is None:
        return "install a build of torch for CUDA (docs/install.md)"
    needed = DRIVERS.get(built.partition(".")[0])
    major = driver.partition(".")[0]
    if needed is None or not major.isdecimal():
        return "compare the driver with what this build needs (docs/install.md)"
    if int(major) < needed:
        return (
            f"the driver is too old, this build needs {needed} or newer: update it, or install an older build of "
            "torch (docs/install.md)"
        )
    return f"the driver is new enough ({needed}), so look at CUDA_VISIBLE_DEVICES and whether this build knows the GPU"


def _compiler() -> Found:
    from gamlib.kernels import native

    command = os.environ.get("GAM_COMPILER", "cc")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if native.library() is not None:
            return OK, f"{command} compiles GAM's C files"
    why = str(said[0].message) if said else f"GAM is computed by torch alone, slower: GAM_COMPILER={command!r}"
    return NOTE, f"{why}; install a C compiler, or name one in GAM_COMPILER"


def _runs() -> Found:
    root = runs_root()
    there = next(folder for folder in (root, *root.parents) if folder.exists())  # nothing is made here
    try:
        require_locks(there)
    except OSError as error:
        return PROBLEM, f"{root}: {error.strerror}; set GAM_RUNS to a folder that you may write to"
    free = shutil.disk_usage(there).free / 1e9
    text = f"{root}, with locks, {free:.1f} GB free"
    if free < ENOUGH_GB:
        return PROBLEM, f"{text}, and a study needs {ENOUGH_GB:g}; make room, or set GAM_RUNS to another folder"
    return OK, text


def _slurm() -> Found:
    if shutil.which("sbatch") is None:
        return OK, "none, so studies run on this machine"
    if (partitions := slurm.partitions()) is None:
        return NOTE, "sinfo does not answer: --cluster slurm will not work here; ask those who run the cluster"
    text = f"partitions {', '.join(partitions)}"
    if slurm.accounting_answers():
        return OK, f"{text}; accounting answers"
    return NOTE, f"{text}; sacct does not answer: why a job ended is then known from its log alone"


def _data() -> Found:
    from torchvision.datasets import CIFAR10, CIFAR100

    root = data_root()
    named = {"cifar10": CIFAR10.base_folder, "cifar100": CIFAR100.base_folder, "imagenet": "imagenet"}
    found = [name for name, folder in named.items() if (root / folder).is_dir()]
    folders = sorted(train.parent.name for train in root.glob("*/train"))
    found += [FOLDER + name for name in folders if name != "imagenet"]
    return OK, f"digits (embedded); in {root}: {', '.join(found) or 'nothing'}; docs/data.md says where others belong"


def _optional() -> Found:
    lacking = [name for name in OPTIONAL if not _satisfied(Requirement(name))]
    if not lacking:
        return OK, ", ".join(OPTIONAL)
    what = ", ".join(f"{name} ({OPTIONAL[name]})" for name in lacking)
    return NOTE, f"without {what}; if wanted, pip install {' '.join(lacking)}"


LOOKS: dict[str, Callable[[], Found]] = {
    "Python": _python,
    "gamlib": _gamlib,
    "torch": _torch,
    "compiler": _compiler,
    "runs": _runs,
    "SLURM": _slurm,
    "data": _data,
    "optional": _optional,
}
