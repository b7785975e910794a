"""Publishers' formats: which of their columns is which of ours, and how a table tells its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lessonplan.data import tables
from lessonplan.data.features import COLUMNS
from lessonplan.errors import InputError

# Our column -> theirs. Where a format has no own name for id, category or difficulty, a column of
# that very name is used if there is one.
FORMATS: dict[str, dict[str, Any]] = {
    "medmcqa": {
        "question": "question",
        "options": ["opa", "opb", "opc", "opd"],
        "answer": "cop",
        "category": "subject_name",
    },
    "medqa": {"question": "question", "options": "options", "answer": "answer_idx"},
    "lek": {
        "question": "prompt",
        "options": ["A", "B", "C", "D", "E"],
        "answer": "Answer",
        "category": "Category",
        "difficulty": "Difficulty",
    },
    "columns": {"question": "question", "options": "options", "answer": "answer"},
}
# The same for chat and instruction data, where a row is a prompt with its completion.
COMPLETION_FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": "messages"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
}
ALL_FORMATS = FORMATS | COMPLETION_FORMATS
REQUIRED = ("question", "options", "answer")  # of multiple choice
OPTIONAL = ("id", "input", "category", "difficulty")


def recognise(source: str, found: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Return the format that a table's columns fit; "columns" where they fit none.

    Args:
        source: what the table is called in messages.
        found: the table's columns.
        columns: our column -> theirs, as far as the user says so.

    Raises:
        InputError: they fit several.
    """
    for name in ("medmcqa", "medqa", "lek"):
        needed = [FORMATS[name][key] for key in REQUIRED]
        if all(c in found for c in _flat(needed)):
            return name
    if set(REQUIRED) & set(columns) or set(REQUIRED) <= set(found):
        return "columns"
    fitting = [
        name
        for name, keys in COMPLETION_FORMATS.items()
        if all(columns.get(key, key) in found for key in keys if key not in OPTIONAL)
    ]
    if len(fitting) > 1:
        raise InputError(
            f"{source} has the columns of several formats: {' and '.join(fitting)}. "
            "Say which with format."
        )
    return fitting[0] if fitting else "columns"


def map_columns(
    source: str, found: dict[str, list[Any]], format: str, columns: Mapping[str, Any]
) -> dict[str, Any]:
    """Return our column -> theirs, all of them present in the table.

    Args:
        source: what the table is called in messages.
        found: the table's columns.
        format: a key of `ALL_FORMATS`.
        columns: our column -> theirs, over what the format says.

    Raises:
        InputError: a column that is no column of the format, or not in the table.
    """
    mapping: dict[str, Any] = {}
    keys: tuple[str, ...] = COLUMNS
    if format in COMPLETION_FORMATS:
        keys = ("id", *COMPLETION_FORMATS[format], "category", "difficulty")
    for key in columns:
        if key not in keys:
            raise InputError(
                f"columns: {key!r} is no column of the format {format}, which has "
                f"{', '.join(keys)}."
            )
    for key in keys:
        own = ALL_FORMATS[format].get(key, key)
        name = columns.get(key, own)
        if key in columns or key not in OPTIONAL:
            if not isinstance(name, str) and (key != "options" or not isinstance(name, Sequence)):
                raise InputError(f"columns: {key} has to be the name of a column, not {name!r}.")
            for column in _flat([name]):
                if column not in found:
                    hint = (
                        f" If it has another name, say which: {_to_name(found, format, columns)}, "
                        "or columns in a study file and in Python."
                    )
                    missing = tables.missing_column(source, column, found)
                    raise InputError(missing + ("" if key in columns else hint))
            mapping[key] = name
        elif name in found:
            mapping[key] = name
        elif key in found:
            mapping[key] = key
    return mapping


def _to_name(found: Mapping[str, Any], format: str, columns: Mapping[str, Any]) -> str:
    """Return the options of the command line that name all columns that are still missing."""
    lacking = [
        key
        for key, own in ALL_FORMATS[format].items()
        if key not in (*columns, *OPTIONAL) and any(c not in found for c in _flat([own]))
    ]
    return " ".join(
        f"--column {key}={'NAME,NAME,...' if key == 'options' else 'NAME'}" for key in lacking
    )


def _flat(names: Sequence[Any]) -> list[str]:
    return [c for name in names for c in ([name] if isinstance(name, str) else name)]
