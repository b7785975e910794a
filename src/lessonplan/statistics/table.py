"""The same statistics for results made anywhere: a table of id, arm, seed and score."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.data.tables import Table, cell_text, row_count
from lessonplan.data.tables import read_table as read_file
from lessonplan.errors import InputError, nearest
from lessonplan.evaluation.outcomes import Outcome, Record
from lessonplan.statistics.analysis import Analysis, analyse
from lessonplan.statistics.result import ACCURACY
from lessonplan.statistics.verdict import (
    MINUS,
    result_verdict,
    signed,
    spoken,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Group

FloatArray = NDArray[np.float64]
SCORES = ("correct", "value")
COLUMNS = ("id", "arm", "seed", *SCORES, "model", "evaluation")
OTHER_NAME = " If it has another name, say which: --column {}=NAME, or columns in Python."
TRUTH = {"true": 1.0, "false": 0.0}
NAMED_FILES = 3
"""So many files are named in a message that is about all of them."""


@dataclass(frozen=True)
class Comparison:
    """Arms compared with a baseline; prints as a table with its verdict in words.

    Attributes:
        record: the scores, as `lessonplan.report.write_report` takes them.
        analysis: the findings.
    """

    record: Record
    analysis: Analysis

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=100, color_system=None, force_terminal=False).print(self)
        return text.getvalue().rstrip("\n")

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = []
        for result in self.analysis.results:
            metric = result.outcome.metric
            title = result.outcome.place
            table = Table(title=Text(title) if title else None, title_justify="left")
            table.add_column("arm")
            for heading in ("seeds", metric, "gain", "95% interval", "p", "Holm p", ""):
                table.add_column(heading, justify="right")
            found = {g.arm: g for g in result.gains}
            for arm in result.outcome.arms:
                score = result.scores.get(arm)
                if score is None:
                    table.add_row(Text(spoken(arm)), "0", "–", "–", "–", "–", "–", "")
                    continue
                level = f"{score.mean:.1%}" if metric == ACCURACY else f"{score.mean:.4g}"
                row = [str(score.seeds), level.replace("-", MINUS)]
                gain = found.get(arm)
                if gain is None or gain.estimate is None:
                    row += ["baseline" if arm == result.outcome.baseline else "–", "", "", "", ""]
                else:
                    e = gain.estimate
                    row += [
                        signed(e.mean, metric),
                        f"{signed(e.low, metric)} to {signed(e.high, metric)}",
                        _short(e.p),
                        "–" if gain.p_holm is None else _short(gain.p_holm),
                        "winner" if gain.winner else "worse" if gain.loser else "",
                    ]
                table.add_row(Text(spoken(arm)), *row)
            parts.append(table)
            if len(self.analysis.results) > 1:
                parts.append(Text(" ".join(result_verdict(result).sentences) + "\n"))
            parts += [Text(note) for note in result.notes]
        whole = verdict(self.record, self.analysis)
        parts += [Text(" ".join(whole.sentences)), *(Text(c) for c in whole.caveats)]
        return Group(*parts)


def _short(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(
    table: Any,
    *,
    baseline: str = "random",
    columns: Mapping[str, str] | None = None,
    title: str = "Comparison",
) -> Comparison:
    """Compare arms with a baseline, paired by seed and question.

    Args:
        table: path of a CSV, JSON, JSONL or Parquet file, or several; a PyArrow table, a pandas
            DataFrame, or a mapping of columns. Columns: id, arm, seed, and ``correct`` (true or
            false, 0 or 1) or ``value`` (a real number, higher is better); optional: model,
            evaluation. One row for each question of each run.
        baseline: the arm that the others are measured against.
        columns: our column -> the table's, where it has another name, such as
            ``{"id": "question_id", "value": "f1"}``.
        title: of the report.

    Raises:
        InputError: a missing column, a duplicated row, no baseline, questions that differ between
            runs, scores that are not numbers, or a single question.
    """
    found, where = read_table(table)
    columns = columns or {}
    names = column_names(COLUMNS, columns, found, where)
    if set(SCORES) <= set(columns):
        raise InputError("columns: correct and value are two scores; name the one to compare.")
    for name in ("id", "arm", "seed"):
        require(found, names[name], where, hint=OTHER_NAME.format(name))
    scores = [n for known in (columns, found) for n in SCORES if n in known]
    if not scores:
        close = nearest("correct", found) or nearest("value", found)
        raise InputError(
            f"{where}: no column 'correct' or 'value' with the scores; the columns are "
            f"{', '.join(found)}.{close}{OTHER_NAME.format('value')}"
        )
    score = scores[0]
    values = _scores(found[names[score]], names[score], where, only_truth=score == "correct")
    ids, arms = (text_column(found[names[key]], names[key], where) for key in ("id", "arm"))
    seeds = _seeds(found[names["seed"]], where)
    if baseline not in arms:
        raise InputError(
            f"{where}: no arm is named {baseline!r}; the arms are {', '.join(sorted(set(arms)))}. "
            f"Name the baseline.{nearest(baseline, set(arms))}"
        )
    blank = [""] * len(ids)
    models, sets = (
        text_column(found[names[key]], names[key], where) if names[key] in found else blank
        for key in ("model", "evaluation")
    )
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(models, sets, strict=True)):
        rows_of.setdefault(key, []).append(row)
    metric = ACCURACY if score == "correct" else names[score]
    outcomes = [
        _outcome(key, rows, ids, arms, seeds, values, baseline, metric, where)
        for key, rows in rows_of.items()
    ]
    runs = sum(int((~np.isnan(a).all(axis=1)).sum()) for o in outcomes for a in o.arms.values())
    record = Record(title=title, outcomes=outcomes, runs_done=runs, runs_planned=runs)
    return Comparison(record, analyse(record))


def _outcome(
    key: tuple[str, str],
    rows: list[int],
    ids: list[str],
    arms: list[str],
    seeds: list[int],
    values: FloatArray,
    baseline: str,
    metric: str,
    where: Where,
) -> Outcome:
    spot = f"{where}, {' on '.join(k for k in key if k)}" if any(key) else str(where)
    questions = {name: i for i, name in enumerate(dict.fromkeys(ids[r] for r in rows))}
    known_seeds = {seed: i for i, seed in enumerate(sorted({seeds[r] for r in rows}))}
    names = list(dict.fromkeys(arms[r] for r in rows))
    if baseline not in names:
        raise InputError(f"{spot}: has no rows of the baseline {baseline!r}.")
    if len(names) == 1:
        raise InputError(f"{spot}: {baseline!r} is the only arm; there is nothing to compare.")
    if len(questions) == 1:
        only = next(iter(questions))
        raise InputError(f"{spot}: a single question (id {only!r}); at least two are needed.")
    names.remove(baseline)
    names.insert(0, baseline)
    grid = {arm: np.full((len(known_seeds), len(questions)), np.nan) for arm in names}
    for row in rows:
        cell = known_seeds[seeds[row]], questions[ids[row]]
        if not np.isnan(grid[arms[row]][cell]):
            run = arms[row], seeds[row], ids[row]
            first = next(r for r in rows if (arms[r], seeds[r], ids[r]) == run)
            raise InputError(
                f"{where.row(row)}: arm {run[0]!r}, seed {run[1]} has question {run[2]!r} more "
                f"than once (first in {where.row(first)}); each run scores each question once."
            )
        grid[arms[row]][cell] = values[row]
    for arm, array in grid.items():
        missing = np.isnan(array)
        partial = missing.any(axis=1) & ~missing.all(axis=1)
        if partial.any():
            which = int(np.argmax(partial))
            example = list(questions)[int(np.argmax(missing[which]))]
            count = int(missing[which].sum())
            raise InputError(
                f"{spot}: arm {arm!r}, seed {list(known_seeds)[which]} lacks {count} of the "
                f"{len(questions)} question ids that other runs have (such as {example!r}); all "
                "runs must score the same questions."
            )
        if not (~missing.all(axis=1) & ~np.isnan(grid[baseline]).all(axis=1)).any():
            raise InputError(
                f"{spot}: arm {arm!r} shares no seed with {baseline!r}; gains are paired by seed."
            )
    return Outcome(
        model=key[0],
        evaluation=key[1],
        seeds=list(known_seeds),
        ids=list(questions),
        arms=grid,
        strategies={arm: arm for arm in names},
        sources={arm: {} for arm in names},
        baseline=baseline,
        metric=metric,
    )


@dataclass(frozen=True)
class Where:
    """What messages call a table and its rows.

    Attributes:
        files: path and content of each file, whose rows stand end to end; empty for a table that
            comes from no file.
    """

    files: tuple[tuple[Path, Table], ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return "the table"
        named = [str(path) for path, _ in self.files[:NAMED_FILES]]
        more = len(self.files) - len(named)
        return ", ".join(named) + (f" and {more} more" if more else "")

    def row(self, row: int) -> str:
        """Return what to call a 0-based row."""
        place = row
        for path, table in self.files:
            if place < (size := row_count(table.columns)):
                return f"{path}, {table.place(place)}"
            place -= size
        return f"{self}, row {row + 1}"


def read_table(table: Any) -> tuple[dict[str, list[Any]], Where]:
    """Return a table's columns by name, and what messages call it.

    Args:
        table: path of a CSV, JSON, JSONL or Parquet file, a sequence of such paths (their rows end
            to end), a PyArrow table, a pandas DataFrame, or a mapping of columns.

    Raises:
        InputError: none of these, a file that cannot be read, columns of unequal length, no rows.
    """
    where = Where()
    if isinstance(table, (str, PathLike)):
        table = [table]
    if isinstance(table, Mapping):
        columns = {str(name): _listed(column) for name, column in table.items()}
        if len({len(column) for column in columns.values()}) > 1:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise InputError(f"the table's columns differ in length: {sizes}.")
    elif hasattr(table, "to_pydict"):  # a PyArrow table
        columns = {str(k): list(v) for k, v in table.to_pydict().items()}
    elif hasattr(table, "columns") and hasattr(table, "itertuples"):  # a pandas DataFrame
        columns = {str(name): table[name].tolist() for name in table.columns}
    elif (
        isinstance(table, Sequence) and table and all(isinstance(p, (str, PathLike)) for p in table)
    ):
        columns, where = _read_files([Path(p) for p in table])
    else:
        raise InputError(
            f"cannot compare a {type(table).__name__}; expected the path of a CSV, JSON, JSONL or "
            "Parquet file, a PyArrow table, a pandas DataFrame or a mapping of columns."
        )
    if not row_count(columns):
        raise InputError(f"{where}: there are no rows.")
    return columns, where


def _listed(column: Any) -> list[Any]:
    listed = column.tolist() if hasattr(column, "tolist") else list(column)
    return listed if isinstance(listed, list) else [listed]


def _read_files(paths: list[Path]) -> tuple[dict[str, list[Any]], Where]:
    files = [(path, read_file(path)) for path in paths]
    whole: dict[str, list[Any]] = {name: [] for name in files[0][1].columns}
    for path, (columns, _) in files:
        if set(columns) != set(whole):
            differing = ", ".join(sorted(set(columns) ^ set(whole)))
            raise InputError(
                f"{path}: the columns differ from those of {paths[0]}: {differing} in one only."
            )
        for name, column in columns.items():
            whole[name].extend(column)
    return whole, Where(tuple(files))


def column_names(
    known: Sequence[str], given: Mapping[str, str], found: Mapping[str, Any], where: Where
) -> dict[str, str]:
    """Return what a table calls each column that is read of it.

    Args:
        known: our names, which stand where nothing else is said.
        given: our name -> the table's, as far as the user says so.

    Raises:
        InputError: a name that is none of ours, or a column that the table lacks.
    """
    for ours, theirs in given.items():
        if ours not in known:
            raise InputError(
                f"columns: {ours!r} is no column that is read here; those are {', '.join(known)}."
                f"{nearest(ours, known)}"
            )
        require(found, theirs, where)
    return {name: name for name in known} | dict(given)


def require(columns: Mapping[str, Any], name: str, where: Where, hint: str = "") -> None:
    """Raise an InputError unless there is a column of that name."""
    if name not in columns:
        raise InputError(
            f"{where}: no column {name!r}; the columns are {', '.join(columns)}."
            f"{nearest(name, columns)}{hint}"
        )


def text_column(column: list[Any], name: str, where: Where) -> list[str]:
    """Return a column as strings; an empty cell is an InputError that names its row."""
    texts = [cell_text(value) for value in column]
    for row, text in enumerate(texts):
        if not text:
            raise InputError(f"{where.row(row)}: column {name!r} is empty.")
    return texts


def _seeds(column: list[Any], where: Where) -> list[int]:
    seeds = []
    for row, value in enumerate(column):
        try:
            # Text comes from a CSV file, into which pandas writes 0.0 where the column has gaps.
            decimal = isinstance(value, str) and "." in value
            seed = int(float(value)) if decimal else int(value)
            whole = float(seed) == float(value)
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise InputError(f"{where.row(row)}: seed {value!r} is not a whole number.")
        seeds.append(seed)
    return seeds


def _scores(column: list[Any], name: str, where: Where, *, only_truth: bool) -> FloatArray:
    values = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            word = value.strip().lower() if isinstance(value, str) else ""
            values[row] = TRUTH[word] if word in TRUTH else float(value)
        except (TypeError, ValueError, OverflowError):
            values[row] = np.nan
        if only_truth and values[row] not in (0.0, 1.0):
            raise InputError(
                f"{where.row(row)}: {name} is {value!r}, expected true or false, 0 or 1 "
                "(a real number is a value, not correct)."
            )
        if not np.isfinite(values[row]):
            raise InputError(f"{where.row(row)}: {name} is {value!r}, expected a number.")
    return values
