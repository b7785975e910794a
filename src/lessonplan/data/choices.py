"""Multiple choice: the options of each row, and which of them is the right one.

Options stand in a list, in a dictionary by letter, or in a column each; an answer is a letter, an
index or the option's text, and which of these is told from the whole column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from lessonplan.data import tables
from lessonplan.data.features import COLUMNS, LETTERS
from lessonplan.data.formats import FORMATS
from lessonplan.data.sources import Raw
from lessonplan.errors import InputError, shown


def read_choices(
    raw: Raw, mapping: Mapping[str, Any], format: str, answer_base: int | None
) -> tuple[list[str], list[list[Any]], list[int | None], set[int], dict[int, str]]:
    """Return texts, options and answers, which rows are unlabelled, and each row's first fault.

    Args:
        raw: the table.
        mapping: our columns -> the table's.
        format: a key of `lessonplan.data.formats.FORMATS`.
        answer_base: 0 or 1 for answers that are indices, where the column leaves it open.

    Returns:
        For each of n rows its text, its options and the index of the right one (None where there
        is none such); the rows whose answers the publisher keeps back; row -> what is wrong with
        it.

    Raises:
        InputError: a column as a whole cannot be understood.
    """
    found = raw.table.columns
    n = tables.row_count(found)
    faults: dict[int, str] = {}  # row -> the first thing wrong with it
    texts = [tables.cell_text(v) for v in found[mapping["question"]]]
    same_number = mapping["options"] == FORMATS[format]["options"]
    options, keys = _options(found, mapping["options"], n, same_number)
    if isinstance(mapping["options"], str) and not any(options):
        raise InputError(
            f"{raw.source}: column {mapping['options']!r} holds no lists of options (the first "
            f"is {shown(found[mapping['options']][0])}). Give lists, in a CSV as JSON, or name a "
            "column for each option."
        )
    for i in range(n):
        if not texts[i]:
            faults[i] = "empty question"
        elif fault := _options_fault(options[i], keys[i]):
            faults[i] = fault
    for i, value in enumerate(found[mapping["question"]]):
        if isinstance(value, tables.NESTED):
            faults[i] = f"question that is {tables.kind_of(value)}"

    own = FORMATS["medmcqa"]["answer"]
    values = [_answer_value(v) for v in found[mapping["answer"]]]
    unlabelled = (
        {i for i in range(n) if values[i] == -1}
        if format == "medmcqa" and mapping["answer"] == own
        else set()
    )
    if len(unlabelled) == n:
        raise InputError(f"{raw.source} is unlabelled: {own} is -1 in all {n} rows.")
    if answer_base is None and raw.preset == "medmcqa":
        answer_base = 0
    answers = _answers(
        raw.source,
        mapping["answer"],
        [None if i in unlabelled else value for i, value in enumerate(values)],
        options,
        keys,
        answer_base,
        zero_based=all(mapping.get(name) == name for name in COLUMNS),
    )
    for i in set(range(n)) - unlabelled:
        if values[i] is None:
            faults.setdefault(i, "no answer")
        elif answers[i] is None:
            faults.setdefault(i, "answer outside the options")
    return texts, options, answers, unlabelled, faults


def _options(
    found: dict[str, list[Any]], columns: str | Sequence[str], n: int, same_number: bool
) -> tuple[list[list[Any]], list[list[str]]]:
    """Return each row's option texts, and the letters that its answer may name them by.

    An option that is no text is None. Of a column for each option, the last ones are empty where a
    question has fewer, unless all have the same number.
    """
    if not isinstance(columns, str):
        texts = [[_option(found[name][i]) for name in columns] for i in range(n)]
        for row in texts:
            while not same_number and row and row[-1] == "":
                row.pop()
        # A file may call its columns opa, opb: the letter is the place.
        return texts, [list(LETTERS[: len(row)]) for row in texts]
    options: list[list[str | None]] = []
    keys: list[list[str]] = []
    for cell in found[columns]:
        if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
            try:
                cell = json.loads(cell)  # how a list stands in a CSV
            except (ValueError, RecursionError):
                cell = None
        if isinstance(cell, (list, tuple, np.ndarray)):
            pairs = list(zip_longest(LETTERS[: len(cell)], cell, fillvalue=""))
            if pairs and all(isinstance(entry, dict) for entry in cell):
                pairs = [(tables.cell_text(e.get("key")), e.get("value")) for e in cell]
        elif isinstance(cell, dict):
            # Arrow gives every row the keys of all rows, with None for those it lacks.
            pairs = [(tables.cell_text(k), v) for k, v in cell.items() if v is not None]
            pairs.sort(key=lambda pair: (len(pair[0]), pair[0]))  # 2 before 10
        else:
            pairs = []
        options.append([_option(value) for _, value in pairs])
        keys.append([key.upper() for key, _ in pairs])
    return options, keys


def _option(value: Any) -> str | None:
    return None if isinstance(value, tables.NESTED) else tables.cell_text(value)


def _options_fault(options: list[Any], keys: list[str]) -> str | None:
    if len(options) < 2:
        return "fewer than two options"
    if len(options) > len(LETTERS):
        return f"more than {len(LETTERS)} options"
    if None in options:
        return "option that is no text"
    if not all(options):
        return "empty option"
    if len(set(options)) < len(options):
        return "identical options"
    if len(set(keys)) < len(keys):
        return "two options of one letter"
    return None


def _answer_value(value: Any) -> int | str | None:
    """Return a whole number, text, or None for a missing answer."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if tables.is_missing(value):
        return None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value).strip()


