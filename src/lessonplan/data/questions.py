"""Questions from anywhere, in one form: a `datasets.Dataset` of fixed columns.

A source is opened (`sources`), its columns are recognised (`formats`), its rows read as multiple
choice (`choices`) or as chats and instructions (`completions`). Here all come together: rows that
are broken or come twice are found, and said, in one place.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lessonplan import seeds
from lessonplan.data import hpo, icd10cm, tables
from lessonplan.data.choices import read_choices
from lessonplan.data.completions import read_completions
from lessonplan.data.features import COLUMNS, TURNS, question_features
from lessonplan.data.formats import (
    ALL_FORMATS,
    COMPLETION_FORMATS,
    FORMATS,
    map_columns,
    recognise,
)
from lessonplan.data.sources import Raw, open_dataset, open_named, open_path
from lessonplan.errors import InputError, counted, first_line, nearest

if TYPE_CHECKING:
    from datasets import Dataset

BANKS: dict[str, Any] = {"icd10cm": icd10cm, "hpo": hpo}  # built in


def __getattr__(name: str) -> Any:
    # Made on use: importing `datasets` takes a second, which `lessonplan --help` has not.
    if name == "QUESTION_FEATURES":
        return question_features()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Reading:
    """What came out of a source.

    Attributes:
        questions: the questions, in the source's order.
        source: what was read, in words.
        rows: how many rows the source has.
        dropped: reason -> number of rows left out.
        notes: sentences for the report, one for everything that was not taken as it stood.
    """

    questions: Dataset
    source: str
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_questions(
    source: str | os.PathLike[str] | Dataset,
    *,
    split: str | None = None,
    columns: Mapping[str, Any] | None = None,
    format: str = "auto",
    bad_rows: str = "error",
    keep: Sequence[str] = (),
    answer_base: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Return the questions of `read_questions`, with its notes as warnings."""
    reading = read_questions(
        source,
        split=split,
        columns=columns,
        format=format,
        bad_rows=bad_rows,
        keep=keep,
        answer_base=answer_base,
        seed=seed,
    )
    for note in reading.notes:
        warnings.warn(note, stacklevel=2)
    return reading.questions


def read_questions(
    source: str | os.PathLike[str] | Dataset,
    *,
    split: str | None = None,
    columns: Mapping[str, Any] | None = None,
    format: str = "auto",
    bad_rows: str = "error",
    keep: Sequence[str] = (),
    answer_base: int | None = None,
    seed: int = 0,
) -> Reading:
    """Read questions, or prompts with completions, from a built-in bank, a file or the hub.

    A prompt with a completion is a question with one option. White space in them stays. Of a
    conversation the last turn, which has to be the assistant's, is the completion; the turns
    before it stand in a further column ``turns``.

    Args:
        source: a path (which wins over the names that follow), ``"icd10cm"``, ``"hpo"``, a preset
            of `DATASETS`, a hub id ``owner/name`` or ``hf://datasets/owner/name[/file]``, or a
            `datasets.Dataset`.
        split: which split of a source that has several.
        columns: our names -> the table's, over what the format says. Keys are id, question,
            options (a column of lists, or a list of columns), answer, category, difficulty; for
            completions messages, or prompt and completion, or instruction, input and output.
        format: ``"medmcqa"``, ``"medqa"``, ``"lek"``, ``"columns"`` (by name or mapping); for
            completions ``"messages"``, ``"prompt_completion"`` (two texts, joined as they are, or
            two lists of turns) or ``"alpaca"`` (instruction, input, output: a conversation of
            one turn each); or ``"auto"``: recognised by the columns.
        bad_rows: ``"error"`` raises on rows that cannot be used, ``"drop"`` leaves them out.
        keep: further columns of the table to keep, unchanged.
        answer_base: 0 or 1 for answers that are indices, where the column leaves it open.
        seed: the seed of the built-in bank.

    Returns:
        Questions with the columns of `COLUMNS`, then those of `keep`. Without an id column, the
        id is the 0-based row number in the source, whatever is dropped.

    Raises:
        InputError: anything that cannot be read or understood. The message names the place.
    """
    if bad_rows not in ("error", "drop"):
        raise InputError(f"bad_rows is 'error' or 'drop', not {bad_rows!r}.")
    if format != "auto" and format not in ALL_FORMATS:
        raise InputError(
            f"There is no format {format!r}.{nearest(format, ALL_FORMATS)} "
            f"Formats are auto, {', '.join(ALL_FORMATS)}."
        )
    if answer_base not in (None, 0, 1):
        raise InputError(f"answer_base is 0 or 1, not {answer_base!r}.")
    known = [*COLUMNS, *(key for keys in COMPLETION_FORMATS.values() for key in keys)]
    for key in columns or {}:
        if key not in known:
            raise InputError(
                f"columns: {key!r} is no column of a question.{nearest(key, known)} "
                f"Those are {', '.join(known)}."
            )

    if isinstance(source, (str, os.PathLike)) and not os.path.exists(source):
        name = os.fspath(source)
        if name in BANKS:
            if columns or format != "auto" or answer_base is not None:
                raise InputError(
                    f"{name} is built in, so its columns are known: leave out columns, format and "
                    "answer_base."
                )
            return _read_bank(name, split, keep, seed)
        raw = open_named(name, split)
    elif isinstance(source, (str, os.PathLike)):
        raw = open_path(Path(source), split)
    else:
        raw = open_dataset(source, split, "the dataset")
    return _understand(raw, columns or {}, format, bad_rows, keep, answer_base)


