"""Build the sdist and, from it, the wheel; install that in bare environments, and test there: python tests/release.py

For each Python that pyproject.toml names and this machine has. `uv` downloads what is not in its cache: of torch's
default build, 5 GB the first time. Exit code 1 if a package is unsound, a test fails, or no such Python is found.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIER = "Programming Language :: Python :: "
# The model code's tests need no clone beside the installed package, but for what reads hubconf.py, README and docs.
OF_THE_MODEL = ("attention", "backbones", "paper", "training", "kernels/test_c_sizes.py")
OF_A_CLONE = (
    "--ignore=tests/backbones/test_entry_points.py",
    "--deselect=tests/backbones/test_attach.py::test_the_examples_of_the_readme_run_and_give_what_they_say",
)


def versions() -> list[str]:
    """The Python versions that pyproject.toml names, such as "3.11"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = (line.removeprefix(CLASSIFIER) for line in project["classifiers"] if line.startswith(CLASSIFIER))
    return [version for version in named if "." in version]


def interpreter(version: str) -> str | None:
    """A Python of that version on the PATH, or of pyenv's, whose shims may be there and not start."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    name = f"python{version}"
    found = [str(Path(folder) / name) for folder in os.get_exec_path()]
    found += map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/{name}")))
    for path in filter(shutil.which, found):
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
        if done.returncode == 0 and re.fullmatch(rf"Python {re.escape(version)}\.\d+\s*", done.stdout):
            return path
    return None


def problems(folder: Path) -> Iterator[str]:
    """Do all of it in an empty folder, and name what fails."""
    uv, dist = str(Path(sys.executable).with_name("uv")), ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    source = folder / "committed"
    source.mkdir()
    run("git", "-C", ROOT, "checkout-index", "--all", f"--prefix={source}/")  # and nothing that lies around
    run(uv, "build", "--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", dist, source)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    if not ran(uv, "tool", "run", "twine", "check", "--strict", wheel, sdist):
        yield "twine check"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    shutil.copytree(unpacked / "tests", folder / "tests")
    shutil.copy(unpacked / "pyproject.toml", folder)  # pytest's options
    found = {version: path for version in versions() if (path := interpreter(version))}
    print(f"Python {', '.join(found) or 'none'} of {', '.join(versions())} found", flush=True)
    if not found:
        yield "no Python"
    for version, python in found.items():
        environment = folder / version
        run(uv, "venv", "--quiet", "--python", python, environment)
        lock = ["--constraints", unpacked / "requirements.lock"] if version == versions()[0] else []
        if not ran(
            *(uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python"), f"{wheel}[dev]", *lock
        ):
            yield f"installation for Python {version}"
            continue
        pytest = (environment / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "-m", "quick")
        if not ran(environment / "bin" / "gamlib", "doctor", cwd=folder / version):
            yield f"gamlib doctor of the wheel for Python {version}"
        if not ran(*pytest, *(f"tests/{name}" for name in OF_THE_MODEL), *OF_A_CLONE, cwd=folder):
            yield f"the quick tests of the model code with the wheel for Python {version}"
        if not ran(*pytest, cwd=unpacked):  # whose packages go before the installed ones there
            yield f"the quick tests of the sdist for Python {version}"


def ran(*command: object, cwd: Path = ROOT) -> bool:
    """Whether a command ends well, as one who has set nothing for gamlib calls it."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("GAM_", "PYTHON", "VIRTUAL_ENV"))}
    print("$", *command, flush=True)
    return subprocess.run([str(word) for word in command], cwd=cwd, env=own).returncode == 0


def run(*command: object) -> None:
    """A command without which nothing else can be done."""
    if not ran(*command):
        sys.exit(f"failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="gam-release-") as place:
        if failed := list(problems(Path(place))):
            shutil.rmtree(ROOT / "dist", ignore_errors=True)
            sys.exit(f"not to be released: {'; '.join(failed)}")
    print("dist/ is sound")
