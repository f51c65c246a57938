"""Every notebook runs top to bottom, and refuses a parameter that does not exist."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image
from started import server

from ablation.config import RunConfig
from ablation.paths import NOTEBOOKS
from ablation.results import report
from ablation.runs import Run, RunFailed, all_runs
from ablation.study_files import PAPER_STUDIES, find_study, read_studies

pytestmark = pytest.mark.slow


def execute(name: str, folder: Path, **parameters: object) -> str:
    """Execute a notebook; the text of all its outputs."""
    with (folder / "log.txt").open("w") as log:
        server().execute_notebook(NOTEBOOKS / name, folder / name, parameters, log, {})
    cells = nbformat.read(folder / name, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(str(output.get("text") or output.get("data")) for output in outputs)


def test_a_run_in_jupyter_owns_itself(places: Path) -> None:
    """Without a job around it, with values as a shell would give them."""
    text = execute("run.ipynb", places, epochs="1", width="0.25", amp="false", train_fraction=0.2)
    run = Run(RunConfig(epochs=1, width=0.25, train_fraction=0.2))
    assert (run.status().state, run.status().attempts) == ("done", 1)
    assert "image/png" in text and run.folder.name in text
    assert "image/png" in execute("run.ipynb", places, epochs=1, width=0.25, train_fraction=0.2)
    assert run.status().attempts == 1


def test_a_mistyped_parameter_is_refused_in_the_notebook(places: Path) -> None:
    with pytest.raises(RunFailed, match="atention is not a parameter: did you mean attention"):
        execute("run.ipynb", places, atention="cbam")
    with pytest.raises(RunFailed, match="seed is not a parameter: did you mean seeds"):
        execute("2_submodules.ipynb", places, seed=3)
    with pytest.raises(RunFailed, match=r"of its runs: give overrides, .* -y 'overrides: {epochs: 1}'"):
        execute("3_max_pooling.ipynb", places, epochs=1)
    with pytest.raises(RunFailed, match="epochs='many': allowed: a whole number from 1"):
        execute("run.ipynb", places, epochs="many")
    assert not list((places / "runs").glob("digits/*"))


def test_a_study_notebook_trains_what_is_missing(places: Path, finish: Callable[..., Run]) -> None:
    overrides: dict[str, Any] = {"epochs": 1, "width": 0.25, "train_fraction": 0.2, "lr": "1e-3"}
    some = {"seeds": [4], "arms": ["ch+sp", "no gate"], "overrides": overrides}
    (there,) = find_study("submodules").plan(seeds=4, arms="ch+sp", **overrides).configs
    finish(there, 5.0)
    text = execute("2_submodules.ipynb", places, **some, cluster="local")
    assert "2 of 2 runs are done" in text and "nothing can be said of one seed" in text


@pytest.mark.parametrize("study", PAPER_STUDIES)
def test_a_study_notebook_reads_what_is_there(study: str, places: Path, finish: Callable[..., Run]) -> None:
    plan = find_study(study).plan(seeds="0-2")
    for number, configs in enumerate(plan.arms.values()):
        for config in configs:
            finish(config, 5.0 + number + config.seed / 2)
    text = execute(plan.study.notebook or report.ANY_STUDY, places, cluster=None)
    assert text.count("image/png") == 4
    assert "at commit 8fbcf0f" in text and "corrected by Holm" in text
    assert f"{len(plan.configs)} of {len(plan.configs)} runs are done" in text and "(95 % interval" in text
    assert (places / "figures" / f"{plan.name}.pdf").exists()
    assert ("ch+sp against ch and sp added up: " in text) == (study == "submodules")


@pytest.mark.long
def test_the_benchmark_goes_on_from_what_is_there_and_shows_what_is_missing(
    places: Path, finish: Callable[..., Run]
) -> None:
    overrides: dict[str, Any] = {"epochs": 1, "width": 0.25, "train_fraction": 0.2}
    for config in find_study("benchmark").plan(seeds=4, arms=["ResNet-18", "ResNet-18 + SE"], **overrides).configs:
        finish(config, 5.0)
    some = {"seeds": [4], "overrides": overrides}
    more = {**some, "arms": ["ResNet-18", "ResNet-18 + SE", "MobileNetV2*"]}
    text = execute("4_study.ipynb", places, **more, cluster=None)
    assert "2 of 7 runs are done" in text and "ResNet-18 + SE against ResNet-18: " in text
    assert "MobileNetV2 + SE against MobileNetV2: not measured" in text
    table = (places / "figures" / "benchmark-digits.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in table[2:4]] == [["ResNet-18 + SE", "1", "1"], ["MobileNetV2", "0", "1"]]
    runs = {path.parent.name: path.stat().st_mtime_ns for path in (places / "runs").rglob("result.json")}
    more = {**some, "arms": ["ResNet-18 + SE", "MobileNetV2"]}
    assert "2 of 2 runs are done" in execute("4_study.ipynb", places, **more, cluster="local")
    again = {path.parent.name: path.stat().st_mtime_ns for path in (places / "runs").rglob("result.json")}
    assert len(again) == 3 and runs.items() <= again.items()


def test_the_report_of_some_arms_is_of_those(places: Path, finish: Callable[..., Run]) -> None:
    plan = find_study("submodules").plan(seeds="0-1", arms=["wider", "ch+sp"])
    for config in plan.configs:
        finish(config, 5.0 + config.seed)
    report.report(plan)
    assert len((places / "figures" / "submodules-digits.csv").read_text().splitlines()) == 3


@pytest.mark.long
def test_the_audit_tells_its_story_and_exports_its_figure(places: Path, warm: None) -> None:
    paths = report.complexity_report()
    assert [path.suffix for path in paths] == [".ipynb", ".pdf", ".png", ".csv", ".tex"]
    assert all(path.stat().st_size > 1000 for path in paths)
    text = paths[0].read_text()
    assert "63 of 68 cells as printed, 5 explained, 0 different" in text and "image/png" in text
    assert "Which max-pooling" in text and "gam_low_rank" in text
    with pytest.raises(RunFailed, match="backbone='resnet19': allowed: resnet18"):
        execute("1_complexity.ipynb", places, backbones=["resnet19"])


@pytest.mark.long
def test_the_notebook_of_maps_trains_what_is_missing_and_exports_its_panel(places: Path) -> None:
    overrides = {"epochs": 2, "width": 0.25, "train_fraction": 0.2}
    values = {"seeds": "4", "arms": ["ch+sp"], "overrides": overrides}
    text = execute("5_attention_maps.ipynb", places, **values)
    assert text.count("image/png") == 2 and text.count("widget-view+json") == 1
    panel = places / "figures" / "attention_maps-digits.png"
    for path in (panel, panel.with_suffix(".pdf"), places / "figures" / "attention_maps-digits-training.pdf"):
        assert str(path) in text and path.stat().st_size > 10_000
    known = (places / "runs" / "studies" / "gates-digits.files").read_text().split()  # for `gamlib report gates`
    assert known == [f"attention_maps-digits{part}.{kind}" for part in ("", "-training") for kind in ("pdf", "png")]
    first, own = panel.read_bytes(), places / "own.png"
    Image.new("LA", (50, 40), (200, 128)).save(own)
    layer = "layer2.0.bn2.attention"
    execute("5_attention_maps.ipynb", places, **values, cluster=None, image=str(own), layer=layer)
    assert panel.read_bytes() != first


def test_a_block_of_ones_own_goes_from_its_file_to_a_fine_tuned_network(places: Path) -> None:
    overrides: dict[str, Any] = {"epochs": 1, "width": 0.25, "train_fraction": 0.2}
    text = execute("6_your_own.ipynb", places, seeds="4", overrides=overrides, fine_tuning={"lr": 0.005})
    (difference,) = re.findall(r"22 blocks; the outputs differ by at most (\S+)", text)
    assert float(difference) <= 1e-5 and text.count("image/png") == 2
    assert (places / "figures" / "my_eca" / "my_eca-digits.pdf").exists()
    (study,) = read_studies(places / "runs" / "own" / "my_eca.yaml")  # what the notebook leaves for the command
    before = {arm: Run(config) for arm, (config,) in study.plan(seeds=4, **overrides).arms.items()}
    assert all(run.result() for run in before.values()) and len(before) == 4
    (tuned,) = {run.folder for run in all_runs()[0]} - {run.folder for run in before.values()}
    assert str(before["ECA"].folder) in (tuned / "config.json").read_text() and (tuned / "result.json").exists()
    file = places / "runs" / "own" / "my_eca.py"
    assert (before["ECA"].folder / file.name).read_bytes() == file.read_bytes()
    file.write_text(file.read_text().replace(".sigmoid()", ".tanh()"))  # a changed line
    after = {arm: Run(config) for arm, (config,) in study.plan(seeds=4, **overrides).arms.items()}
    assert [arm for arm, run in after.items() if run.result()] == ["baseline", "GAM"]
    assert not {path.name for path in NOTEBOOKS.iterdir()} & {file.name, "my_eca.yaml"}


@pytest.mark.long
def test_many_kernels_that_start_at_once_do_not_collide(places: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys; print('from', sys.executable)")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, places / "hello.ipynb")
    program = (
        "import sys; from pathlib import Path; from ablation.execution.kernel import execute_notebook\n"
        "folder = Path(sys.argv[1]); execute_notebook(folder / 'hello.ipynb', folder / sys.argv[2], {}, sys.stdout, {})"
    )
    names = [f"{number}.ipynb" for number in range(4)]
    processes = [subprocess.Popen([sys.executable, "-c", program, str(places), name]) for name in names]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4
    assert all(f"from {sys.executable}" in (places / name).read_text() for name in names)
