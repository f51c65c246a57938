"""What a study declares: what is refused, how it is said, and from when it counts as declared."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablation import paths, until_decided
from ablation.errors import ConfigError
from ablation.hypotheses import Declared, Hypotheses, declared_in_words, in_words
from ablation.results import load, tables
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
    assert in_words(Hypotheses(compare=pairs)) == (
        "p of Welch's t-test, two-sided, corrected by Holm for its one comparison; decided below 0.05."
    )
    full = Hypotheses(compare=[*pairs, ("a", "c")], test="paired", alpha=0.01, margin=0.5, looks=[4, 8, 12])
    assert in_words(full) == (
        "p of the paired t-test, two-sided, corrected by Holm for all 2 comparisons; equal: within 0.5 points, by two "
        "one-sided tests, corrected along; looks at 4, 8 and 12 seeds, alpha spent as by O'Brien and Fleming; decided "
        "below 0.01."
    )
    assert "looks at 4 seeds" in in_words(full.model_copy(update={"looks": [4]}))


def test_a_declaration_in_words() -> None:
    now: dict[str, Any] = {"test": "welch", "margin": None, "arms": {"gam": {}}}
    assert declared_in_words(None, now, 0, [0]) == "This test was not declared before the runs."
    made = Declared(at="now", seeds=[0, 1])
    assert declared_in_words(made, now, 0, [0, 1]) == "This test was declared before the first run."
    assert declared_in_words(made, now, 3, [0, 1]) == "This test was declared when 3 of the runs had begun."
    assert declared_in_words(made, now, 0, [2, 3, 4]).endswith(
        "first run. It was declared for seeds 0 and 1, and these are 2, 3 and 4."
    )
    changed = made.model_copy(update={"before": [now | {"margin": 1.0, "arms": {}}, now]})
    assert declared_in_words(changed, now, 0, [0, 1]).endswith(
        "first run. Before, and when runs had begun, margin was 1.0, an arm was another."
    )
    back = made.model_copy(update={"before": [now, now | {"margin": 1.0}]})
    assert declared_in_words(back, now, 0, [0, 1]).endswith("it was changed, and changed back.")


def declared(name: str = "own") -> Declared:
    found = Plan.load(name).declared
    assert found is not None
    return found


def an_hour_passes() -> None:
    """What has been submitted was so an hour ago."""
    for path in (paths.runs_root() / "studies").glob("*.json"):
        content = json.loads(path.read_text())
        at = datetime.fromisoformat(content["declared"]["at"]) - timedelta(hours=1)
        path.write_text(json.dumps(content | {"declared": content["declared"] | {"at": at.isoformat()}}))


def said() -> str:
    return tables.note(load(Plan.load("own")))


def test_what_is_submitted_before_its_first_run_is_declared(finish_all: FinishAll) -> None:
    plan = study().plan(seeds="0-1")
    plan.save()
    an_hour_passes()
    first = declared()
    finish_all(plan, {arm: [5.0, 6.0] for arm in ARMS})
    study(compare=[("se", "plain"), ("gam", "plain")]).plan(seeds="0-1").save()  # the same in another order
    assert declared() == first and (first.seeds, first.before) == ([0, 1], [])
    assert said().endswith("This test was declared before the first run.")


def test_a_test_that_is_declared_late_says_how_late(finish_all: FinishAll) -> None:
    plan = study().plan(seeds="0-1")
    finish_all(plan, {arm: [5.0, 6.0] for arm in ARMS})
    plan.save()
    assert "This test was declared when 6 of the runs had begun." in said()


def test_runs_that_were_known_count_as_begun_whatever_was_declared_before_them(finish_all: FinishAll) -> None:
    """A plan of another seed was declared first, and has its run; the seeds that are then asked for were known."""
    known = study().plan(seeds="0-1")
    finish_all(known, {arm: [5.0, 6.0] for arm in ARMS})
    study().plan(seeds="6").save()
    finish_all(study().plan(seeds="6"), {arm: [5.0] for arm in ARMS})
    known.save()
    assert declared().seeds == [6]
    assert "declared when 6 of the runs had begun. It was declared for seeds 6, and these are 0 and 1." in said()


def test_a_test_that_is_changed_after_its_first_run_says_so_for_good(finish_all: FinishAll) -> None:
    study(test="paired").plan(seeds="0-1").save()
    study(alpha=0.01).plan(seeds="0-1").save()  # before any run: nobody has seen anything
    assert declared().before == []
    finish_all(study().plan(seeds="0-1"), {arm: [5.0, 6.0] for arm in ARMS})
    study(alpha=0.1).plan(seeds="0-1").save()
    (before,) = declared().before
    assert (before["test"], before["alpha"]) == ("welch", 0.01)
    assert "Before, and when runs had begun, alpha was 0.01." in said()
    study(alpha=0.01).plan(seeds="0-1").save()  # nor does going back undo it
    assert [of["alpha"] for of in declared().before] == [0.01, 0.1]
    assert "it was changed, and changed back." in said()


def test_other_arms_and_other_values_are_another_declaration(finish_all: FinishAll) -> None:
    study().plan(seeds="0-1").save()
    finish_all(study().plan(seeds="0-1"), {arm: [5.0, 6.0] for arm in ARMS})
    study().plan(seeds="0-1", lr=0.02).save()
    assert [of["overrides"] for of in declared().before] == [{}]
    Study(name="own", arms=ARMS | {"se": {"attention": "cbam"}}).plan(seeds="0-1").save()
    assert len(declared().before) == 1, "no run with lr=0.02 has begun"


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
    assert declared().before == [], "nothing was declared that could have been changed"


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


def test_seeds_that_were_added_after_the_first_run_are_named(finish_all: FinishAll) -> None:
    """They are part of the declaration as long as nothing has begun."""
    own = study()
    own.plan(seeds="0-2").save()
    own.plan(seeds="0-1").save()
    an_hour_passes()
    finish_all(own.plan(seeds="0-1"), {arm: [5.0, 6.0] for arm in ARMS})
    own.plan(seeds="0-2").save()
    assert declared().seeds == [0, 1]
    assert "before the first run. It was declared for seeds 0 and 1, and these are 0, 1 and 2." in said()
