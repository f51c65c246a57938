import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from papermill.translators import PythonTranslator
from PIL import Image

from ablation import parameter_counts
from ablation.config import RunConfig
from ablation.errors import ConfigError
from ablation.parameters import key_values, notebook_parameters
from ablation.paths import ROOT
from ablation.provenance import source_hash
from ablation.runs import Run
from ablation.studies import Study
from gamlib import backbones, build_model
from gamlib.attention import MECHANISMS, options
from gamlib.names import ATTENTIONS, OPTIONS


def test_everything_is_resolved_and_survives_json() -> None:
    config = RunConfig(attention="gam")
    values = config.model_dump()
    assert [key for key, value in values.items() if value is None] == ["dataset_hash", "options", "stages", "weights"]
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
        ("milestones", "[0.25,0.5]", [0.25, 0.5]),
        ("flip", "true", True),
        ("devices", "2", 2),
        ("stages", "2", [2]),
        ("stages", "1,3", [1, 3]),
        ("stages", "[1, 3]", [1, 3]),
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
            f"attention=None: allowed: {', '.join(ATTENTIONS)}",
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
            f"attention='games': allowed: {', '.join(ATTENTIONS)}",
        ),
        ({"dataset": "mnist"}, "dataset='mnist': allowed: digits, cifar10, cifar100, imagenet, imagefolder:PATH"),
        ({"dataset": "imagefolder:none"}, "dataset='imagefolder:none': no folder "),
        ({"dataset_hash": "0123"}, "dataset_hash='0123': the files of digits are others now, their hash is None"),
        ({"recipe": "adam"}, "recipe='adam': allowed: cifar, imagenet, mobilenet, digits"),
        (
            {"milestones": "0.8,0.5"},
            "milestones=[0.8, 0.5]: allowed: rising fractions of the epochs, such as 0.3,0.6,0.8",
        ),
        ({"milestones": [0.5, 1]}, "milestones=[0.5, 1.0]: allowed: rising fractions"),
        ({"drops": "early"}, "milestones="),
        ({"gamma": 0}, "gamma=0: allowed: a number above 0, up to 1"),
        ({"drop_factor": 0.5, "gamma": 0.2}, "drop_factor=0.5: gamma=0.2 is given too, which is the name of the same"),
        ({"pad": 65}, "pad=65: allowed: a whole number from 0 to 64"),
        ({"dataset": "imagenet", "pad": 4}, "pad=4: allowed: 0, since imagenet is cropped to 224x224 at random"),
        ({"workers": 2}, "workers=2: allowed: 0, since the images of digits lie in memory"),
        ({"cuda_graphs": True}, "cuda_graphs=True: allowed with compile=true"),
        ({"devices": 0}, "devices=0: allowed: a whole number from 1 to 64"),
        ({"devices": 9}, "devices=9: the smallest batch of an epoch has 8 images"),
        (
            {"attention": "cbam", "groups": 4},
            "groups=4: attention=cbam has none, only gam, gam_separable, gam_low_rank, gam_no_gate",
        ),
        ({"attention": "abn", "reduction": 8}, "reduction=8: attention=abn has none, only se, bam, cbam, gam"),
        ({"attention": "se", "gate_max_pool": True}, "gate_max_pool=True: attention=se has none, only cbam, gam"),
        ({"gate_max_pool": 3}, "gate_max_pool=3: allowed: true, false"),
        ({"stages": "0"}, "stages=[0]: allowed in resnet18: a list of some or all of 1, 2, 3, 4, each once"),
        ({"stages": 5}, "stages=[5]: allowed in resnet18: a list of some or all of 1, 2, 3, 4"),
        ({"stages": []}, "stages=[]: allowed in resnet18"),
        ({"stages": "[]"}, "stages=[]: allowed in resnet18"),
        ({"stages": "1,1"}, "stages=[1, 1]: allowed in resnet18"),
        ({"stages": "1-3"}, "stages=['1-3']: allowed in resnet18"),
        ({"stages": True}, "stages=[True]: allowed in resnet18"),
        ({"stages": 4, "attention": "bam"}, "stages=[4]: allowed in resnet18 with attention=bam: a list of some or"),
        ({"stages": 1, "attention": "none"}, "stages=[1]: attention=none has no blocks to place in stages"),
        ({"stages": "1,2,3,4", "attention": "abn"}, "stages=[1, 2, 3, 4]: attention=abn has no blocks"),
        ({"stem": "cifar", "max_pool": False}, "max_pool=False: resnet18 with stem=cifar has no max-pooling"),
        ({"backbone": "mobilenet_v2", "max_pool": "no"}, "max_pool=False: mobilenet_v2 with stem=imagenet has no"),
        (
            {"backbone": "mobilenet_v2", "reduction": 7},
            "reduction=7: allowed in MobileNetV2: powers of two",
        ),
        ({"weights": "x.pt"}, "weights='x.pt' cannot be read: No such file or directory"),
        (
            {"weights": "IMAGENET1K_V9"},
            "weights='IMAGENET1K_V9': allowed for resnet18: a file, or of torchvision IMAGENET1K_V1",
        ),
        ({"schedule": "poly"}, "schedule='poly': allowed: step, cosine, onecycle, linear"),
        ({"schedule": "cosine", "gamma": 0.5}, "gamma=0.5: allowed with schedule=step, not with cosine"),
        ({"schedule": "linear", "milestones": [0.5]}, "milestones=[0.5]: allowed with schedule=step, not with linear"),
        ({"warmup": 20}, "warmup=20.0: allowed: a number from 0, below epochs=20"),
        ({"warmup": -1}, "warmup=-1: allowed: a number of epochs from 0"),
        ({"optimizer": "adam"}, "optimizer='adam': allowed: sgd, adamw"),
        ({"optimizer": "adamw", "nesterov": "yes"}, "nesterov=True: allowed with optimizer=sgd"),
        ({"mixup": -0.1}, "mixup=-0.1: allowed: a number from 0"),
        ({"random_erasing": 1.5}, "random_erasing=1.5: allowed: a number from 0 to 1"),
        ({"ema": 1}, "ema=1: allowed: a number from 0, below 1"),
        ({"train_fraction": 0.001}, "train_fraction=0.001: allowed here: 0.05 to 1"),
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
        "recipe": "cifar", "milestones": [0.4], "gamma": 0.5, "pad": 1, "flip": True, "deterministic": True,
        "devices": 2, "schedule": "cosine", "warmup": 1, "optimizer": "adamw", "nesterov": True, "mixup": 0.2,
        "cutmix": 1, "random_erasing": 0.25, "ema": 0.999, "stages": [1],
    }  # fmt: skip
    tested_elsewhere = {"dataset", "dataset_hash", "workers", "cuda_graphs", "options", "tensorboard"}
    assert other.keys() | tested_elsewhere == RunConfig.model_fields.keys()
    configs = [RunConfig(), *(RunConfig(**{key: value}) for key, value in other.items())]
    configs += [RunConfig(compile=True, cuda_graphs=True)]
    configs += [RunConfig(dataset="imagenet", workers=2)]
    assert len({config.signature for config in configs}) == len({config.name for config in configs}) == len(configs)


