"""The pages of the interface: what `gamlib` and `gamlib.attention` name, and what notebooks import.

mkdocstrings reads the sources, and knows nothing of values. So the signature of `build_model`, which is an object, and
the fields of configurations, which pydantic describes, are written here.
"""

import ast
import inspect

import nbformat
import pandas as pd
from papermill import inspect_notebook
from pydantic import BaseModel

import gamlib
from ablation.config import RunConfig
from ablation.paths import NOTEBOOKS
from ablation.results import typeset
from ablation.studies import Study
from gamlib import attention

CALLED = """## `gamlib.build_model` {{#gamlib.build_model data-toc-label="build_model"}}

```python
{signature}
```

::: gamlib.backbones._BuildModel.__call__
    options: {{show_root_heading: false, show_root_toc_entry: false, show_signature: false}}

::: gamlib.backbones._BuildModel
    options:
      {{show_root_heading: false, show_root_toc_entry: false, heading_level: 2, show_docstring_description: false,
      show_bases: false, show_signature: false, members: [backbones, attentions]}}

"""


def pages() -> dict[str, str]:
    """The page of each package, as Markdown."""
    names = {f"{module.__name__}.{name}" for module in (gamlib, attention) for name in module.__all__}
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and not cell.source.startswith("%%"):
                found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ImportFrom)]
                names |= {f"{node.module}.{alias.name}" for node in found for alias in node.names}
    models = {f"{model.__module__}.{model.__name__}": fields(model) for model in (RunConfig, Study)}
    texts = {package: f"# {package}\n\n" for package in ("gamlib", "ablation")}
    for name in sorted(names - {"gamlib.attention.GAM", "gamlib.attention.MECHANISMS"}):
        if (package := name.partition(".")[0]) in texts:
            texts[package] += called() if name == "gamlib.build_model" else f"::: {name}\n\n{models.get(name, '')}"
    return texts


def called() -> str:
    """`build_model` as the function that it is to its callers."""
    parameters = inspect.signature(gamlib.build_model).parameters.values()
    inside = "".join(f"    {one.replace(annotation=one.empty)},\n" for one in parameters)  # types are in the table
    return CALLED.format(signature=f"build_model(\n{inside})")


def fields(model: type[BaseModel]) -> str:
    """The fields of a configuration: defaults, what is allowed, and what the notebook of a run says of them."""
    said = inspect_notebook(NOTEBOOKS / "run.ipynb") if model is RunConfig else {}
    rows = [
        {
            "Field": f"`{name}`",
            "Default": "required" if field.is_required() else f"`{field.default!r}`",
            "Allowed": escaped(field.description),
            "Meaning": escaped(said[name]["help"]) if name in said else "",
        }
        for name, field in model.model_fields.items()
    ]
    table = pd.DataFrame(rows).replace("", pd.NA).dropna(axis="columns", how="all").fillna("")
    heading = f"### Fields of `{model.__name__}` {{data-toc-label='fields'}}"
    return f"{heading}\n\n{typeset.markdown(table).replace('---:', '---')}\n\n"


def escaped(text: str | None) -> str:
    """A text whose braces are no attributes of Markdown."""
    return (text or "").replace("{", "&#123;")
