"""What a user sees: `make lab` in a real browser, two notebooks run from its menu, and a slider that is moved.

Where there is no Chromium the tests are skipped with the reason. Of each notebook a screenshot is kept in
$GAM_ARTEFACTS, by default `.artefacts/`, also when its test fails.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest
from debian import missing
from started import processes

from ablation.execution.train import train
from ablation.paths import NOTEBOOKS, ROOT
from ablation.runs import Run
from ablation.studies import Plan
from ablation.study_files import find_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, ViewportSize

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"epochs": 2, "width": 0.25, "train_fraction": 0.2}
PARAMETERS: dict[str, dict[str, Any]] = {  # nothing is trained from the browser: what is missing is to be seen
    "2_submodules.ipynb": {"seeds": "0,1", "overrides": SMALL, "cluster": None},
    "5_attention_maps.ipynb": {"seeds": "0", "overrides": SMALL, "cluster": None},
}
WINDOW: "ViewportSize" = {"width": 1400, "height": 1000}
SECONDS = 600  # for all cells of a notebook: seconds on a quiet machine, minutes beside other tests
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
READY = f"() => {NOTEBOOK}?.context?.sessionContext?.session?.kernel?.status === 'idle'"
# What keeps a notebook from being done, or nothing; a dialog and an error are the end too.
OVER = f"""() => {{
  if (document.querySelector('.jp-Dialog')) return true;
  const panel = {NOTEBOOK}, cells = Array.from(panel.content.widgets).filter(cell => cell.model.type === 'code');
  const failed = cell => cell.model.outputs.toJSON().some(output => output.output_type === 'error');
  const ran = cell => cell.model.executionCount !== null && cell.model.executionState !== 'running';
  const idle = panel.context.sessionContext.session?.kernel?.status === 'idle';
  return cells.some(failed) || (idle && cells.every(ran));
}}"""


def plans() -> list[Plan]:
    """The studies of the two notebooks, with the parameters that they have here."""
    values = PARAMETERS.values()
    studies = (find_study("submodules"), find_study(f"{ROOT}/studies/gates.yaml"))
    return [study.plan("digits", each["seeds"], **SMALL) for study, each in zip(studies, values, strict=True)]


def copy_with_parameters(name: str, folder: Path) -> None:
    """A notebook as it is committed, but for the values in its cell of parameters."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for key, value in PARAMETERS[name].items():
        cell.source, changed = re.subn(rf"(?m)^{key}: .*$", f"{key} = {value!r}", cell.source)
        assert changed == 1, f"{name} has no parameter {key}"
    nbformat.write(notebook, folder / name)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs, figures and Jupyter's settings in a folder of these tests, and the runs that both notebooks show."""
    if reason := missing("chromium") if os.environ.get("GAM_BROWSER") else "make test-browser runs it":
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("lab")
    own = {"GAM_RUNS": root / "runs", "GAM_FIGURES": root / "figures", "IPYTHONDIR": root / "ipython"}
    own |= {f"JUPYTER_{kind}_DIR": root / kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": root / kind.lower() for kind in ("SETTINGS", "WORKSPACES")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAM_RUNS", str(own["GAM_RUNS"]))
        patch.setenv("GAM_BATCH", "1")
        for config in (config for plan in plans() for config in plan.configs):  # some are of both
            train(Run(config))
    offline = root / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    offline.parent.mkdir(parents=True)
    offline.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    (root / "notebooks").mkdir()
    for name in PARAMETERS:
        copy_with_parameters(name, root / "notebooks")
    return dict(os.environ) | {key: str(path) for key, path in own.items()}


