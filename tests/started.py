"""The processes that a test has started, found by what they were given."""

import os
from pathlib import Path

import psutil


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
    """Those of this test, whose runs lie in its folder."""
    return processes(word, f"GAM_RUNS={os.environ['GAM_RUNS']}", *settings)
