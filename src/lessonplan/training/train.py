"""One fine-tuning, start to finish: from questions and a strategy to an adapter on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError
from lessonplan.models.engine import Engine
from lessonplan.models.loading import Model, check_length, load, load_tokenizer, resolve
from lessonplan.models.lora import Adapter, add_adapter
from lessonplan.models.rows import Row, question_rows
from lessonplan.orders import Unlabelled, labels_used, order
from lessonplan.training.recipe import Recipe, Scoring, against_tuning, check_completions
from lessonplan.training.tune import TuningLog, tune


def load_for(model: str, recipe: Recipe, *, trust_remote_code: bool = False) -> Model:
    """Load a model as a recipe says, and set the number of CPU threads.

    Raises:
        InputError: it cannot be loaded, or reads fewer tokens than the recipe's `max_tokens`.
    """
    import torch

    torch.set_num_threads(recipe.threads)
    folder = resolve(model)
    check_length(folder, recipe.max_tokens, model)
    return load(
        str(folder),
        dtype=recipe.dtype,
        quantization=recipe.quantization,
        device=recipe.device,
        trust_remote_code=trust_remote_code,
    )


def prepare(
    model: str, recipe: Recipe, *, trust_remote_code: bool = False
) -> tuple[Model, Engine, Adapter]:
    """Load a model, add a fresh adapter to it, and make the engine for both.

    Raises:
        InputError: as `load_for`; weights in float16.
    """
    if problem := against_tuning(recipe):
        raise InputError(f"{problem}.")
    loaded = load_for(model, recipe, trust_remote_code=trust_remote_code)
    shape = recipe.adapter
    layers = None if shape.layers == "all" else shape.layers
    adapter = add_adapter(
        loaded.network, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout, layers=layers
    )
    depth = int(loaded.network.config.get_text_config().num_hidden_layers)
    keep_below = 0 if layers is None else max(0, depth - layers)
    engine = Engine(loaded.network, keep_below=keep_below, longest=recipe.max_tokens)
    return loaded, engine, adapter


def train(
    questions: Any,
    model: str,
    strategy: str,
    out: str | Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    scoring: Scoring | None = None,
    trust_remote_code: bool = False,
    processes: int | None = None,
    on_step: Callable[[int], None] | None = None,
    **settings: Any,
) -> TuningLog:
    """Fine-tune a model on questions in a strategy's order and save the adapter.

    Args:
        questions: a question `Dataset`, with the labels that the strategy uses.
        model: a preset, folder, GGUF file or hub id.
        strategy: a key of `lessonplan.orders.STRATEGIES`.
        out: folder for the adapter, in PEFT's format; must not exist or be empty.
        seed: of the order, the initial adapter and dropout.
        recipe, scoring: how to tune, and the form of the prompt.
        processes: with ``trainer="trl"``: how many to start, one a GPU; None stays in this one.
        on_step: called with the number of questions seen.
        settings: further arguments of `lessonplan.order`, such as blocks or bands.

    Raises:
        InputError: labels that are missing, a folder in use, a model that cannot be loaded.
        TuningError: the loss stopped being a number.
    """
    recipe, scoring, out = recipe or Recipe(), scoring or Scoring(), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder. Give another one with -o.")
    check_completions(questions, scoring, "The data", recipe)
    shown = question_order(questions, strategy, seed=seed, recipe=recipe, **settings)

    def rows_of(tokenizer: Any) -> list[Row]:
        return question_rows(
            tokenizer,
            questions,
            scoring.form,
            template=scoring.template,
            max_tokens=recipe.max_tokens,
            only_answer=recipe.loss == "answer",
        )

    if recipe.trainer == "trl":
        from lessonplan.training.with_trl import tune_with_trl

        tokenizer = load_tokenizer(resolve(model), trust_remote_code=trust_remote_code)
        return tune_with_trl(
            model,
            rows_of(tokenizer),
            shown,
            recipe,
            seed=seed,
            out=out,
            processes=processes,
            trust_remote_code=trust_remote_code,
            on_step=on_step,
        )
    if processes is not None:
        raise InputError("processes go with trainer: trl (--set trainer=trl).")
    loaded, engine, adapter = prepare(model, recipe, trust_remote_code=trust_remote_code)
    rows = rows_of(loaded.tokenizer)
    log = tune(
        engine,
        adapter,
        rows,
        shown,
        recipe,
        seed=seed,
        hidden=engine.lower(rows),
        answers=np.asarray(questions["answer"][:], dtype=np.int64),
        score="sum" if scoring.form == "letter" else scoring.score,
        on_step=on_step,
    )
    adapter.save(out, model)
    return log


def question_order(
    questions: Any, strategy: str, *, seed: int, recipe: Recipe, **settings: Any
) -> NDArray[np.int64]:
    """Return a strategy's order of a question `Dataset`, by its own label columns."""
    deciding = {k: v for k, v in settings.items() if k in ("blocks", "category_order")}
    labels = {kind: questions[kind][:] for kind in labels_used(strategy, **deciding)}
    if "difficulty" in labels:
        labels["difficulty"] = [np.nan if v is None else v for v in labels["difficulty"]]
    try:
        return order(
            strategy,
            len(questions),
            seed=seed,
            epochs=recipe.epochs,
            each=recipe.each,
            **labels,
            **settings,
        )
    except Unlabelled as error:
        raise error.at(f"question {questions['id'][error.row]!r}") from None