@pytest.fixture(scope="module")
def address(environment: dict[str, str]) -> Iterator[str]:
    """Where `make lab` listens, with its token. Afterwards nothing of it is left."""
    root = Path(environment["GAM_RUNS"]).parent
    options = [str(root / "notebooks"), "--no-browser", "--ip=127.0.0.1", "--port=0"]
    options += ["--LabApp.expose_app_in_browser=True"]
    # If this process is killed outright, its browser ends too; then its kernels by themselves, and then the server.
    options += ["--MappingKernelManager.cull_idle_timeout=120", "--MappingKernelManager.cull_interval=20"]
    options += ["--ServerApp.shutdown_no_activity_timeout=120"]
    command = ["make", "-C", str(ROOT), "-o", f"{sys.prefix}/.ready", "lab", f"VENV={sys.prefix}"]
    log = root / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, f"LAB={' '.join(options)}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it would end this process and nothing else
    try:
        yield address_of(server, root / "runtime", log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        _, left = psutil.wait_procs(processes("", f"GAM_RUNS={root / 'runs'}"), timeout=15)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        server.wait(15)
        signal.signal(signal.SIGTERM, before)
    assert not left, f"these had to be killed: {left}"


def address_of(server: "subprocess.Popen[bytes]", folder: Path, log: Path) -> str:
    """The server says in a file of its own which port it was given."""
    end = time.monotonic() + 120
    while not (found := list(folder.glob("jpserver-*.json"))):
        assert server.poll() is None and time.monotonic() < end, f"`make lab` does not start:\n{log.read_text()}"
        time.sleep(0.1)
    while not (text := found[0].read_text()).rstrip().endswith("}"):
        time.sleep(0.1)
    said = json.loads(text)
    return f"{said['url']}lab?reset&token={said['token']}"


@pytest.fixture(scope="module")
def browser(environment: dict[str, str]) -> "Iterator[Browser]":
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments, env={**environment}, timeout=120_000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(
    address: str, browser: "Browser", request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> "Iterator[Page]":
    """JupyterLab, opened by its address. Whatever comes, a picture of its last state is kept."""
    page = browser.new_page(viewport=WINDOW, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        yield page
    finally:
        folder = Path(os.environ.get("GAM_ARTEFACTS") or ROOT / ".artefacts").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '_', request.node.name.removeprefix('test_'))}.png"
        page.screenshot(path=path)
        with capsys.disabled():
            print(f"\nscreenshot: {path}")
        page.close()
    outside = [url for url in asked if not re.match(r"(http|ws)://127\.0\.0\.1[:/]|data:|blob:", url)]
    assert not outside, f"the page asked for what is not on this machine: {outside}"


def run_all(page: "Page", name: str) -> dict[str, Any]:
    """Open a notebook from the list of files and run it from the menu; what it then holds."""
    page.locator(".jp-DirListing-item", has_text=name).dblclick(timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(OVER, timeout=1000 * SECONDS)
    for dialog in page.locator(".jp-Dialog").all():
        pytest.fail(f"JupyterLab asks:\n{dialog.inner_text()}")
    notebook: dict[str, Any] = page.evaluate(f"() => {NOTEBOOK}.content.model.toJSON()")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    for error in (output for output in outputs if output["output_type"] == "error"):
        pytest.fail(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"])))
    return notebook


def unroll(page: "Page") -> "Locator":
    """Make the window as high as the notebook, so that all of it is drawn: what is out of sight has no text."""
    from playwright.sync_api import expect

    for _ in range(3):  # what comes into view may be higher than was thought
        first, last = (f"{NOTEBOOK}.content.widgets.at({index}).node.getBoundingClientRect()" for index in (0, -1))
        height = page.evaluate(f"() => Math.ceil({last}.bottom - {first}.top)")
        page.set_viewport_size({"width": WINDOW["width"], "height": max(WINDOW["height"], min(height, 12_000) + 200)})
        page.evaluate(f"() => {NOTEBOOK}.content.node.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    expect(panel.locator("h1").first).to_be_in_viewport()
    expect(panel.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(0)
    return panel


def drawn(image: "Locator") -> str:
    """The hash of a picture's bytes, once it is drawn as large as something can be seen on."""
    image.scroll_into_view_if_needed()
    image.page.wait_for_function("image => image.complete && image.naturalWidth > 300", arg=image.element_handle())
    box = image.bounding_box()
    assert box is not None and box["width"] > 300 and box["height"] > 100
    read = "image => fetch(image.src).then(got => got.arrayBuffer()).then(got => Array.from(new Uint8Array(got)))"
    return hashlib.sha256(bytes(image.evaluate(read))).hexdigest()


def test_the_slider_of_the_maps_changes_their_figures(page: "Page") -> None:
    from playwright.sync_api import expect

    run_all(page, "5_attention_maps.ipynb")
    panel = unroll(page)
    states = panel.locator("table").filter(has_text="Top-5 error").locator("tbody tr")
    expect(states).to_have_text([re.compile(rf"^\s*{arm}\s+0\s+done\s") for arm in ("ch", "sp", r"ch\+sp", "CBAM")])
    explored = panel.locator(".widget-output img")
    expect(explored).to_have_count(2)
    expect(panel.locator(".jp-RenderedImage img")).to_have_count(4)  # two cells', and two of what is explored
    for figure in panel.locator(".jp-RenderedImage img").all():
        drawn(figure)

    def others(than: list[str]) -> list[str]:
        """The figures, once both are other ones."""
        for figure, old in zip(explored.all(), than, strict=True):
            expect(figure).not_to_have_attribute("src", old)
        return [figure.get_attribute("src") or "" for figure in explored.all()]

    handle, shown = panel.locator(".widget-slider [role=slider]"), panel.locator(".widget-slider .widget-readout")
    expect(shown).to_have_text("0")
    first = others(than=["", ""])
    handle.press("ArrowRight")
    second = others(than=first)
    expect(shown).to_have_text("1")
    for figure in explored.all():
        drawn(figure)
    handle.press("ArrowLeft")
    assert others(than=second) == first, "the first image again, and another figure of it"


def test_the_study_of_submodules_shows_its_table_and_figures(page: "Page") -> None:
    from playwright.sync_api import expect

    run_all(page, "2_submodules.ipynb")
    panel = unroll(page)
    (submodules, _) = plans()
    wanted = len(submodules.configs)
    expect(panel.get_by_text(re.compile(r"\d+ of \d+ runs are done"))).to_contain_text(f"{wanted} of {wanted} runs")
    rows = panel.locator("table").filter(has_text="Parameters").locator("tbody tr").filter(has_text="2 of 2")
    expect(rows).to_have_text([re.compile(rf"^\s*{re.escape(arm)}\s+2 of 2\s[^±]*±") for arm in submodules.arms])
    figures = panel.locator(".jp-RenderedImage img")
    assert len({drawn(figure) for figure in figures.all()}) == figures.count() == 4
