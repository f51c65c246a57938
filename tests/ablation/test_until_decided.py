"""Studies that go on until they are decided: what is refused, which runs are next, and what stays of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ablation.cli import app
from ablation.errors import ConfigError
from ablation.execution.progress import Progress
from ablation.results import load, tables
from ablation.runs import Run
from ablation.studies import Plan, Study
from ablation.study_files import find_study
from ablation.until_decided import check, next_look, run_until_decided

ARMS: dict[str, Any] = {"plain": {"attention": "none"}, "gam": {}, "se": {"attention": "se"}}
# of seeds 0 to 5: gam differs clearly, so that two seeds do not decide it and four do; se is as plain
ERRORS = {
    "plain": [9.0, 9.5, 9.2, 9.4, 9.1, 9.3],
    "gam": [5.0, 5.4, 5.2, 5.1, 5.3, 5.2],
    "se": [9.4, 9.0, 9.3, 9.1, 9.5, 9.2],
}
Finish = Callable[..., Run]


def plan(seeds: str = "0-5", arms: Any = (), **hypotheses: Any) -> Plan:
    study = Study(name="own", arms=ARMS, base={"epochs": 1}, **{"looks": [2, 4, 6], **hypotheses})
    return study.plan(seeds=seeds, arms=arms)


def sizes(part: Plan) -> dict[str, int]:
    return {arm: len(configs) for arm, configs in part.arms.items()}


class Executes:
    """Stands in for training: what is asked for is done at once, with the errors of a table."""

    def __init__(self, finish: Finish, errors: Mapping[str, list[float]] = ERRORS, most: int = 100) -> None:
        self.finish, self.errors, self.most = finish, errors, most
        self.asked: list[dict[str, int]] = []

    def __call__(self, part: Plan) -> Progress:
        part.save()
        self.asked.append(sizes(part))
        progress = Progress([Run(config) for config in part.configs])
        for arm, configs in part.arms.items():
            for config in configs:
                if Run(config).result() is None:
                    if not self.most:
                        raise KeyboardInterrupt
                    self.most -= 1
                    self.finish(config, self.errors[arm][config.seed])
        return progress


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"looks": []}, "until_decided: own declares no looks; allowed: one with, say, looks: [4, 8, 12]"),
        ({"seeds": "0-6"}, "seeds: 7 of them: allowed with looks=[2, 4, 6]: 6"),
        ({"seeds": "0-3"}, "seeds: 4 of them: allowed with looks=[2, 4, 6]: 6"),
        ({"compare": []}, "until_decided: own compares none of these arms"),
        ({"arms": "gam"}, "until_decided: own compares none of these arms"),
    ],
)
def test_a_study_that_cannot_go_on_until_it_is_decided_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(plan(**values))
    assert str(refusal.value) == message
    check(plan())


def test_the_first_look_is_of_all_arms(finish: Finish) -> None:
    part, compared, over = next_look(plan())
    assert sizes(part) == {"plain": 2, "gam": 2, "se": 2} and compared.empty and not over
    assert [config.seed for config in part.configs] == [0, 0, 0, 1, 1, 1]
    finish(part.configs[0], 9.0)
    assert next_look(plan())[0] == part  # until all of its runs are done


def test_an_arm_whose_comparisons_are_decided_gets_no_more_seeds(
    finish: Finish, capsys: pytest.CaptureFixture[str]
) -> None:
    executes = Executes(finish)
    progress = run_until_decided(plan(), executes, wait=True)
    assert executes.asked == [dict.fromkeys(ARMS, 2), dict.fromkeys(ARMS, 4), {"plain": 6, "gam": 4, "se": 6}]
    assert len(progress.runs) == 16
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith(" ")] == [
        f"own-digits, {number} of 6 seeds:" for number in (2, 4, 6)
    ]
    assert [line.partition(": ")[2] for line in said if "gam against plain" in line] == [
        "undecided by 2 of 6 seeds",
        "better",
        "better",
    ]
    assert [line.partition(": ")[2] for line in said if "se against plain" in line] == [
        "undecided by 2 of 6 seeds",
        "undecided by 4 of 6 seeds",
        "not told apart by 6 seeds",
    ]


def test_a_study_of_which_all_is_decided_ends_early(finish: Finish) -> None:
    executes = Executes(finish)
    run_until_decided(plan(arms=["plain", "gam"]), executes, wait=True)
    assert executes.asked == [{"plain": 2, "gam": 2}, {"plain": 4, "gam": 4}]
    part, compared, over = next_look(plan(arms=["plain", "gam"]))
    assert over and sizes(part) == {"plain": 4, "gam": 4}
    assert compared["verdict"].tolist() == ["better", "not measured"]  # which counts among the comparisons


def test_equality_within_a_declared_margin_decides_too(finish: Finish) -> None:
    executes = Executes(finish)
    run_until_decided(plan(margin=2), executes, wait=True)
    assert executes.asked[-1] == dict.fromkeys(ARMS, 4)
    assert next_look(plan(margin=2))[1]["verdict"].tolist() == ["better", "equal within 2 points"]


@pytest.mark.parametrize("most", [0, 1, 5, 6, 7, 11, 14])
def test_what_was_interrupted_goes_on_with_the_same_runs(finish: Finish, most: int) -> None:
    stopped = Executes(finish, most=most)
    with pytest.raises(KeyboardInterrupt):
        run_until_decided(plan(), stopped, wait=True)
    again = Executes(finish)
    run_until_decided(plan(), again, wait=True)
    whole = [dict.fromkeys(ARMS, 2), dict.fromkeys(ARMS, 4), {"plain": 6, "gam": 4, "se": 6}]
    assert stopped.asked == whole[: len(stopped.asked)]
    assert again.asked == whole[len(stopped.asked) - 1 :]


def test_a_second_submission_of_what_is_over_asks_for_nothing_new(finish: Finish) -> None:
    run_until_decided(plan(), Executes(finish), wait=True)
    nothing = Executes(finish, most=0)
    run_until_decided(plan(), nothing, wait=True)
    assert nothing.asked == [{"plain": 6, "gam": 4, "se": 6}]


def test_without_waiting_the_runs_of_one_look_are_submitted(finish: Finish) -> None:
    executes = Executes(finish)
    for number in range(1, 4):
        run_until_decided(plan(), executes, wait=False)
        assert len(executes.asked) == number


def test_a_run_that_fails_ends_it_at_its_look(finish: Finish) -> None:
    class Fails(Executes):
        def __call__(self, part: Plan) -> Progress:
            progress = super().__call__(part)
            progress.failed[progress.runs[0]] = "loss is nan"
            return progress

    executes = Fails(finish)
    assert run_until_decided(plan(), executes, wait=True).failed and len(executes.asked) == 1


def test_status_and_report_see_the_runs_that_were_asked_for(finish: Finish) -> None:
    executes = Executes(finish)
    run_until_decided(plan(), executes, wait=True)
    saved = Plan.load("own")
    assert sizes(saved) == executes.asked[-1] and saved.seeds == list(range(6))
    assert saved.declared is not None and saved.declared.before == []
    status = CliRunner().invoke(app, ["status", "own"])
    assert status.exit_code == 0 and "16 done" in status.output and "missing" not in status.output
    found = load(saved)
    assert len(found.runs) == 16 and (found.runs["state"] == "done").all()
    assert tables.differences(found)["verdict"].tolist() == ["better", "not told apart by 6 seeds"]
    assert tables.differences(found)["seeds"].tolist() == [4, 6]
    assert "looks at 2, 4 and 6 seeds" in tables.note(found)


SMALL = """
base: {epochs: 1, width: 0.25, train_fraction: 0.1}
seeds: 0-2
looks: [2, 3]
arms:
  plain: {attention: none}
  ch: {submodules: ch}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_the_command_trains_what_a_look_lacks_and_once(tmp_path: Path, finish: Finish) -> None:
    (file := tmp_path / "small.yaml").write_text(SMALL)
    for config, error in zip(find_study(str(file)).plan(seeds="0-1").configs, (60.0, 61.0, 62.0, 59.0), strict=True):
        finish(config, error)
    command = ["study", str(file), "--until-decided", "--workers", "1"]
    first, second = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    for number in (2, 3):
        assert f"small-digits, {number} of 3 seeds:\n    ch against plain: " in first.output
    assert "6 of 6 runs done, 4 of them before" in first.output
    assert "6 of 6 runs done, 6 of them before" in second.output
    assert len(load(Plan.load("small")).done) == 6


@pytest.mark.usefixtures("counted")
def test_the_command_refuses_before_anything_is_written(tmp_path: Path, places: Path) -> None:
    (file := tmp_path / "small.yaml").write_text(SMALL)
    for arguments, message in (
        ((str(file), "--seeds", "0-3"), "seeds: 4 of them: allowed with looks=[2, 3]: 3"),
        (("submodules",), "until_decided: submodules declares no looks"),
    ):
        done = CliRunner().invoke(app, ["study", *arguments, "--until-decided"])
        assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1) and message in done.output
    assert not (places / "runs" / "studies").exists()