def folds(n: int, k: int, seed: int) -> NDArray[np.int64]:
    """Deal n questions into k folds.

    Args:
        n: number of questions.
        k: number of folds, 2 or more.
        seed: the seed; the stream is ``"folds"``.

    Returns:
        int64[n], the fold (0 to k - 1) of each question; sizes differ by at most one.

    Raises:
        InputError: fewer than two folds, or more folds than questions.
    """
    if not 2 <= k <= n:
        raise InputError(
            f"{counted(n, 'question')} cannot be dealt into {counted(k, 'fold')}; 2 or more are "
            "needed, and no more than questions."
        )
    return seeds.stream(seed, "folds").permutation(np.arange(n, dtype=np.int64) % k)


def sample(questions: Dataset, n: int, seed: int) -> Dataset:
    """Return n random questions in their original order.

    Raises:
        InputError: there are fewer than n, or n is below 1.
    """
    if not 1 <= n <= len(questions):
        raise InputError(f"Cannot draw {counted(n, 'question')} from {len(questions)}.")
    rows = seeds.stream(seed, "sample").permutation(len(questions))[:n]
    return questions.select(np.sort(rows))


def overlap(training: Dataset, evaluation: Dataset) -> list[str]:
    """Return the ids of evaluation questions that stand in the training set too.

    Two questions are the same if their texts have the same words in the same order, whatever the
    case, punctuation and white space, and their options have at least half of all their words in
    common. The options count because unlike questions share texts such as "Which of the following
    is true?"; half of the words, because files repeat a question with an option reworded.
    """
    known = Seen()
    for question, options in zip(training["question"], training["options"], strict=True):
        known.add(question, options)
    rows = zip(evaluation["id"], evaluation["question"], evaluation["options"], strict=True)
    return [i for i, question, options in rows if known.has(question, options)]


class Seen:
    """The questions met so far, to find those that come again, by the rule of `overlap`."""

    def __init__(self) -> None:
        self._option_words: dict[tuple[str, ...], list[set[str]]] = defaultdict(list)

    def add(self, question: str, options: Sequence[str]) -> None:
        """Remember a question."""
        self._option_words[tuple(_words(question))].append(set(_words(" ".join(options))))

    def has(self, question: str, options: Sequence[str]) -> bool:
        """Tell whether the same question was added before."""
        words = set(_words(" ".join(options)))
        others = self._option_words.get(tuple(_words(question)), [])
        return any(2 * len(words & other) >= len(words | other) for other in others)


def _words(text: str) -> list[str]:
    # Signs of arithmetic stay: "2 + 2" and "2 / 2" are not the same question.
    # So do a minus before a number and the point in one.
    return re.findall(
        r"(?:(?<!\w)[-\N{MINUS SIGN}])?\d+(?:[.,]\d+)+|(?<!\w)[-\N{MINUS SIGN}]\d+|\w+"
        r"|[^\w\s.,;:?!'\"’“”()\[\]{}…–—-]",
        text.casefold(),
    )


