"""What is published with the repository: the data in figures/data make the tables that stand beside them."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gamlib.cli import app
from gamlib.lab import publication
from gamlib.lab.places import ROOT, figures_root
from gamlib.training.datasets import FOLDER, title

FIGURES = ROOT / "figures"


@pytest.fixture
def published(places: Path) -> Path:
    """A folder of figures that has nothing but the published data."""
    shutil.copytree(FIGURES / "data", publication.data_folder())
    return figures_root()


def test_the_published_data_make_the_committed_tables_again_to_the_byte(published: Path) -> None:
    result = CliRunner().invoke(app, ["report", "--published"])
    assert result.exit_code == 0, result.output
    made = {path.name: path.read_text() for path in published.iterdir() if path.suffix in (".csv", ".tex")}
    assert len(made) == 3 * len(publication.published())
    assert made == {name: (FIGURES / name).read_text() for name in made}
    pictures = {path.name for path in published.iterdir() if path.suffix in (".pdf", ".png")}
    assert pictures and all((FIGURES / name).exists() for name in pictures)


def test_every_published_study_says_which_images_these_are(published: Path) -> None:
    for plan in publication.published():
        assert plan.dataset.startswith(FOLDER) and title(plan.dataset) == "CIFAR-10 (JPEG)"
        assert "CIFAR-10 (JPEG), resnet" in (FIGURES / f"{plan.name}.tex").read_text()
