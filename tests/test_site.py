"""The website of `make site`: its links lead somewhere, it needs no other host, and numbers lead to their runs."""

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cards
import make_site
import pytest

from ablation.config import RunConfig
from ablation.paths import NOTEBOOKS, ROOT
from ablation.results import load, publication
from ablation.studies import Study
from gamlib import attention, build_model
from gamlib.files import write_whole

DATA = ROOT / "figures" / "data"


@dataclass
class Page(HTMLParser):
    """What a page has: where its links lead, what it loads, the names within it, and the cells of its tables."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    cells: list[tuple[str, str]] = field(default_factory=list)  # text, and where its link leads

    def __post_init__(self) -> None:
        super().__init__()
        self.cell: list[str] | None = None
        self.link = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.names |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            self.link = values["href"]
        elif tag == "link" or "src" in values:
            self.loaded.append(values.get("src") or values["href"])
        if tag in ("td", "th", "tr"):
            self.handle_endtag("td")
        if tag in ("td", "th"):
            self.cell, self.link = [], ""

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.cell is not None:
            self.cells.append(("".join(self.cell).strip(), self.link))
            self.cell = None


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def pages(site: Path) -> list[Path]:
    found = [path for path in site.rglob("*.html") if path.name != "404.html"]  # that has addresses from the root
    assert len(found) > 30
    return found


@pytest.mark.long
def test_every_link_leads_to_a_file_of_the_site_and_to_a_name_in_it(site: Path) -> None:
    for path in pages(site):
        for link in {*read(path).links, *read(path).loaded}:
            to = urlsplit(link)
            if to.scheme in ("http", "https") and link not in read(path).loaded:
                continue
            assert not to.scheme and not to.netloc, (path, link)
            there = path.parent / unquote(to.path) if to.path else path
            assert there.is_file(), (path, link)
            assert not to.fragment or there.suffix != ".html" or unquote(to.fragment) in read(there).names, (path, link)


@pytest.mark.long
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path in [*pages(site), *site.rglob("*.css")]:
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path
        assert path.suffix == ".css" or not any("//" in loaded for loaded in read(path).loaded), path


@pytest.mark.long
def test_the_first_page_has_the_figure_of_the_main_result(site: Path) -> None:
    (wanted, *_) = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "RESULTS.md").read_text())
    (first, *_) = [name for name in read(site / "index.html").loaded if name.startswith("figures/")]
    assert first == wanted and (site / first).read_bytes() == (ROOT / first).read_bytes()


@pytest.mark.long
def test_titles_of_pages_differ(site: Path) -> None:
    titles = [re.findall(r"<title>(.*?)</title>", path.read_text(), re.S)[0] for path in pages(site)]
    assert len({*titles}) == len(titles), sorted(title for title in titles if titles.count(title) > 1)


@pytest.mark.long
def test_equations_are_shown_as_mathematics(site: Path) -> None:
    for name in cards.NAMES:
        written = (ROOT / "docs" / "mechanisms" / f"{name}.md").read_text().count("```math")
        text = (site / "docs" / "mechanisms" / f"{name}.html").read_text()
        assert text.count("<math") == written > 0 and not re.search(r"<m(i|text)>(\\\\|&amp;)", text), name


@pytest.mark.long
def test_the_interface_shows_how_to_make_blocks_networks_and_configurations(site: Path) -> None:
    models, laboratory = ((site / "interface" / f"{name}.html").read_text() for name in ("gamlib", "ablation"))
    words = re.sub(r"\s*<[^>]*>\s*", "", models)
    for name in {*attention.__all__} - {"MECHANISMS"}:
        parameters = inspect.signature(getattr(attention, name)).parameters
        shown = re.findall(rf"\b{name}\((channels.{{,250}})", words)
        assert shown and all(f"{parameter}:" in shown[0] for parameter in parameters), (name, shown)
    for parameter in inspect.signature(build_model).parameters:
        assert f"<code>{parameter}</code>" in models[models.index('id="gamlib.build_model"') :], parameter
    for model in (RunConfig, Study):
        assert all(f"<code>{field}</code>" in laboratory for field in model.model_fields), model


@pytest.mark.long
def test_every_published_run_is_listed_and_its_notebook_is_executed(site: Path) -> None:
    for plan in publication.published(folder=DATA):
        runs, cells = load(plan, DATA).done, [text for text, _ in read(site / "published" / f"{plan.name}.html").cells]
        for error in runs["top1_error"]:
            assert f"{error:.2f}" in cells
        assert cells.count("done") == len(runs)
        pictures = [name for name in read(site / "published" / f"{plan.name}-notebook.html").loaded if "output" in name]
        assert len(pictures) >= 3, plan.name


@pytest.mark.long
def test_the_numbers_of_the_results_lead_to_the_runs_of_their_arm(site: Path) -> None:
    cells = [cell for page in ("RESULTS", "docs/data") for cell in read(site / f"{page}.html").cells]
    to_runs = [(text, link.removeprefix("../")) for text, link in cells if "published/" in link]
    results = (ROOT / "RESULTS.md").read_text()
    assert len(to_runs) > 200
    for plan in publication.published(folder=DATA):
        for arm in plan.arms:
            address = f"published/{plan.name}.html#{make_site.anchor(plan, arm)}"
            texts = [text for text, link in to_runs if link == address]
            assert arm in texts or (f" of figures/{plan.name}.csv -->" in results and texts), (plan.name, arm)


@pytest.mark.long
def test_lists_and_tables_are_shown_as_such(site: Path) -> None:
    for path in pages(site):
        assert not re.search(r"<p>(- |\||[^<]*\n(- |\|))", path.read_text()), path


@pytest.mark.long
def test_no_page_names_a_folder_of_this_machine(site: Path) -> None:
    for path in [*pages(site), site / "search.js"]:
        assert str(ROOT) not in path.read_text(), path


def test_published_runs_and_notebooks_have_a_place_in_the_navigation() -> None:
    shown = (ROOT / "mkdocs.yml").read_text()
    for plan in publication.published(folder=DATA):
        assert f": published/{plan.name}.md\n" in shown and f": published/{plan.name}-notebook.md\n" in shown
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert f": notebooks/{path.stem}.md\n" in shown
    for path in (ROOT / "docs").glob("*.md"):
        assert f": docs/{path.name}\n" in shown


def test_comparisons_of_a_card_lead_to_the_runs_of_both_arms() -> None:
    plans = publication.published(folder=DATA)
    text = make_site.card_linked_to_runs((cards.CARDS / "gam.md").read_text(), plans)
    to = "(../../published/submodules-cpu-imagefolder-cifar10-jpeg.md"
    assert (
        f"| [ch]{to}#arm-1) | [26.76 ± 1.61]{to}#arm-1) | [baseline]{to}#arm-0) | [−2.53 ± 2.85]{to}#arm-1) |" in text
    )
    assert "-runs.csv" not in text and f"| [submodules-cpu]{to}) |" in text


def test_a_link_named_by_a_file_has_the_title_of_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_site, "PAGES", tmp_path)
    make_site.write("README.md", "[docs/networks.md](docs/networks.md#timm), [here](docs/data.md)")
    assert (tmp_path / "README.md").read_text() == "[Networks](docs/networks.md#timm), [here](docs/data.md)"


def test_every_number_of_a_table_leads_to_its_runs_and_those_of_others_do_not() -> None:
    (plan,) = publication.published(["submodules-cpu"], folder=DATA)
    text = make_site.linked_to_runs((ROOT / "RESULTS.md").read_text(), [*publication.published(folder=DATA)])
    tables = {name: table for _, _, name, table in make_site.TABLE.findall(text)}
    table = tables[f"{plan.name}.csv"]
    to = {arm: f"(published/{plan.name}.md#arm-{number})" for number, arm in enumerate(plan.arms)}
    assert f"| [ch]{to['ch']} | [2.824M]{to['ch']} |" in table
    assert f"| no gate | [−0.27 ± 0.38]{to['ch+sp']} |" in table and "| 30.91 |" in table
    assert f"[18 of 18](published/{plan.name}.md)" in text
    of_both = tables["benchmark-cpu-imagefolder-cifar10-jpeg.csv"]
    assert re.search(
        r"\[9\.9M\]\(published/benchmark-cpu\S+#arm-1\) \| \[\d+\]\(published/speed-cpu\S+#arm-1\) ", of_both
    )
    assert re.sub(r"\[([^]]*)\]\(published/.*?\)", r"\1", text) == (ROOT / "RESULTS.md").read_text()


def test_what_a_page_links_to_comes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_site, "ROOT", tmp_path / "from")
    monkeypatch.setattr(make_site, "PAGES", tmp_path / "to")
    for name in ("a.csv", "notebooks/b.ipynb", "data/c.csv", "docs/d.md", "docs/e.md"):
        write_whole(tmp_path / "from" / name, "text")
    links = "[](../a.csv) [](../notebooks/b.ipynb#c) [](../data) [](d.md#x) [](#y) [](https://z) [](gone.csv)"
    make_site.write("docs/e.md", links)
    assert (tmp_path / "to/docs/e.md").read_text() == links.replace("ipynb", "md").replace("/data)", "/data/index.md)")
    assert (tmp_path / "to/a.csv").is_file() and (tmp_path / "to/data/c.csv").is_file()
    make_site.write("elsewhere/deep/f.md", "[](d.md)", origin="docs/e.md")
    assert (tmp_path / "to/elsewhere/deep/f.md").read_text() == "[](../../docs/d.md)"
