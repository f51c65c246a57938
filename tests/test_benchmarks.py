"""The benchmarks: what is compared computes the same, and they run to their end. No speed is asserted."""

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ablation import cli
from ablation.paths import ROOT
from ablation.study_files import find_study
from gamlib import GAM
from gamlib.attention import CopiedGAM
from gamlib.kernels import CHOICES

sys.path.insert(0, str(ROOT / "benchmarks"))
timing, training = importlib.import_module("timing"), importlib.import_module("training")
gam, blocks, turns = (importlib.import_module(name) for name in ("gam", "blocks", "turns"))
agreement = importlib.import_module("agreement").agreement
copied = importlib.import_module("copied")
step, changes = importlib.import_module("step"), importlib.import_module("changes")


def benchmark(*arguments: str, of: tuple[str, ...] = ("benchmarks/training.py",)) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *of, "--device", "cpu", *arguments]
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "1"}  # tests run side by side
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)


@pytest.mark.slow
def test_the_plain_loop_and_gamlibs_train_the_same() -> None:
    small = timing.Work("resnet18", "gam", 0.25, 16, "cpu", 1, 1, 0, 1, 1)
    compared = training.compare(small, 0.01, calm=True)
    assert len(compared.differences) == 20 and max(compared.differences) < 1e-4
    assert compared.weights < 1e-2  # another momentum makes it 5e-2, no weight decay 2e-1
    assert compared.inputs < 1e-5
    assert max(compared.losses) - min(compared.losses) > 0.05  # it does train


@pytest.mark.long
def test_it_measures_every_variant_and_writes_what_it_prints(tmp_path: Path) -> None:
    done = benchmark("--quick", "--csv", str(tmp_path / "training.csv"))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "training.csv")
    assert list(table["variant"]) == [name for name in timing.variants(cuda=False) if "compile" not in name]
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


@pytest.mark.long
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
    assert "no-such-compiler" in table.loc["compile", "failed"]
    assert "no-such-compiler" in done.stdout


