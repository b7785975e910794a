"""Options that several commands have, and what commands say."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lessonplan.errors import InputError
from lessonplan.orders import STRATEGIES

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="File, hub id, or a name (`lessonplan datasets`).")
]
StrategyOption = Annotated[
    str, typer.Option("--strategy", "-s", help=f"One of: {', '.join(STRATEGIES)}.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the order and of the training.")]
SplitOption = Annotated[
    str | None, typer.Option(help="Part of the data, such as train or test; by default all.")
]
BadRowsOption = Annotated[str, typer.Option(help="error, or drop rows that cannot be used.")]


def column_option(names: str) -> Any:
    """Return the option that says what a table calls our columns."""
    return typer.Option("--column", help=f"ours=theirs for {names}. May be given several times.")


ColumnsOption = Annotated[
    list[str] | None,
    column_option(
        "question, options, answer, id, category or difficulty (of chat data messages; prompt and "
        "completion; or instruction, input and output); several option columns as options=a,b,c"
    ),
]
AnswerBaseOption = Annotated[
    int | None,
    typer.Option(
        help="0 or 1, the index of the first option, where the answers are indices and do not tell."
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name (`lessonplan models`), folder, .gguf or hub id.")
]
FormOption = Annotated[str, typer.Option(help="How options are compared: cloze or letter.")]
ScoreOption = Annotated[str, typer.Option(help="sum, per_token, per_byte or unconditional.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value changes a setting; may be given several times."),
]
LabelOut = Annotated[
    Path, typer.Option("--out", "-o", help="Label table (.parquet, .jsonl, .csv).")
]
LabelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="A label table, joined by id (see `lessonplan label`); its labels go before DATA's "
        "own. May be given several times."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what -o names, should it be there.")
]
TrustOption = Annotated[bool, typer.Option(help="Run code that lies beside a model's weights.")]

Kind = Literal["table", "report", "adapter"]
OTHER = "Give another name with -o"


def read_columns_option(pairs: list[str] | None) -> dict[str, Any] | None:
    if not pairs:
        return None
    columns: dict[str, Any] = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not (ours and theirs):
            raise InputError(f"--column takes ours=theirs, such as answer=label, not {pair!r}.")
        if ours in columns:
            raise InputError(f"--column {ours}=... stands there twice. Leave out one of them.")
        columns[ours] = theirs.split(",") if ours == "options" and "," in theirs else theirs
    return columns


def questions_of(
    data: str,
    split: str | None,
    column: list[str] | None,
    answer_base: int | None,
    bad_rows: str,
    keep: Sequence[str] = (),
) -> Any:
    """Return the questions that a command is given, by its options' own values."""
    from lessonplan.data import load_questions

    return load_questions(
        data,
        split=split,
        columns=read_columns_option(column),
        answer_base=answer_base,
        bad_rows=bad_rows,
        keep=keep,
    )


def check_out(
    out: Path, *inputs: str | Path | None, overwrite: bool = False, holds: Kind = "table"
) -> None:
    """Refuse a place that nothing should be written to: said before the work, not after it.

    A file or folder has to be new or empty, unless `overwrite` says to replace it. What a command
    reads it never replaces, whatever is said.

    Args:
        out: what -o names.
        inputs: files and folders that the command reads; names of data sets are passed over.
        overwrite: replace what is there.
        holds: "table" is a file; "report" and "adapter" are folders. Of a report its own files are
            replaced; an adapter is hours of work, and is not.

    Raises:
        InputError: as above; an ending that no table has; a folder for a file, or a file for a
            folder.
    """
    from lessonplan.data.tables import EXTENSIONS, table_format

    if holds == "table" and table_format(out) is None:
        raise InputError(f"{out}: the name must end in one of {', '.join(EXTENSIONS)}.")
    if not os.path.exists(out):  # Path.exists raises for a name that no file can have
        return
    if holds == "table" and out.is_dir():
        raise InputError(f"{out} is a folder; the name of a file is needed.")
    if holds != "table" and not out.is_dir():
        raise InputError(f"{out} is a file; the name of a folder is needed.")
    for given in inputs:
        if given is None or not os.path.exists(given):
            continue
        if os.path.samefile(given, out):
            raise InputError(
                f"{out} is read by this command, so it cannot be written, too. {OTHER}."
            )
        one, other = Path(given).resolve(), out.resolve()
        if one in other.parents or (holds != "table" and one.parent == other):
            raise InputError(
                f"{out} shares a folder with {given}, which is read by this command. {OTHER}."
            )
    found = any(out.iterdir()) if out.is_dir() else out.stat().st_size > 0
    if found and not overwrite:
        what = "exists" if out.is_file() else "is a folder that is not empty"
        also = {"report": ", or say --overwrite to replace the report in it", "adapter": ""}
        replace = also.get(holds, ", or say --overwrite to replace it")
        raise InputError(f"{out} {what}. {OTHER}{replace}.")


def check_report(out: Path | None, *inputs: Path, overwrite: bool) -> None:
    """Refuse a folder for a report, which may be left out, as `check_out` does."""
    if out is not None:
        check_out(out, *inputs, overwrite=overwrite, holds="report")
    elif overwrite:
        raise InputError("--overwrite has no effect without -o. Leave it out, or name a folder.")


def note_parts(data: str, split: str | None) -> None:
    """Say that a built-in bank is taken with its test questions, where no split is named."""
    from lessonplan.data.questions import BANKS

    if split is None and data in BANKS and not Path(data).exists():
        print(
            f"note: {data} is taken as a whole; --split train or --split test takes one part.",
            file=sys.stderr,
        )


def console() -> Any:
    """Return where tables are printed: into a file or a pipe, as wide as they need to be."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    print(text, flush=True)
