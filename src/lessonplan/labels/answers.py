"""Difficulty from the answers that people or models gave to the questions."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.data import tables
from lessonplan.data.features import LETTERS
from lessonplan.errors import InputError, counted, shown
from lessonplan.labels.irt import fit_irt
from lessonplan.labels.tables import Joined, join

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("share", "1pl", "2pl")
# Below it, being right says next to nothing of ability. The prior lets a question get there only
# against strong evidence (it is 3 standard deviations from a typical one).
SMALL_DISCRIMINATION = 0.2

# What a cell is, if it is not the index of a letter.
_MISSING, _WRONG, _RIGHT, _UNREADABLE = -1, -2, -3, -4
_MARKS = {"0": _WRONG, "0.0": _WRONG, "false": _WRONG, "1": _RIGHT, "1.0": _RIGHT, "true": _RIGHT}


def read_answers(
    questions: Dataset,
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    method: Literal["share", "1pl", "2pl"] = "share",
) -> tuple[NDArray[np.float64], list[str]]:
    """Return `difficulty_from_answers` and sentences on what did not match.

    Raises:
        InputError: as `difficulty_from_answers`.
    """
    if method not in METHODS:
        raise InputError(f"The method is one of {', '.join(METHODS)}, not {method!r}.")
    joined = join(questions["id"][:], path, key)
    right, outside = _right(questions, path, joined)
    notes = list(joined.notes)
    if outside:
        notes.append(
            f"{counted(outside, 'answer')} in {path} with a letter that the question does not "
            f"have: counted as wrong."
        )
    answers = (~np.isnan(right)).sum(axis=0)
    if method == "share":
        difficulty = np.full(len(answers), np.nan)
        given = answers > 0
        difficulty[given] = (right[:, given] == 0).sum(axis=0) / answers[given]
    else:
        try:
            fit = fit_irt(right, method)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        difficulty = fit.chance_wrong
        if not fit.converged:
            notes.append(
                f"The {method.upper()} fit to {path} still moved after {fit.iterations} "
                f"iterations, so the last digits of the difficulties are not settled."
            )
        if method == "2pl" and (flat := int((fit.discrimination < SMALL_DISCRIMINATION).sum())):
            notes.append(
                f"{counted(flat, 'question')} of {path}: got right by weak respondents about as "
                f"often as by strong ones, or more often (discrimination below "
                f"{SMALL_DISCRIMINATION}). The key may be wrong."
            )
    if missing := int((answers == 0).sum()):
        notes.append(f"{missing} of {len(answers)} questions have no answers in {path}.")
    return difficulty, notes


def difficulty_from_answers(
    questions: Dataset,
    table_path: str | os.PathLike[str],
    *,
    key: str | None = None,
    method: Literal["share", "1pl", "2pl"] = "share",
) -> NDArray[np.float64]:
    """Return how hard each question was for the respondents of a table.

    The table has a key column and a column for each respondent: either the letters they chose, or
    0 and 1 (also false and true) for wrong and right, and empty where there is no answer. Which of
    the two a column holds is told by the column as a whole; a letter that the question does not
    have is a wrong answer.

    With ``"share"``, difficulty is 1 minus the share of right answers, of those present. It takes
    no account of who answered: where weak respondents got other questions than strong ones, use
    item response theory. With ``"1pl"`` and ``"2pl"``, difficulty is the chance that a respondent
    of average ability is wrong, sigmoid(a b) (`lessonplan.labels.irt`). In the 1PL its order is
    that of b. In the 2PL it is not quite, and it is used since b itself runs away where answers
    hardly depend on ability: a coin-flip question is then of medium difficulty, and not the
    hardest or easiest of all.

    Args:
        questions: the questions.
        table_path: a CSV, JSONL, JSON or Parquet of questions by respondents.
        key: the key column, which holds question ids; by default ``"id"``, or ``"line"`` (0-based
            row numbers, which are the ids of questions that came without).
        method: ``"share"``, ``"1pl"`` or ``"2pl"``; the last two need 10 respondents.

    Returns:
        float64[n] from 0 (easy) to 1 (hard), NaN for a question without any answer. What did not
        match is issued as warnings; `read_answers` returns it.

    Raises:
        InputError: as `lessonplan.labels.tables.join`; no column of answers; a cell that is none of
            the above; letters and 0 or 1 in one column; an unknown method; too few respondents
            for it.
    """
    import warnings

    difficulty, notes = read_answers(questions, table_path, key=key, method=method)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return difficulty


def difficulty_from_share(questions: Dataset, column: str) -> NDArray[np.float64]:
    """Return 1 minus the share of test takers who were right, which a column holds.

    Shares are numbers from 0 to 1. They are percentages where a percent sign or most of the numbers
    (over half of them above 1) say so. As in the LEK format, whose column Difficulty is turned like
    this on reading and then stands in ``"difficulty"``: do not turn that one again.

    Args:
        questions: the questions, with further columns kept when they were read.
        column: a column.

    Returns:
        float64[n] from 0 (easy) to 1 (hard), NaN where the share is missing.

    Raises:
        InputError: as `label_column`; text; a number outside 0 to 1, or 0 to 100 for percentages.
    """
    label_column(questions, column)  # for its messages
    cells = list(questions.with_format(None)[column])
    texts = ["" if tables.is_missing(cell) else str(cell).strip() for cell in cells]
    shares = np.array([_share(text) for text in texts])
    present = np.array([bool(text) for text in texts])
    signed = any(text.endswith("%") for text in texts)
    percent = signed or (shares > 1).sum() > present.sum() / 2
    whole = 100 if percent else 1
    bad = present & ~((shares >= 0) & (shares <= whole))
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(
            f"Column {column!r}, question {questions['id'][i]!r}: expected the share of right "
            f"answers as a number from 0 to {whole}{' (percent)' if percent else ''}, found "
            f"{cells[i]!r}."
        )
    return 1 - shares / whole


def _share(text: str) -> float:
    try:
        return float(text.removesuffix("%").strip() or "nan")
    except ValueError:
        return math.nan


def _right(
    questions: Dataset, path: str | os.PathLike[str], joined: Joined
) -> tuple[NDArray[np.float64], int]:
    """Return who was right, float64[respondents, n], and how many letters were no option."""
    table, rows = joined.table, joined.row
    respondents = [name for name in table.columns if name != joined.key]
    if not respondents:
        raise InputError(
            f"{path} has no column of answers beside {joined.key!r}; one for each respondent is "
            "expected."
        )
    keys = np.array(questions["answer"])
    sizes = np.array([len(options) for options in questions["options"]])
    there = rows >= 0
    right = np.full((len(respondents), len(rows)), np.nan)
    outside = 0
    known: dict[Any, int] = {}  # a table has few distinct cells, and may have millions
    for name, to in zip(respondents, right, strict=True):
        cells = [table.columns[name][row] for row in rows[there]]
        codes = np.full(len(rows), _MISSING)
        codes[there] = [_code(cell, known) for cell in cells]
        letters, marks = codes >= 0, (codes == _WRONG) | (codes == _RIGHT)
        odd = codes == _UNREADABLE
        if letters.any() and marks.any():
            odd |= marks if letters.sum() >= marks.sum() else letters
        if odd.any():
            i = int(np.flatnonzero(odd)[np.argmin(rows[odd])])
            letter, mark = f"a letter from A to {LETTERS[sizes[i] - 1]}", "0 or 1 (wrong or right)"
            if marks[~odd].any():
                expected = mark
            else:
                expected = letter if letters[~odd].any() else f"{letter}, or {mark}"
            mixed = " A column holds either letters or 0 and 1." if codes[i] != _UNREADABLE else ""
            raise InputError(
                f"{path}, {table.place(rows[i])}, column {name!r}: expected {expected}, found "
                f"{shown(table.columns[name][rows[i]])}.{mixed}"
            )
        # Models do answer E to four options. That is an answer, and a wrong one.
        outside += int((codes >= sizes).sum())
        to[letters] = codes[letters] == keys[letters]
        to[marks] = codes[marks] == _RIGHT
    return right, outside


def _code(cell: Any, known: dict[Any, int]) -> int:
    """Return the index of a cell's letter, or one of the negative codes."""
    if isinstance(cell, tables.NESTED):
        return _UNREADABLE
    code = known.get(cell)
    if code is None:
        if tables.is_missing(cell):
            return _MISSING
        text = str(cell).strip()
        letter = text.upper()
        if len(letter) == 1 and letter in LETTERS:
            code = LETTERS.index(letter)
        else:
            code = _MARKS.get(text.lower(), _UNREADABLE)
        known[cell] = code
    return code


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
