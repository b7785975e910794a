"""What a language model thinks of the options of each question, and what that says of difficulty.

Difficulty by a model's view is the idea of Yang et al. (2024), arXiv 2408.07888: one minus the
probability that language models give to the right option.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import counted
from lessonplan.labels.endpoint import Endpoint
from lessonplan.labels.letters import ask_letters
from lessonplan.models.rows import (
    Form,
    Row,
    joint_rows,
    question_rows,
    rotated_texts,
)
from lessonplan.models.scores import option_probabilities, option_scores

FloatArray = NDArray[np.float64]
Measure = Literal["probability", "loss", "margin", "entropy"]
MEASURES: dict[str, str] = {
    "probability": "1 minus the probability of the right option",
    "loss": "1 minus the probability of the right answer's text or letter, per token",
    "margin": "how far the right option's probability is below the best wrong one's",
    "entropy": "entropy of the options' probabilities, as a share of the largest possible",
}


@dataclass(frozen=True)
class View:
    """What one model thinks of n questions.

    Attributes:
        model: its name.
        probabilities: for each question float64 ``[K]`` over its options, sum 1; all NaN where the
            model could not be read.
        loss: float64 ``[n]`` negative log-likelihood of the right answer in nats: per token in the
            cloze form, of its letter (the mean over all rotations) in the letter form.
        missing: int64 ``[n]`` how many options' probabilities an endpoint did not give (over all
            rotations); they count as 0.
        tokens: tokens used, as an endpoint counted them; 0 for a local model.
        kept: how many of an endpoint's answers were there from earlier.
    """

    model: str
    probabilities: list[FloatArray]
    loss: FloatArray
    missing: NDArray[np.int64]
    tokens: int = 0
    kept: int = 0
    notes: list[str] = field(default_factory=list)


def view_rows(
    tokenizer: Any, questions: Any, form: Form, *, template: str | None, max_tokens: int
) -> list[Row]:
    """Return the token rows that `local_view` scores: one a question.

    In the letter form a row holds all rotations of the options (`rotated_texts`).

    Raises:
        InputError: a question does not fit `max_tokens` even when cut; names it.
    """
    if form == "cloze":
        return question_rows(tokenizer, questions, form, template=template, max_tokens=max_tokens)
    names = [f"question {identifier}" for identifier in questions["id"]]
    groups = rotated_texts(questions, template=template)
    return joint_rows(tokenizer, groups, max_tokens=max_tokens, names=names)


def local_view(
    engine: Any,
    rows: Sequence[Row],
    answers: NDArray[np.int64],
    options: NDArray[np.int64],
    form: Form,
    score: str,
    *,
    name: str,
    on_rows: Callable[[int], None] | None = None,
) -> View:
    """Return what a model in memory thinks.

    Args:
        engine: a `lessonplan.models.engine.Engine`.
        rows: from `view_rows`, of the same form.
        answers: int64 ``[n]`` index of each right option.
        options: int64 ``[n]`` number of each question's options.
        form, score: how options are compared; letters always by "sum".
        name: of the model.
        on_rows: called with the number of questions done since the last call.
    """
    sums, tokens = engine.score(rows, on_rows=on_rows)
    none = np.zeros(len(rows), dtype=np.int64)
    if form == "letter":
        tables = [s.reshape(-1, size) for s, size in zip(sums, options, strict=True)]
        return _from_letters(name, tables, answers, none)
    scores = option_scores(score, sums, tokens, [row.lengths for row in rows])
    loss = np.array([-s[a] / t[a] for s, t, a in zip(sums, tokens, answers, strict=True)])
    return View(name, option_probabilities(scores), loss, none)


def endpoint_view(
    endpoint: Endpoint,
    questions: Any,
    log: Path,
    *,
    template: str | None = None,
    on_answers: Callable[[int, int], None] | None = None,
) -> View:
    """Return what a model behind an OpenAI-compatible endpoint thinks, in the letter form.

    Args:
        endpoint: the server and model.
        questions: a question `Dataset`.
        log: where answers are kept, so that none is asked for twice.
        template: the prompt, as in `lessonplan.models.rows.question_texts`.
        on_answers: called with the number of prompts answered so far, and of all.

    Raises:
        InputError: as `lessonplan.labels.letters.ask_letters`.
    """
    groups = rotated_texts(questions, template=template)
    texts = [text for group in groups for text in group]
    found = ask_letters(
        endpoint,
        [t.prompt for t in texts],
        [t.continuations for t in texts],
        log,
        on_answer=None if on_answers is None else lambda done: on_answers(done, len(texts)),
    )
    answers = np.asarray(questions["answer"][:], dtype=np.int64)
    tables, first = [], 0
    for group in groups:
        tables.append(np.stack(found.logprobs[first : first + len(group)]))
        first += len(group)
    missing = np.array([int(np.isnan(table).sum()) for table in tables], dtype=np.int64)
    view = _from_letters(endpoint.model, tables, answers, missing)
    unread = sum(bool(np.isnan(p).any()) for p in view.probabilities)
    if missing.any():
        view.notes.append(
            f"{endpoint.model}: {counted(int(missing.sum()), 'letter')} of "
            f"{counted(int((missing > 0).sum()), 'question')} not among its {endpoint.top} "
            "likeliest tokens: taken as probability 0 (the loss is unknown where the letter is "
            f"right) and counted in the column 'missing: {endpoint.model}'."
        )
    if unread:
        view.notes.append(
            f"{endpoint.model}: no difficulty for {counted(unread, 'question')}, because for one "
            "rotation of the options not a single letter was among the likeliest tokens."
        )
    return replace(view, tokens=found.prompt_tokens + found.completion_tokens, kept=found.known)


def measured(view: View, measure: Measure, answers: NDArray[np.int64]) -> FloatArray:
    """Return the difficulty that a view gives each question, float64 ``[n]`` from 0 to 1."""
    right: FloatArray = np.array([p[a] for p, a in zip(view.probabilities, answers, strict=True)])
    if measure == "probability":
        return 1 - right
    if measure == "loss":
        return 1 - np.exp(-view.loss)
    if measure == "margin":
        best_wrong = [
            np.delete(p, a).max() for p, a in zip(view.probabilities, answers, strict=True)
        ]
        margin: FloatArray = right - np.array(best_wrong)
        return (1 - margin) / 2
    return np.array([_entropy(p) / np.log(len(p)) for p in view.probabilities])


def accuracy_over_chance(
    view: View, answers: NDArray[np.int64], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return a model's accuracy, the lower end of its Wilson interval, and that of guessing.

    Over all rotations a model that always says the same letter gives every option the same
    probability, so guessing is the floor in both forms. Questions it could not be read on are left
    out; without any the accuracy is 0.
    """
    from statsmodels.stats.proportion import proportion_confint

    read = [i for i, p in enumerate(view.probabilities) if not np.isnan(p).any()]
    if not read:
        return 0.0, 0.0, 0.0
    # Equal probabilities are a guess, not a choice of the first.
    right = [
        float(p[answers[i]] == p.max()) / int((p == p.max()).sum())
        for i in read
        for p in [view.probabilities[i]]
    ]
    chance = float(np.mean([1 / len(view.probabilities[i]) for i in read]))
    low, _ = proportion_confint(sum(right), len(read), alpha=1 - confidence, method="wilson")
    return float(np.mean(right)), float(low), chance


