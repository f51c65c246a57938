"""What a study declares: what is refused, how it is said, and from when it counts as declared."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablation import paths, until_decided
from ablation.errors import ConfigError
from ablation.hypotheses import Declared, Hypotheses, in_words
from ablation.results import load, tables
from ablation.runs import Run
from ablation.studies import Plan, Study
from ablation.study_files import find_study

FinishAll = Callable[..., None]
ARMS: dict[str, Any] = {"plain": {"attention": "none"}, "gam": {}, "se": {"attention": "se"}}


def study(**hypotheses: Any) -> Study:
    return Study(name="own", arms=ARMS, **hypotheses)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"looks": [4, 4]}, "looks=[4, 4]: allowed: ascending numbers of seeds from 2, such as [4, 8, 12]"),
        ({"looks": [8, 4]}, "looks=[8, 4]: allowed: ascending"),
        ({"looks": [1, 4]}, "looks=[1, 4]: allowed: ascending"),
        ({"equivalence": []}, "equivalence: allowed with a margin, the points that make no difference"),
        ({"alpha": 0}, "alpha=0: allowed: from 0.0001 to 0.2, of all comparisons together"),
        ({"alpha": 0.5}, "alpha=0.5: allowed: from 0.0001 to 0.2"),
        ({"margin": -1}, "margin=-1: allowed: points of top-1 error above 0"),
        ({"margin": 0}, "margin=0: allowed: points of top-1 error above 0"),
        ({"test": "student"}, "test='student': allowed: welch, paired"),
        (
            {"margin": 1, "compare": [("gam", "plain"), ("se", "plain")], "equivalence": [("gam", "se")]},
            "equivalence=[gam, se]: allowed: pairs of compare, [gam, plain], [se, plain]",
        ),
    ],
)
def test_hypotheses_that_nothing_could_decide_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    for of in (Hypotheses, study):
        with pytest.raises(ConfigError) as refusal:
            of(**values)
        assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_margin_is_for_all_comparisons_or_for_some() -> None:
    pairs = [("gam", "plain"), ("se", "plain")]
    every, some = study(margin=0.5), study(margin=0.5, equivalence=pairs[1:])
    assert [every.margin_of(pair) for pair in pairs] == [0.5, 0.5]
    assert [some.margin_of(pair) for pair in pairs] == [None, 0.5]
    assert study().margin_of(pairs[0]) is None


def test_equality_is_asked_for_at_each_point_of_a_grid() -> None:
    pairs: dict[str, Any] = {"compare": [("gam", "plain"), ("se", "plain")], "equivalence": [("se", "plain")]}
    crossed = study(margin=0.5, grid={"lr": [0.1, 0.2]}, **pairs)
    assert crossed.equivalence == [(f"se, lr={lr}", f"plain, lr={lr}") for lr in (0.1, 0.2)]
    assert {*crossed.equivalence} < {*crossed.compare} and len(crossed.compare) == 4


def test_a_label_is_what_its_pairs_are_called_in_tables() -> None:
    arms = {"plain": {"attention": "none"}, "gam": {"label": "GAM"}}
    plan = Study(name="own", arms=arms, margin=1, equivalence=[("gam", "plain")]).plan(seeds=0).labelled()
    assert plan.study.compare == plan.study.equivalence == [("GAM", "plain")]


def test_the_test_of_a_study_in_words() -> None:
    pairs = [("a", "b")]
    assert in_words(Hypotheses(compare=pairs), None) == (
        "p of Welch's t-test, two-sided, corrected by Holm for its one comparison; decided below 0.05. This test was "
        "not declared before the runs."
    )
    full = Hypotheses(compare=[*pairs, ("a", "c")], test="paired", alpha=0.01, margin=0.5, looks=[4, 8, 12])
    assert in_words(full, Declared(at="now", begun=0)) == (
        "p of the paired t-test, two-sided, corrected by Holm for all 2 comparisons; equal: within 0.5 points, by two "
        "one-sided tests, corrected along; looks at 4, 8 and 12 seeds, alpha spent as by O'Brien and Fleming; decided "
        "below 0.01. This test was declared before the first run."
    )
    assert in_words(full, Declared(at="now", begun=3)).endswith("was declared when 3 of the runs had begun.")
    changed = Declared(at="now", begun=3, before=[{"test": "welch"}, {"test": "paired"}])
    assert in_words(full, changed).endswith("was changed after its first run: declared was {'test': 'welch'}.")
    assert "looks at 4 seeds" in in_words(full.model_copy(update={"looks": [4]}), None)


def declared(name: str = "own") -> Declared:
    found = Plan.load(name).declared
    assert found is not None
    return found


def test_what_is_submitted_before_its_first_run_is_declared(finish_all: FinishAll) -> None:
    plan = study().plan(seeds="0-1")
    plan.save()
    first = declared()
    assert (first.begun, first.before) == (0, [])
    finish_all(plan, {arm: [5.0, 6.0] for arm in ARMS})
    study().plan(seeds="0-1").save()
    assert declared() == first
    assert "declared before the first run" in tables.note(load(Plan.load("own")))


def test_a_test_that_is_declared_late_says_how_late(finish: Callable[..., Run]) -> None:
    plan = study().plan(seeds="0-1")
    finish(plan.configs[0], 5.0)
    Run(plan.configs[1]).queue()
    plan.save()
    assert (declared().begun, declared().before) == (1, [])


def test_a_test_that_is_changed_after_its_first_run_says_so_for_good(finish_all: FinishAll) -> None:
    study(test="paired").plan(seeds="0-1").save()
    study(alpha=0.01).plan(seeds="0-1").save()  # before any run: nobody has seen anything
    assert declared().before == []
    finish_all(study().plan(seeds="0-1"), {arm: [5.0, 6.0] for arm in ARMS})
    study(alpha=0.1).plan(seeds="0-1").save()
    (before,) = declared().before
    assert (before["test"], before["alpha"], declared().begun) == ("welch", 0.01, 6)
    study(alpha=0.01).plan(seeds="0-1").save()  # nor does going back undo it
    assert [of["alpha"] for of in declared().before] == [0.01, 0.1]
    assert "changed after its first run: declared was {'compare': " in tables.note(load(Plan.load("own")))


def test_a_plan_from_before_there_were_declarations_is_read_as_paired(finish_all: FinishAll) -> None:
    plan = study(test="paired").plan(seeds="0-1")
    finish_all(plan, {arm: [5.0, 6.0] for arm in ARMS})
    new = {*Hypotheses.model_fields} - {"compare"}
    text = plan.model_dump_json(exclude={"study": new, "declared": True, "submitted": True})
    (paths.runs_root() / "studies").mkdir(parents=True)
    (paths.runs_root() / "studies" / "own-digits.json").write_text(text)
    old = Plan.load("own")
    assert (old.study.test, old.declared) == ("paired", None)
    study(test="welch").plan(seeds="0-1").save()
    assert [of["test"] for of in declared().before] == ["paired"]


def test_a_study_that_extends_one_has_a_test_of_its_own(tmp_path: Path) -> None:
    """That of a study whose runs have been seen is not inherited."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: submodules\n")
    assert (find_study("submodules").test, find_study(str(path)).test) == ("paired", "welch")
    path.write_text("extends: submodules\ntest: paired\nmargin: 0.5\nlooks: [3, 6]\n")
    mine = find_study(str(path))
    assert (mine.test, mine.margin, mine.looks) == ("paired", 0.5, [3, 6])


