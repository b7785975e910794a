"""Questions and tables, in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lessonplan.data.questions import (
    Reading,
    folds,
    load_questions,
    overlap,
    read_questions,
    sample,
)
from lessonplan.data.sources import DATASETS
from lessonplan.data.tables import write_jsonl, write_table

if TYPE_CHECKING:
    from lessonplan.data.streams import count_rows, read_columns, write_ordered

__all__ = [
    "DATASETS",
    "Reading",
    "count_rows",
    "folds",
    "load_questions",
    "overlap",
    "read_columns",
    "read_questions",
    "sample",
    "write_jsonl",
    "write_ordered",
    "write_table",
]


def __getattr__(name: str) -> Any:
    # On first use: these need Arrow, which takes a while to import.
    if name not in ("count_rows", "read_columns", "write_ordered"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lessonplan.data import streams

    return getattr(streams, name)
