"""Where things lie by default, in a clone and without one."""

from pathlib import Path

import pytest

from ablation import paths, provenance
from gamlib import files

NAMES = ("runs", "figures", "data")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"GAM_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_clone_keeps_runs_figures_and_data_wherever_one_works() -> None:
    assert paths.folders() == {f"GAM_{name.upper()}": str(paths.ROOT / name) for name in NAMES}


def test_without_a_clone_they_lie_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "CLONE", False)
    assert paths.folders() == {f"GAM_{name.upper()}": str(tmp_path / name) for name in NAMES}


def test_a_kernel_in_another_folder_is_told_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAM_RUNS", "mine")
    told = paths.folders()
    monkeypatch.chdir("/")
    monkeypatch.setenv("GAM_RUNS", told["GAM_RUNS"])
    assert paths.runs_root() == tmp_path / "mine"


def test_a_repository_around_an_installed_package_is_no_commit_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "CLONE", False)
    monkeypatch.setattr(provenance, "_git", lambda *_: "8fbcf0f")
    assert provenance.commit() == (None, None)
