"""Shortcuts broken on purpose: the comparison with the plain way must see each of them.

A break after an engine was made must change its scores by more than the exactness tests allow; a
break before must be found at load, and the results be right all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lessonplan.models import batch as batches
from lessonplan.models import engine as engines
from lessonplan.models.batch import Batch, collate, common_beginning, tree_mask
from lessonplan.models.engine import Engine, PlainWayWarning
from lessonplan.models.loading import load
from lessonplan.models.rows import Row, Text, token_rows
from tests.conftest import ARCHITECTURES

TEXTS = [
    Text("Question: ", "Why is it?", "\nAnswer:", ["the plague", "one of the diseases", "ü"]),
    Text("Question: ", "Which one is it? " * 3, "\nAnswer:", ["one and only", "among the best"]),
    Text("Question: ", "Under which category?", "\nAnswer:", ["A disease", "A question", "C"]),
]
ALLOWED = 1e-4  # nats, in test_engine.py


def changed(**fields: Callable[[Batch], torch.Tensor]) -> Callable[..., Batch]:
    """A way to collate rows with some fields of the batch replaced."""

    def broken(rows: list[Row], device: torch.device | str = "cpu", *, merging: bool = True):
        batch = collate(rows, device, merging=merging)
        return replace(batch, **{name: value(batch) for name, value in fields.items()})

    return broken


def causal(end: torch.Tensor) -> torch.Tensor:
    """A mask by which an option sees the options before it."""
    length = end.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril().expand(len(end), 1, -1, -1)


def leaking(end: torch.Tensor) -> torch.Tensor:
    """A mask by which each token sees the next one, too."""
    return tree_mask(end) | torch.ones(end.shape[1], end.shape[1]).triu(1).tril(1).bool()


MUTANTS: dict[str, tuple[str, object]] = {
    # Places in the row in place of places in the text: all options but the first are shifted.
    "shifted positions": (
        "collate",
        changed(positions=lambda b: torch.arange(b.ids.shape[1]).expand_as(b.ids)),
    ),
    "options see each other": ("tree_mask", causal),
    "a token sees the next": ("tree_mask", leaking),
    "the token beside is read": (
        "collate",
        changed(spots=lambda b: (b.spots + 1).clamp(max=len(b.place) - 1)),
    ),
    "tokens out of place": ("collate", changed(place=lambda b: b.place.roll(1))),
    "options swapped": ("collate", changed(slot=lambda b: b.slot.flip(0))),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request: pytest.FixtureRequest, tiny_models: dict[str, Path]):
    return load(str(tiny_models[request.param])).network


@pytest.fixture(scope="module")
def rows(byte_tokenizer) -> list[Row]:
    return token_rows(byte_tokenizer, TEXTS, max_tokens=400)


@torch.no_grad()
def sums(engine: Engine, rows: list[Row]) -> torch.Tensor:
    return engine.option_sums(rows)[0]


def plain(network, rows: list[Row]) -> torch.Tensor:
    engine = Engine(network)
    engine.sharing = engine.packing = engine.reading = engine.narrowing = False
    return sums(engine, rows)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_shortcut_is_seen(network, rows, name: str, monkeypatch) -> None:
    expected = plain(network, rows)
    engine = Engine(network)
    assert (sums(engine, rows) - expected).abs().max() <= ALLOWED
    attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(engines, attribute, mutant)
    assert (sums(engine, rows) - expected).abs().max() > 100 * ALLOWED


@pytest.mark.parametrize("name", [name for name in MUTANTS if name != "options swapped"])
def test_a_broken_shortcut_is_found_at_load(network, rows, name: str, monkeypatch) -> None:
    expected = plain(network, rows)
    attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(engines, attribute, mutant)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = Engine(network)
    assert [w for w in said if issubclass(w.category, PlainWayWarning)]
    assert not (engine.sharing and engine.packing)
    assert (sums(engine, rows) - expected).abs().max() <= ALLOWED


def test_what_breaks_a_row_by_itself_is_found_at_load(network, rows, monkeypatch) -> None:
    expected = plain(network, rows[:1])

    def besides(batch: Batch) -> torch.Tensor:
        step = 1 if len(batch.ids) == 1 else 0
        return (batch.spots + step).clamp(max=len(batch.place) - 1)

    monkeypatch.setattr(engines, "collate", changed(spots=besides))
    with pytest.warns(PlainWayWarning):
        engine = Engine(network)
    assert (sums(engine, rows[:1]) - expected).abs().max() <= ALLOWED


def test_merging_too_much_is_seen(network, rows, monkeypatch) -> None:
    """One token more than rows have in common: the others get the first row's."""
    expected = plain(network, rows)
    engine = Engine(network)
    assert common_beginning(rows) > 1
    monkeypatch.setattr(batches, "common_beginning", lambda rows: common_beginning(rows) + 1)
    assert (sums(engine, rows) - expected).abs().max() > 100 * ALLOWED
    with pytest.warns(PlainWayWarning, match="end to end"):
        found_out = Engine(network)
    assert (sums(found_out, rows) - expected).abs().max() <= ALLOWED


def test_states_of_another_row_are_seen(network, rows) -> None:
    expected = plain(network, rows)
    engine = Engine(network, keep_below=2)
    hidden = engine.lower(rows)
    assert hidden is not None
    right = engine.score(rows, hidden)[0]
    wrong = engine.score(rows, replace(hidden, states=hidden.states.roll(1, 0)))[0]
    for mine, broken, sure in zip(right, wrong, expected, strict=True):
        assert np.abs(mine - sure[: len(mine)].numpy()).max() <= ALLOWED
        assert np.abs(broken - sure[: len(mine)].numpy()).max() > 100 * ALLOWED
