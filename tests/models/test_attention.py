"""Attention by rows against torch's own attention, one row after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lessonplan.models import attention
from lessonplan.models.batch import collate, common_beginning, near_mask, tree_mask
from lessonplan.models.rows import Row, token_tree

SCALE = 0.3


class OfHeads:
    """What Transformers' attention asks of a module."""

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups = groups
        self.is_causal = True


def some_rows(beginning: int) -> list[Row]:
    """Rows of 2 to 3 options, which all begin with the same tokens."""
    rng = np.random.default_rng(3)
    rows = []
    for length, endings in ((4, (3, 1)), (9, (2, 2, 5)), (6, (1, 4))):
        prompt = [7] * beginning + rng.integers(10, 99, length).tolist()
        texts = [prompt + rng.integers(10, 99, n).tolist() for n in endings]
        rows.append(token_tree(texts, [len(prompt)] * len(texts), [1] * len(texts)))
    return rows


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("beginning", [0, 5])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("longest", [0, 128])  # of a row for the explicit way
@pytest.mark.parametrize("n", [1, 3])
def test_each_row_attends_alone(
    n: int, heads: int, keys: int, beginning: int, window: int | None, longest: int, monkeypatch
) -> None:
    monkeypatch.setattr(attention, "SHORT", longest)
    rows = some_rows(beginning)[:n]
    batch = collate(rows)
    assert len(batch.present) - len(batch.place) == (n - 1) * beginning
    mask = tree_mask(batch.end)
    if window:
        mask = mask & near_mask(batch.positions, window)
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> torch.Tensor:
        shape = (1, n, len(batch.place), 8)
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    query, key, value = drawn(heads), drawn(keys), drawn(keys)
    found, _ = attention.attend(
        OfHeads(heads // keys), query, key, value, mask, lessonplan_batch=batch, scaling=SCALE
    )

    # Row by row, by the tokens that a token may see, from their numbers alone.
    expected = torch.zeros_like(found)
    for row in range(len(rows)):
        tokens = batch.token.view(len(rows), -1)[row, : len(rows[row])]
        seen = mask[row, 0, : len(tokens), : len(tokens)]
        of_keys = torch.arange(heads) // (heads // keys)
        q, k, v = query[0][:, tokens], key[0][of_keys][:, tokens], value[0][of_keys][:, tokens]
        weights = (SCALE * q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf).softmax(-1)
        expected = expected.index_copy(1, tokens, (weights @ v).transpose(0, 1)[None])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    mine = torch.autograd.grad((found * upstream).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * upstream).sum(), (query, key, value))
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_beginning_ends_where_rows_differ_or_options_begin() -> None:
    same = token_tree([[1, 2, 3, 4], [1, 2, 5, 6]], [2, 2], [1, 1])
    assert common_beginning([same, same]) == 2
    other = token_tree([[1, 9, 3, 4], [1, 9, 5, 6]], [2, 2], [1, 1])
    assert common_beginning([same, other]) == 1
    assert common_beginning([other, same, other]) == 1
