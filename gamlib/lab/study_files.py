"""Studies by name, or from YAML files: one file may hold several, and a study may extend one of this project."""

from pathlib import Path
from typing import Any

import yaml

from gamlib.lab.catalogue import CATALOGUE
from gamlib.lab.config import ConfigError
from gamlib.lab.studies import STUDIES, Plan, Study


def find_studies(name: str) -> list[Study]:
    """A study of this project by its name, or the user's own: from a YAML file, which may hold several, or by its name
    as it was submitted last.

    Raises:
        ConfigError: neither; the message lists the names.
    """
    if name in STUDIES:
        return [STUDIES[name]]
    if name.endswith((".yaml", ".yml")):
        return read_studies(Path(name))
    for plan in Plan.saved():
        if plan.study.name == name:
            return [plan.study]
    raise ConfigError(f"study {name!r}: allowed: {', '.join(STUDIES)}, or a YAML file")


def find_study(name: str) -> Study:
    """The one study of a name or file.

    Raises:
        ConfigError: as `find_studies`, or a file with several studies.
    """
    study, *others = find_studies(name)
    if others:
        raise ConfigError(f"{name} has {1 + len(others)} studies: allowed here: one")
    return study


def study_name(text: str) -> str:
    """The name of a study that was submitted, which may be given by its YAML file.

    Raises:
        ConfigError: as `find_study`, of a file.
    """
    return find_study(text).name if text.endswith((".yaml", ".yml")) else text


def read_studies(path: Path) -> list[Study]:
    """The studies of a YAML file, which are often one; between several stands a line `---`.

    One that `extends` a study of this project has what that has, with its own `base` on top of that one's. The
    notebooks are about the studies themselves, so it has none: its report is figures and tables.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold studies with names of their own.
    """
    try:
        contents = list(yaml.safe_load_all(path.read_text())) or [None]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    found: dict[str, Study] = {}
    for content in contents:
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ConfigError(f"{path} is not a study: allowed: the keys {', '.join(Study.model_fields)}, extends")
        study = Study(**{"name": path.stem, **_extended(content)})
        if study.name in STUDIES:
            raise ConfigError(f"name={study.name!r}: that is a study of this project; give yours another name")
        if study.name in found:
            raise ConfigError(f"name={study.name!r}: {path} has two studies of that name; give each its own")
        found[study.name] = study
    return list(found.values())


def _extended(content: dict[str, Any]) -> dict[str, Any]:
    """What a YAML file says of a study, with what the one has that it `extends`."""
    if "extends" not in content:
        return content
    if (name := content["extends"]) not in list(CATALOGUE):
        raise ConfigError(f"extends={name!r}: allowed: {', '.join(CATALOGUE)}")
    given = {**CATALOGUE[name], "notebook": "", **content}
    del given["extends"]
    if isinstance(given.get("base"), dict):
        given["base"] = {**CATALOGUE[name].get("base", {}), **given["base"]}
    if isinstance(content.get("arms"), dict) and "compare" not in content:  # of arms that may be others
        arms = set(map(str, content["arms"]))
        given["compare"] = [pair for pair in given.get("compare") or () if arms.issuperset(pair)] or None
    return given
