"""What carries others on: workflow, hooks, templates, images, changelog, release, and the tour of the code."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import release
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ablation.paths import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE, DEFINITION = ROOT / "containers" / "Dockerfile", ROOT / "containers" / "gam.def"
STOP = re.compile(r"`([\w/.]+\.py):([\w.]+)`")


def jobs() -> dict[str, Any]:
    return {name: job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()}


def commands() -> list[str]:
    lines = [line for job in jobs().values() for step in job["steps"] for line in step.get("run", "").splitlines()]
    return [part.strip() for line in lines for part in line.split("&&")]


def of_range(package: str) -> list[str]:
    """The minor versions that pyproject.toml allows of a package."""
    (text,) = (one.removeprefix(package) for one in PROJECT["dependencies"] if re.match(rf"{package}\W", one))
    return [f"{major}.{minor}" for major in (0, 2) for minor in range(50) if f"{major}.{minor}" in SpecifierSet(text)]


def test_the_workflow_calls_targets_and_options_that_there_are() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    called = [shlex.split(command)[1] for command in commands() if command.startswith("make ")]
    assert {"test", "test-slurm", "release"} <= {*called} <= {*targets}
    assert any(command.startswith(".venv/bin/pytest tests/test_site.py") for command in commands())
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    for command in (command for command in commands() if command.startswith("pytest ")):
        words = shlex.split(command)
        assert words[words.index("-m") + 1] in {marker.partition(":")[0] for marker in markers}


def test_the_workflow_has_every_python_and_both_ends_of_torch() -> None:
    matrix = jobs()["ranges"]["strategy"]["matrix"]
    assert matrix["python"] == release.versions()
    assert all(isinstance(value, str) for value in matrix["python"] + matrix["torch"]), "3.10 is no number"
    pairs = {one["torch"]: one["torchvision"] for one in matrix["include"]}
    torch, torchvision = of_range("torch"), of_range("torchvision")
    assert matrix["torch"] == [torch[0], torch[-1]]
    assert pairs == {torch[0]: torchvision[0], torch[-1]: torchvision[-1]}
    (named,) = (step for step in jobs()["release"]["steps"] if "python-version" in step.get("with", {}))
    assert sorted(named["with"]["python-version"].split()) == release.versions()


def test_the_python_versions_are_those_that_are_allowed() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert release.versions() == [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}" in allowed]
    lock, conda = (ROOT / "Makefile").read_text(), yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"--python-version {release.versions()[0]}" in lock
    assert f"python={release.versions()[0]}" in conda["dependencies"]


@pytest.mark.parametrize(
    ("program", "files"), [("actionlint", WORKFLOWS), ("hadolint", [DOCKERFILE])], ids=["actionlint", "hadolint"]
)
def test_linters_that_are_on_the_path_find_nothing(program: str, files: list[Path]) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on the PATH")
    done = subprocess.run([program, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_are_the_projects_own_programs() -> None:
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local", "others are downloaded"
    for hook in local["hooks"]:
        program, *words = shlex.split(hook["entry"])
        assert hook["language"] == "system" and Path(program).parent == Path(".venv/bin") and Path(program).name in lock
        if "-k" in words:
            named = words[words.index("-k") + 1]
            assert re.search(rf"^def test_\w*{named}", (ROOT / words[0]).read_text(), re.M), named
    assert {Path(shlex.split(hook["entry"])[0]).name for hook in local["hooks"]} == {"ruff", "mypy", "pytest"}


def test_issues_and_pull_requests_ask_what_doctor_says() -> None:
    github = ROOT / ".github"
    forms = [path for path in (github / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form.keys() == {"name", "description", "body"}
        asked = {one["id"]: one for one in form["body"]}
        assert asked["doctor"]["validations"]["required"] and asked["doctor"]["attributes"]["label"] == "gamlib doctor"
    assert "`gamlib doctor`" in (github / "pull_request_template.md").read_text()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, continued lines joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def sections() -> dict[str, list[str]]:
    """The lines of the definition's sections, and under "" its header, without comments."""
    found: dict[str, list[str]] = {"": []}
    for line in DEFINITION.read_text().splitlines():
        if line.startswith("%"):
            found[line[1:].strip()] = []
        elif line.strip() and not line.strip().startswith("#"):
            [*found.values()][-1].append(line.strip())
    return found


