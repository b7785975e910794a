"""Training dynamics against a fine-tuning and an evaluation of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lessonplan.data import load_questions
from lessonplan.data.questions import sample
from lessonplan.evaluation.predict import evaluate
from lessonplan.labels.dynamics import cartography
from lessonplan.models.scores import option_probabilities, option_scores
from lessonplan.training.dynamics import training_dynamics
from lessonplan.training.recipe import Recipe, Scoring
from lessonplan.training.train import train


@pytest.mark.parametrize("loss", ["answer", "choice"])
def test_the_last_checkpoint_is_the_finished_adapter(
    tiny_llama: Path, tmp_path: Path, loss: str
) -> None:
    questions = sample(load_questions("icd10cm", split="train"), 21, 0)
    recipe = Recipe.model_validate(
        {"threads": 1, "loss": loss, "learning_rate": 5e-3, "adapter": {"rank": 4, "layers": 2}}
    )
    right = training_dynamics(questions, str(tiny_llama), recipe=recipe, seed=3)
    # 21 questions in steps of 8: the shares fall on two steps and the end.
    assert right.shape == (3, 21)
    train(questions, str(tiny_llama), "random", tmp_path / "a", seed=3, recipe=recipe)
    table = evaluate(questions, str(tiny_llama), adapter=tmp_path / "a", recipe=recipe)
    columns = [
        [np.array(x) for x in table[name].to_pylist()]
        for name in ("loglikelihood", "tokens", "bytes")
    ]
    shares = option_probabilities(option_scores(Scoring().score, *columns))
    expected = [p[a] for p, a in zip(shares, questions["answer"][:], strict=True)]
    np.testing.assert_allclose(right[-1], expected, atol=1e-5)
    assert not np.allclose(right[0], right[-1], atol=1e-3)


def test_cartography_by_hand() -> None:
    confidence, variability = cartography(np.array([[0.2, 1.0], [0.4, 1.0], [0.9, 1.0]]))
    np.testing.assert_allclose(confidence, [0.5, 1.0])
    np.testing.assert_allclose(variability, [np.sqrt((0.09 + 0.01 + 0.16) / 3), 0.0], atol=1e-12)
