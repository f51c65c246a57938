"""The paper's Parameters and FLOPs, cell by cell, and what the other readings of it would print."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

from ablation.cli import app
from ablation.paths import NOTEBOOKS
from ablation.results import audits
from gamlib import paper
from gamlib.attention import SE
from gamlib.attention.gam import SpatialAttention
from gamlib.paper import audit as counting
from gamlib.paper.complexity import Complexity

pytestmark = pytest.mark.slow

UNEXPLAINED = {(1, 6, "params"), (2, 16, "params"), (2, 7, "flops"), (2, 17, "flops"), (3, 4, "flops")}


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Networks of one attention are counted anew, as they are now; the others were counted before."""
    known = counting.count

    def count_anew(attention: str) -> None:
        def count(size: int, **arguments: Any) -> Complexity:
            return (known.__wrapped__ if arguments.get("attention") == attention else known)(size, **arguments)

        monkeypatch.setattr(counting, "count", count)

    return count_anew


def test_63_of_68_cells_are_as_printed_and_the_others_are_the_known_five() -> None:
    rows = counting.audit()
    assert len(rows) == 34
    wrong = {(row["table"], row["row"], cell) for row in rows for cell in counting.UNITS if not row[f"{cell}_match"]}
    noted = {(row["table"], row["row"], cell) for row in rows for cell in counting.UNITS if row[f"{cell}_note"]}
    assert wrong == noted == UNEXPLAINED
    assert audits.verdict(rows) == "63 of 68 cells as printed, 5 explained, 0 different"
    assert len(audits.notes(rows)) == 5


@pytest.mark.parametrize(
    ("cell", "count", "printed", "text"),
    [
        ("params", 23_705_252, "23.71", "23.71"),
        ("params", 23_704_999, "23.71", "23.70"),
        ("params", 58_896_088, "58.9", "58.9"),
        ("flops", 1_304_879_104, "1.3", "1.3"),
        ("flops", 2_465_000_000, "2.47", "2.47"),
    ],
)
def test_a_count_is_compared_to_the_digits_printed(cell: str, count: int, printed: str, text: str) -> None:
    assert counting.rounded(cell, count, printed) == text


def test_the_command_prints_every_row_and_the_notes() -> None:
    result = CliRunner().invoke(app, ["audit"])
    assert result.exit_code == 0, result.output
    lines, places = result.output.splitlines(), [(printed["table"], printed["row"]) for printed in paper.table()]
    assert sum(line.split()[:1] == [f"{t}.{r}"] for line in lines for t, r in places) == 34
    assert [line[:3] for line in lines[35:40]] == ["[1]", "[2]", "[3]", "[4]", "[5]"]
    assert lines[-1] == "63 of 68 cells as printed, 5 explained, 0 different"


def test_as_json_it_is_a_list_of_objects() -> None:
    result = CliRunner().invoke(app, ["audit", "--json"])
    rows = json.loads(result.output)
    assert result.exit_code == 0 and len(rows) == 34
    assert {tuple(row) for row in rows} == {counting.COLUMNS}
    assert rows[0] == {
        "table": 1, "dataset": "cifar100", "backbone": "resnet50", "attention": "none", "variant": "",
        "params": 23705252, "flops": 1304879104, "params_printed": 23.71, "flops_printed": 1.3,
        "params_match": True, "flops_match": True,
    }  # fmt: skip


def test_another_network_ends_it_with_1(anew: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """SE with a stray layer."""
    plain = SE.__init__

    def stray(self: Any, channels: int, reduction: int = 16) -> None:
        plain(self, channels, reduction)
        self.mlp.append(type(self.mlp[2])(channels, channels))

    monkeypatch.setattr(SE, "__init__", stray)
    anew("se")
    for options in ([], ["--json"]):
        result = CliRunner().invoke(app, ["audit", *options])
        assert result.exit_code == 1
        assert ("DIFFERS" if not options else '"params_match":false') in result.output


def test_another_count_in_an_explained_cell_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    table = paper.table()
    (printed,) = (row for row in table if (row["table"], row["row"]) == (2, 16))
    printed["params_counted"] = str(int(printed["params_counted"]) + 1)
    monkeypatch.setattr(paper, "table", lambda: table)
    rows = counting.audit()
    assert audits.verdict(rows) == "63 of 68 cells as printed, 4 explained, 1 different"
    assert "DIFFERS" in audits.for_reading(rows)["Parameters agree"].tolist()


def test_a_bias_in_the_first_7x7_convolution_would_print_one_cell_more(
    anew: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first note says: 64 cells would be as printed."""
    plain = SpatialAttention.__init__

    def biased(self: Any, *arguments: Any) -> None:
        plain(self, *arguments)
        conv = self.squeeze
        self.squeeze = type(conv)(conv.in_channels, conv.out_channels, 7, padding=3, groups=conv.groups)

    monkeypatch.setattr(SpatialAttention, "__init__", biased)
    anew("gam")
    rows = counting.audit()
    wrong = {(row["table"], row["row"]) for row in rows if not (row["params_match"] and row["flops_match"])}
    assert wrong == {(2, 7), (2, 16), (2, 17), (3, 4)}


@pytest.mark.long
def test_our_answer_to_every_question_is_what_is_printed_and_others_are_not() -> None:
    """But for one: a bias in the first 7x7 convolution fits as well, and one cell better, as the notes say."""
    namespace: dict[str, Any] = {"In": []}
    cells = nbformat.read(NOTEBOOKS / "1_complexity.ipynb", as_version=4).cells
    for source in (cell.source for cell in cells if cell.cell_type == "code"):
        namespace["In"].append(source)
        exec(source, namespace)
        if "pooling" in namespace:
            break
    answered = namespace["readings"] | {"Which max-pooling?": namespace["pooling"]}
    frame = pd.DataFrame([{"question": question, **row} for question, rows in answered.items() for row in rows])
    assert len(frame) == 30
    biased = frame["answer"] == "a bias in the first"
    assert frame[biased]["agrees"].tolist() == [True, True]
    for (_, network), answers in frame[~biased].groupby(["question", "network"], sort=False):
        ours = network != "ResNet 50 + GAM (gc)"
        assert answers["agrees"].tolist() == [ours] + [False] * (len(answers) - 1), answers


def test_the_rows_of_the_paper_name_their_source() -> None:
    table = paper.table()
    assert Counter(printed["table"] for printed in table) == {1: 6, 2: 20, 3: 4, 4: 4}
    names = [paper.name(printed) for printed in table]
    assert names[::11] == ["ResNet 50", "ResNet 18 + ABN", "MobileNet V2 + SE", "ResNet 18 + GAM (wmp)"]
    assert names[5] == "ResNet 50 + GAM (gc)"
    assert (table[-1]["row"], table[-1]["top1_error"], table[0]["flops_printed"]) == (4, 28.57, "1.3")
