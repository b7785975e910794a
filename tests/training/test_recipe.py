"""Recipes, what is said when they are wrong, and learning rates against Transformers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from lessonplan.errors import InputError
from lessonplan.training.recipe import Recipe, Scoring, read_recipe, read_scoring
from lessonplan.training.schedule import learning_rates, received, steps_of


def test_defaults() -> None:
    assert read_recipe([]) == Recipe()
    assert Recipe().adapter.rank == 16
    assert Recipe().step_size == 8


def test_settings() -> None:
    recipe = read_recipe(
        ["adapter.layers=8", "adapter.dropout=0.1", "learning_rate=1e-3", "accumulation=4"]
    )
    assert recipe.adapter.layers == 8
    assert recipe.adapter.rank == 16
    assert recipe.adapter.dropout == 0.1
    assert recipe.learning_rate == 1e-3
    assert recipe.step_size == 32
    assert read_recipe(["adapter.layers=all"]).adapter.layers == "all"
    assert read_recipe(["device=cuda:0"]).device == "cuda:0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lerning_rate=1"], r"no such setting\. Did you mean 'learning_rate'\?"),
        (["rank=4"], r"^rank: .*Did you mean 'adapter\.rank'\?"),
        (["adapter.rnk=4"], r"^rnk: .*Did you mean 'adapter\.rank'\?"),
        (["adaptr.rank=4"], r"^adaptr: .*Did you mean 'adapter'\?"),
        (["zzz=4"], r"^zzz: there is no such setting\. \(found '4'\)"),
        (["batch_size=0"], r"^batch_size: .*greater than or equal to 1 \(found '0'\)"),
        (["batch_size=2.5"], r"^batch_size: .*integer"),
        (["learning_rate=fast"], r"^learning_rate: .*number"),
        (["learning_rate=inf"], r"^learning_rate: .*finite"),
        (["learning_rate=nan"], r"^learning_rate: .*finite|greater than 0"),
        (["warmup=1"], r"^warmup: .*less than 1"),
        (["adapter.dropout=1"], r"^adapter\.dropout: .*less than 1"),
        (["adapter.layers=0"], r"^adapter\.layers: "),
        (["schedule=exponential"], r"^schedule: .*'linear', 'constant', 'cosine' or 'wsd'"),
        (["loss=choice", "weight=token"], "weight: token goes with loss: answer"),
        (["adapter=8"], r"^adapter: "),
        (["adapter=8", "adapter.rank=4"], r"adapter\.rank=4: adapter is given a value"),
        (["batch_size"], "key=value"),
        (["batch_size=0", "epochs=0"], r"batch_size: .*; epochs: "),
    ],
)
def test_bad_settings(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(settings)


def test_scoring() -> None:
    assert read_scoring("letter", "sum") == Scoring(form="letter", score="sum")
    with pytest.raises(InputError, match=r"^form: .*'cloze' or 'letter' \(found 'clze'\)"):
        read_scoring("clze", "sum")
    with pytest.raises(InputError, match=r"^score: .*'per_token'.*\(found 'per_tokn'\)"):
        read_scoring("cloze", "per_tokn")
    with pytest.raises(ValueError, match="exactly once"):
        Scoring(template="no place for it")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.35, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_schedules_are_transformers(schedule: str, warmup: float, steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    warm = int(np.ceil(warmup * steps))
    scheduler = get_scheduler(name, optimizer, warm, steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    recipe = Recipe(learning_rate=3e-4, schedule=schedule, warmup=warmup)
    np.testing.assert_allclose(learning_rates(recipe, steps), expected, rtol=1e-12, atol=1e-18)


def test_warm_up_stable_decay() -> None:
    recipe = Recipe(learning_rate=1.0, schedule="wsd", warmup=0.1)
    rates = learning_rates(recipe, 100)
    np.testing.assert_allclose(rates[:10], np.arange(10) / 10)
    stable = rates[10:83]
    np.testing.assert_allclose(stable, 1)
    last = rates[82:]  # the last fifth of the 90 steps after the warm-up
    np.testing.assert_allclose(last, np.arange(18, 0, -1) / 18)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
def test_rates_are_positive_after_warm_up_and_never_above_the_peak(schedule: str) -> None:
    for steps in (1, 2, 3, 10):
        rates = learning_rates(Recipe(learning_rate=2e-4, schedule=schedule), steps)
        assert rates[0] == 2e-4
        assert (rates > 0).all()
        assert (np.diff(rates) <= 0).all()
    assert len(learning_rates(Recipe(schedule=schedule), 0)) == 0


def test_rates_received_by_position() -> None:
    recipe = Recipe(batch_size=2, accumulation=2, learning_rate=1.0)
    assert steps_of(recipe, 9) == 3
    assert steps_of(recipe, 8) == 2
    assert steps_of(recipe, 0) == 0
    np.testing.assert_allclose(received(recipe, 9), [1] * 4 + [2 / 3] * 4 + [1 / 3])
