import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gamlib import build_model
from gamlib.backbones import OPTIONS
from gamlib.lab.config import ConfigError, RunConfig
from gamlib.lab.parameters import key_values, notebook_parameters


def test_everything_is_resolved_and_survives_json() -> None:
    config = RunConfig(attention="gam")
    values = config.model_dump()
    assert [key for key, value in values.items() if value is None] == ["weights"]
    again = RunConfig(**json.loads(json.dumps(values)))
    assert again == config and again.signature == config.signature


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("amp", "false", False),
        ("amp", "True", True),
        ("lr", "1e-3", 0.001),
        ("epochs", "7", 7),
        ("weights", "none", None),
    ],
)
def test_values_mean_the_same_from_a_shell_yaml_and_python(field: str, text: str, value: Any) -> None:
    expected = RunConfig(**{field: value})
    from_shell = RunConfig(**key_values([f"{field}={text}"]))
    from_yaml = RunConfig(**yaml.safe_load(f"{field}: {text}"))
    assert from_shell == from_yaml == expected
    assert getattr(from_shell, field) is value or getattr(from_shell, field) == value != text
    assert from_shell.signature == expected.signature


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"atention": "gam"}, "atention is not a parameter: did you mean attention?"),
        ({"epochs": "many"}, "epochs='many': allowed: a whole number from 1"),
        ({"epochs": 2.5}, "epochs=2.5: allowed"),
        ({"epochs": True}, "epochs=True: allowed"),
        ({"seed": -1}, "seed=-1: allowed: a whole number from 0"),
        ({"lr": float("nan")}, "lr=nan: allowed: a number above 0"),
        ({"amp": "maybe"}, "amp='maybe': allowed: true, false"),
        (
            {"attention": None},
            "attention=None: allowed: none, se, bam, cbam, tam, gam, gam_separable, gam_low_rank, abn",
        ),
        ({"width": 1e300}, "width=1e+300: allowed: a number above 0, up to 16"),
        ({"groups": 3}, "groups=3 does not divide the 2 hidden channels (32 / reduction 16); allowed: 1, 2"),
        (
            {"groups": 3, "width": 1},
            "groups=3 does not divide the 4 hidden channels (64 / reduction 16); allowed: 1, 2, 4",
        ),
        (
            {"backbone": "resnet19"},
            "backbone='resnet19': allowed: resnet18, resnet34, resnet50, resnet101, mobilenet_v2",
        ),
        (
            {"attention": "games"},
            "attention='games': allowed: none, se, bam, cbam, tam, gam, gam_separable, gam_low_rank, abn",
        ),
        ({"dataset": "mnist"}, "dataset='mnist': allowed: digits"),
        (
            {"attention": "cbam", "groups": 4},
            "groups=4: attention=cbam has none, only gam, gam_separable, gam_low_rank",
        ),
        ({"attention": "abn", "reduction": 8}, "reduction=8: attention=abn has none, only se, bam, cbam, gam"),
        ({"attention": "se", "gate_max_pool": True}, "gate_max_pool=True: attention=se has none, only cbam, gam"),
        ({"gate_max_pool": 3}, "gate_max_pool=3: allowed: true, false"),
        ({"stem": "cifar", "max_pool": False}, "max_pool=False: resnet18 with stem=cifar has no max-pooling"),
        ({"backbone": "mobilenet_v2", "max_pool": "no"}, "max_pool=False: mobilenet_v2 with stem=imagenet has no"),
        (
            {"backbone": "mobilenet_v2", "reduction": 7},
            "reduction=7: allowed in MobileNetV2: powers of two",
        ),
        ({"devices": 4}, "devices=4: allowed: 1"),
        ({"weights": "x.pt"}, "weights='x.pt' cannot be read: No such file or directory"),
        (
            {"weights": "IMAGENET1K_V9"},
            "weights='IMAGENET1K_V9': allowed for resnet18: a file, or of torchvision IMAGENET1K_V1",
        ),
        ({"train_fraction": 0.001}, "train_fraction=0.001: allowed for digits: 0.05 to 1"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig(**values)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"epochs=0.*lr=-1"):
        RunConfig(epochs=0, lr=-1)


