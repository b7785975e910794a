"""The command `lessonplan order`, and labels from tables."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lessonplan.cli_options import (
    AnswerBaseOption,
    BadRowsOption,
    ColumnsOption,
    Data,
    LabelsOption,
    OverwriteOption,
    SplitOption,
    StrategyOption,
    check_out,
    note_parts,
    questions_of,
    read_columns_option,
    say,
)
from lessonplan.errors import InputError, shown


def order(
    data: Data,
    strategy: StrategyOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write (.jsonl, .csv, .parquet).")
    ],
    overwrite: OverwriteOption = False,
    column: ColumnsOption = None,
    labels: LabelsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    blocks: Annotated[str, typer.Option(help="Rounds of interleaving, or band.")] = "3",
    bands: Annotated[
        str | None, typer.Option(help="Difficulty bands: a number, or thresholds as 0.3,0.6.")
    ] = None,
    category_order: Annotated[
        str, typer.Option(help="drawn, alphabetical, size, difficulty, or all names as a,b,c.")
    ] = "drawn",
    hardest_first: Annotated[
        bool, typer.Option("--hardest-first", help="From hard to easy.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    each: Annotated[str, typer.Option(help="same or anew: the order of each pass.")] = "same",
    repeat: Annotated[int, typer.Option(help="Times that each group is shown in a row.")] = 1,
    split: SplitOption = None,
    answer_base: AnswerBaseOption = None,
    bad_rows: BadRowsOption = "error",
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="axolotl, llamafactory, ms-swift or trl: print the settings with which it keeps "
            "the order.",
        ),
    ] = None,
) -> None:
    """Put the rows of a table (any columns, all kept) in a strategy's order.

    Of a file only the category and the difficulty that the strategy uses are read (and with
    --labels the id): columns of these names, or as --column says. --split, --answer-base and
    --bad-rows are for questions that have a name or lie on the hub, or in a folder as there; of
    these the questions' own columns are written, and no others.
    """
    from lessonplan.data import count_rows, write_ordered, write_table
    from lessonplan.data.streams import first_rows
    from lessonplan.integrations.settings import check_trainer, trainer_settings
    from lessonplan.orders import Unlabelled, check_settings, labels_used
    from lessonplan.orders import order as make_order
    from lessonplan.progress import rows_bar

    if trainer is not None:
        check_trainer(trainer)  # said before the work, not after it
    settings: dict[str, Any] = {
        "blocks": "band" if blocks == "band" else _integer("--blocks", blocks),
        "category_order": category_order.split(",") if "," in category_order else category_order,
    }
    used = labels_used(strategy, **settings)
    settings |= {"bands": None if bands is None else _bands(bands), "hardest_first": hardest_first}
    check_settings(strategy, **settings)
    if strategy == "original" and each == "anew" and epochs > 1:
        raise InputError("--each anew has no effect: original has nothing to draw. Leave it out.")
    check_out(out, data, *(labels or []), overwrite=overwrite)
    columns = read_columns_option(column) or {}
    # A file is any table; a named data set or a folder is questions, with their own labels.
    questions = None
    if not Path(data).exists() or Path(data).is_dir():
        questions = questions_of(data, split, column, answer_base, bad_rows)
    elif split is not None:
        raise InputError(f"{data} is one file and has no splits; leave out --split.")
    elif answer_base is not None or bad_rows != "error":
        raise InputError(
            f"{data} is put in order as it stands, answers and all rows alike; leave out "
            f"{'--bad-rows' if answer_base is None else '--answer-base'}."
        )
    found: dict[str, Any] = {}
    if labels:
        ids = _ids(data, columns, labels) if questions is None else questions["id"][:]
        found = _table_labels(labels, strategy, used, ids, data, columns)
    with rows_bar() as phase:
        if questions is None:
            found |= _own_labels(data, columns, used, found, bool(labels), phase)
        else:
            found |= {kind: questions[kind][:] for kind in used if kind not in found}
        if found:
            n = len(next(iter(found.values())))
        else:
            n = count_rows(data) if questions is None else len(questions)
        if n == 0:
            raise InputError(f"{data} holds no rows to put in order.")
        try:
            permutation = make_order(
                strategy,
                n,
                seed=seed,
                epochs=epochs,
                each=each,  # type: ignore[arg-type]  # any text: it says which two it takes
                repeat=repeat,
                **settings,
                **found,
            )
        except Unlabelled as error:
            if questions is None:
                place = _place(data, error.row)
            else:
                place = f"question {questions['id'][error.row]!r}"
            raise InputError(f"{data}: {error.at(place)}") from None
        if questions is None:
            on_rows = phase("putting rows in order", n + len(permutation))
            write_ordered(data, out, permutation, on_rows=on_rows)
        else:
            write_table(questions.select(permutation), out)
    note_parts(data, split)
    say(f"{len(permutation)} rows in {strategy} order: {out}")
    if trainer is not None:
        say(trainer_settings(trainer, out, first_rows(out, 1), epochs))


def with_labels(
    questions: Any, data: str, tables: list[Path], strategy: str, columns: dict[str, Any]
) -> Any:
    """Return a question `Dataset` with the labels that a strategy uses from tables of labels.

    Raises:
        InputError: see `_table_labels`.
    """
    from lessonplan.data.features import question_features
    from lessonplan.orders import labels_used

    used = labels_used(strategy)
    found = _table_labels(tables, strategy, used, questions["id"][:], data, columns)
    for kind, values in found.items():
        feature = question_features()[kind]
        questions = questions.remove_columns(kind).add_column(kind, values, feature=feature)
    return questions


def _table_labels(
    tables: list[Path],
    strategy: str,
    used: Sequence[Any],
    ids: list[str],
    data: str,
    columns: dict[str, Any],
) -> dict[str, Any]:
    """Return the labels that --labels gives, for the rows of DATA, which have these ids.

    Args:
        used: the labels that the strategy uses; others are not looked at.
        columns: what --column says.

    Raises:
        InputError: a table without such a label, a label in two places, and see `read_labels`.
    """
    from lessonplan.data.streams import first_rows
    from lessonplan.labels.label import Label, checked
    from lessonplan.labels.tables import read_labels

    if not used:
        raise InputError(f"--labels has no effect: {strategy} uses no label. Leave it out.")
    found: dict[str, Any] = {}
    giver: dict[str, str] = {kind: f"--column {kind}={columns[kind]}" for kind in columns}
    for table in tables:
        names = first_rows(table)
        given = [kind for kind in used if kind in names]
        if not given:
            raise InputError(
                f"{table} has no column {' or '.join(map(repr, used))}, of which {strategy} makes "
                f"its order; its columns are: {', '.join(names) or 'none'}. Rename the column that "
                "is meant, or give another table."
            )
        for kind in given:
            if kind in giver:
                raise InputError(
                    f"{giver[kind]} and {table} both give a {kind}. Leave out one of them."
                )
            giver[kind] = str(table)
            values, notes, uninformative = read_labels(ids, table, kind)
            for note in [*notes, *uninformative]:
                print(f"note: {note}", file=sys.stderr)
            found[kind] = checked(Label(kind, values, f"table {table.name}"), data).values
    return found


def _own_labels(
    file: str,
    columns: dict[str, Any],
    used: Sequence[str],
    given: Collection[str],
    joined: bool,
    phase: Any,
) -> dict[str, Any]:
    """Return the labels that a strategy uses from a file's own columns.

    Args:
        columns: what --column says.
        given: the labels that tables give.
        joined: whether there are such tables.
        phase: begins a bar of progress.
    """
    from lessonplan.data import read_columns
    from lessonplan.data.streams import first_rows

    known = ("category", "difficulty", *(["id"] if joined else []))
    for ours in columns:
        if ours not in known:
            without = " without --labels" if ours == "id" else ""
            raise InputError(
                f"--column {ours}=... has no effect{without}: of a file an order reads "
                f"{' and '.join(known[:2])}, and id to join --labels. Leave it out."
            )
        if ours in known[:2] and ours not in used:
            raise InputError(
                f"--column {ours}=... has no effect: this order uses no {ours}. Leave it out."
            )
    named = {kind: columns[kind] for kind in known[:2] if kind in columns}
    lacking = [kind for kind in used if kind not in given and kind not in named]
    names = first_rows(file) if lacking else {}
    named |= {kind: kind for kind in lacking if kind in names}
    if not named:
        return {}
    # A category is text, as everywhere, unless the same column is the difficulty, too.
    texts = {name for kind, name in named.items() if kind == "category"} - {named.get("difficulty")}
    cells = read_columns(
        file, list(set(named.values())), texts=texts, on_rows=phase("reading labels")
    )
    own = {kind: cells[name] for kind, name in named.items() if kind in used}
    if "difficulty" in own:
        _check_numbers(file, named["difficulty"], own["difficulty"])
    return own


def _check_numbers(file: str, column: str, cells: Any) -> None:
    for row, cell in enumerate(cells if cells.dtype == object else []):
        try:
            float(cell or "nan")
        except ValueError:
            raise InputError(
                f"{file}, {_place(file, row)}, column {column!r}: expected a difficulty as a "
                f"number; found {shown(cell)}."
            ) from None


def _place(file: str, row: int) -> str:
    """Return what messages call a 0-based row of a file."""
    from lessonplan.data.tables import read_table

    return read_table(file, keep=()).place(row)


def _ids(file: str, columns: dict[str, Any], tables: list[Path]) -> list[str]:
    """Return what label tables call the rows of a file: their ids, or 0-based row numbers."""
    from lessonplan.data import count_rows
    from lessonplan.data.streams import first_rows
    from lessonplan.data.tables import cell_text, missing_column, read_table

    key = columns.get("id", "id")
    own = read_table(file, [key]).columns
    if key in own:
        return [cell_text(cell) for cell in own[key]]
    first = first_rows(file)
    if "id" in columns:
        raise InputError(missing_column(file, key, first))
    rows = [str(row) for row in range(count_rows(file))]
    for table in tables:
        named = {cell_text(cell) for cell in first_rows(table).get("id", [])}
        for name, cells in first.items():
            texts = [cell_text(c) if isinstance(c, str | int | float) else "" for c in cells]
            if texts != rows[: len(texts)] and named and set(texts) == named:
                raise InputError(
                    f"{file} has no column 'id', and the ids of {table} are those of its column "
                    f"{name!r}. Say so: --column id={name}."
                )
    return rows


def _bands(text: str) -> int | list[float]:
    try:
        return int(text) if text.isdecimal() else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--bands takes a number, or thresholds as 0.3,0.6, not {text!r}."
        ) from None


def _integer(option: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 4000:
        raise InputError(f"{option} takes a whole number or 'band', not {text!r}.")
    return int(text)
