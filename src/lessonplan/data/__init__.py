"""Questions and tables, in and out."""

from __future__ import annotations

from lessonplan.data.questions import (
    Reading,
    folds,
    load_questions,
    overlap,
    read_questions,
    sample,
)
from lessonplan.data.sources import DATASETS
from lessonplan.data.tables import (
    count_rows,
    read_columns,
    write_jsonl,
    write_ordered,
    write_table,
)

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
