"""The pages of the site, in .site/pages/, of which `make site` has Zensical build site/. Nothing is trained.

README, RESULTS and other pages are copied, with the files that they link to; the method cards are computed anew; the
notebooks of the published studies are executed, from figures/data. Each number in a table of results or of a card
becomes a link to the runs that it was computed from.
"""

import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cards
import interface
import pandas as pd
from nbconvert import MarkdownExporter

from ablation.execution.forkserver import ForkServer
from ablation.execution.pool import THREAD_VARIABLES
from ablation.paths import NOTEBOOKS, ROOT, cores, figures_root, runs_root
from ablation.results import load, publication, tables, typeset
from ablation.results.frames import COLUMNS
from ablation.results.report import report
from ablation.studies import Plan
from gamlib.files import write_whole

STAGE = ROOT / ".site"
PAGES = STAGE / "pages"
COPIED = ("*.md", "docs/*.md", "benchmarks/README.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")  # the file that a link of Markdown names
NAMED = re.compile(r"\[[\w/]+\.md\](?=\(([^)\s#]+\.md))")  # a link whose text is the name of a file
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
MARKDOWN = (
    (re.compile(r"^([^\s#|>-].*)\n(?=- )", re.M), r"\1\n\n"),  # a list below a paragraph wants an empty line
    (re.compile(r" ± "), "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"),
    (re.compile(r"(?<=[\[ ])\d{4}-\d\d-\d\d(?=\]| \|)"), r'<span class="whole">\g<0></span>'),  # a date of a table
)
# Above it may stand which study another column is of.
TABLE = re.compile(r"(?:<!-- (.+) of figures/(\S+) -->\n)?<!-- figures/(\S+) -->\n\n((?:\|.*\n)+)")
COMPARISON = re.compile(r"^\| \[(\S+)\]\(\.\./\.\./figures/data/(\S+)-runs\.csv\) \| (.*)$", re.M)
NOT_OF_ITS_RUNS = ("Reference", "Verdict", "Paper")  # how the columns of such a table begin

EXECUTED = "Notebooks are shown without outputs here; those of [published studies](../published/index.md) are executed."


def write(page: str, text: str, origin: str | None = None) -> None:
    """Write a page, with its links as they are from there, and the files that they name.

    Args:
        page: its path within the site.
        text: Markdown, whose links are relative to the place that it is from in the repository.
        origin: the path of that; by default it is the page's own.
    """
    folder = (ROOT / (origin or page)).parent

    def moved(link: re.Match[str]) -> str:
        there = (folder / link[1]).resolve()
        if not there.exists() or not there.is_relative_to(ROOT):
            return link[1]
        name = there.relative_to(ROOT)
        if there.is_dir():
            name /= "index.md"
            if not (PAGES / name).exists():
                write_whole(PAGES / name, "")  # it is being written
                files = sorted(path.name for path in there.iterdir() if path.name[0] not in "._")
                lines = [f"# {there.name.capitalize()}\n", *(f"- [{file}]({file})" for file in files)]
                write(str(name), "\n".join(lines))
        elif there.suffix == ".ipynb":
            name = name.with_suffix(".md")
        elif there.suffix != ".md":
            (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, PAGES / name)
        return os.path.relpath(name, Path(page).parent)

    text = NAMED.sub(lambda link: f"[{title(folder / link[1])}]", text)
    parts = FENCED.split(LINK.sub(moved, text))
    for pattern, instead in MARKDOWN:
        parts[::2] = [pattern.sub(instead, part) for part in parts[::2]]  # code stays
    write_whole(PAGES / page, "".join(parts))


def title(page: Path) -> str:
    """The title of a page of the repository, without what a colon explains."""
    return page.read_text().partition("\n")[0].removeprefix("# ").partition(":")[0]


def first_page(readme: str, results: str) -> str:
    """README, with the main result and its figure in front of what is shown on digits."""
    start, digits, found, *rest = re.split(r"(?m)^(?=## )", readme)
    (figure, *_) = re.findall(r"!\[.*?\]\(.*?\)", results)
    caption = "Top-1 error by submodule of GAM, ResNet-18 at half width after eight epochs; each point is one seed."
    return "".join([start, found.replace("\n", f"\n{figure}\n\n*{caption}*\n\n", 1), digits, *rest])


