"""The habits of the repository: floors, notebooks, dependencies."""

import ast
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import typer
import yaml
from packaging.requirements import Requirement
from papermill import inspect_notebook

from ablation.cli import app
from ablation.config import RunConfig
from ablation.paths import NOTEBOOKS, ROOT
from ablation.results import typeset
from ablation.study_files import read_studies

FLOORS = {
    "gamlib": [
        *("files", "signals", "names", "sources", "attention", "backbones", "timm", "data", "paper", "kernels"),
        "training",
    ],
    "ablation": [
        *("errors", "hypotheses", "paths", "provenance", "named_files", "mechanisms", "parameter_counts", "config"),
        *("parameters", "status", "runs", "arms", "studies", "study_files", "execution", "results", "gates", "export"),
        *("until_decided", "doctor", "console", "cli_results", "cli"),
    ],
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"]
)
NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, at its head, late, or for its types only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize(("package", "floor"), [(package, floor) for package in FLOORS for floor in FLOORS[package]])
def test_nothing_looks_up(package: str, floor: str) -> None:
    above = set(FLOORS[package][FLOORS[package].index(floor) + 1 :])
    folder = ROOT / package
    for path in [*(folder / floor).rglob("*.py")] or [folder / f"{floor}.py"]:
        names = imported(path)
        assert not {name.split(".")[1] for name in names if name.startswith(f"{package}.")} & above, path
        assert package == "ablation" or not any(name.startswith("ablation") for name in names), path


def test_every_module_has_a_floor() -> None:
    for package, floors in FLOORS.items():
        assert {path.stem for path in (ROOT / package).iterdir() if path.stem[0] not in "_."} == set(floors)


def test_a_room_is_read_in_one_sitting() -> None:
    for path in [path for folder in (*FLOORS, "docs") for path in (ROOT / folder).rglob("*.py")]:
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
    del namespace["__annotations__"]
    assert namespace == {name: field.default for name, field in RunConfig.model_fields.items()} | {"attention": "gam"}
    assert RunConfig(**namespace) == RunConfig()


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.name)
def test_papermills_help_tells_type_and_meaning_of_every_parameter(path: Path) -> None:
    (cell,) = (cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", []))
    assigned = [node.target.id for node in ast.parse(cell.source).body]
    found = inspect_notebook(path)
    assert [*found] == assigned
    assert all(found[name]["inferred_type_name"] != "None" and found[name]["help"] for name in assigned), found
    if path.name == "run.ipynb":
        for name, field in RunConfig.model_fields.items():
            wanted = re.sub(r"Literal\[.*", "str", inspect.formatannotation(field.annotation)).removesuffix(" | None")
            assert found[name]["inferred_type_name"].partition("[")[0] == wanted.partition("[")[0], name


def test_the_lock_pins_every_dependency_and_names_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(line.split("==") for line in lock.split() if "==" in line)
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    for requirement in map(Requirement, {*wanted} - {"gamlib[lab]"}):
        assert pinned[requirement.name.lower()] in requirement.specifier, requirement
        assert not any(one.operator == "==" for one in requirement.specifier), requirement
    assert "://" not in lock and "--" not in lock


def test_the_lock_of_the_site_pins_what_it_needs_at_the_versions_of_the_other() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pinned, others = (
        dict(line.split("==") for line in (ROOT / name).read_text().split())
        for name in ("requirements-site.lock", "requirements.lock")
    )
    for requirement in map(Requirement, groups["site"]):
        assert pinned[requirement.name] in requirement.specifier, requirement
    assert all(pinned[name] == others[name] for name in pinned.keys() & others.keys())


def test_the_model_code_asks_for_what_it_imports_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(one).name for one in project["dependencies"]}
    assert names == {"numpy", "torch", "torchvision"} and "gamlib[lab]" in project["optional-dependencies"]["dev"]


def test_every_package_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for package in FLOORS for path in (ROOT / package).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} | {*setuptools["package-dir"]} == {*setuptools["packages"]}


def test_conda_makes_the_environment_of_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, compiler, pip, by_pip = environment["dependencies"]
    assert (compiler, pip) == ("c-compiler", "pip") and by_pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert project["requires-python"].startswith(f">={python.removeprefix('python=')},")


def test_the_table_of_the_readme_is_the_exported_one(committed: Path) -> None:
    columns = ["Arm", "Parameters", "Top-1 error", "Top-5 error", "Paper top-1", "Paper top-5"]
    texts = typeset.for_reading(pd.read_csv(committed / "figures" / "submodules-digits.csv"))[columns]
    readme = (committed / "README.md").read_text().replace("`", "")
    for row in texts.itertuples(index=False):
        assert f"| {' | '.join(row)} |" in readme


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_that_a_page_names_is_there(page: str, committed: Path) -> None:
    text = (committed / page).read_text()
    for link in re.findall(r"\]\(([^)]*)\)", text) + re.findall(r'src="([^"]+)"', text):
        path, _, heading = link.partition("#")
        if not path.startswith("http"):
            there = (committed / page).parent / path if path else committed / page
            assert there.exists(), link
            assert not heading or heading in anchors(there), link


def test_the_readme_is_read_in_five_minutes(committed: Path) -> None:
    text = (committed / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 130 and len(text.split()) <= 1600 and max(map(len, lines)) <= 160


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_commands_with_such_options(page: str, committed: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^gamlib (.+?)(?:   *.*)?$", (committed / page).read_text(), re.M):
        name, *words = shlex.split(re.sub(r"[\[\]]", "", line))
        commands[name].make_context(name, words)


def test_the_yaml_and_papermill_lines_of_the_readme_are_sound(committed: Path, tmp_path: Path) -> None:
    text = (committed / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "own.yaml").write_text(block)
    (study,) = read_studies(tmp_path / "own.yaml")
    assert len(study.plan().configs) == 3 * len(study.arms)
    for line in re.findall(r"^papermill (.+)$", text, re.M):
        words = shlex.split(line)
        (notebook,) = (word for word in words if word.startswith("notebooks/"))
        (cell,) = (
            cell for cell in nbformat.read(ROOT / notebook, 4).cells if "parameters" in cell.metadata.get("tags", [])
        )
        given = [words[at + 1].rstrip(":") for at, word in enumerate(words) if word in ("-p", "-y")]
        assert all(re.search(rf"(?m)^{name.partition(':')[0]}: ", cell.source) for name in given), line