def test_both_images_have_all_that_a_wheel_is_built_of_and_nothing_else() -> None:
    copied = {path for word, rest in instructions() if word == "COPY" for path in rest.split()[:-1]}
    folders = {one.partition(".")[0] for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"]["packages"]} | {"notebooks", "studies"}  # fmt: skip
    assert copied == folders | {"requirements.lock", "pyproject.toml", PROJECT["readme"], "LICENSE"}
    assert {line.split()[0]: line.split()[1] for line in sections()["files"]} == {
        path: f"/opt/gam/{path}" for path in copied
    }
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


def test_both_images_install_the_lock_on_the_python_that_it_is_for() -> None:
    words = {word for word, _ in instructions()}
    assert words <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    (base,) = (rest for word, rest in instructions() if word == "FROM")
    assert sections()[""] == ["Bootstrap: docker", f"From: {base}"]
    assert base.startswith(f"python:{release.versions()[0]}-")
    steps = " && ".join(rest for word, rest in instructions() if word == "RUN")
    post = " && ".join(sections()["post"])
    for text in (steps, post):
        assert re.search(r"pip install --no-cache-dir --no-deps -r (/opt/gam/)?requirements\.lock", text)
        assert re.search(r"pip install --no-cache-dir --no-deps --no-build-isolation (\.|/opt/gam) ", f"{text} ")
    (variables,) = (rest for word, rest in instructions() if word == "ENV")
    assert "USER=" in variables, "torch asks for the user's name, which a number from outside does not have"
    (first, second) = (re.findall(r"apt-get install -y --no-install-recommends (.+?) +&&", of) for of in (steps, post))
    assert first == second and {"gcc", "slurm-client"} <= {*first[0].split()}
    assert sections().keys() == {"", "files", "post", "environment", "runscript", "test", "help"}
    done = subprocess.run(["sh", "-n"], input="\n".join(sections()["post"]), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_make_container_says_so_where_nothing_builds_one(tmp_path: Path) -> None:
    for program in ("make", "sh"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)

    def make() -> "subprocess.CompletedProcess[str]":
        command, path = ["make", "-C", str(ROOT), "container"], {"PATH": str(tmp_path)}
        return subprocess.run(command, env=path, capture_output=True, text=True)

    done = make()
    assert done.returncode and "neither apptainer, nor podman, nor a docker" in done.stderr
    builder = tmp_path / "apptainer"
    builder.write_text('#!/bin/sh\necho "$@"\n')
    builder.chmod(0o755)
    done = make()
    assert done.returncode == 0 and "build gam.sif containers/gam.def" in done.stdout


def test_the_changelog_has_the_form_of_one_and_the_version_one_place() -> None:
    first, *headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings]
    versions = [Version(one[1]) for one in released if one and date.fromisoformat(one[2])]
    assert len(versions) == len(headings) and versions == sorted({*versions}, reverse=True)
    assert all(version <= Version(PROJECT["version"]) for version in versions)
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert {*kinds} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for path in [*(ROOT / "gamlib").rglob("*.py"), *(ROOT / "ablation").rglob("*.py"), ROOT / "CITATION.cff"]:
        assert not re.search(r"^(__version__|version:)", path.read_text(), re.M), path


def test_an_sdist_asks_for_all_that_is_committed(committed: Path) -> None:
    if committed == ROOT:
        pytest.skip("no git checkout, so what is committed is not known")
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if not line.startswith("#")]
    grafted = {word for command, *words in lines if command == "graft" for word in words}
    patterns = [word for command, *words in lines if command == "include" for word in words]
    for path in committed.iterdir():
        if path.is_dir():
            assert path.name in grafted | {"gamlib", "ablation"}, path.name
        else:
            assert path.name == "MANIFEST.in" or any(path.match(pattern) for pattern in patterns), path.name
    assert all((committed / name).is_dir() for name in grafted)
    packages = {path.suffix for name in ("gamlib", "ablation") for path in (committed / name).rglob("*.*")}
    assert packages <= {".py", ".csv", ".c", ".h", ".mplstyle"}, "of package-data, without which neither has it"


@pytest.mark.long
def test_an_sdist_has_every_committed_file_and_makes_the_wheel(committed: Path, tmp_path: Path) -> None:
    if committed == ROOT:
        pytest.skip("no git checkout, so what is committed is not known")
    source, dist = tmp_path / "source", tmp_path / "dist"
    shutil.copytree(committed, source)
    uv = [str(Path(sys.executable).with_name("uv")), "build", "--quiet", "--offline", "--no-build-isolation"]
    subprocess.run([*uv, "--python", sys.executable, "--out-dir", str(dist), str(source)], check=True)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(path.relative_to(committed)) for path in committed.rglob("*") if path.is_file()}
    assert files <= there
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        installed = {*archive_of_wheel.namelist()}
    assert {file for file in files if file.startswith(("gamlib/", "ablation/"))} <= installed
    assert not any(name.startswith("tests/") for name in installed)


def test_a_python_is_found_where_a_shim_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def python(path: Path, script: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", str(tmp_path / "shims"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    python(tmp_path / "shims" / "python3.12", "echo 'command not found' >&2; exit 127")
    python(tmp_path / "shims" / "python3.13", "echo Python 3.1")
    found = python(tmp_path / "versions" / "3.12.1" / "bin" / "python3.12", "echo Python 3.12.1")
    assert (release.interpreter("3.12"), release.interpreter("3.13")) == (found, None)


def test_the_tests_that_a_wheel_is_released_with_are_there() -> None:
    for name in release.OF_THE_MODEL:
        assert (ROOT / "tests" / name).exists(), name
    for option in release.OF_A_CLONE:
        path, _, name = option.partition("=")[2].partition("::")
        assert "ROOT" in (text := (ROOT / path).read_text()), path
        assert f"def {name}(" in text or not name, name


def names_of(node: ast.AST) -> dict[str, ast.AST]:
    """What a module or class defines or assigns, by name."""
    found: dict[str, ast.AST] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[child.name] = child
        targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
        found |= {target.id: child for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", ["CONTRIBUTING.md"])
def test_the_tour_stops_at_names_that_there_are(page: str, committed: Path) -> None:
    text = (committed / page).read_text()
    (tour,) = re.findall(r"^## A tour: .*?(?=^## )", text, re.M | re.S)
    stops = STOP.findall(text)
    assert len(STOP.findall(tour)) >= 25
    for path, name in stops:
        node: ast.AST = ast.parse((committed / path).read_text())
        for part in name.split("."):
            assert part in names_of(node), f"{path} has no {name}"
            node = names_of(node)[part]
    for path in re.findall(r"`((?:notebooks|studies|figures)/[\w.-]+\.\w+)`", tour):
        assert (committed / path).exists(), path
    assert not {*re.findall(r"`([\w/]+\.py)[^:`]", tour)}, "a stop names a function, too"
    stopped_at = {path.partition("/")[0] for path, _ in STOP.findall(tour)}
    assert stopped_at == {"ablation", "gamlib"}
