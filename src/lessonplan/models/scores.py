"""From log-likelihoods of options to scores that can be compared, and to probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError

FloatRows = Sequence[NDArray[np.float64]]
IntRows = Sequence[NDArray[np.int64]]


def option_scores(
    score: str,
    sums: FloatRows,
    tokens: IntRows,
    lengths: IntRows,
    unconditional: FloatRows | None = None,
) -> list[NDArray[np.float64]]:
    """Return each option's score for each question.

    Args:
        score: "sum", "per_token", "per_byte" or "unconditional" (the sum minus the log-likelihood
            of the option without the question; Brown et al. 2020, arXiv 2005.14165, section 2.4).
        sums: log-likelihood of each option in nats, one ``[K]`` a question.
        tokens, lengths: tokens and UTF-8 bytes of each option.
        unconditional: log-likelihood of each option without its question.
    """
    if score == "sum":
        return list(sums)
    if score == "per_token":
        return [s / t for s, t in zip(sums, tokens, strict=True)]
    if score == "per_byte":
        return [s / b for s, b in zip(sums, lengths, strict=True)]
    if score == "unconditional":
        if unconditional is None:
            raise InputError("score: unconditional is for cloze scoring; letters have none.")
        return [s - u for s, u in zip(sums, unconditional, strict=True)]
    raise InputError(f"score must be sum, per_token, per_byte or unconditional, not {score!r}.")


def option_probabilities(scores: FloatRows) -> list[NDArray[np.float64]]:
    """Return the softmax of each question's option scores."""
    probabilities = []
    for score in scores:
        exponent = np.exp(score - score.max())
        probabilities.append(exponent / exponent.sum())
    return probabilities
