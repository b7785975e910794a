"""Runs in lock-step: each is the run that it is alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lessonplan.data import load_questions, sample
from lessonplan.errors import InputError
from lessonplan.models import products
from lessonplan.models.batch import joined
from lessonplan.models.loading import load_tokenizer, resolve
from lessonplan.models.lora import LoraLinear
from lessonplan.models.products import freeze
from lessonplan.models.rows import question_rows
from lessonplan.training.recipe import Recipe, against_lockstep
from lessonplan.training.train import prepare
from lessonplan.training.tune import TuningError, TuningLog, tune, tune_in_lockstep
from tests.conftest import ARCHITECTURES
from tests.training.test_tune import ANSWERS, Setup, recipe

RNG = np.random.default_rng(8)
ORDERS = [RNG.integers(11, size=13) for _ in range(3)]
SEEDS = [0, 7, 7]
MODEL = "smollm2-135m"


def together(setup: Setup, orders: list[np.ndarray] = ORDERS, **settings: Any) -> list[TuningLog]:
    adapters = setup.adapter.several(len(orders))
    logs = tune_in_lockstep(
        setup.engine,
        adapters,
        setup.rows,
        orders,
        setup.recipe,
        seeds=SEEDS[: len(orders)],
        hidden=setup.engine.lower(setup.rows),
        answers=ANSWERS,
        **settings,
    )
    setup.adapters = adapters
    return logs


def alone(setup: Setup, k: int, **settings: Any) -> tuple[TuningLog, list[torch.Tensor]]:
    log = setup.tune(ORDERS[k], seed=SEEDS[k], **settings)
    return log, [p.detach().clone() for p in setup.adapter.parameters]


@pytest.mark.parametrize(
    "of",
    [
        recipe(),
        recipe(loss="choice", adapter={"layers": 2}),
        recipe(weight="token", batch_size=3, accumulation=2, adapter={"layers": 2}),
    ],
    ids=["answer, all layers", "choice, top layers", "accumulation"],
)
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
def test_each_is_what_it_is_alone(
    tiny_models: dict[str, Path], kind: str, of: Recipe, frozen: bool
) -> None:
    """Losses and weights, whichever way the products with frozen weights take."""
    setup = Setup(tiny_models[kind], of)
    if frozen:
        for module in setup.adapter.modules.values():
            freeze(module.base)
    expected = [alone(setup, k) for k in range(3)]
    logs = together(setup)
    for k, (log, weights) in enumerate(expected):
        np.testing.assert_allclose(logs[k].losses, log.losses, atol=2e-5)
        np.testing.assert_array_equal(logs[k].learning_rates, log.learning_rates)
        for mine, theirs in zip(setup.adapters[k].parameters, weights, strict=True):
            torch.testing.assert_close(mine, theirs, atol=5e-4, rtol=0)


def test_none_sees_another(tiny_llama: Path) -> None:
    """A run's losses do not move, whatever is beside it; its products alone have as many tokens."""
    setup = Setup(tiny_llama, recipe(loss="choice", adapter={"layers": 2}))
    logs = together(setup)
    others = together(setup, [ORDERS[0], ORDERS[0][::-1].copy(), ORDERS[2]])
    for k in (0, 2):
        np.testing.assert_allclose(logs[k].losses, others[k].losses, atol=1e-6)
    assert abs(logs[1].losses - others[1].losses).max() > 1e-3


@pytest.mark.parametrize("broken", ["lanes", "spots"])
def test_mutants_differ(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Tokens that go to the wrong adapter, and tokens that are read in another run."""
    setup = Setup(tiny_llama, recipe(adapter={"layers": 2}))
    expected = [alone(setup, k)[0].losses for k in range(3)]
    if broken == "lanes":
        inner = LoraLinear.forward

        def swapped(self: LoraLinear, x: torch.Tensor) -> torch.Tensor:
            self.used = self.used[::-1]
            try:
                return inner(self, x)
            finally:
                self.used = self.used[::-1]

        monkeypatch.setattr(LoraLinear, "forward", swapped)
    else:

        def unmoved(parts: list[Any]) -> Any:
            return replace(joined(parts), spots=torch.cat([part.spots for part in parts]))

        monkeypatch.setattr("lessonplan.models.engine.joined", unmoved)
    losses = [log.losses for log in together(setup)]
    assert not np.allclose(losses, expected, atol=1e-4)


def test_checkpoints_score_each_by_itself(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(adapter={"layers": 2}))
    expected = {}
    for k in range(3):
        setup.tune(
            ORDERS[k],
            seed=SEEDS[k],
            checkpoints=[5, 13],
            on_checkpoint=lambda seen, k=k: expected.update(
                {(k, seen): setup.engine.score(setup.scoring)[0]}
            ),
        )
    found = {}
    together(
        setup,
        checkpoints=[5, 13],
        on_checkpoint=lambda k, seen: found.update(
            {(k, seen): setup.engine.score(setup.scoring)[0]}
        ),
    )
    assert found.keys() == expected.keys() == {(k, seen) for k in range(3) for seen in (8, 13)}
    for key, scores in expected.items():
        for mine, theirs in zip(found[key], scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-3)
    # Afterwards the first is in use, as it was before.
    after = setup.engine.score(setup.scoring)[0]
    for mine, theirs in zip(after, found[0, 13], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_failure_leaves_the_first_in_use(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(learning_rate=1e30, max_grad_norm=0))
    with pytest.raises(TuningError, match="The loss became"):
        together(setup)
    of = recipe()
    setup.recipe = of
    log = setup.tune()
    np.testing.assert_array_equal(log.losses, Setup(tiny_llama, of).tune().losses)


def test_what_cannot_go_in_lockstep(tiny_llama: Path) -> None:
    setup = Setup(tiny_llama, recipe(adapter={"dropout": 0.1}))
    with pytest.raises(InputError, match="without dropout alone"):
        together(setup)
    assert len(together(setup, ORDERS[:1])) == 1
    assert "not with trl" in against_lockstep(recipe(trainer="trl"))


def test_the_real_model() -> None:
    """With the tokens of real steps, MKL's products give each run the bytes that it has alone."""
    of = Recipe(threads=1, learning_rate=5e-3, adapter={"rank": 4, "alpha": 8, "layers": 2})
    _, engine, adapter = prepare(MODEL, of)
    questions = sample(load_questions("icd10cm", split="train"), 24, 0)
    rows = question_rows(
        load_tokenizer(resolve(MODEL)),
        questions,
        "cloze",
        template=None,
        max_tokens=256,
        only_answer=True,
    )
    hidden = engine.lower(rows)
    orders = [np.random.default_rng(k).permutation(24) for k in range(3)]
    expected = []
    for k, order in enumerate(orders):
        log = tune(engine, adapter, rows, order, of, seed=k, hidden=hidden)
        expected.append((log.losses, [p.detach().clone() for p in adapter.parameters]))
    adapters = adapter.several(3)
    logs = tune_in_lockstep(engine, adapters, rows, orders, of, seeds=range(3), hidden=hidden)
    for k, (losses, weights) in enumerate(expected):
        np.testing.assert_allclose(logs[k].losses, losses, atol=1e-5)
        for mine, theirs in zip(adapters[k].parameters, weights, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
            if not products.ONEDNN:
                assert torch.equal(mine, theirs)
