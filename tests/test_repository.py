"""The habits of the repository: floors, notebooks, dependencies."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from gamlib.lab import typeset
from gamlib.lab.config import RunConfig
from gamlib.lab.places import NOTEBOOKS, ROOT

FLOORS = [
    "files",
    "signals",
    "paper",
    "attention",
    "backbones",
    "gates",
    "complexity",
    "audit",
    "readings",
    "training",
    "lab",
    "options",
    "reporting",
    "cli",
]
NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def imported(path: Path) -> set[str]:
    """Modules of gamlib that a file imports, at its head or late."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("gamlib.")}


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_looks_up(floor: str) -> None:
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    package = ROOT / "gamlib"
    for path in [*(package / floor).rglob("*.py")] or [package / f"{floor}.py"]:
        assert not imported(path) & above, path


def test_a_room_is_read_in_one_sitting() -> None:
    for path in (ROOT / "gamlib").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.name)
def test_a_notebook_is_committed_clean_and_opens_with_its_question(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].source.startswith("# parameters")
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


def test_the_parameters_of_the_run_notebook_are_the_fields_of_a_configuration() -> None:
    notebook = nbformat.read(NOTEBOOKS / "run.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    namespace: dict[str, object] = {}
    exec(cell.source, {}, namespace)
    assert namespace == {name: field.default for name, field in RunConfig.model_fields.items()} | {"attention": "gam"}
    assert RunConfig(**namespace) == RunConfig()


def test_the_lock_pins_every_dependency_and_names_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(line.split("==") for line in lock.split() if "==" in line)
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name, exact = re.match(r"([\w-]+)(?:==(.+))?", requirement).groups()  # type: ignore[union-attr]
        assert name.lower() in pinned, requirement
        assert exact in (None, pinned[name.lower()]), requirement
    assert "://" not in lock and "--" not in lock


def test_conda_makes_the_environment_of_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, by_pip = environment["dependencies"]
    assert pip == "pip" and by_pip == {"pip": ["-r requirements.lock", "-e ."]}
    floor, ceiling = re.match(r">=(3\.\d+),<(3\.\d+)", project["requires-python"]).groups()  # type: ignore[union-attr]
    assert python == f"python={floor}" and int(ceiling[2:]) == int(floor[2:]) + 1


def test_the_table_of_the_readme_is_the_exported_one(committed: Path) -> None:
    columns = ["Arm", "Parameters", "Top-1 error", "Top-5 error", "Paper top-1", "Paper top-5"]
    texts = typeset.for_reading(pd.read_csv(committed / "figures" / "submodules-digits.csv"))[columns]
    readme = (committed / "README.md").read_text().replace("`", "")
    for row in texts.itertuples(index=False):
        assert f"| {' | '.join(row)} |" in readme


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_is_there(page: str, committed: Path) -> None:
    text = (committed / page).read_text()
    for path in re.findall(r"\]\(([^)h#][^)]*)\)", text) + re.findall(r'src="([^"]+)"', text):
        assert (committed / path).exists(), path