def test_event_files_are_no_part_of_a_run_and_refused_where_tensorboard_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ablation.config.find_spec", lambda name: Mock(name=name))
    config = RunConfig(tensorboard="true")
    assert config.tensorboard and (config.signature, config.name) == (RunConfig().signature, RunConfig().name)
    monkeypatch.setattr("ablation.config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^tensorboard=True: allowed where it is installed"):
        RunConfig(tensorboard=True)
    assert RunConfig.recorded(config.model_dump()).tensorboard  # `gamlib status` has no need of it


def test_a_data_set_and_a_backbone_bring_the_papers_recipe() -> None:
    imagenet = RunConfig(dataset="imagenet", backbone="mobilenet_v2", attention="none")
    assert (imagenet.recipe, imagenet.lr, imagenet.weight_decay, imagenet.epochs) == ("mobilenet", 0.045, 4e-5, 90)
    assert (imagenet.stem, imagenet.width, imagenet.pad, imagenet.flip, imagenet.workers) == ("imagenet", 1, 0, True, 8)
    assert imagenet.name == "mobilenet_v2-none-s0"
    cifar = RunConfig(dataset="cifar100", epochs=20)
    assert (cifar.recipe, cifar.stem, cifar.pad, cifar.batch_size, cifar.lr) == ("cifar", "cifar", 4, 128, 0.1)
    assert [cifar.training().lr_at(epoch) for epoch in (5, 6, 12, 16)] == pytest.approx([0.1, 0.02, 4e-3, 8e-4])
    assert cifar.architecture()["num_classes"] == 100


