"""Tables as people read them: on a screen, in a notebook, in a paper."""

import html
import math

import pandas as pd
from pandas.io.formats.style import Styler

from ablation.results import tables
from ablation.results.frames import Results

NOTHING = "–"
VERDICTS = {"nothing can be said of one seed": "one seed"}
WORDS = ("Arm", "Reference", "Verdict", "State")  # columns set to the left
TWO_WAY = "± seeds and images"  # half of that interval
EQUAL = "p, equal (Holm)"
COMPARED = ["Reference", "Difference", TWO_WAY, "P(better)", "p (Holm)", EQUAL, "Verdict"]
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

    def column(key: str, digits: int, unit: float = 1, letter: str = "") -> pd.Series | str:
        return table[key].map(lambda value: _number(value / unit, digits, letter=letter)) if key in table else NOTHING

    def errors(key: str) -> list[str]:
        return list(map(_interval, table[f"{key}_error"], table[f"{key}_half"]))

    words = pd.DataFrame() if compared is None else comparisons(compared)
    words = words.reindex(columns=["Arm", *COMPARED])
    short = words["Verdict"].astype(str).str.replace(r"^(not told apart|undecided) by .*", r"\1", regex=True)
    words["Verdict"] = short.replace(VERDICTS)
    if words["Reference"].nunique() == 1:
        words["Reference"] = NOTHING
    table = table.merge(words, how="left", left_on="arm", right_on="Arm")
    large = "flops" in table and table["flops"].max() >= 1e9
    papers = [key for key in map(str, table) if key.startswith("paper_")]
    texts = pd.DataFrame(
        {
            "Arm": table["arm"],
            "Runs": table["done"].map(str) + " of " + table["runs"].map(str),
            "Parameters": column("parameters", 3, 1e6, "M"),
            "FLOPs": column("flops", 3, 1e9, "G") if large else column("flops", 1, 1e6, "M"),
            "Images/s": column("images_per_second", 0),
            "Memory (MiB)": column("peak_memory_mib", 0),
            "Top-1 error": errors("top1"),
            "Top-5 error": errors("top5"),
            **{name: table[name].astype(object).fillna(NOTHING) for name in COMPARED},
            **{f"Paper top-{key.removesuffix('_error')[-1]}": column(key, 2) for key in papers},
        }
    )
    texts.loc[texts["Arm"].duplicated(), ~texts.columns.isin(COMPARED)] = ""
    return texts.loc[:, (~texts.isin([NOTHING, ""])).any() | texts.columns.isin(["Top-1 error", "Top-5 error"])]


def comparisons(compared: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of `tables.differences`, or its CSV, as texts: a row each.

    Behind the difference with its interval over seeds stands half of that over seeds and test images.
    """
    halves = compared["high"] - compared["difference"]
    texts = pd.DataFrame({"Arm": compared["arm"], "Reference": compared["reference"]})
    texts["Difference"] = [_interval(*of, sign="+") for of in zip(compared["difference"], halves, strict=True)]
    if "two_way_half" in compared:
        texts[TWO_WAY] = compared["two_way_half"].map(lambda half: _number(half, 2))
    texts["P(better)"] = compared["probability_better"].map(lambda chance: _number(chance, 2))
    texts["p (Holm)"] = compared["p_corrected"].map(p_value)
    if compared["p_equal_corrected"].notna().any():
        texts[EQUAL] = compared["p_equal_corrected"].map(p_value)
    if compared["seeds"].nunique() > 1:
        texts["Seeds"] = compared["seeds"].map(str)
    return texts.assign(Verdict=compared["verdict"])


def _number(value: float, digits: int, sign: str = "", letter: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:{sign}.{digits}f}{letter}".replace("-", "−")


def p_value(value: float) -> str:
    """Of a test, with three digits."""
    return "< 0.001" if value < 0.001 else _number(value, 3)


def _interval(mean: float, half: float, sign: str = "") -> str:
    return _number(mean, 2, sign) + ("" if math.isnan(half) else f" ± {half:.2f}")


def styled(results: Results) -> Styler:
    """The table of a study for a notebook; under it what made it, and the files that it could not use."""
    results = results.labelled()
    texts = for_reading(tables.summary(results), tables.differences(results))
    lines = [tables.note(results), tables.outdated(results), *(f"Not used: {line}." for line in results.problems)]
    return shown(texts, *filter(None, lines)).hide(axis="index").apply(lambda _: _bold(texts), axis=None)


def shown(frame: pd.DataFrame, *lines: str) -> Styler:
    """A frame as a notebook shows it, two digits behind the point, and below it lines of text."""
    style = frame.style.format(precision=2, na_rep=NOTHING, escape="html")
    style.format_index(escape="html").format_index(escape="html", axis="columns")
    css = {".row_heading": "text-align: left", "td": "white-space: nowrap"}
    css |= {f".col{number}": "text-align: left" for number, name in enumerate(frame) if name in WORDS}
    css["caption"] = "caption-side: bottom; text-align: left; max-width: 60em"
    style.set_table_styles([{"selector": place, "props": props} for place, props in css.items()])
    return style.set_caption("<br>".join(map(html.escape, lines)))


def markdown(texts: pd.DataFrame) -> str:
    """A frame as a table of Markdown, the first column left, the others right; without a last line break."""
    rows = [[*map(str, texts)], ["---", *["---:"] * (texts.shape[1] - 1)], *texts.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _bold(texts: pd.DataFrame) -> pd.DataFrame:
    """Of every cell its style."""
    styles = pd.DataFrame("", texts.index, texts.columns)
    if "Verdict" in texts:
        better = texts["Verdict"].str.startswith("better")
        for name in set(BOLD) & set(texts):
            styles.loc[better & (texts[name] != ""), name] = "font-weight: bold"
    return styles


def latex(results: Results) -> str:
    """A study's tables as one of LaTeX, the note below it; bold is what `for_reading` calls better."""
    results = results.labelled()
    texts = for_reading(tables.summary(results), tables.compared(results))
    return to_latex(texts, results.plan.study.question, results.plan.name, note=tables.note(results))


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
    cells = texts.map(lambda cell: _cell(str(cell))).set_axis(in_two_lines, axis="columns").style.hide(axis="index")
    body = cells.apply(lambda _: styles, axis=None).to_latex(
        hrules=True,
        column_format=f"@{{}}{columns}@{{}}",
        caption=caption.translate(_TEX),
        label=f"tab:{label}",
        position_float="centering",
        environment="table*",
        multicol_align="c",
        convert_css=True,
    )
    no_wider = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
    fitting = f"\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n\\resizebox{{{no_wider}}}{{!}}{{"
    below = f"\n\n\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize {note.translate(_TEX)}}}" if note else ""
    body = body.replace(r"\begin{tabular}", fitting + r"\begin{tabular}")
    return body.replace(r"\end{tabular}", r"\end{tabular}}" + below)
