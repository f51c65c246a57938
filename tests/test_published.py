"""What is published with the repository: the data in figures/data make the figures and tables beside them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from ablation.cli import app
from ablation.config import title
from ablation.paths import figures_root
from ablation.results import publication

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
JPEG = "imagefolder:cifar10-jpeg"
PICTURES = (".pdf", ".png")


@pytest.fixture
def published(places: Path, committed: Path) -> Path:
    """A folder of figures that has nothing but the published data."""
    shutil.copytree(committed / "figures" / "data", publication.data_folder())
    return figures_root()


@pytest.mark.long
def test_the_published_data_make_the_committed_tables_again_to_the_byte(published: Path, committed: Path) -> None:
    result = CliRunner().invoke(app, ["report", "--published"])
    assert result.exit_code == 0, result.output
    made = {path.name: path.read_text() for path in published.iterdir() if path.suffix in (".csv", ".tex")}
    assert len(made) == 3 * len(publication.published())
    assert made == {name: (committed / "figures" / name).read_text() for name in made}
    names = tuple(plan.name for plan in publication.published())
    there = {path.name for path in (committed / "figures").iterdir() if path.name.startswith(names)}
    assert {path.name for path in published.iterdir() if path.suffix in PICTURES} | made.keys() == there


def test_the_error_of_every_published_run_is_that_of_its_predictions(committed: Path) -> None:
    found, wanted = dict[tuple[str, str], float](), dict[tuple[str, str], float]()
    for path in (committed / "figures" / "data").glob("*-predictions.csv"):
        predictions = pd.read_csv(path)
        wrong = predictions.drop(columns="label").ne(predictions["label"], axis=0)
        found |= {(path.name, str(run)): error for run, error in (100 * wrong.mean()).to_dict().items()}
        runs = pd.read_csv(path.with_name(path.name.replace("predictions", "runs"))).query("state == 'done'")
        names = runs["arm"] + " seed " + runs["seed"].astype(str)
        wanted |= {(path.name, run): error for run, error in zip(names, runs["top1_error"], strict=True)}
    assert len(found) >= 70 and found == pytest.approx(wanted, rel=1e-12)


def test_figures_and_tables_say_that_these_are_jpegs(published: Path, committed: Path) -> None:
    assert title(JPEG) == "CIFAR-10 (JPEG)"
    plans = [plan for plan in publication.published() if plan.dataset == JPEG]
    assert plans
    for plan in plans:
        backbone = plan.configs[0].backbone.replace("_", r"\_")
        assert f"CIFAR-10 (JPEG), {backbone} at width" in (committed / "figures" / f"{plan.name}.tex").read_text()
