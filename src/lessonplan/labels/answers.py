"""Difficulty from the answers that people or models gave to the questions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lessonplan.data import tables
from lessonplan.data.features import LETTERS
from lessonplan.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

KEYS = ("id", "line")  # line: 0-based row number, which is the id of questions that came without


def read_answers(
    questions: Dataset, path: str | os.PathLike[str], *, key: str | None = None
) -> tuple[NDArray[np.float64], list[str]]:
    """Return `difficulty_from_answers` and sentences on what did not match.

    Raises:
        InputError: as `difficulty_from_answers`.
    """
    table = tables.read_table(path)
    if key is None:
        key = next((k for k in KEYS if k in table.columns), None)
        if key is None:
            raise InputError(
                f"{path} has no column 'id' or 'line' that says which question a row is about. "
                f"Name it with key; the columns are: {', '.join(table.columns)}."
            )
    elif key not in table.columns:
        raise InputError(tables.missing_column(path, key, table.columns))
    respondents = [name for name in table.columns if name != key]
    if not respondents:
        raise InputError(f"{path} has no column of answers beside {key!r}.")

    place = {identifier: i for i, identifier in enumerate(questions["id"])}
    answers, sizes = list(questions["answer"]), [len(o) for o in questions["options"]]
    difficulty = np.full(len(answers), np.nan)
    seen: set[str] = set()
    unknown = []
    outside = 0
    for row, cell in enumerate(table.columns[key]):
        # Parquet and JSON give line numbers as numbers, with a gap in the column as floats.
        whole = isinstance(cell, float) and cell.is_integer()
        identifier = str(int(cell) if whole else cell).strip()
        if identifier in seen:
            raise InputError(f"{path}, {table.place(row)}: {key} {identifier!r} comes twice.")
        seen.add(identifier)
        if identifier not in place:
            unknown.append(identifier)
            continue
        i = place[identifier]
        right = []
        for name in respondents:
            value = table.columns[name][row]
            if tables.is_missing(value):
                continue
            letter = str(value).strip().upper()
            if len(letter) != 1 or letter not in LETTERS:
                raise InputError(
                    f"{path}, {table.place(row)}, column {name!r}: expected a letter from A to "
                    f"{LETTERS[sizes[i] - 1]}, found {value!r}."
                )
            # Models do answer E to four options. That is an answer, and a wrong one.
            outside += LETTERS.index(letter) >= sizes[i]
            right.append(LETTERS.index(letter) == answers[i])
        if right:
            difficulty[i] = 1 - np.mean(right)

    if len(unknown) == len(seen):
        raise InputError(
            f"No {key} of {path} is the id of a question. There they are like "
            f"{', '.join(map(repr, unknown[:3])) or 'nothing, the table is empty'}; the questions "
            f"have {', '.join(map(repr, list(place)[:3]))}."
        )
    notes = []
    if unknown:
        notes.append(
            f"{len(unknown)} of {len(seen)} rows of {path} are about no question of this set "
            f"(for instance {key} {unknown[0]!r})."
        )
    if outside:
        notes.append(
            f"{outside} answers in {path} name a letter that the question does not have; they "
            f"count as wrong."
        )
    if missing := int(np.isnan(difficulty).sum()):
        notes.append(f"{missing} of {len(answers)} questions have no answers in {path}.")
    return difficulty, notes


def difficulty_from_answers(
    questions: Dataset, table_path: str | os.PathLike[str], *, key: str | None = None
) -> NDArray[np.float64]:
    """Return 1 minus the share of respondents who chose the right option.

    Args:
        questions: the questions.
        table_path: a CSV, JSONL, JSON or Parquet of questions by respondents: a key column and a
            column of letters for each respondent, empty where there is no answer.
        key: the key column, which holds question ids; by default ``"id"``, or ``"line"`` (0-based
            row numbers, which are the ids of questions that came without).

    Returns:
        float64[n], NaN for a question without any answer. What did not match is issued as
        warnings; `read_answers` returns it.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`; no key column; an id that comes twice; a
            value that is no letter of the question's options; no id that matches.
    """
    import warnings

    difficulty, notes = read_answers(questions, table_path, key=key)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return difficulty


def label_column(questions: Dataset, name: str) -> NDArray[np.generic]:
    """Return a label as an array: numbers as int64 or float64, text as objects.

    Args:
        questions: the questions, with further columns kept when they were read.
        name: a column.

    Raises:
        InputError: there is no such column (with the nearest name), it is empty throughout, or it
            holds lists.
    """
    columns = questions.column_names
    if name not in columns:
        raise InputError(
            tables.missing_column("The question set", name, columns)
            + " Columns of a file beside those of a question have to be kept (keep) on reading."
        )
    values = list(questions.with_format(None)[name])
    if values and all(map(tables.is_missing, values)):
        raise InputError(f"The column {name!r} of the question set is empty: there is no label.")
    return tables.column_array(values, f"Column {name!r}")
