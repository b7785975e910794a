"""The columns that every question set has."""

from __future__ import annotations

from typing import Any

COLUMNS = ("id", "question", "options", "answer", "category", "difficulty")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_features() -> Any:
    """Return the columns of a question set and their types, as `datasets.Features`."""
    from datasets import Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "question": Value("string"),
            "options": List(Value("string")),
            "answer": Value("int64"),
            "category": Value("string"),
            "difficulty": Value("float64"),
        }
    )