def refusal(app: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before it exits with 2."""
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


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
    assert message in refusal(training.app, capsys)


def test_the_copied_block_computes_what_ours_of_that_name_does() -> None:
    torch.manual_seed(0)
    theirs, ours = copied.Copied(64), CopiedGAM(64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 64, 3, 5)
    torch.testing.assert_close(theirs(x), ours(x))


def test_a_block_with_other_numbers_is_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, setting = blocks.SMALL[0], blocks.Setting()
    right = agreement("ours", shape, setting)
    assert right.holds(torch.float32) and right.difference < 1e-5 and 0 < right.same_error < 1e-6
    assert agreement("plain", shape, setting) is None

    class Wrong(GAM):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + 1e-5)

    monkeypatch.setitem(blocks.KNOWN, "wrong", blocks.Subject(Wrong, same="plain"))
    assert not agreement("wrong", shape, setting).holds(torch.float32)


def test_ratios_are_of_the_same_repetition() -> None:
    """A machine that is ten times slower for one repetition changes no ratio."""
    assert turns.ratios([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 4.0)
    calls = {(name, "training"): lambda: None for name in "ab"}
    times = turns.in_turns(calls, turns.Plan(0.0, 5), "cpu", rare=["b"])
    assert {name: len(some) for (name, _), some in times.items()} == {"a": 5, "b": 3}


@pytest.mark.parametrize("name", [name for name, one in blocks.KNOWN.items() if not one.compiled])
def test_the_backward_pass_alone_is_that_of_training_again_and_again(name: str) -> None:
    if name in blocks.missing() or name in blocks.BY_BACKEND:
        pytest.skip("cannot be measured here")
    block = blocks.Block(name, blocks.Shape("", 2, 64, 4), blocks.Setting())
    _, *expected = block.call("training")
    for _ in range(2):
        torch.testing.assert_close(block.call("backward"), expected)


def test_what_is_timed_of_a_block() -> None:
    """Compiled blocks have no graph to go back through twice; on a CPU a scale needs no forward pass alone."""
    cpu, gpu = blocks.Setting(), blocks.Setting("cuda")
    assert blocks.modes("ours", cpu) == ["inference", "forward", "training"]
    assert blocks.modes("cbam", cpu) == ["inference", "training"]
    assert blocks.modes("cbam", gpu) == blocks.modes("ours", gpu) == ["inference", "forward", "backward", "training"]
    assert blocks.modes("cbam compiled", gpu) == ["inference", "forward", "training"]


def test_the_peak_of_a_call_is_above_what_lies_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    block = blocks.Block("plain", blocks.SMALL[0], blocks.Setting())
    assert block.peak_mib("training") is None
    block.setting, called = blocks.Setting("cuda"), list[str]()
    monkeypatch.setattr(block, "call", called.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: called.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12 * 2**20)
    assert block.peak_mib("training") == 7 and called == ["reset", "training"]


def test_arithmetic_is_the_plain_blocks() -> None:
    block = blocks.Block("plain", blocks.Shape("", 2, 32, 5), blocks.Setting())
    multiplications = 2 * 5 * 5 * (32 * 2 + 2 * 32 + 2 * 49 * 32 * 2)
    assert [block.flops(mode) for mode in ("forward", "training")] == [2 * multiplications, 3 * 2 * multiplications]
    assert block.least_bytes("forward") == 2 * 4 * 2 * 32 * 25


@pytest.mark.long
def test_gamlib_bench_measures_gam_and_writes_what_it_prints(tmp_path: Path) -> None:
    done = benchmark(
        "--quick", "--seconds", "1", "--csv", str(tmp_path / "gam.csv"), of=("-m", "ablation.cli", "bench")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table: Any = pd.read_csv(tmp_path / "gam.csv")
    assert set(table["part"]) == {"blocks", "step", "study", "memory"}
    missing = set(blocks.missing())
    assert set(table.loc[table["failed"].notna(), "subject"]) == missing
    measured = table[table["failed"].isna()]
    compared = measured[measured["ratio"].notna()]
    assert (compared[["seconds", "ratio", "ratio_min", "ratio_max", "repetitions"]] > 0).all().all()
    assert (compared["ratio_min"] <= compared["ratio"]).all() and (compared["ratio"] <= compared["ratio_max"]).all()
    assert table[["cpu", "isa", "cores", "date", "source", "torch", "command", "copy_gb"]].notna().all().all()
    of_blocks = measured[measured["part"] == "blocks"]
    assert set(of_blocks["subject"]) == set(blocks.SUBJECTS) - missing
    assert set(of_blocks["mode"]) == {"training", "forward", "inference"}
    assert set(of_blocks["backend"].dropna()) <= set(CHOICES) - {"auto"}
    assert (of_blocks.loc[of_blocks["subject"] == "plain", "backend"] == "plain").all()
    assert (of_blocks[["difference", "error"]].dropna() < 1e-4).all().all()
    for row in of_blocks.itertuples():
        times = [float(text) for text in row.times.split()]
        assert len(times) == row.repetitions and math.isclose(pd.Series(times).median(), row.seconds, abs_tol=2e-7)
    lines = [line.split() for line in done.stdout.splitlines()]
    ours = of_blocks[(of_blocks["subject"] == "ours") & (of_blocks["mode"] == "training")]
    for row in ours[ours["base"] == "plain"].itertuples():
        assert any(line[1:3] == [row.map, row.backend] and f"{row.ratio:.2f}" in line for line in lines)
    for part in ("step", "study"):
        steps = measured[measured["part"] == part].set_index("subject")
        assert list(steps.index) == ["plain NCHW", "plain loop", "ours loop", "none NCHW", "none loop"]
        for row in steps.itertuples():
            assert any(line[:3] == [*row.Index.split(), f"{row.seconds:.3g}"] for line in lines)
        assert (steps.loc[["plain NCHW", "plain loop", "ours loop"], "cost"] > 0).all()
    memory = measured[measured["part"] == "memory"]
    assert len(memory) == 3 and (memory[["held_mib", "held_ratio", "peak_mib"]] > 0).all().all()
    assert "on a GPU (bfloat16" in done.stdout
    assert all(f"{name}: not measured: timm is not installed" in done.stdout for name in missing)


@pytest.mark.long
def test_a_block_that_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that is not there is one way."""

    class Failing(GAM):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such compiler")

    monkeypatch.setitem(blocks.KNOWN, "failing", blocks.Subject(Failing, same="plain"))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    arguments = ["--quick", "--parts", "blocks", "--markdown", "--csv", str(tmp_path / "gam.csv")]
    subjects = ["ours", "failing", *blocks.BY_BACKEND]
    monkeypatch.setattr(sys, "argv", ["gam.py", "--device", "cpu", *arguments, "--subjects", ",".join(subjects)])
    with pytest.raises(SystemExit) as ended:
        gam.app()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "not everything could be measured" in printed.err and "no such compiler" in printed.out
    assert "| network | map | backend | plain, ms | ms | training | spread | forward | inference |" in printed.out
    table: Any = pd.read_csv(tmp_path / "gam.csv")
    assert "no such compiler" in table.loc[table["subject"] == "failing", "failed"].iloc[0]
    assert (table.loc[table["subject"] == "ours", "seconds"] > 0).all()
    for name in set(blocks.BY_BACKEND) & set(table.loc[table["failed"].isna(), "subject"]):
        assert set(table.loc[(table["subject"] == name) & (table["mode"] == "training"), "backend"]) == {name[5:]}


def test_what_is_measured_at_a_shape() -> None:
    first, deep, tiny = (blocks.shapes(name)[0] for name in ("ResNet-18 CIFAR", "ResNet-50 ImageNet", "tiny"))
    assert blocks.subjects(first) == list(blocks.SUBJECTS)
    assert blocks.subjects(deep, compiled=True, backends=True) == [
        *("plain", "plain channels_last", "ours", *blocks.BY_BACKEND),
        *("plain compiled", "ours compiled"),
    ]
    assert {"copied", "ours r=4"} < set(blocks.subjects(tiny)) < set(blocks.SUBJECTS)
    for name, one in blocks.KNOWN.items():
        assert {one.same, *one.bases} - {""} <= set(blocks.KNOWN), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parts", "blocks,all"), "parts='all': allowed: blocks, step, study, memory"),
        (("--shapes", "ResNet-19"), "shapes='ResNet-19': allowed: ResNet-18 ImageNet, ResNet-18 CIFAR"),
        (("--subjects", "our"), "subjects='our': allowed: all, compiled, plain, plain channels_last"),
        (("--seconds", "0"), "seconds='0': allowed: a whole number from 1"),
        (("--repetitions", "many"), "repetitions='many': allowed: a whole number from 1"),
        (("--device", "tpu"), "device='tpu': allowed here: auto, cpu"),
        (("--device", "cpu", "--amp"), "amp: allowed with device='cuda' only"),
        (("--dtype", "float16"), "dtype='float16': allowed: bfloat16, float32"),
    ],
)
def test_bad_options_of_gamlib_bench_are_refused_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gam.py", *arguments])
    assert message in refusal(gam.app, capsys)


