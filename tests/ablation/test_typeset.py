"""Tables as people read them: what stands in a cell, and what is bold."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from cells import code

from ablation.results import load, report, tables, typeset
from ablation.results.report import ANY_STUDY
from ablation.runs import Run
from ablation.studies import Plan, Study
from ablation.study_files import find_study

pytestmark = pytest.mark.slow

FinishAll = Callable[..., None]
CLEAR = {"baseline": [6.0, 7.0, 8.0], "ch": [7.1, 8.0, 9.05], "sp": [4.0, 5.05, 6.0], "ch+sp": [6.5, 6.0, 8.5]}
POOLING = {
    "baseline": [8.9, 8.0, 6.9],
    "baseline wmp": [5.6, 5.2, 4.45],
    "CBAM": [5.8, 5.2, 4.0],
    "CBAM wmp": [5.4, 6.2, None],
    "GAM": [5.3, 4.9, 4.7],
    "GAM wmp": [5.9, 5.6, 5.45],
    "CBAM gate wmp (ours)": [None] * 3,
    "GAM gate mp (ours)": [6.31, 5.9, 5.72],
}


def texts(plan: Plan) -> pd.DataFrame:
    found = load(plan)
    return typeset.for_reading(tables.summary(found), tables.differences(found))


def tex(plan: Plan) -> str:
    return typeset.latex(load(plan))


@pytest.fixture
def plan() -> Plan:
    return find_study("submodules").plan(seeds="0-2", arms=["baseline", "ch", "sp", "ch+sp"])


def test_every_cell_is_what_people_read(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, CLEAR)
    rows = texts(plan).set_index("Arm")
    assert rows.loc["sp"].to_dict() == {
        "Runs": "3 of 3",
        "Parameters": "2.800M",
        "FLOPs": "9.9M",
        "Images/s": "500",
        "Memory (MiB)": "640",
        "Top-1 error": "5.02 ± 2.49",
        "Top-5 error": "1.25 ± 0.62",
        "Difference": "−1.98 ± 0.07",
        "± seeds and images": "0.00",
        "P(better)": "1.00",
        "p (Holm)": "< 0.001",
        "Verdict": "better",
        "Paper top-1": "29.61",
        "Paper top-5": "10.41",
    }
    assert rows["Verdict"].tolist() == ["–", "worse", "better", "not told apart"]
    assert rows.loc["ch", "Difference"] == "+1.05 ± 0.12" and rows.loc["baseline", "Difference"] == "–"


def test_an_arm_that_is_compared_twice_has_two_rows(finish_all: FinishAll) -> None:
    plan = find_study("max_pooling").plan(seeds="0-2")
    finish_all(plan, POOLING)
    rows = texts(plan)
    gam = rows[rows["Arm"].eq("GAM") | rows["Arm"].eq("").shift(0)]
    assert gam["Reference"].tolist() == ["CBAM", "GAM gate mp (ours)"]
    assert gam["Verdict"].tolist() == ["not told apart", "better"]
    assert (gam.iloc[1].drop([name for name in typeset.COMPARED if name in rows]) == "").all()
    assert rows["Arm"].tolist() == [*list(POOLING)[:5], "", *list(POOLING)[5:]]
    assert (
        rows.set_index("Arm").loc["CBAM gate wmp (ours)"].drop(["Runs", "Reference"]).isin(["–", "not measured"]).all()
    )
    bold = [line for line in tex(plan).splitlines() if r"\bfseries" in line]
    assert len(bold) == 2 and bold[0].startswith("baseline wmp") and bold[0].count(r"\bfseries") == 3
    assert bold[1].startswith(" &") and bold[1].count(r"\bfseries") == 2  # its top-1 error stands in the row above


def test_values_are_shown_as_they_were_given() -> None:
    study = Study(name="own", arms={"16": {"reduction": 16}, "4": {"reduction": 4, "lr": 0.02}})
    (cell,) = (text for text in code(ANY_STUDY) if "plan.values" in text)
    namespace: dict[str, Any] = {"plan": study.plan(seeds=0), "typeset": typeset, "pd": pd}
    exec(cell.replace("\ntypeset", "\nshown = typeset"), namespace)
    html = namespace["shown"].to_html()
    assert ">16<" in html and ">4<" in html and ">0.02<" in html and "16.0" not in html and "All arms: " in html


def test_only_what_the_corrected_test_calls_better_is_bold(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, CLEAR)
    (bold,) = (line for line in tex(plan).splitlines() if r"\bfseries" in line)
    assert bold.startswith("sp &") and r"\bfseries 5.02 $\pm$ 2.49 &" in bold and r"\bfseries $-$1.98" in bold
    html = typeset.styled(load(plan)).to_html()
    assert html.count("font-weight: bold") == 1  # one rule, and it is for these three cells:
    (cells,) = (line for line in html.splitlines() if line.startswith("#T_") and line.endswith("{") and "_row" in line)
    assert {cell.strip(" {").split("_row")[-1] for cell in cells.split(",")} == {"2_col6", "2_col8", "2_col12"}


@pytest.mark.parametrize(
    "errors",
    [
        {"ch": [7.1, 8.0, 9.05], "sp": [7.0, 8.1, 9.2], "ch+sp": [8.0, 9.1, 10.0]},  # all worse
        {"ch": [5.1, 6.9, 7.0], "sp": [4.0, 7.1, 5.0], "ch+sp": [1.0, 5.0, 7.5]},  # lower, and not told apart
        {"ch": [1.0, None, None], "sp": [None] * 3, "ch+sp": [None] * 3},  # one seed says nothing
    ],
)
def test_a_table_without_anything_better_has_nothing_bold(
    plan: Plan, finish_all: FinishAll, errors: dict[str, list[float]]
) -> None:
    finish_all(plan, CLEAR | errors)
    assert "bfseries" not in tex(plan) and not texts(plan)["Verdict"].isin(["better"]).any()
    assert "bold;" not in typeset.styled(load(plan)).to_html()


def test_what_is_better_alone_and_not_among_three_is_not_bold(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, CLEAR | {"ch": [5.0, 5.5, 5.9], "sp": [6.5, 6.0, 8.5]})
    compared = tables.differences(load(plan)).set_index("arm")
    assert float(compared["p"]["ch"]) < 0.05 < float(compared["p_corrected"]["ch"])
    assert "bfseries" not in tex(plan)


def test_an_unknown_column_is_left_out_and_an_older_csv_is_read(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, CLEAR)
    table = tables.summary(load(plan))
    older = table.drop(columns=["flops", "images_per_second", "peak_memory_mib"])
    assert list(typeset.for_reading(older)) == [
        *("Arm", "Runs", "Parameters", "Top-1 error", "Top-5 error", "Paper top-1", "Paper top-5")
    ]
    large = table.assign(flops=[1.8e9, 1.9e9, 2e9, 2.461293568e9])
    assert typeset.for_reading(large)["FLOPs"].tolist() == ["1.800G", "1.900G", "2.000G", "2.461G"]


def test_names_are_shown_as_they_are_on_the_screen_and_in_tex(finish_all: FinishAll) -> None:
    plan = Study(name="own", arms={"a_b & 50 %": {}, "<i>^~|\\{x}": {"reduction": 8}}).plan(seeds="0-1")
    finish_all(plan, {arm: [5.0, 6.0] for arm in plan.arms})
    html = typeset.styled(load(plan)).to_html()
    assert "a_b &amp; 50 %" in html and "&lt;i&gt;^~|\\{x}" in html and "<i>" not in html
    written = tex(plan)
    assert r"a\_b \& 50 \%" in written
    assert r"$<$i$>$\textasciicircum{}\textasciitilde{}\textbar{}\textbackslash{}\{x\}" in written


def test_the_table_on_the_screen_names_what_it_could_not_use(plan: Plan, finish_all: FinishAll) -> None:
    finish_all(plan, CLEAR)
    (Run(plan.arms["sp"][0]).folder / "result.json").write_text("{")
    html = typeset.styled(load(plan)).to_html()
    assert "11 of 12 runs are done" in html and "Not used: digits/resnet18-gam-sp-s0" in html


def test_tables_say_labels_and_csv_files_the_names_of_arms(finish_all: FinishAll) -> None:
    arms = {"a": {"label": "b"}, "b": {"reduction": 8, "label": "GAM, r = 8"}}
    plan = Study(name="own", arms=arms, dataset={"path": "digits", "name": "Digits 32"}).plan(seeds="0-1")
    finish_all(plan, {"a": [6.0, 7.0], "b": [4.0, 4.5]})
    found = load(plan)
    assert tables.by_image(found.labelled())["arm"].tolist() == ["GAM, r = 8"] * 2
    for text in (tex(plan), typeset.styled(found).to_html()):
        assert "GAM, r = 8" in text and "minus that of b in points" in text and "Digits 32, resnet18" in text
    paths = {path.name: path.read_text() for path in report.export_tables(found)}
    assert [line.split(",")[0] for line in paths["own-digits.csv"].splitlines()] == ["arm", "a", "b"]
    assert paths["own-digits-differences.csv"].splitlines()[1].startswith("b,a,")
