"""The columns that every question set has."""

from __future__ import annotations

from typing import Any

COLUMNS = ("id", "question", "options", "answer", "category", "difficulty")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A further column of chat data: the turns before the completion, as JSON of {"role", "content"}.
TURNS = "turns"


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


def are_completions(questions: Any) -> bool:
    """Say whether questions are prompts with a completion each: they have one option.

    Args:
        questions: a question `Dataset` or table, or its columns. Of multiple choice every question
            has two options or more.
    """
    return len(questions["options"]) > 0 and len(questions["options"][0]) == 1
