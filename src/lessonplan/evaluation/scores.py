"""From scores to choices and to measures of how good they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessonplan.models.scores import FloatRows, IntRows, option_scores

# What a comparison calls the scores of completions, by primary score.
LIKELIHOODS = {
    "per_token": "log-likelihood per token",
    "per_byte": "log-likelihood per byte",
    "sum": "log-likelihood",
}


def choose(
    score: str,
    sums: FloatRows,
    tokens: IntRows,
    lengths: IntRows,
    unconditional: FloatRows | None = None,
) -> NDArray[np.int64]:
    """Return the option with the best score for each question, int64 ``[n]``; first of a tie."""
    scores = option_scores(score, sums, tokens, lengths, unconditional)
    return np.array([int(np.argmax(s)) for s in scores], dtype=np.int64)


def accuracy(answers: NDArray[np.int64], chosen: NDArray[np.int64]) -> float:
    """Return the share of right choices."""
    return float(np.mean(answers == chosen))


def weighted_f1(answers: NDArray[np.int64], chosen: NDArray[np.int64]) -> float:
    """Return the F1 score of each option position, averaged by how often it is the right one.

    The same as scikit-learn's ``f1_score(average="weighted")`` over the positions.
    """
    total = 0.0
    for letter in np.unique(answers):
        true = answers == letter
        found = chosen == letter
        total += true.sum() * 2 * (true & found).sum() / (true.sum() + found.sum())
    return float(total / len(answers))