def test_every_field_that_has_a_second_value_changes_the_signature_and_the_name(tmp_path: Path) -> None:
    weights = tmp_path / "pretrained.pth"
    torch.save(build_model("resnet18", "none", width=0.5).state_dict(), weights)
    other: dict[str, Any] = {
        "attention": "cbam", "submodules": "sp", "reduction": 8, "groups": 2, "max_pool": False, "stem": "cifar",
        "width": 1, "epochs": 3, "batch_size": 8, "lr": 1, "momentum": 0.5, "weight_decay": 1, "label_smoothing": 0.1,
        "amp": True, "compile": True, "channels_last": False, "seed": 1, "train_fraction": 0.5,
        "evaluate_on": "validation", "backbone": "resnet34", "gate_max_pool": True, "weights": str(weights),
    }  # fmt: skip
    only_one_value_yet = {"dataset", "recipe", "devices", "workers"}
    assert other.keys() | only_one_value_yet == RunConfig.model_fields.keys()
    configs = [RunConfig(), *(RunConfig(**{key: value}) for key, value in other.items())]
    assert len({config.signature for config in configs}) == len({config.name for config in configs}) == len(configs)


def test_what_is_left_out_and_what_is_said_are_one_run() -> None:
    assert RunConfig().signature == RunConfig(submodules="ch+sp", reduction=16, width=0.5, epochs=20).signature


def test_options_that_a_mechanism_lacks_stay_none_and_others_get_its_defaults() -> None:
    for attention in build_model.attentions():
        config, options = RunConfig(attention=attention), build_model.options(attention)
        assert {key: getattr(config, key) for key in OPTIONS} == dict.fromkeys(OPTIONS) | options
        assert config.name == f"resnet18-{attention}-s0"  # so what is usual in a name is what the mechanism has


def test_weights_are_known_by_what_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        torch.save(build_model("resnet18", "none", width=0.5).state_dict(), tmp_path / name)
        return tmp_path / name

    path = save("my.pth", 0)
    config = RunConfig(weights=str(path))
    monkeypatch.chdir(tmp_path)
    assert (
        RunConfig(weights="my.pth")
        == RunConfig(weights=path)
        == RunConfig(weights="../" + tmp_path.name + "/my.pth")
        == config
    )
    assert RunConfig(**json.loads(config.model_dump_json())) == config
    assert config.architecture()["weights"] == str(path) and config.name == "resnet18-gam-my-s0"
    save("my.pth", 1)
    assert RunConfig(weights=path).signature != config.signature
    with pytest.raises(ConfigError, match=r"my.pth': the file has changed, its hash was \w{16} and is \w{16}"):
        RunConfig(**config.model_dump())
    save("wrong.pth", 0)
    with pytest.raises(ConfigError, match=r"wrong.pth' do not fit this resnet18: conv1.weight has shape"):
        RunConfig(weights="wrong.pth", width=1)


def test_the_name_says_what_is_special() -> None:
    assert RunConfig().name == "resnet18-gam-s0"
    assert RunConfig(submodules="sp", max_pool=False, seed=3).name == "resnet18-gam-sp-no_max_pool-s3"


@pytest.mark.parametrize("texts", [["epochs"], ["=3"], ["epochs="], ["epochs=3", "epochs=4"]])
def test_what_is_no_key_and_value_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="-p "):
        key_values(texts)


def test_parameters_of_a_notebook_are_what_its_parameter_cells_assign() -> None:
    cells = ["# parameters\nepochs = 1\nlr = None", "# Parameters\nepochs = 5", "scratch = 3"]
    namespace = {"In": ["", *cells], "epochs": 5, "lr": None, "scratch": 3}
    assert notebook_parameters(namespace) == {"epochs": 5, "lr": None}


def test_a_parameter_that_was_corrected_is_accepted_and_one_cell_is_needed() -> None:
    namespace = {"In": ["# parameters\natention = 1", "# parameters\nepochs = [e for e in (1,)]"], "epochs": [1]}
    assert notebook_parameters(namespace) == {"epochs": [1]}
    with pytest.raises(ConfigError, match="no cell headed `# parameters`"):
        notebook_parameters({"In": ["epochs = 1"], "epochs": 1})


def test_a_mistyped_parameter_of_a_notebook_is_refused() -> None:
    namespace = {"In": ["# Parameters\natention = 'gam'"], "atention": "gam"}
    with pytest.raises(ConfigError, match="atention is not a parameter"):
        notebook_parameters(namespace)