def _read_bank(name: str, split: str | None, keep: Sequence[str], seed: int) -> Reading:
    bank = BANKS[name].build(seed)
    if split is not None:
        if split not in ("train", "test"):
            raise InputError(f"{name} has the splits train and test, not {split!r}.")
        bank = bank.select(np.flatnonzero(np.array(bank["split"]) == split))
    for column in keep:
        if column not in bank.column_names:
            raise InputError(tables.missing_column(name, column, bank.column_names))
    source = f"{name} (built in, seed {seed}, {BANKS[name].version()})"
    further = [column for column in dict.fromkeys(keep) if column not in COLUMNS]
    return Reading(bank.select_columns([*COLUMNS, *further]), source, len(bank))


def _understand(
    raw: Raw,
    columns: Mapping[str, Any],
    format: str,
    bad_rows: str,
    keep: Sequence[str],
    answer_base: int | None,
) -> Reading:
    found = raw.table.columns
    n = tables.row_count(found)
    if n == 0:
        raise InputError(f"{raw.source} holds no rows; at least one question is needed.")
    if format == "auto":
        format = recognise(raw.source, found, columns)
    mapping = map_columns(raw.source, found, format, columns)
    for name in keep:
        if name not in found:
            raise InputError(tables.missing_column(raw.source, name, found))
        if name in COLUMNS and mapping.get(name) != name:
            raise InputError(
                f"keep: {raw.source} has a column {name!r}, but {name!r} is a column of a question "
                f"and comes from {mapping.get(name)!r}. Rename the file's column."
            )

    turns: list[str] = []
    if format in COMPLETION_FORMATS:
        if TURNS in keep:
            raise InputError(f"keep: rename the column {TURNS!r} of {raw.source}; it is taken.")
        examples, faults = read_completions(found, mapping, format, n)
        texts = [example.prompt for example in examples]
        options: list[list[Any]] = [[example.completion] for example in examples]
        answers: list[int | None] = [0] * n
        unlabelled: set[int] = set()
        if any(example.turns for example in examples):
            turns = [json.dumps(example.turns) for example in examples]
    else:
        texts, options, answers, unlabelled, faults = read_choices(
            raw, mapping, format, answer_base
        )
    mapping, ignored = _without_foreign_labels(raw, mapping, columns)
    difficulty = _difficulty(found, mapping, format, n)
    for key in ("id", "category"):
        for i, value in enumerate(found[mapping[key]] if key in mapping else []):
            if isinstance(value, tables.NESTED):
                faults[i] = f"{key} that is {tables.kind_of(value)}"
    for i in range(n):
        unusable = difficulty[i] is not None and not math.isfinite(difficulty[i])
        if unusable and i not in unlabelled:
            faults.setdefault(i, "difficulty that is no number")

    identifiers = [str(i) for i in range(n)]
    if "id" in mapping:
        identifiers = [tables.cell_text(v) for v in found[mapping["id"]]]
    _mark_repeats(faults, unlabelled, identifiers, texts, options)
    good = [i for i in range(n) if i not in faults and i not in unlabelled]
    dropped, notes = _account(raw, faults, unlabelled, bad_rows)
    notes += ignored
    if not good:
        raise InputError(f"{raw.source}: no row is left. {' '.join(notes)}")
    if not isinstance(columns_of := mapping.get("options", ""), str):
        fewer = sum(len(options[i]) < len(columns_of) for i in good)
        if fewer:
            notes.append(
                f"{fewer} of {counted(len(good), 'question')} of {Path(raw.source).name}: the last "
                f"of the {len(columns_of)} option columns are empty, and count as no options."
            )

    from datasets import Dataset, concatenate_datasets

    category = found[mapping["category"]] if "category" in mapping else [None] * n
    questions = Dataset.from_dict(
        {
            "id": [identifiers[i] for i in good],
            "question": [texts[i] for i in good],
            "options": [options[i] for i in good],
            "answer": [answers[i] for i in good],
            "category": [tables.cell_text(category[i]) or None for i in good],
            "difficulty": [difficulty[i] for i in good],
        },
        features=question_features(),
    )
    if turns:
        questions = questions.add_column(TURNS, [turns[i] for i in good])
    further = [name for name in dict.fromkeys(keep) if name not in COLUMNS]
    if further and raw.original is not None:
        kept = raw.original.select_columns(further).select(good)
        questions = concatenate_datasets([questions, kept], axis=1)
    elif further:
        import pyarrow as pa

        try:
            kept = Dataset.from_dict({name: [found[name][i] for i in good] for name in further})
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{raw.source}: a column to keep mixes kinds of values, or has numbers of more "
                f"than 64 bits ({first_line(error)})."
            ) from error
        questions = concatenate_datasets([questions, kept], axis=1)
    return Reading(questions, raw.source, n, dropped, notes)


