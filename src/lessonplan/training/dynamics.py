"""Fine-tune once in random order and watch the training questions themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError
from lessonplan.models.rows import question_rows
from lessonplan.models.scores import option_probabilities, option_scores
from lessonplan.training.recipe import Recipe, Scoring
from lessonplan.training.train import prepare, question_order
from lessonplan.training.tune import tune

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


def training_dynamics(
    questions: Any,
    model: str,
    *,
    recipe: Recipe | None = None,
    scoring: Scoring | None = None,
    seed: int = 0,
    shares: tuple[float, ...] = SHARES,
    trust_remote_code: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the probability of the right option of every question along a run over them.

    Args:
        questions: a question `Dataset`.
        model: a preset, folder, GGUF file or hub id.
        recipe, scoring: how to tune and how options are compared.
        seed: of the random order, the initial adapter and dropout.
        shares: the parts of the run after which all questions are scored.
        on_step: called with the number of questions trained on so far.

    Returns:
        float64 ``[P, n]``, a row for each step that a share ends at: `shares` of them, or fewer
        where a run has few steps.

    Raises:
        InputError, TuningError: as `lessonplan.train`.
    """
    recipe, scoring = recipe or Recipe(), scoring or Scoring()
    if recipe.trainer != "lessonplan":
        raise InputError("Training dynamics are watched by trainer: lessonplan alone.")
    loaded, engine, adapter = prepare(model, recipe, trust_remote_code=trust_remote_code)

    def rows_of(only_answer: bool) -> list[Any]:
        return question_rows(
            loaded.tokenizer,
            questions,
            scoring.form,
            template=scoring.template,
            max_tokens=recipe.max_tokens,
            only_answer=only_answer,
        )

    rows = rows_of(False)
    train = rows_of(True) if recipe.loss == "answer" else rows
    order = question_order(questions, "random", seed=seed, recipe=recipe)
    hidden = engine.lower(rows)
    hidden_train = hidden if train is rows else engine.lower(train)
    answers = np.asarray(questions["answer"][:], dtype=np.int64)
    compared = "sum" if scoring.form == "letter" else scoring.score
    found = []

    def watch(_: int) -> None:
        sums, tokens = engine.score(rows, hidden)
        scores = option_scores(compared, sums, tokens, [row.lengths for row in rows])
        shares_of_options = option_probabilities(scores)
        found.append([p[a] for p, a in zip(shares_of_options, answers, strict=True)])

    step = recipe.step_size
    ends = [min(len(order), max(1, round(s * len(order) / step)) * step) for s in shares]
    ends[-1] = len(order)
    tune(
        engine,
        adapter,
        train,
        order,
        recipe,
        seed=seed,
        hidden=hidden_train,
        answers=answers,
        score=compared,
        checkpoints=sorted(set(ends)),
        on_checkpoint=watch,
        on_step=on_step,
    )
    return np.array(found)
