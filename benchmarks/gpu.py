"""All that needs a GPU, in limited time: its tests, the block, a training step, and as many runs of a study as fit.

    make gpu                                       in .venv
    PYTHON=python3.12 SECONDS_TO_RUN=600 make gpu  a Python as it is: with what gpu.txt lists, and without a network
    python benchmarks/gpu.py --parts tests,blocks  some parts, which share the time
    python benchmarks/gpu.py --try                 small and on a CPU, to see that it works: some minutes

A part gets its share of SECONDS_TO_RUN (1400), and what those before it have left. At its limit it is stopped, which is
no failure, and what it has measured until then is kept. $OUT (`runs/gpu`) gets log.txt, summary.txt, the benchmarks'
tables, and the study's published.tar.gz; WORKERS (8) of its runs are trained at once, in `runs`, and the same command
goes on with them. Ctrl-C stops the present part, and no other begins. The exit code is 1 if a part has failed.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
BLOCK = "$PYTHON benchmarks/gam.py --device cuda --parts blocks --dtype bfloat16,float32 --seconds 2 --repetitions 3"
STEP = "$PYTHON benchmarks/training.py --device cuda --attentions gam"
IMAGENET = "--shapes 'ResNet-18 ImageNet' --csv $OUT/"
PARTS = {  # the share of the time, and what is executed in it; compiling takes longest, and comes second
    "tests": (0.25, "$PYTHON -m pytest -vv tests/kernels/test_triton_on_gpu.py tests/training/test_gpu.py"),
    "blocks": (0.1, f"{BLOCK} --no-compile --csv $OUT/blocks.csv"),
    "blocks-compiled": (0.07, f"{BLOCK} --subjects 'ours,plain compiled' {IMAGENET}blocks-compiled.csv"),
    "blocks-all": (0.08, f"{BLOCK} --subjects all,compiled {IMAGENET}blocks-all.csv"),
    "steps": (0.08, f"{STEP} --variants gamlib,no-amp,no-channels-last,dataloader --csv $OUT/steps.csv"),
    "steps-compiled": (0.17, f"{STEP} --variants gamlib,compile,plain-compile --csv $OUT/steps-compiled.csv"),
    "study": (0.25, "studies/cifar10-gpu.sh"),
}
SMALL = {  # for --try
    "--device cuda": "--device cpu --quick",
    "'ours,plain compiled' --shapes 'ResNet-18 ImageNet'": "'plain compiled' --dtype float32",
    "all,compiled --shapes 'ResNet-18 ImageNet'": "'se compiled' --dtype float32",
    "gamlib,no-amp,no-channels-last,dataloader": "gamlib",
    "gamlib,compile,plain-compile": "plain-compile",
    "gpu.sh": "gpu.sh --dataset digits --seeds 0 -p width=0.125 -p reduction=4 -p epochs=1 -p train_fraction=0.2",
}
GRACE, SAVING = 20, 90  # seconds for a part to end when it is stopped; for runs to save and be published


def execute(command: str, log: Path, seconds: float, grace: float) -> tuple[str, str]:
    """How it ended, and the last line that it wrote to the log."""
    import psutil

    state, began = "", log.stat().st_size
    with log.open("a") as file:
        print(f"=== {command}", file=file, flush=True)
        words = [os.path.expandvars(word) for word in shlex.split(command)]
        to = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **to)
    try:
        process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        state = "stopped" if isinstance(reason, KeyboardInterrupt) else "cut short"
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(grace)
    with suppress(psutil.NoSuchProcess):  # it has ended
        for one in psutil.Process(process.pid).children(recursive=True):  # some are of sessions of their own
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whom it has left behind
    code = process.wait()
    (*_, said) = filter(None, map(bytes.strip, re.split(rb"[\r\n]", log.read_bytes()[began:])))
    if state == "cut short" and re.search(rb"\d failed", said):  # tests, before the others were stopped
        state = "failed"
    return state or {0: "passed", 124: "cut short"}.get(code, "failed"), said.decode(errors="replace")[:120]


def refuse(text: str) -> NoReturn:
    """End with one line."""
    print(text, file=sys.stderr)
    sys.exit(2)


def number(name: str, otherwise: int, least: int) -> int:
    """Of the environment."""
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal() or int(text) < least:
        refuse(f"{name}={text!r}: allowed: a whole number from {least}")
    return int(text)


def check(chosen: Sequence[str], small: bool) -> None:
    """Refuse what cannot end well before anything starts."""
    for name in chosen:
        if name not in PARTS:
            refuse(f"parts={name!r}: allowed: {', '.join(PARTS)}")
    missing = []
    listed = (ROOT / "benchmarks" / "gpu.txt").read_text()
    for name in ["torch", "torchvision", *re.findall(r"^\w[\w-]*", listed, re.M)]:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        refuse(f"not installed for {sys.executable}: {', '.join(missing)}; benchmarks/gpu.txt lists what is needed")
    import torch

    if not small and not torch.cuda.is_available():
        refuse("torch finds no GPU; allowed without one: --try")
    images = Path(os.environ.get("GAM_DATA") or ROOT / "data") / "cifar10-jpeg"
    if not small and "study" in chosen and not images.is_dir():
        refuse(f"{images}: not there, see docs/data.md; allowed without it: --parts {','.join([*PARTS][:-1])}")


def main() -> int:
    """Execute the parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="by default all: %(default)s")
    parser.add_argument("--try", dest="small", action="store_true", help="small and on a CPU")
    given = parser.parse_args()
    chosen, small = list(dict.fromkeys(given.parts.split(","))), given.small
    seconds, workers = number("SECONDS_TO_RUN", 600 if small else 1400, 60), number("WORKERS", 2 if small else 8, 1)
    check(chosen, small)
    out = Path(os.environ.get("OUT") or ROOT / "runs" / ("gpu-try" if small else "gpu")).absolute()
    log = out / "log.txt"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (log, out / "summary.txt"):
            path.write_text("")
    except OSError as error:
        refuse(f"OUT={str(out)!r}: {error.strerror}; allowed: a folder that can be written to")
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ |= {"PYTHON": sys.executable, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    os.environ |= {"OUT": str(out), "WORKERS": str(workers)} | ({"GAM_RUNS": str(out / "runs")} if small else {})
    for one in (signal.SIGINT, signal.SIGTERM):  # a shell has SIGINT ignored in the background
        signal.signal(one, signal.default_int_handler)
    began, share, states = time.monotonic(), 0.0, list[str]()
    for name in chosen:
        share += PARTS[name][0] / sum(PARTS[one][0] for one in chosen)
        command, started, until = PARTS[name][1], time.monotonic(), began + share * seconds
        for full, less in SMALL.items() if small else ():
            command = command.replace(full, less)
        left = until - started
        os.environ["SECONDS_TO_RUN"] = str(max(1, int(left - min(SAVING, left / 3))))  # for the study's script
        state, said = "not run", ""
        if "stopped" not in states and left > GRACE:
            state, said = execute(command, log, left, SAVING if name == "study" else GRACE)
        states.append(state)
        took = f"{time.monotonic() - started:.0f} s of {left:.0f}"
        line = f"{name:16}{state:10}{took:>16}  {said}"
        print(line, flush=True)
        with (out / "summary.txt").open("a") as file:
            print(line, file=file)
    return 1 if "failed" in states else 130 if "stopped" in states else 0


if __name__ == "__main__":
    sys.exit(main())
