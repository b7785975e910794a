"""Small multiple-choice questions, as rows of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def question_rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions with a category and a difficulty."""
    return [
        {
            "id": f"q{i}",
            "question": f"Under which category is disease number {i} of region {i % 4} classified?",
            "options": [
                f"Group {i % 7} alpha",
                f"Disorder {i % 5} b",
                f"Form {i % 3}",
                f"Other {i}",
            ],
            "answer": "ABCD"[i * 7 % 4],
            "category": f"region {i % 4}",
            "difficulty": i * 37 % 101 / 100,
        }
        for i in range(first, first + n)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
