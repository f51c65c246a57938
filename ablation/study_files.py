"""Studies by name, or from YAML files: one file may hold several, and a study may extend one of the paper's three."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ablation.errors import ConfigError
from ablation.paths import STUDIES, require
from ablation.studies import Plan, Study
from gamlib.sources import own_file

FOLDER = STUDIES
KEYS = (*Study.model_fields, "grid", "extends")
PAPER_STUDIES = ("submodules", "max_pooling", "benchmark")  # files there, known by their names
OF_THE_PROJECT = {  # the names of all studies there, which share the folder of committed figures
    *PAPER_STUDIES,
    *("gates", "digits-recipe", "recipe-cpu", "scale-cpu", "submodules-cpu", "max_pooling-cpu"),
    *("benchmark-cpu", "speed-cpu", "confirm-cpu", "placement-cpu", "mobilenet-recipe-cpu", "mobilenet-cpu"),
    *("submodules-gpu", "max_pooling-gpu", "resnet50-gpu"),
}


def find_studies(name: str) -> list[Study]:
    """A study of the paper's by its name, those of a YAML file, or one by its name as it was submitted last.

    Raises:
        ConfigError: none of these; the message lists the names.
    """
    if name in PAPER_STUDIES:
        return read_studies(_paper_file(name))
    if name.endswith((".yaml", ".yml")):
        return read_studies(Path(name))
    with suppress(ConfigError):
        return [Plan.load(name).study]
    raise ConfigError(f"study {name!r}: allowed: {', '.join(PAPER_STUDIES)}, or a YAML file")


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
    """The name of a study that was submitted, which may be given by its YAML file; errors as those of `find_study`."""
    return find_study(text).name if text.endswith((".yaml", ".yml")) else text


def read_studies(path: Path) -> list[Study]:
    """The studies of a YAML file, which are often one; between several stands a line `---`.

    One that `extends` a study of the paper's has what that has, with its own `base` on top of that one's. The paper's
    notebooks are about the studies themselves, so it has the one of any study.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold studies with names of their own.
    """
    found: dict[str, Study] = {}
    for content in _contents(path):
        study = Study(**{"name": path.stem, **_extended(_from_beside(path, content))})
        if study.name in {*OF_THE_PROJECT, "data"} and path.resolve().parent != FOLDER:
            raise ConfigError(f"name={study.name!r}: that name is this project's own; give yours another")
        if study.name in found:
            raise ConfigError(f"name={study.name!r}: {path} has two studies of that name; give each its own")
        found[study.name] = study
    return list(found.values())


def _contents(path: Path) -> list[dict[str, Any]]:
    """What a YAML file says of each of its studies; errors are those of `read_studies`."""
    import yaml  # late: a study that was submitted is JSON

    try:
        contents = list(yaml.safe_load_all(path.read_text())) or [None]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for content in contents:
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ConfigError(f"{path} is not a study: allowed: the keys {', '.join(KEYS)}")
    return contents


def _from_beside(path: Path, content: Any, key: str = "") -> Any:
    """What a file says, with mechanisms of files that lie beside it by their whole path."""
    if isinstance(content, dict):
        return {name: _from_beside(path, value, str(name)) for name, value in content.items()}
    if isinstance(content, list):
        return [_from_beside(path, value, key) for value in content]
    file = own_file(content) if key == "attention" and isinstance(content, str) else None
    there = file is not None and not file.is_absolute() and (path.parent / file).is_file()
    return f"{path.absolute().parent}/{content}" if there else content


def _extended(content: dict[str, Any]) -> dict[str, Any]:
    """What a YAML file says of a study, with what the one has that it `extends`."""
    if "extends" not in content:
        return content
    if (name := content["extends"]) not in list(PAPER_STUDIES):
        raise ConfigError(f"extends={name!r}: allowed: {', '.join(PAPER_STUDIES)}")
    (extended,) = _contents(_paper_file(name))
    given = {**extended, "notebook": "", **content}
    if "test" not in content:
        given.pop("test", None)  # that of a study whose runs have been seen is not one to choose again
    del given["extends"]
    if isinstance(given.get("base"), dict):
        given["base"] = {**extended.get("base", {}), **given["base"]}
    if isinstance(content.get("arms"), dict) and "compare" not in content:  # of arms that may be others
        arms = set(map(str, content["arms"]))
        given["compare"] = [pair for pair in given.get("compare") or () if arms.issuperset(pair)] or None
    return given


def _paper_file(name: str) -> Path:
    return require(FOLDER / f"{name}.yaml")
