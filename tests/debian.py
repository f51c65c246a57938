"""What some tests need of Debian, installed as root: python tests/debian.py slurm chromium texlive"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Commands that must be there, and the packages that bring them.
NEEDS = {
    "slurm": (
        ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
        ("slurm-wlm", "slurmdbd", "munge", "mariadb-server"),
    ),
    "chromium": (("chromium",), ("chromium",)),
    "texlive": (("pdflatex",), ("texlive-latex-base", "texlive-latex-recommended")),
}


def missing(name: str) -> str:
    """Why one of `NEEDS` cannot be used here, or nothing."""
    if name == "slurm" and os.geteuid():
        return "a SLURM of one's own needs root"
    lacking = [command for command in NEEDS[name][0] if shutil.which(command) is None]
    return f"not installed: {', '.join(lacking)} (python tests/debian.py {name})" if lacking else ""


def install(packages: list[str]) -> str:
    """Install packages, and keep Debian from starting them as services; why that failed, or nothing."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return f"installing {', '.join(packages)} needs root and Debian's apt-get"
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
    finally:
        if ours:
            policy.unlink()
    return done.stderr.strip()[-500:] or f"apt-get ended with {done.returncode}" if done.returncode else ""


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - NEEDS.keys():
        sys.exit(__doc__)
    wanted = [package for name in sys.argv[1:] if missing(name) for package in NEEDS[name][1]]
    sys.exit(install(wanted) if wanted else 0)
