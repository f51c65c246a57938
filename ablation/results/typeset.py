"""Tables as people read them: on a screen, in a notebook, in a paper."""

import html
import math

import pandas as pd
from pandas.io.formats.style import Styler

from ablation.results import tables
from ablation.results.frames import Results
from ablation.studies import Plan

NOTHING = "–"
VERDICTS = {"nothing can be said of one seed": "one seed"}
WORDS = ("Arm", "Reference", "Verdict")  # columns set to the left
BOLD = ("Top-1 error", "Difference", "Verdict")  # where a row says that its arm is better than its reference
# What TeX reads otherwise than people do, and what its fonts lack.
_TEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {"<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--"}
    | {"≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$"}
)


def for_reading(table: pd.DataFrame, compared: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every cell as the text that people read: a row an arm, and one more for each further comparison of an arm.

    Args:
        table: of `tables.summary`, or its CSV; a column of which nothing is known is left out.
        compared: of `tables.differences`, or its CSV.
    """

    def column(key: str, digits: int, unit: float = 1, letter: str = "") -> list[str]:
        values = table[key] if key in table else [math.nan] * len(table)
        return [_number(value / unit, digits) + letter * (not math.isnan(value)) for value in values]

    def errors(key: str) -> list[str]:
        pairs = zip(table[f"{key}_error"], table[f"{key}_half"], strict=True)
        return [_plus_minus(_number(mean, 2), half) for mean, half in pairs]

    large = "flops" in table and table["flops"].max() >= 1e9
    texts = pd.DataFrame(
        {
            "Arm": table["arm"],
            "Runs": [f"{done} of {runs}" for done, runs in zip(table["done"], table["runs"], strict=True)],
            "Parameters": column("parameters", 3, 1e6, "M"),
            "FLOPs": column("flops", 3, 1e9, "G") if large else column("flops", 1, 1e6, "M"),
            "Images/s": column("images_per_second", 0),
            "Memory (MiB)": column("peak_memory_mib", 0),
            "Top-1 error": errors("top1"),
            "Top-5 error": errors("top5"),
        }
    )
    if compared is not None and not compared.empty:
        texts = _joined(texts, compared)
    for key in ("top1", "top5"):
        source = next((name for name in map(str, table) if name.startswith("paper_") and f"{key}_error" in name), "")
        printed = dict(zip(table["arm"], column(source, 2), strict=True))
        texts[f"Paper top-{key[-1]}"] = texts["Arm"].map(printed)
    of_arm = [name for name in texts if name not in ("Reference", "Difference", "p (Holm)", "Verdict")]
    texts.loc[texts["Arm"].duplicated(), of_arm] = ""
    return texts.loc[:, (~texts.isin([NOTHING, ""])).any() | texts.columns.isin(["Top-1 error", "Top-5 error"])]


def comparisons(compared: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of `tables.differences`, or its CSV, as texts: a row each."""
    intervals = zip(compared["difference"], compared["high"] - compared["difference"], strict=True)
    return pd.DataFrame(
        {
            "Arm": compared["arm"],
            "Reference": compared["reference"],
            "Difference": [_plus_minus(_number(mean, 2, "+"), half) for mean, half in intervals],
            "p (Holm)": [_p(p) for p in compared["p_corrected"]],
            "Verdict": compared["verdict"],
        }
    )


def _joined(texts: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """A row of its arm for every comparison; the reference has a column where it is not always the same."""
    words = comparisons(compared)
    words["Verdict"] = [VERDICTS.get(verdict, verdict.partition(" by ")[0]) for verdict in words["Verdict"]]
    if words["Reference"].nunique() == 1:
        words = words.drop(columns="Reference")
    return texts.merge(words, how="left", on="Arm").fillna(NOTHING)


def _number(value: float, digits: int, sign: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:{sign}.{digits}f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else _number(value, 3)


def _plus_minus(mean: str, half: float) -> str:
    return mean if math.isnan(half) else f"{mean} ± {half:.2f}"


def styled(results: Results) -> Styler:
    """The table of a study for a notebook; under it what made it, and the files that it could not use."""
    texts = for_reading(tables.summary(results), tables.differences(results))
    lines = [tables.note(results), tables.outdated(results), *(f"Not used: {line}." for line in results.problems)]
    return _shown(texts, list(filter(None, lines))).apply(lambda _: _bold(texts), axis=None)


def values(plan: Plan) -> Styler:
    """What makes each arm of a study, a column an arm, for a notebook; under it the values that all of them share."""
    shared, own = plan.values()
    of_arms = {arm: {key: str(value) for key, value in values.items()} for arm, values in own.items()}
    texts = pd.DataFrame(of_arms).rename_axis("").reset_index()
    return _shown(texts, ["All arms: " + ", ".join(f"{key}={value}" for key, value in shared.items())])


def runs(results: Results) -> Styler:
    """The runs of a study for a notebook, a row a run, those that are not done with their state."""

    def column(key: str, digits: int) -> list[str]:
        return [_number(float(value), digits) for value in results.runs[key]]

    texts = pd.DataFrame(
        {
            "Arm": results.runs["arm"],
            "Seed": results.runs["seed"].map(str),
            "State": results.runs["state"],
            "Top-1 error": column("top1_error", 2),
            "Top-5 error": column("top5_error", 2),
            "Seconds": column("seconds", 0),
        }
    )
    texts.loc[texts["Arm"].duplicated(), "Arm"] = ""
    return _shown(texts, ["Errors in percent, of the last epoch"])


def by_image(results: Results) -> Styler:
    """McNemar's tests of `tables.by_image` for a notebook, a row a seed."""
    tests = tables.by_image(results)
    texts = pd.DataFrame(
        {
            "Arm": tests["arm"],
            "Reference": tests["reference"],
            "Seed": tests["seed"].map(str),
            "Images": tests["images"].map(str),
            "Right with the arm only": tests["only_arm"].map(str),
            "With the reference only": tests["only_reference"].map(str),
            "p": [_p(p) for p in tests["p"]],
        }
    )
    texts.loc[texts.duplicated(["Arm", "Reference"]), ["Arm", "Reference"]] = ""
    return _shown(texts, ["McNemar's exact test, two-sided, not corrected"])


def _shown(texts: pd.DataFrame, lines: list[str]) -> Styler:
    """A frame of texts as a notebook shows it, with lines below."""
    shown = texts.map(html.escape).style.hide(axis="index")
    below = "caption-side: bottom; text-align: left; max-width: 60em"
    words = [number for number, name in enumerate(texts) if name in (*WORDS, "State")]
    shown.set_table_styles([{"selector": f".col{number}", "props": "text-align: left"} for number in words])
    shown.set_table_styles([{"selector": "caption", "props": below}], overwrite=False)
    shown.set_table_styles([{"selector": "td", "props": "white-space: nowrap"}], overwrite=False)
    return shown.set_caption("<br>".join(map(html.escape, lines)))


def _bold(texts: pd.DataFrame) -> pd.DataFrame:
    """Of every cell its style."""
    styles = texts.map(lambda _: "")
    if "Verdict" in texts:
        better = texts["Verdict"] == "better"
        for name in set(BOLD) & set(texts):
            styles.loc[better & (texts[name] != ""), name] = "font-weight: bold"
    return styles


def latex(results: Results) -> str:
    """A study's tables as one of LaTeX, the note below it; bold is what `for_reading` calls better."""
    texts = for_reading(tables.summary(results), tables.differences(results))
    plan = results.plan
    return to_latex(texts, plan.study.question, plan.name, note=tables.note(results))


def _cell(text: str) -> str:
    """A text of a cell for TeX, which takes a bracket or an asterisk at the begin of a row for its own."""
    return ("{}" if text[:1] in ("[", "*") else "") + text.translate(_TEX)


def to_latex(texts: pd.DataFrame, caption: str, label: str, columns: str = "", note: str = "") -> str:
    """A frame of texts as a LaTeX table over both columns (packages booktabs and graphicx), no wider than they are.

    Letters beyond Latin need LuaLaTeX or XeLaTeX.

    Args:
        texts: the cells; its column names stand in two lines, broken at their first space.
        caption, note: above the table and below it.
        label: after "tab:".
        columns: LaTeX's letters; by default texts left (names and verdicts), numbers right.
    """
    columns = columns or "".join("l" if name in WORDS else "r" for name in texts)
    heads = [tuple(part.translate(_TEX) for part in name.partition(" ")[::2]) for name in map(str, texts)]
    in_two_lines = pd.MultiIndex.from_tuples(heads)
    styles = _bold(texts).set_axis(in_two_lines, axis="columns")
    cells = texts.map(lambda cell: _cell(str(cell))).set_axis(in_two_lines, axis="columns")
    body = (
        cells.style.hide(axis="index")
        .apply(lambda _: styles, axis=None)
        .to_latex(
            hrules=True,
            column_format=f"@{{}}{columns}@{{}}",
            caption=caption.translate(_TEX),
            label=f"tab:{label}",
            position_float="centering",
            environment="table*",
            multicol_align="c",
            convert_css=True,
        )
    )
    no_wider = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
    fitting = f"\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n\\resizebox{{{no_wider}}}{{!}}{{"
    below = f"\n\n\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize {note.translate(_TEX)}}}" if note else ""
    body = body.replace(r"\begin{tabular}", fitting + r"\begin{tabular}")
    return body.replace(r"\end{tabular}", r"\end{tabular}}" + below)
