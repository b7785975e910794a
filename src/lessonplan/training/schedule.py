"""Learning rates by step. Without torch, so that reports can draw them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lessonplan.training.recipe import Recipe


def steps_of(recipe: Recipe, exposures: int) -> int:
    """Return the number of optimiser steps; the last partial one counts."""
    return math.ceil(exposures / recipe.step_size)


def learning_rates(recipe: Recipe, steps: int) -> NDArray[np.float64]:
    """Return the learning rate of each step, float64 ``[steps]``.

    Step s of S after W warm-up steps has the factor (S - s) / (S - W) under "linear", as in
    Transformers' `get_linear_schedule_with_warmup`; "cosine" likewise follows its namesake.
    """
    step = np.arange(steps, dtype=np.float64)
    warm = math.ceil(recipe.warmup * steps)
    done = np.clip((step - warm) / max(1, steps - warm), 0, 1)
    factor = {
        "constant": np.ones(steps),
        "linear": 1 - done,
        "cosine": 0.5 * (1 + np.cos(np.pi * done)),
        "wsd": np.minimum(1, (1 - done) / 0.2),
    }[recipe.schedule]
    if warm:
        factor = np.where(step < warm, step / warm, factor)
    return recipe.learning_rate * factor


def received(recipe: Recipe, exposures: int) -> NDArray[np.float64]:
    """Return the learning rate that each position of an order is trained with, ``[exposures]``."""
    rates = learning_rates(recipe, steps_of(recipe, exposures))
    return rates[np.arange(exposures) // recipe.step_size]
