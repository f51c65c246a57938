from pathlib import Path

import pytest

from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.parameters import parse_seeds
from gamlib.lab.studies import STUDIES, Plan, Study, find_study


def test_the_studies_share_their_common_runs() -> None:
    plans = [STUDIES[name].plan(seeds="0") for name in ("submodules", "max_pooling")]
    signatures = [{config.signature for config in plan.configs} for plan in plans]
    assert (len(signatures[0]), len(signatures[1]), len(signatures[0] | signatures[1])) == (4, 8, 10)


def test_overrides_reach_every_arm_that_has_the_option() -> None:
    plan = STUDIES["submodules"].plan(seeds=[0], epochs="3", reduction=8)
    values = {arm: (configs[0].epochs, configs[0].reduction) for arm, configs in plan.arms.items()}
    assert values == {"baseline": (3, None), "ch": (3, 8), "sp": (3, 8), "ch+sp": (3, 8)}


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
        STUDIES[study].plan(**overrides)  # type: ignore[arg-type]
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("seeds", "numbers"),
    [("0-2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("4", [4]), (2, [2]), ([1, 1, 0], [1, 0]), ("0-1,1-2", [0, 1, 2])],
)
def test_seeds(seeds: str, numbers: list[int]) -> None:
    assert parse_seeds(seeds) == numbers


@pytest.mark.parametrize("seeds", ["-1", "a", "", "1.5", "3-1", [], [-1], -1, None])
def test_what_is_no_seed_is_refused(seeds: str) -> None:
    with pytest.raises(ConfigError, match="seeds="):
        parse_seeds(seeds)


def test_a_plan_is_remembered_as_it_was() -> None:
    plan = STUDIES["max_pooling"].plan(seeds="0,5", epochs=2)
    plan.save()
    again = Plan.load("max_pooling")
    assert again == plan
    assert [config.signature for config in again.configs] == [config.signature for config in plan.configs]


def test_an_unknown_plan_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="none was submitted yet"):
        Plan.load("submodules")
    STUDIES["submodules"].plan(seeds="0").save()
    with pytest.raises(ConfigError, match="submitted were submodules on digits"):
        Plan.load("max_pooling")


def test_a_study_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "my_study.yaml"
    path.write_text("base: {epochs: 2, lr: 1e-3}\narms:\n  plain: {attention: none}\n  squeezed: {reduction: 8}\n")
    study = find_study(str(path))
    assert (study.name, study.compare) == ("my_study", [("squeezed", "plain")])
    configs = study.plan(seeds="0").configs
    assert configs == [RunConfig(attention="none", epochs=2, lr=0.001), RunConfig(reduction=8, epochs=2, lr=0.001)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: [", "is not YAML"),
        ("- 1", "is not a study"),
        ("name: a/b\narms: {x: {}}", "name='a/b': allowed: letters"),
        ("arms: {}", "arms={}: allowed: at least one arm"),
        ("arms: {x: {}}\narm: 1", "arm is not a parameter: did you mean arms?"),
        ("arms: {x: {}}\ncompare: [[x, y]]", "compare='y': allowed: x"),
        ("arms: {x: {seed: 7}}", "seed=7: a study gets it when it is run"),
        ("base: {dataset: digits}\narms: {x: {}}", "dataset='digits': a study gets it when it is run"),
        ("name: submodules\narms: {x: {}}", "name='submodules': that is a study of this project"),
    ],
)
def test_a_bad_yaml_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        find_study(str(path))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_unknown_study_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: submodules, max_pooling, or a YAML file"):
        find_study("submodule")
    with pytest.raises(ConfigError, match="No such file"):
        find_study(str(tmp_path / "absent.yaml"))


def test_three_lines_define_a_study() -> None:
    study = Study(name="reduction", arms={f"r = {r}": {"attention": "gam", "reduction": r} for r in (4, 8, 16)})
    assert [config.reduction for config in study.plan(seeds=0).configs] == [4, 8, 16]


def test_a_plan_of_other_code_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = STUDIES["submodules"].plan(seeds="0", epochs=2)
    plan.save()
    assert Plan.checked(plan.study, "digits", [0], {"epochs": 2}) == plan
    assert Plan.checked(plan.study, "digits", [0], {"epochs": 3}) is None
    assert Plan.checked(plan.study, "digits", [0, 1], {"epochs": 2}) is None
    monkeypatch.setattr("gamlib.lab.studies.source_hash", lambda: "other")
    assert Plan.checked(plan.study, "digits", [0], {"epochs": 2}) is None
