"""Label tables: joined to the questions by id, and read as difficulty or category."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lessonplan.data import tables
from lessonplan.errors import InputError, shown

KEYS = ("id", "line")  # line: 0-based row number, which is the id of questions that came without


class Joined(NamedTuple):
    """A table and where each question stands in it.

    Attributes:
        table: the whole table.
        key: the column that names the question.
        row: 0-based row of the table for each question, int64[n]; -1 where it has none.
        notes: sentences on rows that are about no question.
    """

    table: tables.Table
    key: str
    row: NDArray[np.int64]
    notes: list[str]


def join(
    ids: Sequence[str],
    path: str | os.PathLike[str],
    key: str | None = None,
    keep: Sequence[str] | None = None,
) -> Joined:
    """Find each question's row in a table.

    Args:
        ids: the questions' ids.
        path: a CSV, JSONL, JSON or Parquet file.
        key: the column that holds question ids; by default ``"id"``, or ``"line"`` (0-based row
            numbers, which are the ids of questions that came without).
        keep: the columns that the table is to have beside the key; by default all.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`; no key column; an empty key; an id that
            comes twice; no id that matches.
    """
    table = tables.read_table(path, keep and [*([key] if key else KEYS), *keep])
    if key is None:
        key = next((k for k in KEYS if k in table.columns), None)
        if key is None:
            raise InputError(
                f"{path} has no column 'id' or 'line' that says which question a row is about. "
                "Rename that column to id, or name it with key where there is such a setting; the "
                f"columns are: {', '.join(tables.read_table(path).columns)}."
            )
    elif key not in table.columns:
        raise InputError(tables.missing_column(path, key, tables.read_table(path).columns))

    place = {identifier: i for i, identifier in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(identifier for i, identifier in enumerate(ids) if place[identifier] != i)
        raise InputError(
            f"Two questions have the id {twice!r}, so a table cannot say which one it means."
        )
    found = np.full(len(place), -1, dtype=np.int64)
    unknown: dict[str, None] = {}
    for row, cell in enumerate(table.columns[key]):
        identifier = tables.cell_text(cell)
        if not identifier:
            raise InputError(f"{path}, {table.place(row)}: {key} is empty.")
        i = place.get(identifier)
        if identifier in unknown or (i is not None and found[i] >= 0):
            raise InputError(f"{path}, {table.place(row)}: {key} {identifier!r} comes twice.")
        if i is None:
            unknown[identifier] = None
        else:
            found[i] = row
    examples = list(islice(unknown, 3))
    if (found < 0).all():
        raise InputError(
            f"No {key} of {path} is the id of a question. There they are like "
            f"{', '.join(map(repr, examples)) or 'nothing, the table is empty'}; the questions "
            f"have {', '.join(map(repr, list(place)[:3]))}."
        )
    notes = []
    if unknown:
        notes.append(
            f"{len(unknown)} of {len(table.columns[key])} rows of {path} are about no question of "
            f"this set (for instance {key} {examples[0]!r})."
        )
    return Joined(table, key, found, notes)


def read_labels(
    ids: Sequence[str],
    path: str | os.PathLike[str],
    kind: Literal["difficulty", "category"],
    *,
    column: str | None = None,
    key: str | None = None,
) -> tuple[NDArray[np.float64] | list[str | None], list[str], list[str]]:
    """Read a label of each question from a table.

    Args:
        ids: the questions' ids.
        path: a CSV, JSONL, JSON or Parquet file, with a row a question.
        kind: ``"difficulty"`` or ``"category"``.
        column: the column of labels; by default the one that is named like `kind`.
        key: as `join`.

    Returns:
        The labels, in the order of the questions: for a difficulty float64[n], in whatever range
        the table has, NaN where missing; for a category n texts, None where missing.
        Then sentences on what did not match.
        Then the distinct texts of the table's column ``"uninformative"``, if it has one: there, a
        table that lessonplan wrote says that the labelling model did no better than chance.

    Raises:
        InputError: as `join`; no such column; a difficulty that is no finite number; a category
            that is a list or object; no label at all.
    """
    name = kind if column is None else column
    joined = join(ids, path, key, [name, "uninformative"])
    columns = joined.table.columns
    if name not in columns:
        raise InputError(tables.missing_column(path, name, tables.read_table(path).columns))
    cells = [columns[name][row] if row >= 0 else None for row in joined.row]
    missing = sum(map(tables.is_missing, cells))
    if missing == len(cells):
        raise InputError(f"{path}: the column {name!r} has no {kind} for any question.")

    values: NDArray[np.float64] | list[str | None]
    if kind == "difficulty":
        numbers = np.array([_number(cell) for cell in cells])
        fits = np.isfinite(numbers) | np.array([tables.is_missing(cell) for cell in cells])
        expected = "a difficulty as a finite number, or an empty cell where there is none"
        values = numbers
    else:
        fits = np.array([not isinstance(cell, tables.NESTED) for cell in cells])
        expected = "a category as text"
        values = [tables.cell_text(cell) or None for cell in cells]
    if not fits.all():
        i = int(np.argmin(fits))
        raise InputError(
            f"{path}, {joined.table.place(joined.row[i])}, column {name!r}: expected {expected}; "
            f"found {shown(cells[i])}."
        )

    notes = list(joined.notes)
    if missing:
        notes.append(f"{missing} of {len(cells)} questions have no {kind} in {path}.")
    sentences = [tables.cell_text(cell) for cell in columns.get("uninformative", [])]
    return values, notes, [sentence for sentence in dict.fromkeys(sentences) if sentence]


def _number(cell: Any) -> float:
    """Return a cell as a number, NaN where it is missing or none."""
    try:
        return math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):  # 10**400 is an integer, and no float
        return math.nan