def test_gamlib_bench_says_that_it_needs_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.paths.ROOT", tmp_path)
    done = CliRunner().invoke(cli.app, ["bench", "--quick"])
    assert done.exit_code == 2 and "benchmarks/gam.py: not there; gamlib bench needs" in done.output


@pytest.mark.long
def test_dispatch_is_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "dispatch.py"), "--no-slurm", "--folders", "4"]
    done = subprocess.run([*command, "--repetitions", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for what in ("status, all runs there are", "report"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(what))
        assert int(line.split()[-4]) == 4 and float(line.split()[-3]) > 0


@pytest.mark.long
def test_the_parts_of_a_step_and_of_a_run_are_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["step.py", "--quick", "--arms", "ch", "--csv", str(tmp_path / "step.csv")])
    with pytest.raises(SystemExit) as ended:
        step.app()
    assert ended.value.code in (0, None)
    table: Any = pd.read_csv(tmp_path / "step.csv").set_index(["of", "part"])
    for whole in ("step", "run"):
        parts = table.loc[whole]
        assert parts["value"].sum() == pytest.approx(2 * parts.loc[whole, "value"])
        assert (parts["arm"] == "ch").all()
        assert (parts["value"] > 0).all()  # a network with GAM has every part


@pytest.mark.long
def test_a_change_is_told_from_none_by_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rule of the optimiser changes the weights; the same again, and memory that nobody reads, nothing."""
    monkeypatch.setitem(changes.CHANGES, "dampened", changes._optimiser(dampening=True))
    (config,) = find_study("submodules").plan(seeds="0", arms="baseline", epochs=3, width=0.125).arms["baseline"]
    names = ["present", "again", "new memory filled with NaN", "dampened"]
    found = {row["change"]: row["other bits"] for row in changes.compare(config, names, 1)}
    assert found["again"] == found["new memory filled with NaN"] == found["present"] == "none"
    assert "weights" in found["dampened"]
