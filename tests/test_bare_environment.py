"""gamlib needs torch, torchvision and what these need, and nothing else."""

import ast
import subprocess
import sys

import pytest

from ablation.paths import ROOT

ALLOWED = {"gamlib", "torch", "torchvision", "numpy", "PIL"}
OF_ONE_FILE = {"kernels/triton_gates.py": {"triton"}, "timm.py": {"timm"}, "paper/audit.py": {"pandas"}}

BARE = '''
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
'''


@pytest.mark.slow
def test_it_imports_builds_and_trains_where_there_is_torch_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 0 < float(done.stdout) < 10


def test_its_files_import_nothing_else() -> None:
    for path in (ROOT / "gamlib").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        other = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - ALLOWED
        assert other <= OF_ONE_FILE.get(str(path.relative_to(ROOT / "gamlib")), set()), path