def test_the_example_of_the_documentation_is_sound(tmp_path: Path, committed: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (committed / "docs" / "statistics.md").read_text(), re.S)
    (path := tmp_path / "mine.yaml").write_text(block)
    plan = find_study(str(path)).plan()
    until_decided.check(plan)
    assert {*yaml.safe_load(block)} == {*Hypotheses.model_fields, "arms", "seeds"}  # every field is shown


def test_seeds_that_were_added_after_the_first_run_are_named(finish: Callable[..., Run]) -> None:
    """They are part of the declaration as long as nothing has begun, and where looks are declared."""
    own = study()
    own.plan(seeds="0-2").save()
    own.plan(seeds="0-3").save()
    for number, config in enumerate(Plan.load("own").configs):
        finish(config, 5.0 + number % 5)
    own.plan(seeds="0-5").save()
    declared = Plan.load("own").declared
    assert declared is not None and (declared.seeds, declared.begun) == (4, 0)
    added = " It was declared for 4 seeds; 6 are counted, and p takes no account of that."
    assert in_words(own, declared, 6).endswith(f"declared before the first run.{added}")
    assert added in tables.note(load(Plan.load("own")))
    assert added not in in_words(own, declared, 4)
    assert added not in in_words(own.model_copy(update={"looks": [2, 6]}), declared, 6)
