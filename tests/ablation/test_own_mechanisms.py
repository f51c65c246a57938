"""Mechanisms of one's own as arms of a study, from a YAML file to the report, and what becomes of their files."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from started import Command
from typer.testing import CliRunner

import gamlib
from ablation.cli import app
from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.execution.train import train
from ablation.named_files import copied
from ablation.paths import ROOT
from ablation.results import publication
from ablation.runs import Run
from ablation.studies import Plan, Study
from ablation.study_files import find_study

SMALL: dict[str, Any] = {"epochs": 1, "width": 0.25, "train_fraction": 0.25, "batch_size": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of somebody's, with the example."""
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "some body"))


def change(folder: Path) -> None:
    code = (folder / "eca.py").read_text()
    (folder / "eca.py").write_text(code.replace("kernel_size: int = 3", "kernel_size: int = 5"))


def test_the_example_has_twenty_lines() -> None:
    assert sum(len((ROOT / "examples" / name).read_text().splitlines()) for name in ("eca.py", "eca.yaml")) <= 20


@pytest.mark.slow
def test_the_example_is_run_and_reported_and_a_changed_line_is_another_run(
    folder: Path, places: Path, counted: None
) -> None:
    values = [f"--parameter={key}={value}" for key, value in SMALL.items()]
    command = ["study", str(folder / "eca.yaml"), "--seeds", "0", *values]
    output, _ = (done := Command(*command, "--report")).communicate(timeout=240)
    assert done.returncode == 0 and "4 of 4 runs done" in output, output
    assert "ECA-7" in output and (places / "figures" / "eca" / "eca-digits.pdf").exists()
    runs = {arm: Run(configs[0]) for arm, configs in Plan.load("eca").arms.items()}
    assert (runs["ECA-7"].folder / "eca.py").read_bytes() == (folder / "eca.py").read_bytes()
    assert (
        runs["ECA-7"].folder.name.startswith("resnet18-ECA-kernel_size7-width0.25-")
        and runs["ch"].config.options is None
    )

    done = Command(*command, "--dry-run")
    assert done.communicate(timeout=60)[0].count("seed 0: done") == 4
    change(folder)
    drawn = {path.name: path.read_bytes() for path in (places / "figures" / "eca").iterdir()}
    output, _ = (again := Command("report", "eca")).communicate(timeout=120)  # of what was submitted
    assert again.returncode == 0 and drawn == {
        path.name: path.read_bytes() for path in (places / "figures" / "eca").iterdir()
    }, output
    output, _ = Command(*command, "--dry-run").communicate(timeout=60)
    assert (output.count("seed 0: done"), output.count("would run (is missing)")) == (2, 2), output


def test_a_file_beside_the_studys_is_found_from_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = find_study(str(folder / "eca.yaml"))
    assert study.arms["ECA"].values["attention"] == f"{folder}/eca.py:ECA"
    monkeypatch.chdir(folder)
    assert RunConfig(attention="eca.py:ECA") == RunConfig(attention=f"{folder}/eca.py:ECA")