def linked_to_runs(text: str, plans: Iterable[Plan], page: str = "RESULTS.md") -> str:
    """A page in whose tables the numbers link to the runs of their row's arm, and studies to all of theirs."""
    published = os.path.relpath("published", Path(page).parent)
    by_name = {plan.name: plan for plan in plans}
    by_study = {plan.study.name: f"{published}/{plan.name}.md" for plan in plans}

    def of_table(table: re.Match[str]) -> str:
        other, plan = (by_name.get(Path(name or "").stem.removesuffix("-runs")) for name in table.group(2, 3))
        heads, rule, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table[4].splitlines())
        lines, arm = [heads, rule], ""
        for row in rows:
            arm = row[0] or arm  # further comparisons of an arm stand below it
            lines.append([])
            for head, cell in zip(heads, row, strict=True):
                of = other if other and head == table[1] else plan
                to = f"{published}/{of.name}.md#{anchor(of, arm)}" if of else by_study.get(arm)
                own = cell == arm or (not head.startswith(NOT_OF_ITS_RUNS) and re.search(r"\d", cell))
                lines[-1].append(f"[{cell}]({to})" if to and own else cell)
        return table[0].replace(table[4], "".join(f"| {' | '.join(line)} |\n" for line in lines))

    return TABLE.sub(of_table, text)


def card_linked_to_runs(card: str, plans: Iterable[Plan]) -> str:
    """A method card, in whose comparisons study, arms and numbers link to their runs."""
    by_name = {plan.name: plan for plan in plans}

    def of_row(row: re.Match[str]) -> str:
        plan, page = by_name[row[2]], f"../../published/{row[2]}.md"
        arm, error, reference, difference, rest = row[3].split(" | ", 4)
        to, other = (f"{page}#{anchor(plan, label)}" for label in (arm, reference))
        cells = [(row[1], page), (arm, to), (error, to), (reference, other), (difference, to)]
        return "".join(f"| [{cell}]({link}) " for cell, link in cells) + f"| {rest}"

    return COMPARISON.sub(of_row, card)


def anchor(plan: Plan, arm: str) -> str:
    """The name of an arm in the address of its runs."""
    return f"arm-{[*plan.arms].index(arm)}"


def runs(plan: Plan) -> str:
    """The page of a published study: every run with its configuration, seed, errors, commit and device."""
    results, (shared, own) = load(plan, cards.DATA), plan.values()
    origins = results.origins.rename(columns={"device": "Device"})
    origins["Commit"] = list(map(tables.short_commit, origins["commit"], origins["clean"]))
    said = origins.groupby(["arm", "seed"])[["Commit", "Device"]].agg(listed)
    table = results.runs.join(said, on=["arm", "seed"])
    data = f"../figures/data/{plan.name}"
    files = [f"[configurations]({data}.json)", *(f"[{name}]({data}-{name}.csv)" for name in COLUMNS)]
    lines = [f"# {plan.study.name}, {plan.dataset_title}", plan.study.question, plan.study.note]
    lines += [f"[The executed notebook]({plan.name}-notebook.md). Data: {', '.join(files)}."]
    lines += ["All runs have " + valued(shared)]
    for arm in plan.arms:
        of_arm = table[table["arm"] == arm]
        texts = pd.DataFrame(
            {
                "Seed": of_arm["seed"],
                "State": of_arm["state"],
                "Why": of_arm["error"].replace("", pd.NA),
                "Top-1 error": of_arm["top1_error"].map("{:.2f}".format, na_action="ignore"),
                "Top-5 error": of_arm["top5_error"].map("{:.2f}".format, na_action="ignore"),
                "Epochs": of_arm["epochs"].map("{:.0f}".format, na_action="ignore"),
                "Seconds": of_arm["seconds"].map("{:.0f}".format, na_action="ignore"),
                "Ended": of_arm["ended"].str[:10],
                **of_arm[["Commit", "Device"]],
                "Code": of_arm["source"],
            }
        ).dropna(axis="columns", how="all")
        lines += [f"## {arm} {{#{anchor(plan, arm)}}}", valued(own[arm]), typeset.markdown(texts.fillna("–"))]
    return "\n\n".join(filter(None, lines)) + "\n"


