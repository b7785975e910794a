"""The command `lessonplan grid`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lessonplan.cli_options import (
    OverwriteOption,
    check_report,
    column_option,
    console,
    read_columns_option,
    say,
)
from lessonplan.errors import InputError

Number = TypeVar("Number", int, float)


def grid(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Table with columns strategy, accuracy, model, evaluation and labels (optional), "
            "or with a column for each model or set, named by --models and --evaluations.",
        ),
    ],
    models: Annotated[
        str, typer.Option(help="Columns that are models, as a,b: means over the sets.")
    ] = "",
    evaluations: Annotated[
        str, typer.Option(help="Columns that are evaluation sets, as a,b: means over the models.")
    ] = "",
    questions: Annotated[
        str, typer.Option(help="Sizes of the evaluation sets: medqa=1273,medmcqa=4183.")
    ] = "",
    chance: Annotated[str, typer.Option(help="Accuracy of guessing: medqa=0.2,medmcqa=0.25.")] = "",
    runs: Annotated[int | None, typer.Option(help="Runs behind each accuracy.")] = None,
    baseline: Annotated[
        str, typer.Option(help="The strategy that gains are measured against.")
    ] = "random",
    column: Annotated[
        list[str] | None, column_option("strategy, accuracy, model, evaluation or labels")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the tables.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Tables over models, evaluation sets and labels from bare accuracies, such as a paper's."""
    from rich.table import Table
    from rich.text import Text

    from lessonplan.report import write_grid
    from lessonplan.report.grid_section import grid_sentences
    from lessonplan.report.grid_tables import grid_tables
    from lessonplan.statistics import grid as make_grid

    check_report(out, file, overwrite=overwrite)
    made = make_grid(
        file,
        models=_names(models),
        evaluations=_names(evaluations),
        baseline=baseline,
        questions=_numbers("--questions", questions, int),
        chance=_numbers("--chance", chance, float),
        runs=runs,
        columns=read_columns_option(column),
    )
    terminal = console()
    for table in grid_tables(made):
        terminal.print(Text(table.caption))  # a title would be as narrow as its table
        shown = Table()
        for i, head in enumerate(table.heads):
            worded = i == 0 or i in table.worded
            shown.add_column(Text(head), justify="left" if worded else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell.text) for cell in row))
        terminal.print(shown)
    say("\n".join(grid_sentences(made)))
    if out is not None:
        say(f"tables: {write_grid(made, out, title=file.stem)}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> dict[str, Number]:
    found = {}
    for pair in _names(text):
        name, _, value = pair.partition("=")
        try:
            number = kind(value)
        except ValueError:
            number = kind("0")
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{option} takes name=number, such as medqa=..., not {pair!r}.")
        found[name.strip()] = number
    return found
