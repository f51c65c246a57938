import json
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ablation import errors, parameter_counts, study_files
from ablation import paths as places
from ablation.cli import app
from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.parameters import parse_seeds
from ablation.runs import Run
from ablation.studies import Plan, Study, submitted
from ablation.study_files import PAPER_STUDIES, find_studies, find_study
from gamlib import build_model, paper
from gamlib.attention import MECHANISMS, SE


def test_the_studies_share_their_common_runs() -> None:
    plans = [find_study(name).plan(seeds="0") for name in ("submodules", "max_pooling")]
    signatures = [{config.signature for config in plan.configs} for plan in plans]
    assert (len(signatures[0]), len(signatures[1]), len(signatures[0] | signatures[1])) == (6, 8, 12)


def test_overrides_reach_every_arm_that_has_the_option() -> None:
    plan = find_study("submodules").plan(seeds=[0], epochs="3", reduction=8)
    values = {arm: (configs[0].epochs, configs[0].reduction) for arm, configs in plan.arms.items()}
    assert values == {"baseline": (3, None), "ch": (3, 8), "sp": (3, 8), "ch+sp": (3, 8)} | {
        "no gate": (3, 8),
        "wider": (3, None),
    }


@pytest.mark.parametrize(
    ("study", "overrides", "message"),
    [
        ("submodules", {"atention": "gam"}, "atention is not a parameter"),
        ("submodules", {"attention": "cbam"}, "the arms of submodules set attention themselves"),
        ("submodules", {"seed": 1}, "give --seeds"),
        ("submodules", {"groups": 3}, "groups=3 does not divide"),
        ("submodules", {"seeds": "-1"}, "seeds='-1': allowed: whole numbers from 0"),
        ("submodules", {"dataset": "imagnet"}, "dataset='imagnet': allowed: digits"),
        ("max_pooling", {"stem": "cifar"}, "max_pool=False: resnet18 with stem=cifar has no max-pooling"),
    ],
)
def test_a_bad_value_is_refused_before_anything_starts(study: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_study(study).plan(**overrides)  # type: ignore[arg-type]
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("seeds", "numbers"),
    [("0-2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("4", [4]), (2, [2]), ([1, 1, 0], [1, 0]), ("0-1,1-2", [0, 1, 2])],
)
def test_seeds(seeds: str, numbers: list[int]) -> None:
    assert parse_seeds(seeds) == numbers


@pytest.mark.parametrize("seeds", ["-1", "a", "", "1.5", "3-1", "3-1,7", [], [-1], -1, None])
def test_what_is_no_seed_is_refused(seeds: str) -> None:
    with pytest.raises(ConfigError, match="seeds="):
        parse_seeds(seeds)


@pytest.mark.parametrize(("study", "arms"), [("max_pooling", ()), ("submodules", ()), ("submodules", ["wider", "ch*"])])
def test_a_plan_is_remembered_as_it_was(study: str, arms: Sequence[str]) -> None:
    plan = find_study(study).plan(seeds="0,5", arms=arms, epochs=2)
    plan.save()
    again = Plan.load(study)
    assert again.model_copy(update={"submitted": 0, "declared": None}) == plan
    assert [config.signature for config in again.configs] == [config.signature for config in plan.configs]


def test_an_unknown_plan_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="none was submitted yet"):
        Plan.load("submodules")
    find_study("submodules").plan(seeds="0").save()
    with pytest.raises(ConfigError, match="submitted were submodules on digits"):
        Plan.load("max_pooling")


def test_a_study_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "my_study.yaml"
    path.write_text("base: {epochs: 2, lr: 1e-3}\narms:\n  plain: {attention: none}\n  squeezed: {reduction: 8}\n")
    study = find_study(str(path))
    assert (study.name, study.compare) == ("my_study", [("squeezed", "plain")])
    configs = study.plan(seeds="0").configs
    assert configs == [RunConfig(attention="none", epochs=2, lr=0.001), RunConfig(reduction=8, epochs=2, lr=0.001)]


def test_a_yaml_file_may_extend_studies_of_the_project_and_say_where_they_run(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    first = "name: sub-small\nextends: submodules\nseeds: 0,4\nbase: {epochs: 2}\n"
    path.write_text(first + "---\nname: pool-small\nextends: max_pooling\ndataset: cifar10\nbase: {width: 0.25}\n")
    submodules, pooling = find_studies(str(path))
    assert (submodules.question, submodules.notebook) == (find_study("submodules").question, "")
    assert submodules.compare == find_study("submodules").compare
    assert submodules.plan().arms == find_study("submodules").plan(seeds=[0, 4], epochs=2).arms
    assert submodules.plan(seeds=1).seeds == [1]
    assert pooling.plan().arms == find_study("max_pooling").plan("cifar10", width=0.25).arms
    assert {config.stem for config in pooling.plan().configs} == {"imagenet"}
    assert pooling.plan("digits").dataset == "digits"
    with pytest.raises(ConfigError, match=r"two.yaml has 2 studies: allowed here: one"):
        find_study(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a study"),
        ("arms: {x: {}}\n---\n- 1", "is not a study"),
        ("arms: {x: {}}\n---\narms: {x: {}}", "name='s':"),
        ("extends: submodule", "extends='submodule': allowed: submodules, max_pooling, benchmark"),
        ("extends: submodules\nbase: 3", "base=3: allowed: values of RunConfig"),
        ("extends: [1]\nname: x", "extends=[1]: allowed: submodules"),
        ("arms: [", "is not YAML"),
        ("- 1", "is not a study"),
        ("name: a/b\narms: {x: {}}", "name='a/b': allowed: letters"),
        ("arms: {}", "arms={}: allowed: at least one arm"),
        ("arms: {x: {}}\narm: 1", "arm is not a parameter: did you mean arms?"),
        ("arms: {x: {}}\ncompare: [[x, y]]", "compare='y': allowed: x"),
        ("arms: {x: {seed: 7}}", "seed=7: a study gets it when it is run"),
        ("base: {dataset: digits}\narms: {x: {}}", "dataset='digits': a study gets it when it is run"),
        ("arms: {x: {}, y: {parameters_of: z}}", "arm 'y': parameters_of='z': allowed: x"),
        ("arms: {x: {}, y: {parameters_of: x}, z: {parameters_of: y}}", "arm 'z': parameters_of='y': allowed: x"),
        ("arms: {y: {parameters_of: y}}", "arm 'y': parameters_of='y': allowed: an arm without parameters_of"),
        ("arms: {x: {}, y: {width: 2, parameters_of: x}}", "arm 'y': width=2: parameters_of decides it"),
        ("grid: {lr: []}", "grid: lr=[]: allowed: a list of at least one value"),
        ("grid: {lr: 0.1}", "grid: lr=0.1: allowed: a list of at least one value"),
        ("grid: [lr]\narms: {x: {}}", "grid=['lr']: allowed: names of values"),
        ("grid: {lrr: [1]}", "grid: lrr is not a parameter: did you mean lr?"),
        ("grid: {lr: [0.1]}\narms: {x: {lr: 1}}", "grid: lr=[0.1]: arm 'x' sets lr itself"),
        ("grid: {lr: [0.1, '0.1']}", "grid: two arms would be called 'lr=0.1'"),
        ("grid: {seed: [0, 1]}", "seed=0: a study gets it when it is run"),
        ("grid: {lr: [0.1]}\narms: {x: 3}", "arms=3: allowed: at least one arm"),
        ("arms: {x: {label: y}, y: {}}", "label='y': figures would call 2 arms so"),
        ("arms: {x: {colour: rde}}", "arm 'x': colour='rde': allowed: a colour that matplotlib knows"),
        ("arms: {x: {}}\ndataset: {path: digits}", "dataset={'path': 'digits'}: allowed: a name, or {path: "),
        ("name: submodules\narms: {x: {}}", "name='submodules': that name is this project's own"),
    ],
)
def test_a_bad_yaml_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        find_study(str(path))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_without_the_repository_the_papers_studies_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablation.study_files.FOLDER", tmp_path / "site-packages" / "studies")
    (path := tmp_path / "mine.yaml").write_text("extends: submodules\n")
    for name in ("submodules", str(path)):
        done = CliRunner().invoke(app, ["study", name, "--dry-run"])
        assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
        assert "not there; it comes with gamlib: install that again" in done.output


def test_the_papers_studies_are_files_that_go_by_their_names_too() -> None:
    for name in PAPER_STUDIES:
        assert find_study(str(places.ROOT / "studies" / f"{name}.yaml")) == find_study(name)


def test_a_study_is_the_one_that_its_yaml_says(tmp_path: Path) -> None:
    for name in PAPER_STUDIES:
        text = find_study(name).as_yaml()
        assert "values:" not in text
        (path := tmp_path / "mine.yaml").write_text(text.replace(f"name: {name}", "name: mine"))
        assert find_study(str(path)) == find_study(name).model_copy(update={"name": "mine"})


def test_a_grid_makes_arms_with_readable_names() -> None:
    study = Study(name="own", grid={"lr": [0.05, 0.1], "reduction": [8, 16]})
    assert list(study.arms) == [f"lr={lr}, reduction={ratio}" for lr in (0.05, 0.1) for ratio in (8, 16)]
    assert study.plan(seeds=0).arms["lr=0.1, reduction=8"] == [RunConfig(lr=0.1, reduction=8)]
    assert study.compare == [(name, "lr=0.05, reduction=8") for name in list(study.arms)[1:]]
    assert Study(**study.model_dump()) == study


def test_stages_are_values_of_arms_grids_and_overrides(tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").write_text("arms:\n  first: {stages: [1]}\n  ends: {stages: '4,1'}\n")
    plan = find_study(str(path)).plan(seeds=0)
    assert plan.arms == {"first": [RunConfig(stages=[1])], "ends": [RunConfig(stages=[1, 4])]}
    study = Study(name="own", grid={"stages": [1, [1, 3]]})
    assert study.plan(seeds=0).arms == {
        "stages=1": [RunConfig(stages=[1])],
        "stages=[1, 3]": [RunConfig(stages=[1, 3])],
    }
    everywhere = find_study("submodules").plan(seeds=0, stages="2", arms=["baseline", "ch"])  # where there are blocks
    assert [configs[0].stages for configs in everywhere.arms.values()] == [None, [2]]
    with pytest.raises(ConfigError, match=r"stages=\[5\]: allowed in resnet18"):
        Study(name="own", arms={"good": {}, "bad": {"stages": 5}}).plan(seeds=0)
    with pytest.raises(ConfigError, match=r"stages=2: no arm of own has stages"):
        Study(name="own", arms={"plain": {"attention": "none"}}).plan(seeds=0, stages=2)


def test_every_arm_is_crossed_with_a_grid_and_compared_at_each_of_its_points(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: submodules\ngrid: {lr: [0.05, 0.1]}\n")
    study, paper = find_study(str(path)), find_study("submodules")
    assert list(study.arms) == [f"{name}, lr={lr}" for name in paper.arms for lr in (0.05, 0.1)]
    at_once = [(f"{arm}, lr={lr}", f"{reference}, lr={lr}") for arm, reference in paper.compare for lr in (0.05, 0.1)]
    assert study.compare == at_once and study.arms["wider, lr=0.1"].parameters_of == "ch+sp, lr=0.1"
    assert study.plan(seeds=0).arms["ch, lr=0.1"] == paper.plan(seeds=0, lr=0.1).arms["ch"]
    named = Study(name="own", arms={"a": {"label": "Plain"}}, grid={"lr": [1, 2]})
    assert [arm.label for arm in named.arms.values()] == ["Plain, lr=1", "Plain, lr=2"]


def test_the_grid_of_the_documentation_is_sound(tmp_path: Path, committed: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (committed / "docs" / "runs.md").read_text(), re.S)
    (path := tmp_path / "mine.yaml").write_text(block)
    plan = find_study(str(path)).plan()
    assert (
        len(plan.arms) == 8 and "ch, lr=0.05, reduction=8" in plan.arms and plan.dataset_title == "Handwritten digits"
    )


def test_labels_colours_and_a_data_sets_name_change_no_run_and_no_file() -> None:
    plain = Study(name="own", arms={"a": {}, "b": {"reduction": 8}}).plan(seeds=0)
    looks = {"a": {"label": 16, "colour": "tab:red"}, "b": {"reduction": 8, "label": "a"}}
    with pytest.raises(ConfigError, match="label='16'"):
        Study(name="own", arms=looks | {"16": {}})
    plan = Study(name="own", arms=looks, dataset={"path": "digits", "name": "Digits"}).plan(seeds=0)
    assert (plan.name, plan.arms, plan.dataset_title) == (plain.name, plain.arms, "Digits")
    assert plan.study.plan("cifar10", seeds=0).dataset_title == "cifar10"
    plan.save()
    assert Plan.load("own").study == plan.study
    assert not {"label", "colour", "dataset_title"} & {
        *plain.study.model_dump(),
        *plain.study.model_dump()["arms"]["a"],
    }


def test_the_projects_studies_are_those_whose_figures_are_committed(committed: Path) -> None:
    files = sorted((committed / "studies").glob("*.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_files, "FOLDER", committed / "studies")
        assert {study.name for path in files for study in study_files.read_studies(path)} == study_files.OF_THE_PROJECT


def test_an_unknown_study_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: submodules, max_pooling, benchmark, or a YAML file"):
        find_study("submodule")
    with pytest.raises(ConfigError, match="No such file"):
        find_study(str(tmp_path / "absent.yaml"))


def test_three_lines_define_a_study() -> None:
    study = Study(name="reduction", arms={f"r = {r}": {"attention": "gam", "reduction": r} for r in (4, 8, 16)})
    assert [config.reduction for config in study.plan(seeds=0).configs] == [4, 8, 16]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"width": 1},
        {"width": "0.25", "stem": "cifar"},
        {"reduction": 8, "groups": 2},
        {"backbone": "resnet50"},
        {"backbone": "mobilenet_v2", "width": 1},
    ],
    ids=str,
)
def test_the_controls_of_size_have_the_parameters_of_both_submodules(overrides: dict[str, Any]) -> None:
    plan = find_study("submodules").plan(seeds="0,4", **overrides)
    numbers = {}
    for label, (first, second) in plan.arms.items():
        assert first.width == second.width
        with torch.device("meta"):
            numbers[label] = sum(value.numel() for value in build_model(**first.architecture()).parameters())
    assert numbers["no gate"] == numbers["ch+sp"]
    assert abs(numbers["wider"] / numbers["ch+sp"] - 1) < 0.01
    assert numbers["baseline"] < 0.8 * numbers["wider"]
    widths = {label: configs[0].width for label, configs in plan.arms.items()}
    wider = widths.pop("wider")
    assert set(widths.values()) == {float(overrides.get("width", 0.5))}
    for neighbour in (round(wider - 0.001, 3), round(wider + 0.001, 3)):  # none comes nearer
        with torch.device("meta"):
            model = build_model(**plan.arms["wider"][0].architecture() | {"width": neighbour})
        other = sum(value.numel() for value in model.parameters())
        assert abs(other - numbers["ch+sp"]) >= abs(numbers["wider"] - numbers["ch+sp"])


def test_the_controls_differ_from_the_others_in_nothing_else() -> None:
    plan = find_study("submodules").plan(seeds=0, epochs=2)
    arms = {label: configs[0].model_dump() for label, configs in plan.arms.items()}
    assert arms["no gate"] == arms["ch+sp"] | {"attention": "gam_no_gate"}
    assert arms["wider"] == arms["baseline"] | {"width": 0.589}


def test_the_study_of_placement_has_blocks_in_one_stage_and_controls_of_its_size() -> None:
    """On data that are there, of as many classes. Stage 1 is too small for a control: the nearest is the plain one."""
    plan = find_study(str(places.ROOT / "studies" / "cifar10-cpu-placement.yaml")).plan("digits", seeds=0)
    arms = {label: configs[0] for label, configs in plan.arms.items()}
    assert len({config.signature for config in arms.values()}) == len(arms) == 9
    for stage in (1, 2, 3, 4):
        assert arms[f"stage {stage}"] == RunConfig(**plan.study.base, stages=[stage])
        assert (f"stage {stage}", "plain") in plan.compare
    for stage in (2, 3, 4):
        placed, control = arms[f"stage {stage}"], arms[f"size of stage {stage}"]
        assert control.attention == "none" and control.parameters() == pytest.approx(placed.parameters(), rel=0.005)
        assert (f"stage {stage}", f"size of stage {stage}") in plan.compare
    assert arms["plain"].parameters() == pytest.approx(arms["stage 1"].parameters(), rel=0.005)
    assert arms["all stages"] == RunConfig(**plan.study.base)


def test_an_arm_of_ones_own_can_have_anothers_parameters(tmp_path: Path) -> None:
    path = tmp_path / "size.yaml"
    text = "base: {{width: 0.25}}\narms:\n  wide: {0}\n  cbam: {{attention: cbam}}\n"
    configs = []
    for arm in ("{attention: tam, parameters_of: cbam}", "{values: {attention: tam}, parameters_of: cbam}"):
        path.write_text(text.format(arm))
        plan = find_study(str(path)).plan(seeds=0)
        assert list(plan.arms) == ["wide", "cbam"]
        configs.append(plan.arms["wide"][0])
    assert configs[0] == configs[1] == RunConfig(attention="tam", width=configs[0].width)
    assert configs[0].width > 0.25


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 16}, "no width comes within 1 % of 3970851722; the nearest, 16, has 0.719 times as many"),
        ({"width": 0.25, "backbone": "mobilenet_v2"}, "the nearest, 0.278, has 1.011 times as many"),
    ],
)
def test_parameters_out_of_reach_are_refused_and_name_the_arm(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_study("submodules").plan(seeds=0, **overrides)
    assert str(refusal.value).startswith("arm 'wider', parameters_of='ch+sp': ")
    assert message in str(refusal.value) and "--arms can leave it out" in str(refusal.value)
    assert len(find_study("submodules").plan(seeds=0, arms=["baseline", "ch", "sp"], **overrides).arms) == 3


def test_pretrained_weights_fit_no_wider_network(tmp_path: Path) -> None:
    file = tmp_path / "plain.pt"
    torch.save(build_model("resnet18", "none", width=0.25, num_classes=10).state_dict(), file)
    with pytest.raises(ConfigError, match=r"^arm 'wider', parameters_of='ch\+sp': weights=.* do not fit this resnet18"):
        find_study("submodules").plan(seeds=0, weights=str(file), width=0.25)
    plan = find_study("submodules").plan(seeds=0, arms=["baseline", "*ch*"], weights=str(file), width=0.25)
    assert list(plan.arms) == ["baseline", "ch", "ch+sp"]


def test_some_arms_of_a_study_keep_their_order_and_their_comparisons() -> None:
    study = find_study("submodules")
    assert study.labels() == study.labels("*") == list(study.arms)
    some = study.plan(seeds=0, arms=["wider", "ch*"])
    assert list(some.arms) == ["ch", "ch+sp", "wider"] and some.compare == [("ch+sp", "wider")]
    assert study.plan(seeds=0, arms="ch").compare == []
    assert study.plan(seeds=0, arms="wider").configs == some.arms["wider"]  # as wide as an arm that is not asked for
    with pytest.raises(ConfigError, match=r"^arms='chsp': allowed: baseline, ch, sp, "):
        study.plan(arms=["ch", "chsp"])


def test_what_was_asked_for_arm_by_arm_is_one_plan() -> None:
    study = find_study("submodules")
    study.plan(seeds=0, arms="ch+sp").save()
    study.plan(seeds=0, arms=["wider", "baseline"]).save("slurm")
    both = Plan.load("submodules")
    assert both.arms == study.plan(seeds=0, arms=["baseline", "ch+sp", "wider"]).arms and both.cluster == "slurm"
    assert both.compare == [("ch+sp", "baseline"), ("wider", "baseline"), ("ch+sp", "wider")]
    study.plan(seeds=0, arms="ch", epochs=3).save()  # other runs: another plan
    assert list(Plan.load("submodules").arms) == ["ch"]


def test_arms_asked_for_earlier_are_what_they_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files in the data set by now, other weights under the same name: never one arm of each."""
    folder = tmp_path / "pets"
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            Image.new("RGB", (28, 28)).save(folder / part / label / "0.png")
    study, dataset = Study(name="own", arms={"plain": {"attention": "none"}, "gam": {}}), f"imagefolder:{folder}"
    study.plan(dataset, 0, "plain").save()
    Image.new("RGB", (28, 28)).save(folder / "train" / "cat" / "1.png")
    study.plan(dataset, 0, "gam").save()
    (plain,), (gam,) = Plan.load("own").arms.values()
    assert plain.dataset_hash == gam.dataset_hash == study.plan(dataset, 0).configs[0].dataset_hash
    monkeypatch.setattr("ablation.studies.source_hash", lambda: "other")
    study.plan(dataset, 0, "gam").save()
    assert Plan.load("own").source == "other"


def test_a_label_is_itself_before_it_is_a_pattern() -> None:
    study = Study(name="odd", arms={"x": {}, "x*": {"reduction": 8}, "xy": {"reduction": 4}})
    assert study.labels("x*") == ["x*"]
    assert study.labels("?y") == ["xy"]


def test_the_benchmark_has_an_arm_for_every_network_of_tables_1_and_2() -> None:
    plan = find_study("benchmark").plan(seeds=0, width=1)
    wanted = {paper.name(row): row for row in paper.table() if row["table"] <= 2}
    renamed = {label.replace("-", " ").replace("MobileNetV2", "MobileNet V2"): label for label in plan.arms}
    assert renamed.keys() == wanted.keys() and len(renamed) == 20
    for name, label in renamed.items():
        (config,), row = plan.arms[label], plan.study.arms[label].paper
        values = paper.arguments(wanted[name])
        values["stem"] = config.stem  # of the data set
        assert {key: values[key] for key in values if key != "num_classes"} == {
            key: value for key, value in config.architecture().items() if key in values and key != "num_classes"
        }
        assert row is not None
        assert paper.row(row.table, config.backbone, row.attention, row.variant)["table"] == 2
    assert len(plan.compare) == 17
    for label, reference in plan.compare:
        arm, plain = plan.arms[label][0], plan.arms[reference][0]
        assert (plain.attention, plain.backbone) == ("none", arm.backbone)


def test_parts_that_are_submitted_at_once_are_all_known() -> None:
    plans = [find_study("submodules").plan(seeds=0, arms=arm) for arm in ("baseline", "ch", "sp", "ch+sp")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Plan.save, plans))
    assert list(Plan.load("submodules").arms) == ["baseline", "ch", "sp", "ch+sp"]


def test_what_was_submitted_is_known_until_it_is_done_or_removed(finish: Callable[..., Run]) -> None:
    study = find_study("submodules")
    plans = [study.plan(seeds=seeds, arms=["baseline", "ch"]) for seeds in ("0-1", "2-3")]
    for plan in plans:
        for config in plan.configs:
            Run(config).queue()
        plan.save()

    def known() -> list[tuple[str, int]]:
        return sorted((arm, run.config.seed) for run, arm, _ in submitted("submodules"))

    assert Plan.load("submodules").arms == plans[1].arms
    assert known() == [(arm, seed) for arm in ("baseline", "ch") for seed in range(4)]
    finish(plans[0].arms["ch"][0], 5.0)
    shutil.rmtree(Run(plans[0].arms["ch"][1]).folder)
    assert known() == [("baseline", seed) for seed in range(4)] + [("ch", 2), ("ch", 3)]
    finish(plans[0].arms["baseline"][0], 5.0)
    finish(plans[0].arms["baseline"][1], 5.0)
    plans[1].save()
    assert known() == [(arm, seed) for arm in ("baseline", "ch") for seed in (2, 3)]
    assert len(list((places.runs_root() / "studies").glob("*.json"))) == 1


def test_plans_that_earlier_versions_wrote_are_known_and_keep_their_place() -> None:
    study, folder = find_study("submodules"), places.runs_root() / "studies"
    (folder / "earlier").mkdir(parents=True)
    plans = [study.plan(seeds=seeds, arms="ch") for seeds in (0, 1)]
    names = ("earlier/submodules-digits-01234567.json", "submodules-digits.json")
    for plan, name in reversed([*zip(plans, names, strict=True)]):  # the earlier one was retried, and so written again
        Run(plan.configs[0]).queue()
        (folder / name).write_text(plan.model_dump_json(exclude={"submitted"}))
    earlier = submitted("submodules")[1][2]
    assert (Plan.load("submodules").seeds, earlier.seeds) == ([1], [0])
    earlier.save("slurm", {"mem": 64})  # as `gamlib retry` does
    assert [(plan.seeds, plan.slurm) for _, _, plan in submitted("submodules")] == [([1], {}), ([0], {"mem": 64})]
    assert len(list(folder.rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"study": {"name": "own", "arms": {"a": {}}, "loks": [2]}},
            "study: loks is not a parameter: did you mean looks",
        ),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"arms": {}}, "arms: Dictionary should have at least 1 item"),
        (None, "JSONDecodeError: Expecting value: line 1 column 1"),
    ],
)
def test_a_plan_that_cannot_be_read_is_named_once_and_the_others_are_known(
    change: dict[str, Any] | None, why: str
) -> None:
    find_study("submodules").plan(seeds=0, arms="ch").save()
    folder = places.runs_root() / "studies"
    (sound,) = folder.glob("*.json")
    (other := folder / "own-digits.1.json").write_text(
        json.dumps(json.loads(sound.read_text()) | change) if change else ""
    )
    for command in ("status submodules --json", "cancel submodules"):
        errors.warn_once.cache_clear()  # of another command
        done = CliRunner().invoke(app, command.split())
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"{other} is no plan that this code can read, and is left out: {why}")
        assert "--json" not in command or [row["arm"] for row in json.loads(done.stdout)] == ["ch"]


def test_a_plan_is_known_when_its_images_are_gone(tmp_path: Path) -> None:
    """Or the jobs that train on them could not be cancelled. A link to nothing in the folder does no harm either."""
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            Image.new("RGB", (28, 28)).save(tmp_path / "images" / part / label / "0.png")
    plan = Study(name="own", arms={"a": {}}).plan(f"imagefolder:{tmp_path / 'images'}", seeds=0, batch_size=2)
    plan.save()
    shutil.rmtree(tmp_path / "images")
    (places.runs_root() / "studies" / "nothing.json").symlink_to("nowhere")
    assert [run.signature for run, _, _ in submitted("own")] == [config.signature for config in plan.configs]


def test_a_mechanism_that_no_job_could_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class ECA(SE):
        pass

    for name, message in (
        ("se", "se': .*ECA is none of gamlib's own: no job could build it"),
        ("eca", "eca': allowed"),
    ):
        monkeypatch.setitem(MECHANISMS, name, ECA)
        with pytest.raises(ConfigError, match=f"^attention='{message}"):
            Study(name="own", arms={"plain": {"attention": "none"}, "other": {"attention": name}}).plan(seeds=0)


def test_a_file_with_arms_of_its_own_is_compared_as_its_arms_allow(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: submodules\narms:\n  plain: {attention: none}\n  gam: {}\n")
    assert find_study(str(path)).compare == [("gam", "plain")]
    path.write_text("extends: submodules\narms:\n  baseline: {attention: none}\n  ch: {submodules: ch}\n  own: {}\n")
    assert find_study(str(path)).compare == [("ch", "baseline")]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_study_is_found_by_its_file_and_by_its_name(tmp_path: Path, finish_all: Callable[..., None]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("arms:\n  plain: {attention: none}\n  gam: {}\n")
    plan = find_study(str(path)).plan(seeds="0-1")
    plan.save()
    finish_all(plan, {"plain": [5.0, 6.0], "gam": [4.0, 5.5]})
    for command in ("report", "status", "retry", "cancel"):
        for name in (str(path), "mine"):
            done = CliRunner().invoke(app, [command, name])
            assert done.exit_code == 0, done.output
    assert find_study("mine") == plan.study


def test_what_was_counted_before_there_was_a_folder_is_written_down_with_the_plan() -> None:
    parameter_counts.count.cache_clear()
    plan = Study(name="own", arms={"all": {}}).plan(seeds="0", epochs=2)
    assert not places.runs_root().exists()
    plan.save()
    number = plan.configs[0].parameters()
    assert f"\n{number} " in (places.runs_root() / parameter_counts.NAME).read_text()


@pytest.mark.parametrize(("given", "seeds"), [(0, [0]), ([0, 3], [0, 3]), ("0-2", [0, 1, 2])])
def test_seeds_of_a_file_may_be_numbers(given: Any, seeds: list[int]) -> None:
    study = Study(name="own", arms={"plain": {"attention": "none"}}, seeds=given)
    assert study.plan().seeds == seeds
