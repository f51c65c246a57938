"""The benchmark of a training step: its two loops train the same, and it runs to its end. No speed is asserted."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gamlib.lab.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
timing, training = importlib.import_module("timing"), importlib.import_module("training")


def benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--device", "cpu", *arguments]
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "1"}  # tests run side by side
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_the_plain_loop_and_gamlibs_train_the_same() -> None:
    small = timing.Work("resnet18", "gam", 0.25, 16, "cpu", 1, 1, 0, 1, 1)
    compared = training.compare(small, 0.01, calm=True)
    assert len(compared.differences) == 20 and max(compared.differences) < 1e-4
    assert compared.weights < 1e-2  # another momentum makes it 5e-2, no weight decay 2e-1
    assert compared.inputs < 1e-5
    assert max(compared.losses) - min(compared.losses) > 0.05  # it does train


@pytest.mark.slow
def test_it_measures_every_variant_and_writes_what_it_prints(tmp_path: Path) -> None:
    done = benchmark("--quick", "--csv", str(tmp_path / "training.csv"))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "training.csv")
    assert list(table["variant"]) == [name for name in timing.variants(cuda=False) if name != "compile"]
    assert (table[["images_per_second", "ratio", "ratio_min", "ratio_max", "peak_memory_mib"]] > 0).all().all()
    assert table["failed"].isna().all() and (table[["network", "attention"]] == ["resnet18", "gam"]).all().all()
    assert 0 < table.set_index("variant")["input_share"]["gamlib"] < 1
    for times, speed in zip(table["seconds_per_step"], table["images_per_second"], strict=True):
        turns = [float(seconds) for seconds in times.split()]
        assert len(turns) == 2 and 16 / max(turns) <= speed * 1.001 and speed <= 16 / min(turns) * 1.001
    assert table[["cpu", "cores", "date", "commit", "source", "torch"]].notna().all().all()
    for row in table.itertuples():
        assert any(
            line.split()[:3] == [row.variant, f"{row.images_per_second:.1f}", f"{row.ratio:.2f}"]
            for line in done.stdout.splitlines()
        )


@pytest.mark.slow
def test_a_variant_that_fails_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    """A compiler that is not there is one way."""
    arguments = ["--quick", "--variants", "gamlib,compile", "--csv", str(tmp_path / "training.csv")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        done = benchmark(*arguments)
    assert done.returncode == 1 and "not every variant could be measured" in done.stderr
    table: Any = pd.read_csv(tmp_path / "training.csv").set_index("variant")
    assert table.loc["gamlib", "images_per_second"] > 0 and pd.isna(table.loc["compile", "images_per_second"])
    assert "no-such-compiler" in table.loc["compile", "failed"] and "no-such-compiler" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "resnet19"), "networks='resnet19': allowed: resnet18, resnet34"),
        (("--attentions", "none,abn"), "attentions='abn': allowed: none, se"),
        (("--variants", "plain,cuda-graphs"), "variants='cuda-graphs': allowed: plain, gamlib"),
        (("--repetitions", "0"), "repetitions='0': allowed: a whole number from 1"),
        (("--steps", "many"), "steps='many': allowed: a whole number from 1"),
        (("--batch-size", "1"), "batch_size='1': allowed: a whole number from 2"),
        (("--device", "tpu"), "device='tpu': allowed here: auto, cpu"),
        (("--check", "--csv", "table.csv"), "variants, csv: allowed without --check only"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        training.app()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.slow
def test_dispatch_is_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "dispatch.py"), "--no-slurm", "--folders", "4"]
    done = subprocess.run([*command, "--repetitions", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for what in ("status, all runs there are", "report"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(what))
        assert int(line.split()[-4]) == 4 and float(line.split()[-3]) > 0
