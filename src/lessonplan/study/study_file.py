"""The study file: one YAML file, read so that every complaint names its line and key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lessonplan.errors import InputError, first_line, nearest, shown
from lessonplan.study.config import (
    ArmSpec,
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    ResourceSpec,
    Study,
    TrainingSpec,
)
from lessonplan.study.sources import ClusterSpec, EndpointSpec, LabelSpec, LabelSpecs
from lessonplan.training.recipe import Adapter, Recipe, Scoring, Strict

MOST_VALUES = 100_000  # that a study file stands for, aliases written out


def load_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file.

    Data and label files are looked up beside the study file first.

    Args:
        path: a YAML file.
        overrides: "key.sub=value" strings that replace single values, as YAML.

    Raises:
        InputError: names the file, line and key, what was found, and what was expected.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = os.listdir(path.parent) if path.parent.is_dir() else []
        raise InputError(f"There is no study file {path}.{nearest(path.name, there)}") from None
    except OSError as error:
        raise InputError(f"The study file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The study file {path} is not UTF-8 text. Save it as UTF-8.") from None
    yaml = YAML()  # round-trip: knows lines, refuses duplicate keys, builds no objects
    try:
        document = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or "").replace("\n", " ")
        raise InputError(f"{path}{where}: this is not valid YAML: {problem}.") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}, line {line}: this is not YAML: {error.reason}.") from None
    except RecursionError:
        raise InputError(f"{path}: the file is nested too deeply.") from None
    except ValueError as error:  # such as 2001-99-99
        raise InputError(f"{path}: this is not valid YAML: {first_line(error)}.") from None
    except Exception:  # ruamel stumbles over its own errors
        raise InputError(f"{path}: this is not valid YAML; look at its & and !.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: a study file must hold keys such as training and evaluation.")
    for override in overrides:
        _override(document, override, yaml)
    try:
        study = Study.model_validate(_plain(document, iter(range(MOST_VALUES))))
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise InputError(f"{path}: {half!r} is half a character; mend or remove it.") from None
    except RecursionError:
        raise InputError(f"{path}: an anchor (&) stands inside of itself; spell it out.") from None
    except ValidationError as error:
        raise InputError(_explain(path, document, error)) from None
    return _located(study, path)


def _located(study: Study, path: Path) -> Study:
    """Name the study, and resolve files that lie beside the study file."""

    def beside(name: str) -> str:
        candidate = path.parent / name
        # Path.exists raises for a name that no file can have.
        if Path(name).is_absolute() or not os.path.exists(candidate):
            return name
        return str(candidate.resolve())

    changes: dict[str, Any] = {
        "name": study.name or path.stem,
        "training": [
            t.model_copy(update={"data": beside(t.data), "name": t.title}) for t in study.training
        ],
        "evaluation": [
            e.model_copy(update={"data": beside(e.data), "name": e.title}) for e in study.evaluation
        ],
        "labels": LabelSpecs(
            **{
                kind: {
                    name: spec.model_copy(
                        update={
                            "answers": spec.answers and beside(spec.answers),
                            "table": spec.table and beside(spec.table),
                        }
                    )
                    for name, spec in getattr(study.labels, kind).items()
                }
                for kind in ("difficulty", "category")
            },
            missing=study.labels.missing,
        ),
    }
    return study.model_copy(update=changes)


def dump_study(study: Study) -> str:
    """Return the study as YAML text, with all defaults filled in."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    out = StringIO()
    yaml.dump(study.model_dump(mode="json"), out)
    return out.getvalue()


def _override(document: Any, override: str, yaml: Any) -> None:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise InputError(
            f"--set takes key=value, such as recipe.learning_rate=1e-3, not {override!r}."
        )
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}
        place = place[_key(place, parent, override)]
        if not isinstance(place, (dict, list)):
            raise InputError(f"--set {override}: {parent} is not a group of keys.")
    try:
        loaded = yaml.load(value)
    except Exception:  # of any kind, as in `load_study`
        raise InputError(f"--set {override}: {value!r} is not valid YAML.") from None
    place[_key(place, last, override)] = loaded


def _key(place: Any, name: str, override: str) -> str | int:
    """Return what names an entry in a group of keys, or in a list."""
    if isinstance(place, dict):
        return name
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    raise InputError(
        f"--set {override}: {name} is no entry of that list; there are 0 to {len(place) - 1}."
    )


def _plain(value: Any, left: Iterator[int]) -> Any:
    """Turn ruamel's round-trip types into plain ones; refuse more values than are left."""
    if next(left, None) is None:
        raise InputError(
            f"The study file stands for more than {MOST_VALUES:,} values, since its aliases (*) "
            "repeat each other. Spell them out."
        )
    if isinstance(value, dict):
        return {str(key): _plain(entry, left) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry, left) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        value.encode()  # half a character cannot be written down again
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _explain(path: Path, document: Any, error: ValidationError) -> str:
    """Say every problem with its key and line, and suggest the nearest known key."""
    expected: dict[str, dict[str, None]] = {}  # by place: a value of several kinds has several
    found = {}
    for problem in error.errors():
        *outer, last = problem["loc"] or ("",)
        location = [part for part in outer if not _is_type_name(part)]
        if problem["type"] == "extra_forbidden" or not _is_type_name(last):
            location.append(last)
        key = ".".join(str(part) for part in location)
        line = _line(document, location)
        where = f"{path}, line {line}" if line else str(path)
        where += f": {key}" if key else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key is unknown." + nearest(str(location[-1]), _known_keys(location))
        elif problem["type"] == "missing":
            message = "this key is needed."
        elif problem["type"] != "value_error":
            if problem["type"] == "model_type":
                message = "keys with their values are needed here"
            found[where] = f" (found {shown(problem['input'])})"
        expected.setdefault(where, {})[message] = None
    return "\n".join(
        f"{where}: {'; or: '.join(messages)}{found.get(where, '')}"
        for where, messages in expected.items()
    )


def _is_type_name(part: int | str) -> bool:
    # Pydantic names the members of a union in the location: 'constrained-int', "literal['all']".
    return (isinstance(part, str) and not re.fullmatch(r"[A-Za-z_]\w*", part)) or part in (
        "int",
        "float",
        "str",
        "list",
    )


def _line(document: Any, location: Sequence[int | str]) -> int | None:
    """Return the 1-based line of a key, or of its nearest parent that the file has."""
    line = None
    for part in location:
        try:
            marks = document.lc
            position = marks.item(part) if isinstance(part, int) else marks.key(part)
            line = int(position[0]) + 1
            document = document[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _known_keys(location: Sequence[int | str]) -> list[str]:
    specs: dict[str, type[Strict]] = {
        "models": ModelSpec,
        "training": TrainingSpec,
        "evaluation": DataSpec,
        "strategies": ArmSpec,
        "recipe": Recipe,
        "adapter": Adapter,
        "scoring": Scoring,
        "checkpoints": CheckpointSpec,
        "resources": ResourceSpec,
        "labels": LabelSpecs,
        "endpoint": EndpointSpec,
        "cluster": ClusterSpec,
    }
    names = [part for part in location[:-1] if isinstance(part, str)]
    spec = specs.get(names[-1], LabelSpec) if names else Study
    return list(spec.model_fields)
