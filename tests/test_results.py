"""RESULTS.md, the recipes of docs/data.md and README's words on results, against the data: tables are as exported,
numbers stand in the data.

A table of these pages stands below a comment with the file that it shows, `figures/<name>.csv`; a column of another
file is named in a comment above that. Below `figures/data` stands what was computed of each published study, below a
table of published runs how the submodules combine in them.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from ablation.paths import NOTEBOOKS
from ablation.results import load, publication, statistics, tables, typeset
from ablation.studies import Plan
from gamlib import paper

TABLE = r"<!-- (\S+) -->\n\n((?:\|.*\n)+)"
COLUMN = r"<!-- (\S+), quiet of (\S+) -->\n<!-- (\S+) -->"
SUBMODULES = "figures/data/submodules-cpu-imagefolder-cifar10-jpeg-runs.csv"


@pytest.fixture
def text(committed: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """RESULTS.md and how recipes were chosen, without their marks; published is what is committed."""
    monkeypatch.setenv("GAM_FIGURES", str(committed / "figures"))
    recipes = (committed / "docs" / "data.md").read_text().partition("\n## How the recipes of ")[2]
    return re.sub(r"[`*]", "", (committed / "RESULTS.md").read_text() + recipes)


def shown(text: str) -> dict[str, str]:
    """Its tables by what they show."""
    return dict(re.findall(TABLE, text))


def computed() -> pd.DataFrame:
    """What was computed of each published study: runs and how they ended, time, code, machine."""
    rows = []
    for plan in publication.published():
        found = load(plan, publication.data_folder())
        runs, origins = found.runs, found.origins
        ended = runs.loc[runs["state"] != "done", "state"].value_counts()
        rows.append(
            {
                "Study": plan.study.name,
                "Runs done": f"{(runs['state'] == 'done').sum()} of {len(runs)}",
                "Others": ", ".join(f"{number} {state}" for state, number in ended.items()) or "none",
                "Begun more than once": str(((runs["state"] == "done") & (runs["attempts"] > 1)).sum()),
                "Hours of training": f"{runs['seconds'].sum() / 3600:.1f}",
                "Last run ended": runs["ended"].max()[:10],
                "Commits": ", ".join(sorted(origins["commit"].str[:7].unique())),
                "Processor": ", ".join(sorted(origins["device"].unique())),
                "Test": plan.study.test,
                "Declared": declared(plan),
            }
        )
    return pd.DataFrame(rows)


def declared(plan: Plan) -> str:
    """When the test of a plan was declared."""
    if plan.declared is None:
        return "no"
    if plan.declared.before:
        return "changed after the first run"
    begun = tables.begun_before(load(plan, publication.data_folder()))
    return f"after {begun} runs" if begun else "before the first run"


def combined() -> pd.DataFrame:
    """How the submodules combine in the published runs, as the cell of 2_submodules.ipynb has it."""
    (plan,) = publication.published(["submodules-cpu"])
    namespace: dict[str, Any] = {
        "found": load(plan, publication.data_folder()),
        "statistics": statistics,
        "Markdown": str,
    }
    (cell,) = (cell for cell in nbformat.read(NOTEBOOKS / "2_submodules.ipynb", 4).cells if "added_up =" in cell.source)
    exec(cell.source, namespace)
    compared: pd.DataFrame = namespace["compared"]
    return compared


def test_every_table_is_the_exported_one(text: str, committed: Path) -> None:
    for name, table in shown(text).items():
        columns = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
        if name == "figures/data":
            exported = computed()
        elif name == SUBMODULES:
            exported = typeset.comparisons(combined())
        else:
            frames = [pd.read_csv(committed / f"{name[:-4]}{part}.csv") for part in ("", "-differences")]
            exported = typeset.for_reading(*frames)
            for column, file, to in re.findall(COLUMN, text):
                if to == name:
                    other = typeset.for_reading(pd.read_csv(committed / file)).set_index("Arm")[column]
                    exported[f"{column}, quiet"] = exported["Arm"].map(other).fillna("")
        assert typeset.markdown(exported[columns]) == table.rstrip("\n"), name


def test_every_published_study_is_there_with_all_its_arms_and_comparisons(text: str) -> None:
    """Of what chose the recipe, on validation images, the arms are enough."""
    plans = publication.published()
    beside = {file for _, file, _ in re.findall(COLUMN, text)}
    tables_shown = {"figures/data", SUBMODULES} | {f"figures/{plan.name}.csv" for plan in plans} - beside
    assert shown(text).keys() == tables_shown
    for plan in (plan for plan in plans if f"figures/{plan.name}.csv" in tables_shown):
        tested = "| Verdict |" in shown(text)[f"figures/{plan.name}.csv"]
        assert tested or plan.configs[0].evaluate_on == "validation", plan.name


def known(text: str, figures: Path) -> set[str]:
    """The numbers of its tables and of the paper's; the ends of intervals, and p, behind those tables."""
    behind = [pd.read_csv(path) for path in figures.glob("*-differences.csv")] + [combined()]
    numbers = pd.concat([frame[["low", "high", "p"]].melt()["value"].abs() for frame in behind])
    numbers = pd.concat([numbers, pd.DataFrame(paper.table()).select_dtypes("number").melt()["value"]]).dropna()
    there = {f"{number:.{digits}f}" for number in numbers for digits in (2, 3)}
    return there | {*re.findall(r"\d+\.\d+", "".join(shown(text).values()))}


def test_what_another_test_would_say(text: str) -> None:
    """What the page says of verdicts that rest on the choice of the test."""

    def verdicts(study: str, test: str) -> "pd.Series[str]":
        (plan,) = publication.published([study])
        runs = load(plan, publication.data_folder()).runs
        return statistics.compare(runs, plan.study.model_copy(update={"test": test}))["verdict"]

    assert "By the paired test none of the six would be called better" in text
    assert verdicts("benchmark-cpu", "paired").str.startswith("not told apart").sum() == 6
    assert "by Welch's five of the ablations' thirteen comparisons would have a verdict" in text
    ablations = pd.concat([verdicts(study, "welch") for study in ("submodules-cpu", "max_pooling-cpu")])
    assert len(ablations) == 13 and ablations.isin(["better", "worse"]).sum() == 5


def test_no_number_in_the_text_is_from_elsewhere(text: str, committed: Path) -> None:
    """Those with two decimals or more: errors, differences, p, learning rates; of README, its part on these results."""
    readme = (committed / "README.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
    there = known(text, committed / "figures")
    cells = {cell.strip() for table in shown(text).values() for cell in table.split("|")}
    for page in (re.sub(TABLE, "", text), readme):
        prose = re.sub(r"\(http[^)]*\)|arXiv \S+", "", page)
        assert (found := re.findall(r"\d+\.\d{2,}", prose)) and not {*found} - there
        assert (means := re.findall(r"[+−]?\d+\.\d+ ± \d+\.\d+", prose)) and not {*means} - cells
