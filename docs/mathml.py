"""Equations of the pages as MathML, which browsers show without a script: Zensical hands blocks called `math` to it."""

from typing import Any

from latex2mathml.converter import convert


def equation(source: str, *_: Any, **__: Any) -> str:
    """HTML of an equation in LaTeX, as a format of `pymdownx.superfences`."""
    return f'<div class="equation">{convert(source, display="block")}</div>'
