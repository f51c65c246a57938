"""What a study exports as LaTeX is typeset by a real pdflatex."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from debian import missing

from ablation.paths import ROOT
from ablation.results import load, typeset
from ablation.studies import Study
from ablation.study_files import find_study

pytestmark = pytest.mark.slow

FinishAll = Callable[..., None]
DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage[margin=0.8in]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


@pytest.mark.skipif(bool(missing("texlive")), reason=missing("texlive"))
def test_the_tables_of_finished_and_of_half_done_studies_are_typeset(places: Path, finish_all: FinishAll) -> None:
    errors = [[6.0, 7.0, 8.0], [4.0, 5.1, 6.0], [6.5, 6.0, 8.5], [7.1, 8.0, None], [3.0, None, None], [None] * 3]
    odd: dict[str, dict[str, float]] = {
        "a_b & 50 % #1": {},
        "r ≠ 4^2, x~y": {"reduction": 8},
        "<$\\pm|{}>": {"reduction": 4},
    }
    odd |= {"[a] é = 1": {"reduction": 2}, "*b": {"lr": 0.02}}
    own = Study(name="own_1", question="Is 50 % of a_b^2 ~ {x} & more < 1 × 3?", arms=odd)
    plans = [study.plan(seeds="0-2") for study in (find_study("submodules"), find_study("max_pooling"), own)]
    for plan in plans:
        finish_all(plan, {arm: errors[number % 6] for number, arm in enumerate(plan.arms)})
        (places / f"{plan.name}.tex").write_text(typeset.latex(load(plan)))
    found = [*sorted(places.glob("*.tex")), *sorted((ROOT / "figures").glob("*.tex"))]
    assert len(found) >= 7
    (places / "all.tex").write_text(DOCUMENT % "\n".join(rf"\input{{{path}}}" for path in found))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=places, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0 and (places / "all.pdf").stat().st_size > 20_000, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout, done.stdout