def _without_foreign_labels(
    raw: Raw, mapping: Mapping[str, Any], columns: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the mapping without columns that only happen to be called as our labels are.

    Such as a difficulty in words. A column that the user names is what it is said to be.
    """
    kept, ignored = dict(mapping), []
    for kind, fits, expected in (
        ("difficulty", _is_number, "numbers"),
        ("category", lambda cell: not isinstance(cell, tables.NESTED), "texts"),
    ):
        if kind not in mapping or kind in columns:
            continue
        cells = [c for c in raw.table.columns[mapping[kind]] if not tables.is_missing(c)]
        if cells and not any(map(fits, cells)):
            del kept[kind]
            ignored.append(
                f"{raw.source}: the column {mapping[kind]!r} holds no {expected}, and is not taken "
                f"for the {kind}."
            )
    return kept, ignored


def _without_percent(cell: Any) -> str:
    return tables.cell_text(cell).removesuffix("%").strip()


def _is_number(cell: Any) -> bool:
    try:
        float(_without_percent(cell))
    except ValueError:
        return False
    return True


def _difficulty(
    found: dict[str, list[Any]], mapping: Mapping[str, Any], format: str, n: int
) -> list[Any]:
    """Return each row's difficulty; None where it is missing, NaN where it is no finite number."""
    if "difficulty" not in mapping:
        return [None] * n
    values: list[float | None] = []
    for cell in found[mapping["difficulty"]]:
        text = _without_percent(cell)
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        values.append(value if value is None or math.isfinite(value) else math.nan)
    if format != "lek" or mapping["difficulty"] != FORMATS["lek"]["difficulty"]:
        return values
    # LEK gives the share of test takers who answered right (high is easy), as 0.85 or as 85.
    whole = 100.0 if any(v is not None and v > 1 for v in values) else 1.0
    return [v if v is None else 1 - v / whole if 0 <= v <= whole else math.nan for v in values]


def _mark_repeats(
    faults: dict[int, str],
    unlabelled: set[int],
    identifiers: list[str],
    texts: list[str],
    options: list[list[str]],
) -> None:
    """Mark ids and questions that an earlier good row has."""
    ids: set[str] = set()
    questions = Seen()
    for i, identifier in enumerate(identifiers):
        if i in faults or i in unlabelled:
            continue
        if not identifier:
            faults[i] = "empty id"
        elif questions.has(texts[i], options[i]):
            faults[i] = "repeated question"
        elif identifier in ids:
            faults[i] = "duplicate id"
        else:
            ids.add(identifier)
            questions.add(texts[i], options[i])


def _account(
    raw: Raw, faults: dict[int, str], unlabelled: set[int], bad_rows: str
) -> tuple[dict[str, int], list[str]]:
    """Return the counts of dropped rows and sentences on them, or raise for bad rows."""
    by_kind = defaultdict(list)
    for i in sorted(faults):
        if i not in unlabelled:
            by_kind[faults[i]].append(i)
    dropped, notes = {}, []
    name = Path(raw.source).name if raw.table.lines else raw.source
    if unlabelled:
        dropped["unlabelled"] = len(unlabelled)
        notes.append(
            f"{_rows(len(unlabelled))} of {name} {_are(len(unlabelled))} unlabelled (cop = -1) "
            f"and {_were(len(unlabelled))} dropped."
        )
    if by_kind:
        total = sum(map(len, by_kind.values()))
        listed = "; ".join(
            f"{kind}: {len(rows)} ({', '.join(raw.table.place(i) for i in rows[:3])}"
            f"{', ...' if len(rows) > 3 else ''})"
            for kind, rows in by_kind.items()
        )
        if bad_rows == "error":
            size = tables.row_count(raw.table.columns)
            raise InputError(
                f"{raw.source}: {total} of {_rows(size)} cannot be used. {listed}. "
                "Mend them, or set bad_rows: drop (--bad-rows drop) to leave them out."
            )
        dropped |= {kind: len(rows) for kind, rows in by_kind.items()}
        notes.append(f"{_rows(total)} of {name} {_were(total)} dropped (bad_rows: drop). {listed}.")
    return dropped, notes


def _rows(n: int) -> str:
    return f"{n} row{'' if n == 1 else 's'}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
