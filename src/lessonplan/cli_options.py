"""Options that several commands have, and what commands say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="ours=theirs for question, options, answer, id, category or difficulty (of chat data "
        "messages, or prompt and completion); several option columns as options=a,b,c. May be "
        "given several times.",
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name (`lessonplan models`), folder, .gguf or hub id.")
]
ScoringOption = Annotated[str, typer.Option(help="cloze or letter.")]
ScoreOption = Annotated[str, typer.Option(help="sum, per_token, per_byte or unconditional.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value changes a setting; may be given several times."),
]
LabelOut = Annotated[
    Path, typer.Option("--out", "-o", help="Label table (.parquet, .jsonl, .csv).")
]
TrustOption = Annotated[bool, typer.Option(help="Run code that lies beside a model's weights.")]


def read_columns_option(pairs: list[str] | None) -> dict[str, Any] | None:
    if not pairs:
        return None
    columns: dict[str, Any] = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not (ours and theirs):
            raise InputError(f"--column takes ours=theirs, such as answer=label, not {pair!r}.")
        columns[ours] = theirs.split(",") if ours == "options" and "," in theirs else theirs
    return columns


def check_out(out: Path) -> None:
    """Refuse a name that no table can be written under: said before the work, not after it.

    Raises:
        InputError: its ending is unknown.
    """
    from lessonplan.data.tables import EXTENSIONS, table_format

    if table_format(out) is None:
        raise InputError(f"{out}: the name must end in one of {', '.join(EXTENSIONS)}.")


def note_parts(data: str, split: str | None) -> None:
    """Say that a built-in bank is taken with its test questions, where no split is named."""
    from lessonplan.data.questions import BANKS

    if split is None and data in BANKS and not Path(data).exists():
        print(
            f"note: {data} is taken as a whole; --split train or --split test takes one part.",
            file=sys.stderr,
        )


def say(text: str) -> None:
    print(text, flush=True)
