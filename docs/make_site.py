"""The pages of the site, in .site/pages/, of which `make site` has Zensical build site/. Nothing is trained.

README, RESULTS and other pages are copied, with the files that they link to; the method cards are computed anew; the
notebooks of the published studies are executed, from figures/data. Each number in a table of RESULTS.md becomes a link
to the runs that it was computed from.
"""

import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cards
import interface
import pandas as pd
from nbconvert import MarkdownExporter

from ablation.paths import NOTEBOOKS, ROOT, cores, figures_root, runs_root
from ablation.results import load, publication
from ablation.results.frames import COLUMNS
from ablation.results.report import report
from ablation.studies import Plan
from gamlib.files import write_whole

STAGE = ROOT / ".site"
PAGES = STAGE / "pages"
COPIED = ("*.md", "docs/*.md", "benchmarks/README.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")  # the file that a link of Markdown names
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
MARKDOWN = (
    (re.compile(r"^([^\s#|>-].*)\n(?=- )", re.M), r"\1\n\n"),  # a list below a paragraph wants an empty line
    (re.compile(r" ± "), "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"),
    (re.compile(r"(?<=\| )[\d-]{10}(?= \|)"), r'<span class="whole">\g<0></span>'),  # a date
)
TABLE = re.compile(r"<!-- figures/(\S+) -->\n\n((?:\|.*\n)+)")
NOT_OF_ITS_RUNS = ("Reference", "Verdict", "Paper")  # how the columns of such a table begin


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
                write(str(name), "\n".join([f"# {name.parent}\n", *(f"- [{file}]({file})" for file in files)]))
        elif there.suffix == ".ipynb":
            name = name.with_suffix(".md")
        elif there.suffix != ".md":
            (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, PAGES / name)
        return os.path.relpath(name, Path(page).parent)

    parts = FENCED.split(LINK.sub(moved, text))
    for pattern, instead in MARKDOWN:
        parts[::2] = [pattern.sub(instead, part) for part in parts[::2]]  # code stays
    write_whole(PAGES / page, "".join(parts))


def linked_to_runs(results: str, plans: Iterable[Plan]) -> str:
    """RESULTS.md, in whose tables the numbers link to the runs of their row's arm, and studies to all of theirs."""
    by_name = {plan.name: plan for plan in plans}
    by_study = {plan.study.name: f"published/{plan.name}.md" for plan in plans}

    def of_table(table: re.Match[str]) -> str:
        plan = by_name.get(Path(table[1]).stem.removesuffix("-runs"))
        heads, rule, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table[2].splitlines())
        lines, arm = [heads, rule], ""
        for row in rows:
            arm = row[0] or arm  # further comparisons of an arm stand below it
            page = f"published/{plan.name}.md#{anchor(plan, arm)}" if plan else by_study.get(arm)
            lines.append([])
            for head, cell in zip(heads, row, strict=True):
                own = cell == arm or (not head.startswith(NOT_OF_ITS_RUNS) and re.search(r"\d", cell))
                lines[-1].append(f"[{cell}]({page})" if page and own else cell)
        return f"<!-- figures/{table[1]} -->\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    return TABLE.sub(of_table, results)


def anchor(plan: Plan, arm: str) -> str:
    """The name of an arm in the address of its runs."""
    return f"arm-{[*plan.arms].index(arm)}"


def runs(plan: Plan) -> str:
    """The page of a published study: every run with its configuration, seed, errors, commit and device."""
    results, (shared, own) = load(plan, cards.DATA), plan.values()
    origins = results.origins.assign(Commit=results.origins["commit"].str[:7], Device=results.origins["device"])
    origins.loc[origins["clean"] != True, "Commit"] += " with changes"  # noqa: E712
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
        lines += [
            f"## {arm} {{#{anchor(plan, arm)}}}",
            valued(own[arm]),
            cards.markdown(texts.fillna("–")),
        ]
    return "\n\n".join(filter(None, lines)) + "\n"


def listed(texts: "pd.Series[str]") -> str:
    """Texts, each once."""
    return ", ".join(dict.fromkeys(texts))


def valued(values: dict[str, object]) -> str:
    """Values of a configuration."""
    return ", ".join(f"`{key}={value}`" for key, value in values.items() if value is not None)


def notebook(path: Path, page: str) -> None:
    """A page of a notebook with its outputs, whose pictures lie beside it. Paths of this machine are left out."""
    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    text, made = exporter.from_filename(str(path))
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
    with ProcessPoolExecutor(cores(), get_context("fork")) as pool:
        executed = [pool.submit(report, plan, cards.DATA) for plan in plans]
        filled = {f"{name}.md": pool.submit(cards.filled, name) for name in cards.NAMES}
        texts = {str(path.relative_to(ROOT)): path.read_text() for pattern in COPIED for path in ROOT.glob(pattern)}
        (figure, *_) = re.findall(r"!\[.*?\]\(.*?\)", texts["RESULTS.md"])
        texts["README.md"] = texts["README.md"].replace("\n## Results\n", f"\n## Results\n{figure}\n\n")
        texts["RESULTS.md"] = linked_to_runs(texts["RESULTS.md"], plans)
        texts |= {f"published/{plan.name}.md": runs(plan) for plan in plans}
        listed = "".join(f"- [{plan.study.name}]({plan.name}.md): {plan.study.question}\n" for plan in plans)
        texts["published/index.md"] = f"# Published runs\n\n{listed}"
        texts |= {f"interface/{package}.md": text for package, text in interface.pages().items()}
        for page, text in texts.items():
            write(page, text)
        for name in ("iframe-worker.js", "site.css"):
            shutil.copy(ROOT / "docs" / name, PAGES / "docs")
        for path in NOTEBOOKS.glob("*.ipynb"):
            notebook(path, f"notebooks/{path.stem}.md")
        for name, card in filled.items():
            write(f"docs/mechanisms/{name}", card.result())
        for plan, done in zip(plans, executed, strict=True):
            done.result()
            notebook(runs_root() / "studies" / f"{plan.name}.ipynb", f"published/{plan.name}-notebook.md")


if __name__ == "__main__":
    main()