def listed(texts: "pd.Series[str]") -> str:
    """Texts, each once."""
    return ", ".join(dict.fromkeys(texts))


def valued(values: dict[str, object]) -> str:
    """Values of a configuration."""
    return ", ".join(f"`{key}={value}`" for key, value in values.items() if value is not None)


def notebook(path: Path, page: str, heading: str = "", below: str = "") -> None:
    """A page of a notebook with its outputs, whose pictures lie beside it. Paths of this machine are left out.

    Args:
        path: the notebook.
        page: its path within the site.
        heading: instead of the notebook's own.
        below: a paragraph below it.
    """
    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    text, made = exporter.from_filename(str(path))
    own, _, rest = text.lstrip().partition("\n")
    text = f"{heading or own}\n\n{below}\n{rest}"
    for name, picture in made["outputs"].items():
        text = text.replace(f"]({name})", f"]({Path(page).stem}-{name})")
        write_whole((PAGES / page).with_name(f"{Path(page).stem}-{name}"), picture)
    for folder in (f"{figures_root()}/", f"{ROOT}/"):
        text = text.replace(folder, "")
    write(page, text, origin=f"notebooks/{path.name}")


def main() -> None:
    """Write all pages."""
    shutil.rmtree(STAGE, ignore_errors=True)
    os.environ |= {"GAM_RUNS": str(STAGE / "runs"), "GAM_FIGURES": str(STAGE / "figures")}
    plans = publication.published(folder=cards.DATA)
    with (
        ProcessPoolExecutor(cores(), get_context("fork")) as pool,
        ForkServer(dict.fromkeys(THREAD_VARIABLES, "1")) as server,
        ThreadPoolExecutor(cores()) as threads,
    ):
        filled = {f"{name}.md": pool.submit(cards.filled, name) for name in cards.NAMES}  # before there are threads
        executed = [threads.submit(lambda plan: server.start(report, plan, cards.DATA).wait(), plan) for plan in plans]
        texts = {str(path.relative_to(ROOT)): path.read_text() for pattern in COPIED for path in ROOT.glob(pattern)}
        texts["README.md"] = first_page(texts["README.md"], texts["RESULTS.md"])
        for page in ("RESULTS.md", "docs/data.md"):
            texts[page] = linked_to_runs(texts[page], plans, page)
        texts |= {f"published/{plan.name}.md": runs(plan) for plan in plans}
        listed = [
            f"- [{plan.study.name}]({plan.name}.md) ([notebook]({plan.name}-notebook.md)): {plan.study.question}"
            for plan in plans
        ]
        texts["published/index.md"] = "\n".join(["# Published runs\n", *listed, ""])
        texts |= {f"interface/{package}.md": text for package, text in interface.pages().items()}
        for page, text in texts.items():
            write(page, text)
        (asked,) = re.findall(r"(?s)\n## The notebooks\n.*?(\n\|.*?)\n\n", texts["README.md"])
        write("notebooks/index.md", f"# Notebooks\n\n{EXECUTED}\n{asked}\n", origin="README.md")
        for name in ("iframe-worker.js", "site.css"):
            shutil.copy(ROOT / "docs" / name, PAGES / "docs")
        for path in NOTEBOOKS.glob("*.ipynb"):
            notebook(path, f"notebooks/{path.stem}.md", below=f"{EXECUTED}\n")
        for name, card in filled.items():
            write(f"docs/mechanisms/{name}", card_linked_to_runs(card.result(), plans))
        for plan, done in zip(plans, executed, strict=True):
            done.result()
            path, page = runs_root() / "studies" / f"{plan.name}.ipynb", f"published/{plan.name}-notebook.md"
            below = f"[The runs]({plan.name}.md) of this study, and [what they say](../RESULTS.md).\n"
            notebook(path, page, f"# {plan.study.name}: {plan.study.question}", below)


if __name__ == "__main__":
    main()
