"""Predictions: what a model thinks of each option of each question, or of each completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lessonplan.data.features import are_completions
from lessonplan.errors import InputError
from lessonplan.evaluation.scores import choose
from lessonplan.models.rows import Row, question_rows, token_rows, unconditional_texts
from lessonplan.models.scores import option_scores
from lessonplan.training.recipe import Recipe, Scoring, check_completions


@dataclass(frozen=True)
class Unconditional:
    """The options without their questions, each distinct one once.

    Attributes:
        rows: token rows of a few options each.
        place: for each question, where its options stand: int64 ``[K, 2]`` (row, option in it).
    """

    rows: list[Row]
    place: list[NDArray[np.int64]]


def scoring_rows(
    tokenizer: Any, questions: Any, scoring: Scoring, max_tokens: int, name: str = "question"
) -> tuple[list[Row], Unconditional | None]:
    """Return a row a question with all options and, for cloze choices, the options without it.

    Raises:
        InputError: a question does not fit `max_tokens` even when cut; names it.
    """
    rows = question_rows(
        tokenizer,
        questions,
        scoring.form,
        template=scoring.template,
        max_tokens=max_tokens,
        name=name,
    )
    if scoring.form == "letter" or are_completions(questions):
        return rows, None
    texts = unconditional_texts(questions, template=scoring.template)
    place = {c: (i, k) for i, text in enumerate(texts) for k, c in enumerate(text.continuations)}
    return rows, Unconditional(
        token_rows(
            tokenizer,
            texts,
            max_tokens=max_tokens,
            names=[f"{name} with the option {text.continuations[0]!r}" for text in texts],
        ),
        [np.array([place[option] for option in options]) for options in questions["options"]],
    )


def predictions(
    engine: Any,
    questions: Any,
    rows: Sequence[Row],
    unconditional: Unconditional | None,
    scoring: Scoring,
    *,
    hidden: Any = None,
    hidden_unconditional: Any = None,
    part: NDArray[np.int64] | None = None,
    checkpoint: int = 0,
) -> pa.Table:
    """Score questions and return one row a question.

    Args:
        engine: a `lessonplan.models.engine.Engine`.
        questions: a question `Dataset`.
        rows, unconditional: from `scoring_rows`; without `unconditional` that score is not stored.
        hidden, hidden_unconditional: their lower layers' output, where the engine keeps it.
        part: int64, which questions; None for all.
        checkpoint: how many questions the model had been trained on.

    Returns:
        Columns checkpoint, id, answer, chosen, correct, and for each option: loglikelihood (nats),
        tokens, bytes, unconditional (nats, or null). Of completions: checkpoint, id, value (the
        primary score: higher is better), loglikelihood, tokens and bytes.
    """
    part = np.arange(len(rows)) if part is None else part
    sums, tokens = engine.score(rows, hidden, part)
    floats, integers = pa.list_(pa.float64()), pa.list_(pa.int64())
    ids = questions["id"][:]
    if are_completions(questions):
        lengths = [rows[i].lengths for i in part]
        scores = option_scores(primary(scoring), sums, tokens, lengths)
        return pa.table(
            {
                "checkpoint": pa.array(np.full(len(part), checkpoint), pa.int64()),
                "id": pa.array([ids[i] for i in part], pa.string()),
                "value": pa.array([float(score[0]) for score in scores], pa.float64()),
                "loglikelihood": pa.array([s.tolist() for s in sums], floats),
                "tokens": pa.array([t.tolist() for t in tokens], integers),
                "bytes": pa.array([b.tolist() for b in lengths], integers),
            }
        )
    alone = None
    if unconditional is not None and len(part):
        asked = np.unique(np.concatenate([unconditional.place[i][:, 0] for i in part]))
        found = engine.score(unconditional.rows, hidden_unconditional, asked)[0]
        by_row = dict(zip(asked.tolist(), found, strict=True))
        alone = [np.array([by_row[r][k] for r, k in unconditional.place[i]]) for i in part]
    lengths = [rows[i].lengths for i in part]
    chosen = choose(primary(scoring), sums, tokens, lengths, alone)
    answers = np.asarray(questions["answer"][:], dtype=np.int64)[part]
    return pa.table(
        {
            "checkpoint": pa.array(np.full(len(part), checkpoint), pa.int64()),
            "id": pa.array([ids[i] for i in part], pa.string()),
            "answer": pa.array(answers, pa.int64()),
            "chosen": pa.array(chosen, pa.int64()),
            "correct": pa.array(chosen == answers, pa.bool_()),
            "loglikelihood": pa.array([s.tolist() for s in sums], floats),
            "tokens": pa.array([t.tolist() for t in tokens], integers),
            "bytes": pa.array([b.tolist() for b in lengths], integers),
            "unconditional": pa.array(
                [None] * len(part) if alone is None else [u.tolist() for u in alone], floats
            ),
        }
    )


def are_finite(table: pa.Table) -> bool:
    """Say whether all log-likelihoods of a table of `predictions` are finite numbers."""
    finite = pc.is_finite(pc.list_flatten(table["loglikelihood"]))
    return bool(pc.all(finite, min_count=0).as_py())


def primary(scoring: Scoring) -> Any:
    """Return the score that decides: the declared one, or for letters the sum."""
    return "sum" if scoring.form == "letter" else scoring.score


def evaluate(
    questions: Any,
    model: str,
    *,
    adapter: str | Path | None = None,
    scoring: Scoring | None = None,
    recipe: Recipe | None = None,
    trust_remote_code: bool = False,
) -> pa.Table:
    """Score questions with a model, with or without an adapter.

    Args:
        questions: a question `Dataset`.
        model: a preset, folder, GGUF file or hub id.
        adapter: a LoRA adapter in PEFT's format.
        scoring: form and primary score; cloze per token by default.
        recipe: gives max_tokens, dtype, quantization, device and threads.

    Returns:
        The table of `predictions`.

    Raises:
        InputError: settings that do not go with the data or the model, a question that does not
            fit, or log-likelihoods that are no finite numbers.
    """
    from lessonplan.models.engine import Engine
    from lessonplan.models.lora import load_adapter
    from lessonplan.training.train import load_for

    scoring, recipe = scoring or Scoring(), recipe or Recipe()
    check_completions(questions, scoring, "The data")
    loaded = load_for(model, recipe, trust_remote_code=trust_remote_code)
    if adapter is not None:
        load_adapter(loaded.network, Path(adapter))
    rows, unconditional = scoring_rows(loaded.tokenizer, questions, scoring, recipe.max_tokens)
    engine = Engine(loaded.network, longest=recipe.max_tokens)
    table = predictions(engine, questions, rows, unconditional, scoring)
    if not are_finite(table):
        raise InputError(
            f"The log-likelihoods by {model} are no finite numbers: its weights or the adapter's "
            f"are broken, or too large for dtype: {recipe.dtype}."
        )
    return table