def test_what_a_mechanism_is_does_not_depend_on_where_its_file_lies(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (RunConfig(attention=f"{place}/eca.py:ECA") for place in (folder, moved))
    assert (
        here.attention != there.attention
        and here.signature == there.signature
        and Run(here).folder == Run(there).folder
    )
    change(folder)
    assert RunConfig(attention=f"{folder}/eca.py:ECA").signature != there.signature


def test_options_are_coerced_and_their_defaults_are_left_out(folder: Path) -> None:
    own = f"{folder}/eca.py:ECA"
    config = RunConfig(attention=own, options='{"kernel_size": "7"}')
    assert config.options == {"kernel_size": 7} and "kernel_size7" in config.name
    assert RunConfig(attention=own, options={"kernel_size": 3}) == RunConfig(attention=own)
    assert RunConfig(**config.model_dump()) == config
    assert RunConfig(attention="cbam", options={"reduction": 8}) == RunConfig(attention="cbam", reduction=8)
    cbam = RunConfig(attention="cbam", options={"kernel_size": 3})
    convolutions = {value.shape for name, value in _weights(cbam).items() if name.endswith("attention.conv.weight")}
    assert cbam.options == {"kernel_size": 3} and convolutions == {(1, 2, 3, 3)}
    assert (
        RunConfig(attention="timm:eca", options={"kernel_size": 5}).parameters()
        < RunConfig(attention="se").parameters()
    )


def _weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return gamlib.build_model(**config.architecture()).state_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": "games"}, "attention='games': allowed: none, se, "),
        ({"attention": "FOLDER/no.py:ECA"}, "no.py:ECA' cannot be read: No such file or directory"),
        ({"attention": "FOLDER/eca.py:EAC"}, "eca.py has no class EAC; it has ECA"),
        ({"attention": "timm:none"}, "attention='timm:none': timm: Invalid attn module"),
        ({"attention": "FOLDER/eca.py:ECA", "options": {"kernel_size": 4}}, "kernel_size=4: RuntimeError: The size"),
        ({"attention": "FOLDER/eca.py:ECA", "options": {"kernel_size": "x"}}, "eca.py:ECA takes: int"),
        ({"attention": "FOLDER/eca.py:ECA", "options": {"kernel_size": True}}, "kernel_size=True: attention="),
        ({"attention": "FOLDER/eca.py:ECA", "options": {"size": 4}}, "size=4: attention="),
        ({"attention": "FOLDER/eca.py:ECA", "reduction": 4}, "eca.py:ECA has none, its options are kernel_size"),
        ({"attention": "cbam", "options": {"kernel_size": 4}}, "kernel_size=4: allowed: odd numbers from 1"),
        (
            {"attention": "cbam", "options": {"reduction": 8}, "reduction": 4},
            "options=reduction=8: reduction=4 is given",
        ),
        ({"attention": "gam", "options": {"kernel_size": 3}}, "kernel_size=3: attention=gam has none, only cbam, tam"),
        ({"options": "7"}, "options='7': allowed: options by name"),
        ({"options": "{"}, "options='{': allowed: options by name"),
    ],
)
def test_what_no_job_could_build_is_refused_in_one_line(values: dict[str, object], message: str, folder: Path) -> None:
    values = {
        key: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value for key, value in values.items()
    }
    with pytest.raises(ConfigError) as refusal:
        RunConfig(**values)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_options_of_an_arm_reach_the_mechanisms_that_have_them(folder: Path) -> None:
    code = (folder / "eca.py").read_text()
    (folder / "reducing.py").write_text(
        code.replace("kernel_size: int = 3", "reduction: int = 5").replace(
            "kernel_size, padding=kernel_size // 2", "2 * (reduction // 2) + 1, padding=reduction // 2"
        )
    )
    arms = {
        "own": {"attention": f"{folder}/reducing.py:ECA"},
        "eca": {"attention": f"{folder}/eca.py:ECA"},
        "se": {"attention": "se"},
    }
    plan = Study(name="own", arms=arms).plan(seeds="0", reduction=8)
    assert [plan.arms[arm][0].options for arm in arms] == [{"reduction": 8}, None, None]
    assert [plan.arms[arm][0].reduction for arm in arms] == [None, None, 8]


@pytest.mark.slow
def test_a_run_that_was_submitted_keeps_the_code_it_was_submitted_with(folder: Path, places: Path) -> None:
    run = Run(RunConfig(**SMALL, attention=f"{folder}/eca.py:ECA"))
    run.queue()
    change(folder)
    run.write_config()
    assert "= 3" in (run.folder / "eca.py").read_text()
    copy = RunConfig(**run.config.model_dump() | {"attention": run.architecture()["attention"]})
    assert copy.signature == run.signature
    train(Run(copy))
    network = gamlib.load(run.folder)
    (folder / "eca.py").unlink()
    assert run.result() is not None and torch.equal(
        network(torch.ones(1, 3, 8, 8)), gamlib.load(run.folder)(torch.ones(1, 3, 8, 8))
    )
    shutil.rmtree(run.folder)
    with pytest.raises(ConfigError, match=r"eca\.py:ECA' cannot be read: No such file or directory"):
        run.queue()


def test_a_mechanism_of_ones_own_has_the_stages_of_its_slot(folder: Path) -> None:
    code = (folder / "eca.py").read_text()
    (folder / "behind.py").write_text(re.sub(r"(class ECA.*\n)", r'\1    slot = "stage"\n', code))
    inside, behind = f"{folder}/eca.py:ECA", f"{folder}/behind.py:ECA"
    assert RunConfig(attention=behind, stages=[1, 2, 3]) == RunConfig(attention=behind)
    assert RunConfig(attention=inside, stages=[1, 2, 3]).stages == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"^stages=\[4\]: allowed in resnet18 with attention=.*: .* of 1, 2, 3, each"):
        RunConfig(attention=behind, stages=[4])


def test_a_file_that_is_found_from_here_is_found_from_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    study = Study(name="own", arms={"own": {"attention": "eca.py:ECA"}}, base={"attention": "eca.py:ECA"})
    plan = Study(name="more", arms={"all": {}}).plan(seeds="0", attention="eca.py:ECA")
    crossed = Study(name="grid", grid={"attention": ["none", "eca.py:ECA"]})
    whole = f"{folder}/eca.py:ECA"
    assert study.arms["own"].values["attention"] == study.base["attention"] == plan.overrides["attention"] == whole
    assert [arm.values["attention"] for arm in crossed.arms.values()] == ["none", whole]
    assert [*crossed.arms] == ["attention=none", "attention=eca.py:ECA"]


