"""Choices and measures against loops that a reader can follow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from lessonplan.errors import InputError
from lessonplan.evaluation import accuracy, choose, weighted_f1
from lessonplan.models.scores import option_probabilities, option_scores

RNG = np.random.default_rng(0)
K = [2, 5, 4, 3, 4]
SUMS = [-RNG.uniform(1, 30, k) for k in K]
TOKENS = [RNG.integers(1, 9, k) for k in K]
BYTES = [RNG.integers(1, 40, k) for k in K]
ALONE = [-RNG.uniform(1, 30, k) for k in K]


@pytest.mark.parametrize("score", ["sum", "per_token", "per_byte", "unconditional"])
def test_scores_and_choices(score: str) -> None:
    found = option_scores(score, SUMS, TOKENS, BYTES, ALONE)
    chosen = choose(score, SUMS, TOKENS, BYTES, ALONE)
    assert chosen.dtype == np.int64
    for i, k in enumerate(K):
        values = []
        for j in range(k):
            total = SUMS[i][j]
            values.append(
                {
                    "sum": total,
                    "per_token": total / TOKENS[i][j],
                    "per_byte": total / BYTES[i][j],
                    "unconditional": total - ALONE[i][j],
                }[score]
            )
        np.testing.assert_allclose(found[i], values)
        assert chosen[i] == values.index(max(values))


def test_the_scores_do_disagree_here() -> None:
    by = {s: choose(s, SUMS, TOKENS, BYTES, ALONE).tolist() for s in ("sum", "per_token")}
    assert by["sum"] != by["per_token"]


def test_ties_go_to_the_first() -> None:
    assert choose("sum", [np.array([-2.0, -1.0, -1.0])], [np.ones(3, int)], [np.ones(3, int)]) == [
        1
    ]


def test_bad_scores() -> None:
    with pytest.raises(InputError, match="unconditional is for cloze"):
        option_scores("unconditional", SUMS, TOKENS, BYTES)
    with pytest.raises(InputError, match="not 'mean'"):
        choose("mean", SUMS, TOKENS, BYTES)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_measures_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    answers, chosen = (np.array(x, dtype=np.int64) for x in zip(*pairs, strict=True))
    expected = f1_score(answers, chosen, average="weighted", zero_division=0)
    assert weighted_f1(answers, chosen) == pytest.approx(expected, abs=1e-12)
    assert accuracy(answers, chosen) == pytest.approx(accuracy_score(answers, chosen))


def test_f1_by_hand() -> None:
    # Letter 0: precision 2/3, recall 1, F1 0.8, weight 2; letter 1: 1, 1/2, 2/3, weight 2.
    found = weighted_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    assert found == pytest.approx((0.8 * 2 + 2 / 3 * 2) / 4)


def test_probabilities() -> None:
    for s, p in zip(SUMS, option_probabilities([s - 5000 for s in SUMS]), strict=True):
        np.testing.assert_allclose(p, np.exp(s) / np.exp(s).sum(), rtol=1e-9)
        assert p.sum() == pytest.approx(1)
