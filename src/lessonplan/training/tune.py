"""Fine-tuning that keeps the order exactly: row after row, nothing reshuffled, nothing dropped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessonplan.errors import InputError
from lessonplan.models.engine import Engine
from lessonplan.models.hidden import Hidden
from lessonplan.models.lora import Adapter, use
from lessonplan.models.rows import Row
from lessonplan.seeds import stream_seed
from lessonplan.training.recipe import Recipe, Score, against_lockstep
from lessonplan.training.schedule import learning_rates, steps_of


class TuningError(RuntimeError):
    """A fine-tuning cannot go on, for example because its loss is no longer a number."""


@dataclass(frozen=True)
class TuningLog:
    """What happened in a fine-tuning.

    Attributes:
        losses: float64 ``[steps]``, the mean loss of the questions in each step, in nats.
        learning_rates: float64 ``[steps]``.
    """

    losses: NDArray[np.float64]
    learning_rates: NDArray[np.float64]


def tune(
    engine: Engine,
    adapter: Adapter,
    rows: Sequence[Row],
    order: NDArray[np.int64],
    recipe: Recipe,
    *,
    seed: int,
    hidden: Hidden | None = None,
    answers: NDArray[np.int64] | None = None,
    score: Score = "per_token",
    checkpoints: Sequence[int] = (),
    on_checkpoint: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TuningLog:
    """Fine-tune an adapter on rows in exactly the given order.

    Args:
        engine: of the network that carries the adapter.
        adapter: is reset from `seed` first.
        rows: one row a question: the answer alone for ``loss="answer"``, all options for "choice".
        order: int64 ``[exposures]``, row numbers.
        recipe: the settings.
        seed: of the initial adapter and of dropout.
        hidden: the lower layers' output for `rows`, from `Engine.lower`.
        answers: int64 ``[rows]`` index of the right option, for ``loss="choice"``.
        score: which score "choice" compares.
        checkpoints: numbers of questions seen at which `on_checkpoint` is called, after the step
            that reaches them.
        on_checkpoint, on_step: called with the number of questions seen so far.

    Returns:
        The losses and learning rates of every step.

    Raises:
        TuningError: the loss is not finite; names the step.
        InputError: "choice" without answers, or by a score that training cannot use.
    """

    def at_checkpoint(_: int, seen: int) -> None:
        if on_checkpoint is not None:
            on_checkpoint(seen)

    (log,) = tune_in_lockstep(
        engine,
        [adapter],
        rows,
        [order],
        recipe,
        seeds=[seed],
        hidden=hidden,
        answers=answers,
        score=score,
        checkpoints=checkpoints,
        on_checkpoint=at_checkpoint,
        on_step=on_step,
    )
    return log


def tune_in_lockstep(
    engine: Engine,
    adapters: Sequence[Adapter],
    rows: Sequence[Row],
    orders: Sequence[NDArray[np.int64]],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    hidden: Hidden | None = None,
    answers: NDArray[np.int64] | None = None,
    score: Score = "per_token",
    checkpoints: Sequence[int] = (),
    on_checkpoint: Callable[[int, int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[TuningLog]:
    """Fine-tune several adapters, each on its own order of the same rows, step by step together.

    Each adapter sees its own batches alone, as if it were tuned by itself; what is shared are the
    products with the network's frozen weights, which are faster for more tokens at a time.

    Args:
        adapters: of the same network and shape; see `Adapter.several`. Afterwards the first is in
            use.
        orders: for each adapter int64 ``[exposures]``, row numbers; all of the same length.
        seeds: for each adapter.
        on_checkpoint: called for each adapter with its place in `adapters` and the number of
            questions seen so far, while that adapter alone is in use.

    The other arguments are those of `tune`.

    Raises:
        TuningError: the loss of one of them is not finite; names the step.
        InputError: see `tune`, and `against_lockstep`.
    """
    if recipe.loss == "choice" and answers is None:
        raise InputError("loss: choice needs the index of each right option.")
    if recipe.loss == "choice" and score == "unconditional":
        raise InputError(
            "loss: choice cannot use score: unconditional, which needs a second pass for every "
            "option; take per_token, per_byte or sum."
        )
    if len(adapters) > 1 and (problem := against_lockstep(recipe)):
        raise InputError(problem)
    total = len(orders[0])
    rates = learning_rates(recipe, steps_of(recipe, total))
    losses = np.zeros((len(adapters), len(rates)))
    pending = sorted({int(c) for c in checkpoints})
    for adapter, seed in zip(adapters, seeds, strict=True):
        adapter.reset(seed)
    parameters = [p for adapter in adapters for p in adapter.parameters]
    optimizer = _optimizer(recipe, parameters)
    optimizer.zero_grad(set_to_none=True)  # a tuning that failed may have left some behind
    with (
        _training(engine, adapters, recipe),
        _dropout_stream(stream_seed(seeds[0], "dropout")),
    ):
        for step, start in enumerate(range(0, total, recipe.step_size)):
            chosen = [order[start : start + recipe.step_size] for order in orders]
            weights = [_weights(recipe, [rows[i] for i in of_one]) for of_one in chosen]
            size = len(chosen[0])
            for first in range(0, size, recipe.batch_size):
                part = slice(first, first + recipe.batch_size)
                indices = np.concatenate([of_one[part] for of_one in chosen])
                loss = question_losses(
                    engine,
                    [rows[i] for i in indices],
                    None if hidden is None else [hidden.row(i) for i in indices],
                    None if answers is None or recipe.loss == "answer" else answers[indices],
                    score,
                    [len(of_one[part]) for of_one in chosen],
                ).view(len(adapters), -1)
                weight = torch.stack([of_one[part] for of_one in weights])
                torch.autograd.backward((loss * weight.to(loss.device)).sum())
                for k, of_one in enumerate(loss.detach().double()):
                    losses[k, step] += of_one.sum().item() / size
            for found in losses[:, step]:
                if not np.isfinite(found):
                    raise TuningError(
                        f"The loss became {found} at step {step + 1} of {len(rates)} (question "
                        f"{start + 1} of {total}). A lower learning_rate usually helps."
                    )
            if recipe.max_grad_norm:
                for adapter in adapters:
                    torch.nn.utils.clip_grad_norm_(adapter.parameters, recipe.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen = min(total, start + recipe.step_size)
            if on_step:
                on_step(seen)
            if pending and seen >= pending[0]:
                while pending and seen >= pending[0]:
                    pending.pop(0)
                if on_checkpoint:
                    _switch(engine, adapters[0], recipe, training=False)
                    for k, adapter in enumerate(adapters):
                        use([adapter])
                        on_checkpoint(k, seen)
                    use(adapters)
                    _switch(engine, adapters[0], recipe, training=True)
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise TuningError(
            f"The adapter's weights are no longer numbers after step {len(rates)}, the last. A "
            "lower learning_rate usually helps."
        )
    return [TuningLog(of_one, rates) for of_one in losses]


def question_losses(
    engine: Engine,
    rows: Sequence[Row],
    hidden: Sequence[Tensor] | None,
    answers: NDArray[np.int64] | None,
    score: Score,
    counts: Sequence[int] = (),
) -> Tensor:
    """Return the loss of each question in nats, float32 ``[B]``.

    With `answers`, the cross-entropy over the options' scores; without, the mean negative
    log-likelihood of the tokens of the row's only option. For `counts` see
    `Engine.token_logprobs`.
    """
    sums, tokens = engine.option_sums(rows, hidden, counts)
    if answers is None:
        return -sums[:, 0] / tokens[:, 0]
    scores = sums
    if score == "per_token":
        scores = sums / tokens.clamp(min=1)
    elif score == "per_byte":
        lengths = torch.ones_like(sums)
        for i, row in enumerate(rows):
            lengths[i, : row.n_options] = torch.from_numpy(row.lengths).to(lengths)
        scores = sums / lengths
    scores = scores.masked_fill(tokens == 0, -torch.inf)
    return torch.nn.functional.cross_entropy(
        scores, torch.from_numpy(answers).to(scores.device), reduction="none"
    )


def _optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    kind: Any = partial(torch.optim.AdamW, fused=True)
    if recipe.optimizer == "paged_adamw_8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                "optimizer: paged_adamw_8bit needs bitsandbytes: pip install 'lessonplan[qlora]'."
            )
        from bitsandbytes.optim import PagedAdamW8bit

        kind = PagedAdamW8bit
    made: torch.optim.Optimizer = kind(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    return made


def _weights(recipe: Recipe, rows: Sequence[Row]) -> Tensor:
    """Return the weight of each question's loss in its step, float32 ``[questions]``."""
    if recipe.weight == "token":
        tokens = torch.tensor([len(row.target) for row in rows], dtype=torch.float32)
        return tokens / tokens.sum()
    # Over the nominal size, so that the questions of a last partial step weigh no more than others.
    return torch.full((len(rows),), 1 / recipe.step_size)


@contextmanager
def _training(engine: Engine, adapters: Sequence[Adapter], recipe: Recipe) -> Iterator[None]:
    """Put adapters in use and switch their dropout on, and back again whatever happens."""
    use(adapters)
    _switch(engine, adapters[0], recipe, training=True)
    try:
        yield
    finally:
        use(adapters[:1])
        _switch(engine, adapters[0], recipe, training=False)


def _switch(engine: Engine, adapter: Adapter, recipe: Recipe, *, training: bool) -> None:
    adapter.train(training)
    engine.merging = not (training and recipe.adapter.dropout > 0)


@contextmanager
def _dropout_stream(seed: int) -> Iterator[None]:
    """Draw dropout from its own stream and leave the caller's random state alone."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