def test_a_text_in_options_stays_within_its_folder(folder: Path) -> None:
    code = (folder / "eca.py").read_text().replace("kernel_size: int = 3", "mode='a', size=(3, 5)")
    (folder / "texts.py").write_text(code.replace("kernel_size, padding=kernel_size // 2", "3, padding=1"))
    run = Run(RunConfig(attention=f"{folder}/texts.py:ECA", options={"mode": "../../b c"}))
    assert run.folder.parent == Run(RunConfig()).folder.parent and "mode.._.._b_c" in run.folder.name
    same = RunConfig(attention=f"{folder}/texts.py:ECA", options={"size": [3, 5]})
    assert same.options is None, "a tuple, as JSON has it"


def test_what_cannot_be_written_down_is_no_option(folder: Path) -> None:
    code = (folder / "eca.py").read_text().replace("kernel_size: int = 3", "kernel_size: set[int] = {3}")
    (folder / "sets.py").write_text(code.replace("kernel_size, padding=kernel_size // 2", "3, padding=1"))
    with pytest.raises(ConfigError, match=r"kernel_size=.*5.*: attention=.* takes: set"):
        RunConfig(attention=f"{folder}/sets.py:ECA", options={"kernel_size": [5]})


def test_two_networks_exported_into_one_folder_leave_the_second(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    old = RunConfig(attention=f"{folder}/eca.py:ECA")
    copied(old.attention, first)
    change(folder)
    new = RunConfig(attention=f"{folder}/eca.py:ECA")
    copied(new.attention, second)
    assert RunConfig(attention=copied(new.attention, first)).signature == new.signature != old.signature


@pytest.mark.slow
def test_published_runs_bring_the_code_and_no_path(
    folder: Path, places: Path, finish_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Study(
        name="own", **yaml.safe_load((folder / "eca.yaml").read_text().replace("eca.py", f"{folder}/eca.py"))
    ).plan(seeds="0-1")
    finish_all(plan, {arm: [5.0, 6.0] for arm in plan.arms})
    paths = publication.publish(plan)
    (code,) = (path for path in paths if path.suffix == ".py")
    assert code.read_text() == (folder / "eca.py").read_text()
    assert not any(str(folder) in path.read_text() for path in paths)
    shutil.rmtree(folder)
    monkeypatch.setenv("GAM_RUNS", str(places / "other"))
    (published,) = publication.published(["own"])
    assert publication.restore(published) == 8
    run = Run(published.arms["ECA"][0])
    assert (run.folder / "eca.py").read_bytes() == code.read_bytes() and run.status().state == "done"
    assert run.signature == plan.arms["ECA"][0].signature


def test_code_is_published_as_the_runs_had_it_though_its_file_has_changed_or_is_gone(
    folder: Path, finish_all: Callable[..., None]
) -> None:
    plan = Study(name="own", arms={"ECA": {"attention": f"{folder}/eca.py:ECA"}}).plan(seeds="0-1")
    finish_all(plan, {"ECA": [5.0, None]})  # what has not begun has no copy of it
    before = (folder / "eca.py").read_text()
    for change in (lambda: (folder / "eca.py").write_text("# another one"), (folder / "eca.py").unlink):
        change()
        assert [path.read_text() for path in publication.publish(plan) if path.suffix == ".py"] == [before]


@pytest.mark.slow
def test_an_exported_network_is_the_runs(folder: Path, tmp_path: Path) -> None:
    plan = Study(name="own", question="Which?", arms={"eca": {"attention": f"{folder}/eca.py:ECA"}}).plan(
        seeds="0", **SMALL, ema=0.9, stages="4,2"
    )
    plan.save()
    run = train(Run(plan.configs[0]))
    done = CliRunner().invoke(app, ["export", run.folder.name[:16], "--out", str(tmp_path / "given")])
    assert done.exit_code == 0, done.output
    given = tmp_path / "given"
    assert {path.name for path in given.iterdir()} == {"model.safetensors", "config.json", "README.md", "eca.py"}
    shutil.rmtree(folder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(gamlib.load(given)(x), gamlib.load(run.folder)(x))
    card = (given / "README.md").read_text()
    result = run.result()
    assert (
        result is not None and f"{result.top1_error:.2f} % (" in card and "Arm **eca** of the study own: Which?" in card
    )
    assert "eca.py:ECA" in card and "stages=[2, 4]" in card
    assert not any(str(tmp_path) in (given / name).read_text() for name in ("README.md", "config.json"))
    assert json.loads((given / "config.json").read_text())["signature"] == run.signature


@pytest.mark.parametrize(
    ("name", "message"), [("no-such", "there is none of that name"), ("resnet18", "is missing: only")]
)
def test_what_cannot_be_exported_is_refused(name: str, message: str) -> None:
    Run(RunConfig()).write_config()
    done = CliRunner().invoke(app, ["export", name])
    assert done.exit_code == 1 and message in done.output and done.output.count("\n") == 1