def _answers(
    source: str,
    column: str,
    values: list[int | str | None],
    options: list[list[str]],
    keys: list[list[str]],
    answer_base: int | None,
    zero_based: bool,
) -> list[int | None]:
    """Return the index of each row's right option, None where there is none such.

    One row is not enough to tell a letter from the text "C" (the vitamin), or a 0-based index from
    a 1-based one, so the reading that explains most of the column is taken for all of it.
    """
    n = len(values)
    as_text: list[int | None] = [None] * n
    as_letter: list[int | None] = [None] * n
    as_number: list[int | None] = [None] * n
    # Our own format holds indices, and so does what answer_base is said of.
    indices_alone = zero_based or answer_base is not None
    for i, value in enumerate(values):
        if isinstance(value, int):
            as_number[i] = value
            if indices_alone:
                continue
            value = str(value)  # "4" can be an option, as in a CSV
        if value is not None:
            letter = value.strip("().: ").upper()
            as_letter[i] = keys[i].index(letter) if letter in keys[i] else None
            as_text[i] = options[i].index(value) if value in options[i] else None
            if as_number[i] is None and re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", value):
                as_number[i] = int(float(value))

    def explained(reading: list[int | None]) -> int:
        return sum(v is not None for v in reading)

    best = max(explained(as_text), explained(as_letter), explained(as_number))
    if best == 0:
        first = next((v for v in values if v is not None), None)
        raise InputError(
            f"{source}: column {column!r} holds {shown(first)}, which is no letter, no index and "
            f"not the text of an option."
        )
    if best == explained(as_text) or best == explained(as_letter):
        if answer_base is not None:
            raise InputError(
                f"{source}: answer_base is for answers that are indices, but column {column!r} "
                f"holds {'texts' if best == explained(as_text) else 'letters'}."
            )
        return as_text if best == explained(as_text) else as_letter

    rows = [i for i in range(n) if as_number[i] is not None and len(options[i]) >= 2]
    zeros = [i for i in rows if as_number[i] == 0]
    lasts = [i for i in rows if as_number[i] == len(options[i])]
    if answer_base is None and zero_based and not lasts:
        answer_base = 0  # our own format, where no 0 need occur
    if answer_base is None:
        if bool(zeros) == bool(lasts):
            found = (
                "holds both 0 and the number of options"
                if zeros
                else "holds neither 0 (which would make it 0-based) nor the number of options "
                "(1-based)"
            )
            raise InputError(
                f"{source}: whether the answers of column {column!r} are counted from 0 or from 1 "
                f"cannot be told, since it {found}. Set answer_base to 0 or 1 "
                "(--answer-base)."
            )
        answer_base = 0 if zeros else 1
    indices = [None if v is None else v - answer_base for v in as_number]
    return [
        v if v is not None and 0 <= v < len(options[i]) else None for i, v in enumerate(indices)
    ]
