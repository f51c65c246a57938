"""The website in a headless Chromium, read from the file system: nothing is missing, and nothing is asked of a host."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from debian import missing

from ablation.paths import ROOT
from ablation.results import publication

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REASON = missing("chromium") if os.environ.get("GAM_BROWSER") else "make test-browser runs it"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]  # before the site is built
STUDIES = [plan.name for plan in publication.published(folder=ROOT / "figures" / "data")]
PAGES = ["index", "RESULTS", "docs/mechanisms/gam", "interface/gamlib", "interface/ablation", "notebooks/2_submodules"]
PAGES += [f"published/{name}{part}" for name in STUDIES for part in ("", "-notebook")]
BROKEN = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
CUT = """() => [...document.querySelectorAll('article :is(table, math)')].filter(
  one => one.getBoundingClientRect().width > one.closest('article').clientWidth).map(one => one.textContent)"""
BROKEN_NUMBERS = """() => [...document.querySelectorAll('article td')].filter(cell => {
  const range = document.createRange(), one = /^[\\d.,\\s±−+%MG-]+$/.test(cell.textContent);
  range.selectNodeContents(cell);
  const ends = [...range.getClientRects()].map(box => box.bottom);
  return one && Math.max(...ends) - Math.min(...ends) > 10;
}).map(cell => cell.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_shown_without_an_error_or_a_missing_picture(name: str, browser: "Browser", site: Path) -> None:
    page = browser.new_page()
    said, asked = list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / f"{name}.html").as_uri(), wait_until="load")
    page.wait_for_timeout(500)  # scripts that start late
    assert page.locator("h1").count() and not page.evaluate(BROKEN)
    assert not said and all(url.startswith(("file:", "data:", "blob:")) for url in asked), (said, asked)
    page.close()


@pytest.mark.parametrize("name", ["RESULTS", "docs/mechanisms/gam", f"published/{STUDIES[0]}", "interface/ablation"])
def test_tables_fit_their_column_and_break_no_number(name: str, browser: "Browser", site: Path) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto((site / f"{name}.html").as_uri(), wait_until="load")
    assert page.locator("article table").count() > 1
    assert page.evaluate(CUT) == [] and page.evaluate(BROKEN_NUMBERS) == []
    page.close()


def test_search_works_from_the_file_system(browser: "Browser", site: Path) -> None:
    from playwright.sync_api import expect

    page = browser.new_page()
    page.goto((site / "docs/mechanisms/gam.html").as_uri())
    page.keyboard.press("Control+k")
    dialog = page.get_by_role("dialog", name="Search")
    dialog.get_by_role("combobox").fill("depthwise")
    expect(dialog.get_by_text("gam_separable").first).to_be_visible()
    page.close()