def test_an_image_folder_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files are another run; a run that was written is refused when its files are others now."""
    monkeypatch.setenv("GAM_DATA", str(tmp_path))
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / part / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (28, 28)).save(tmp_path / "pets" / part / label / f"{number}.png")
    config = RunConfig(dataset="imagefolder:pets")
    assert (config.stem, config.recipe, config.pad, config.name) == ("cifar", "cifar", 3, "resnet18-gam-s0")
    assert config.architecture()["num_classes"] == 2 and config.dataset_name == "imagefolder-pets"
    assert RunConfig(**json.loads(config.model_dump_json())) == config
    (tmp_path / "pets" / "train" / "cat" / "0.png").rename(tmp_path / "pets" / "train" / "cat" / "9.png")
    assert RunConfig(dataset="imagefolder:pets").signature != config.signature
    with pytest.raises(ConfigError, match=r"the files of imagefolder:pets are others now"):
        RunConfig(**config.model_dump())
    shutil.rmtree(tmp_path / "pets")
    assert RunConfig.recorded(config.model_dump()).name == config.name  # `gamlib status` needs no images


def test_what_is_left_out_and_what_is_said_are_one_run() -> None:
    assert RunConfig().signature == RunConfig(submodules="ch+sp", reduction=16, width=0.5, epochs=20).signature


def test_options_that_a_mechanism_lacks_stay_none_and_others_get_its_defaults() -> None:
    for attention in build_model.attentions():
        config = RunConfig(attention=attention)
        assert {key: getattr(config, key) for key in OPTIONS} == dict.fromkeys(OPTIONS) | ATTENTIONS[attention]
        assert config.name == f"resnet18-{attention}-s0"  # so what is usual in a name is what the mechanism has


def test_how_a_block_is_computed_is_no_part_of_a_configuration() -> None:
    """It changes no number: a run that another implementation finished is the same run."""
    assert "implementation" not in RunConfig.model_fields
    assert all("implementation" not in options(attention) for attention in MECHANISMS)
    with pytest.raises(ConfigError, match="implementation"):
        RunConfig(implementation="plain")


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
    with pytest.raises(ConfigError, match=r"wrong.pth' do not fit this resnet18: size mismatch for conv1.weight"):
        RunConfig(weights="wrong.pth", width=1)


def test_the_name_says_what_is_special() -> None:
    assert RunConfig().name == "resnet18-gam-s0"
    assert RunConfig(submodules="sp", max_pool=False, seed=3).name == "resnet18-gam-sp-no_max_pool-s3"
    assert RunConfig(stages=[1]).name == "resnet18-gam-stages1-s0"
    assert RunConfig(stages=[3, 1], width=0.25).name == "resnet18-gam-stages1-3-width0.25-s0"


@pytest.mark.parametrize(
    ("attention", "backbone", "last"),
    [("gam", "resnet50", 4), ("bam", "resnet18", 3), ("se", "mobilenet_v2", 7), ("bam", "mobilenet_v2", 7)],
)
def test_all_stages_are_no_choice_and_their_order_is_none(attention: str, backbone: str, last: int) -> None:
    plain = RunConfig(attention=attention, backbone=backbone)
    every = RunConfig(attention=attention, backbone=backbone, stages=list(range(last, 0, -1)))
    assert every == plain and every.signature == plain.signature and "stages" not in every.identity()
    some = [RunConfig(attention=attention, backbone=backbone, stages=stages) for stages in ([3, 1], "1,3")]
    assert some[0] == some[1] and some[0].signature != plain.signature and some[0].parameters() < plain.parameters()
    assert RunConfig(**json.loads(some[0].model_dump_json())) == RunConfig.recorded(some[0].identity()) == some[0]


@pytest.mark.parametrize("texts", [["epochs"], ["=3"], ["epochs="], ["epochs=3", "epochs=4"]])
def test_what_is_no_key_and_value_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="-p "):
        key_values(texts)


def test_parameters_of_a_notebook_are_what_its_parameter_cells_assign() -> None:
    cells = ["# parameters\nepochs = 1\nlr = None", "# Parameters\nepochs = 5", "scratch = 3"]
    namespace = {"In": ["", *cells], "epochs": 5, "lr": None, "scratch": 3}
    assert notebook_parameters(namespace) == {"epochs": 5, "lr": None}


def test_a_parameter_that_was_corrected_is_accepted_and_one_cell_is_needed() -> None:
    namespace = {"In": ["# parameters\natention = 1", "# parameters\nepochs = 1"], "epochs": 1}
    assert notebook_parameters(namespace) == {"epochs": 1}
    with pytest.raises(ConfigError, match="no cell headed `# parameters`"):
        notebook_parameters({"In": ["epochs = 1"], "epochs": 1})


def test_a_mistyped_parameter_of_a_notebook_is_refused() -> None:
    namespace = {"In": ["# Parameters\natention = 'gam'"], "atention": "gam"}
    with pytest.raises(ConfigError, match="atention is not a parameter"):
        notebook_parameters(namespace)


def test_zero_has_one_signature() -> None:
    assert RunConfig(weight_decay=-0.0).signature == RunConfig(weight_decay=0).signature


@pytest.mark.parametrize("name", ["a#b.pt", "a#0123456789abcde.pt", "#.pt", "a b?%~.pt"])
def test_a_weights_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    torch.save(build_model("resnet18", "none", 10, width=0.5).state_dict(), file)
    config = RunConfig(attention="none", weights=str(file))
    assert config.architecture()["weights"] == str(file)
    assert RunConfig(**config.model_dump()).signature == config.signature


@pytest.mark.parametrize(
    "cell",
    [
        "epochs, lr = 3, 0.5",
        "if True:\n    epochs = 3\n    lr = 0.5",
        "epochs: int = 3\n[lr] = [0.5]",
        "(epochs := 3); lr = 0.5",
        "epochs = max([_ for _ in range(4)])\ndef half():\n    one = 1\n    return one / 2\nlr = half()",
    ],
)
def test_parameters_are_found_in_whatever_form_a_cell_assigns_them(cell: str) -> None:
    namespace: dict[str, Any] = {"In": ["", source := f"# parameters\n{cell}"]}
    exec(source, namespace)
    assert notebook_parameters(namespace) == {"epochs": 3, "lr": 0.5}


def test_a_value_of_a_run_given_to_the_notebook_of_a_study_is_refused_with_how_to_write_it() -> None:
    def refuse(**values: Any) -> str:
        injected = PythonTranslator.codify(values)  # as papermill writes it into the notebook
        with pytest.raises(ConfigError) as refused:
            notebook_parameters(
                {"In": ["# parameters\noverrides: dict = {}", injected], **values}, ["seeds", "overrides"]
            )
        return str(refused.value)

    line = refuse(epochs=1, attention="cbam", amp=False)
    assert line.startswith("epochs, attention, amp: no parameter of this notebook, but of its runs: give overrides")
    (written,) = re.findall(r"-y '(.*)'", line)
    assert yaml.safe_load(written) == {"overrides": {"epochs": 1, "attention": "cbam", "amp": False}}
    assert refuse(epoch=1).startswith("epoch is not a parameter: ")
    assert refuse(seed=1).startswith("seed is not a parameter: did you mean seeds?")


def test_an_unknown_name_in_a_tuple_is_refused() -> None:
    with pytest.raises(ConfigError, match="epoch is not a parameter: did you mean epochs"):
        notebook_parameters({"In": ["# parameters\nepoch, lr = 3, 0.5"], "epoch": 3, "lr": 0.5})


# As the first version wrote it, with the folder that it lay in.
FIRST = json.loads("""{
  "dataset": "digits", "dataset_hash": null, "backbone": "resnet18", "attention": "gam", "submodules": "ch+sp",
  "reduction": 16, "groups": 1, "gate_max_pool": false, "max_pool": true, "stem": "imagenet", "width": 0.5,
  "weights": null, "recipe": "digits", "epochs": 3, "batch_size": 32, "lr": 0.01, "momentum": 0.9,
  "weight_decay": 0.0005, "label_smoothing": 0.0, "drops": [0.25, 0.5], "drop_factor": 0.2, "pad": 2, "flip": false,
  "amp": false, "compile": false, "cuda_graphs": false, "channels_last": true, "deterministic": false, "devices": 1,
  "seed": 1, "train_fraction": 1.0, "workers": 0, "evaluate_on": "test"
}""")
FOLDER = "resnet18-gam-epochs3-drops_0.25_0.5-drop_factor0.2-s1-58958474"
SIGNATURE = "58958474b79e1d02b6c25624f296523fd79440af60cfda758ea5ffc3c41dcfa7"


@pytest.mark.parametrize("read", [RunConfig.recorded, lambda values: RunConfig(**values)])
def test_what_the_first_version_wrote_is_the_same_run(read: Callable[[dict[str, Any]], RunConfig]) -> None:
    config = read(FIRST)
    assert (config.milestones, config.gamma) == ([0.25, 0.5], 0.2)
    assert config == RunConfig(epochs=3, milestones=[0.25, 0.5], gamma=0.2, seed=1)
    assert (config.signature, Run(config).folder.name) == (SIGNATURE, FOLDER)
    assert config.identity() == FIRST


@pytest.mark.parametrize(
    ("values", "signature"),
    [
        ({}, "9f4d8909733435ce8c2344a87aa1e9739c55f2ae4dc047f83cd3873d25231f60"),
        (
            {"attention": "cbam", "backbone": "mobilenet_v2", "dataset": "imagenet", "seed": 2},
            "a4f74818af2c9ca14e559f9b3af2e79bcb6462239eae8a792853447ebb1409eb",
        ),
        (
            {"dataset": "cifar100", "attention": "none", "epochs": 20, "momentum": 0.8, "drops": [0.5], "amp": True},
            "5c5f51aa421c124dc72977c48c469d0fc089dd5c1be7cfc06a2b1f254317fce2",
        ),
    ],
)
def test_fields_that_were_added_keep_the_signatures_of_the_runs_there_are(
    values: dict[str, Any], signature: str
) -> None:
    """As they were before there were schedules."""
    config = RunConfig(**values)
    assert config.signature == signature
    assert RunConfig(**config.model_dump()).signature == signature == RunConfig.recorded(config.identity()).signature


def test_old_names_are_read_wherever_a_value_comes_in() -> None:
    config = RunConfig(milestones=[0.5], gamma=0.5)
    assert (
        RunConfig(drops=[0.5], drop_factor=0.5) == RunConfig(**key_values(["drops=0.5", "drop_factor=0.5"])) == config
    )
    namespace = {"In": ["# parameters\ndrops, gamma, milestones = [0.5], 0.5, None"], "drops": [0.5], "gamma": 0.5}
    assert RunConfig(**notebook_parameters(namespace | {"milestones": None})) == config
    study = Study(name="old", base={"drops": [0.5]}, arms={"one": {"drop_factor": 0.5}})
    assert study.plan(seeds=0, attention="gam").arms["one"] == [config]
    assert study.plan(seeds=0, drops=[0.4]).arms["one"][0].milestones == [0.4]
    with pytest.raises(ConfigError, match=r"drops=0.5: milestones=0.4 is given too"):
        key_values(["milestones=0.4", "drops=0.5"])


@pytest.mark.parametrize("path", sorted((ROOT / "figures" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_published_configurations_are_read_by_the_names_of_today(path: Path) -> None:
    plan = json.loads(path.read_text())
    for run in (run for runs in plan["arms"].values() for run in runs):
        config = RunConfig.recorded(run)
        written = {key: run[key] for key in config.identity() if key in run}
        assert {key: config.identity()[key] for key in written} == written
        assert "drops" not in run or config.milestones == run["drops"]


def test_the_training_part_has_every_value_of_the_configuration() -> None:
    config = RunConfig(amp=True, seed=3, lr=0.5)
    training = vars(config.training())
    assert training.keys() < RunConfig.model_fields.keys()
    assert training | {"milestones": list(config.training().milestones)} == config.model_dump(include=set(training))


def test_a_network_is_asked_for_once(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew where the line that has the answer was cut short, or is of other code."""
    asked: list[int] = []

    def built(**arguments: Any) -> Any:
        asked.append(arguments["reduction"])
        return build_model(**arguments)

    def ask(*reductions: int) -> list[int]:
        asked.clear()
        for reduction in reductions:
            parameter_counts.count.cache_clear()  # as another process
            assert RunConfig(reduction=reduction).parameters() > 0
        return asked

    (places / "runs").mkdir()
    monkeypatch.setattr(backbones, "build_model", built)
    kept = places / "runs" / ".parameters.txt"
    assert ask(16, 8, 16, 8) == [16, 8]
    kept.write_text(kept.read_text()[:-5])
    assert ask(16, 8, 16, 8) == [8]
    kept.write_text(kept.read_text().replace(source_hash(), "0" * 16))
    assert ask(16, 8) == [16, 8]


def test_a_configuration_whose_network_is_known_is_resolved_without_torch(places: Path) -> None:
    (places / "runs").mkdir()
    parameter_counts.count.cache_clear()
    expected = RunConfig(lr=0.5, groups=2).signature
    code = "import sys; from ablation.config import RunConfig; print(RunConfig(lr=0.5, groups=2).signature); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True)
    assert (done.returncode, done.stdout.decode().strip()) == (0, expected), done.stderr


def test_without_a_folder_of_runs_asking_leaves_nothing(places: Path) -> None:
    RunConfig().parameters(width=0.25)
    assert not (places / "runs").exists()
