"""Debian's Chromium, which Playwright drives: nothing is downloaded but Debian's own package.

python tests/browser/chromium.py install         as root
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec


class ChromiumError(RuntimeError):
    """Chromium cannot be installed; the message says why."""


def missing() -> str:
    """Why there can be no browser here, or nothing."""
    if find_spec("playwright") is None:
        return "not installed: Playwright's Python package (make env)"
    return "" if shutil.which("chromium") else "not installed: chromium (python tests/browser/chromium.py install)"


def install() -> None:
    """Install the package.

    Raises:
        ChromiumError: no root, no Debian, or apt-get failed.
    """
    if shutil.which("chromium"):
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        raise ChromiumError("installing chromium needs root and Debian's apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode and command[0] == "install":
            raise ChromiumError(done.stderr.strip()[-500:])


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    try:
        install()
    except ChromiumError as error:
        sys.exit(str(error))
