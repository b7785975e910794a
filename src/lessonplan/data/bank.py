"""What the built-in banks have in common: the shape of a question, and the table they end in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lessonplan.data.features import question_features

if TYPE_CHECKING:
    from datasets import Dataset

TEST_SHARE = 0.3
WRONG = 4  # wrong options a question
# Of them; with more, knowing every category would still not answer half the questions.
MOST_NEAR = 2


def balanced(n: int, k: int, rng: np.random.Generator) -> list[int]:
    """Return n numbers from 0 to k - 1 in random order, equally many of each up to one."""
    numbers = (np.arange(n) + rng.integers(k)) % k
    return [int(number) for number in rng.permutation(numbers)]


def as_bank(rows: list[dict[str, Any]], rng: np.random.Generator) -> Dataset:
    """Return the questions in random order, with a bank's own columns after the common ones.

    Args:
        rows: the question columns, then ``code``, ``nearness`` and ``split``.
    """
    from datasets import Dataset, Value

    features = question_features()
    features |= {"code": Value("string"), "nearness": Value("float64"), "split": Value("string")}
    return Dataset.from_list([rows[i] for i in rng.permutation(len(rows))], features=features)
