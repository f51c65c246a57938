"""gamlib needs torch, torchvision and what these need, and nothing else; its laboratory works without a clone."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from ablation.paths import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ALLOWED = {"gamlib", "torch", "torchvision", "numpy", "PIL"}
OF_ONE_FILE = {
    "kernels/triton_gates.py": {"triton"},
    "timm.py": {"timm"},
    "sources.py": {"timm"},
    "backbones/weights.py": {"safetensors"},
    "paper/audit.py": {"pandas"},
}

WITHOUT_OTHERS = '''
import importlib, pkgutil, re, sys
from importlib import metadata

def needed(name, found):
    key = re.sub("[-_.]+", "-", name).lower()
    if key not in found:
        found.add(key)
        try:
            requirements = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # for another system
            return
        for requirement in requirements:
            if "extra ==" not in requirement:
                needed(re.match("[A-Za-z0-9_.-]+", requirement)[0], found)

there = {"gamlib"}
needed("torch", there)
needed("torchvision", there)
distributions = metadata.packages_distributions()

class Bare:
    """A finder that does not find what other distributions brought."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        of = distributions.get(name.partition(".")[0], ())
        if of and not there & {re.sub("[-_.]+", "-", one).lower() for one in of}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
for name in ("pandas", "pydantic", "sklearn", "submitit"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is not refused: this test tests nothing")
'''
TRAINS = """
import gamlib
for module in pkgutil.walk_packages(gamlib.__path__, "gamlib."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "timm"):
            raise

from dataclasses import replace
import torch
from gamlib.data.batches import FromMemory
from gamlib.data.images import Images
from gamlib.training.loop import fit
from gamlib.training.recipes import RECIPES

images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2
model = gamlib.build_model("resnet18", "gam", 2, width=0.25)
batches = FromMemory(Images(images, labels, images, labels), torch.device("cpu"), seed=0, pad=2, flip=True)
(metrics,) = fit(model, batches, replace(RECIPES["digits"], epochs=1, batch_size=8))
print(metrics["train_loss"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with gamlib's wheel, which finds all other packages in this one's."""
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "environment"
    for name in ("gamlib", "ablation", "notebooks", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    subprocess.run([*pip, *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python, (found,) = environment / "bin" / "python", folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(found)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files count for nothing there
    shutil.rmtree(source)
    return environment / "bin"


def work(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as one who has set nothing for gamlib calls it in a folder."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("GAM_", "PYTHON"))}
    own |= {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_a_wheel_without_the_laboratorys_packages_trains_and_says_what_its_command_lacks(
    installed: Path, tmp_path: Path
) -> None:
    where = "import gamlib; assert 'site-packages' in gamlib.__file__\n"
    done = work(tmp_path, installed / "python", "-c", WITHOUT_OTHERS + where + TRAINS)
    assert done.returncode == 0, done.stdout + done.stderr
    command = "import runpy; runpy.run_module('gamlib', run_name='__main__')"
    done = work(tmp_path, installed / "python", "-c", WITHOUT_OTHERS + command)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "typer is not installed" in done.stderr and "pip install 'gamlib[lab]'" in done.stderr


@pytest.mark.long
def test_a_wheel_with_them_works_in_any_folder_and_leaves_all_of_it_there(installed: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in installed.parent.rglob("*")}
    (tmp_path / "own.yaml").write_text("base: {epochs: 1}\narms:\n  plain: {attention: none}\n  gam: {}\n")
    for arguments in (["study", "own.yaml", "--seeds", "0", "--report"], ["doctor"]):
        done = work(tmp_path, installed / "gamlib", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"own.yaml", "runs", "figures"}
    assert len(list(tmp_path.glob("runs/digits/*/result.json"))) == 2
    assert {path.name for path in tmp_path.glob("figures/own/*")} >= {
        "own-digits.png",
        "own-digits.csv",
        "own-digits.tex",
    }
    assert before == {path: path.stat().st_mtime_ns for path in installed.parent.rglob("*")}
    done = work(tmp_path, installed / "gamlib", "report", "--published")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "lies in its repository" in done.stderr
    done = work(tmp_path, installed / "python", "-m", "gamlib", "--version")
    assert (done.returncode, done.stdout) == (0, f"gamlib {VERSION}\n")


@pytest.mark.slow
def test_it_imports_builds_and_trains_where_there_is_torch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_OTHERS + TRAINS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < float(done.stdout) < 10


def test_its_files_import_nothing_else() -> None:
    for path in (ROOT / "gamlib").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        other = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - ALLOWED
        assert other <= OF_ONE_FILE.get(str(path.relative_to(ROOT / "gamlib")), set()), path