def text_length(questions: Any) -> FloatArray:
    """Return how long each question with its options is: the rank of its characters, 0 to 1."""
    from scipy.stats import rankdata

    sizes = [
        len(question) + sum(map(len, options))
        for question, options in zip(questions["question"], questions["options"], strict=True)
    ]
    ranks: FloatArray = (rankdata(sizes) - 1) / max(len(sizes) - 1, 1)
    return ranks


def _from_letters(
    name: str, tables: list[FloatArray], answers: NDArray[np.int64], missing: NDArray[np.int64]
) -> View:
    """Average over rotations. A table is ``[K, K]`` or ``[1, K]``, rotation by letter, in nats."""
    probabilities, losses = [], []
    for table, answer in zip(tables, answers, strict=True):
        turns, size = table.shape
        # Where each option stands in each rotation: letter (option - rotation) mod K.
        letter = (np.arange(size)[None, :] - np.arange(turns)[:, None]) % size
        by_option = np.take_along_axis(table, letter, axis=1)
        losses.append(-by_option[:, answer].mean())
        shares = np.exp(by_option - np.nanmax(by_option, axis=1, keepdims=True, initial=-np.inf))
        unread = np.isnan(by_option).all(axis=1)
        shares = np.nan_to_num(shares, nan=0.0)
        shares[unread] = np.nan
        probabilities.append(np.mean(shares / shares.sum(axis=1, keepdims=True), axis=0))
    return View(name, probabilities, np.array(losses), missing)


def _entropy(p: FloatArray) -> float:
    if np.isnan(p).any():
        return float("nan")
    inside = p[p > 0]
    return float(-(inside * np.log(inside)).sum())
