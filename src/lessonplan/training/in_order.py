"""What a Transformers trainer needs to train as a recipe says: the dataset, the loss and the watch.

`FollowsRecipe` is a mixin for any Transformers `Trainer`. All epochs are laid out as one dataset in
the order in which they are trained; every step is checked against the order before its weights
move.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessonplan.errors import InputError
from lessonplan.models.rows import Row
from lessonplan.training.recipe import Recipe
from lessonplan.training.sampling import KeepsOrder
from lessonplan.training.schedule import learning_rates, steps_of
from lessonplan.training.tune import TuningError

# The label of a token that the loss leaves out (PyTorch's), and the number of no question.
NOT_SCORED = -100
FILLER = -1
# Written last into a checkpoint: one that lacks it was cut off and is not resumed from.
MARK = "lessonplan.json"


@dataclass(frozen=True)
class Questions:
    """Questions with their answers as tokens, and the order in which they are trained.

    Attributes:
        tokens: int32 ``[sum of lengths]``, question after question.
        starts: int64 ``[questions + 1]``, where each begins in `tokens`.
        scored: int64 ``[questions]``, the first token of each that the loss is taken of.
        order: int64 ``[exposures]``, question numbers, all epochs one after another.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    scored: NDArray[np.int64]
    order: NDArray[np.int64]


def lay_out(rows: Sequence[Row], order: NDArray[np.int64]) -> Questions:
    """Return rows of a single option as plain token sequences.

    Raises:
        InputError: a row has several options, or the order names rows that are not there.
    """
    if any(row.n_options != 1 for row in rows):
        raise InputError(
            "trainer: trl takes rows of the right answer alone, one option a question."
        )
    order = np.asarray(order, dtype=np.int64)
    if len(order) == 0 or order.min() < 0 or order.max() >= len(rows):
        raise InputError(f"The order must name some of the {len(rows)} rows, and no others.")
    # The answer's last token is only predicted by a row, never fed.
    whole = [np.append(row.ids, row.target[-1]) for row in rows]
    lengths = [len(tokens) for tokens in whole]
    return Questions(
        tokens=np.concatenate(whole).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        scored=np.array([len(t) - len(row.target) for t, row in zip(whole, rows, strict=True)]),
        order=order,
    )


def ordered_dataset(questions: Questions, batch_size: int) -> Any:
    """Return all epochs as one `Dataset` in the order of training.

    Its columns are ``input_ids`` and ``labels`` (`NOT_SCORED` outside the answer), ``question``
    (its number) and ``position`` (in the order). Two-token fillers, whose weight is 0 and whose
    question is `FILLER`, make the last batch whole: else Accelerate would fill it with questions
    from the beginning, or give some process none.
    """
    import pyarrow as pa
    from datasets import Dataset

    order, total = questions.order, len(questions.order)
    fillers = -total % batch_size
    starts, ends = questions.starts[order], questions.starts[order + 1]
    lengths = np.concatenate([ends - starts, np.full(fillers, 2)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    # A filler is the first question's first token, twice.
    first = np.concatenate([starts, np.zeros(fillers, dtype=np.int64)])
    is_filler = np.repeat(np.arange(total + fillers) >= total, lengths)
    ids = questions.tokens[np.where(is_filler, 0, np.repeat(first, lengths) + within)]
    scored = np.concatenate([questions.scored[order], np.full(fillers, 1)])
    labels = np.where(within >= np.repeat(scored, lengths), ids, NOT_SCORED)

    def lists(values: NDArray[Any]) -> Any:
        return pa.LargeListArray.from_arrays(offsets, pa.array(values.astype(np.int32)))

    columns = {
        "input_ids": lists(ids),
        "labels": lists(labels),
        "question": pa.array(np.concatenate([order, np.full(fillers, FILLER)])),
        "position": pa.array(np.arange(total + fillers)),
    }
    return Dataset(pa.table(columns))


def position_weights(questions: Questions, recipe: Recipe) -> NDArray[np.float64]:
    """Return what the loss at each position of the order weighs in its step, ``[exposures]``."""
    order, size = questions.order, recipe.step_size
    if recipe.weight == "question":
        # Over the nominal size, so that questions of a last partial step weigh no more than others.
        return np.full(len(order), 1 / size)
    tokens = (np.diff(questions.starts) - questions.scored)[order].astype(np.float64)
    step = np.arange(len(order)) // size
    weights: NDArray[np.float64] = tokens / np.bincount(step, weights=tokens)[step]
    return weights


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pad examples on the right into int64 tensors ``[B, T]``; numbers become ``[B]``."""
    longest = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), longest)
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, NOT_SCORED)
    for i, example in enumerate(examples):
        length = len(example["input_ids"])
        ids[i, :length] = torch.as_tensor(example["input_ids"])
        labels[i, :length] = torch.as_tensor(example["labels"])
        mask[i, :length] = 1
    numbers = {
        name: torch.tensor([int(example[name]) for example in examples])
        for name in ("question", "position")
    }
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **numbers}


def answer_losses(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of each question's scored tokens, float32 ``[B]``."""
    target = labels[:, 1:]
    scored = target != NOT_SCORED
    # Only where some question of the batch is scored is the vocabulary needed.
    places = scored.any(0).nonzero()[:, 0]
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=places)
    logits = out.logits if out.logits.shape[1] == len(places) else out.logits[:, places]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        target[:, places].flatten(),
        reduction="none",
        ignore_index=NOT_SCORED,
    )
    mean: Tensor = losses.view(len(ids), -1).sum(1) / scored.sum(1)
    return mean


def order_problems(
    fed: Mapping[int, Sequence[int] | NDArray[np.int64]], order: NDArray[np.int64], recipe: Recipe
) -> list[str]:
    """Return what is wrong with the questions that steps held; nothing if they followed the order.

    Args:
        fed: step number, from 0 -> the questions of all its batches, those of the first process
            first in each; `FILLER` for none.
        order: int64 ``[exposures]``.
        recipe: gives the questions in a step.
    """
    problems = []
    for step, found in fed.items():
        start = step * recipe.step_size
        expected = [int(i) for i in order[start : start + recipe.step_size]]
        held = [int(i) for i in found if i != FILLER]
        if held != expected:
            what = "other questions" if sorted(held) != sorted(expected) else "another order"
            problems.append(f"step {step + 1} held {what}: {held} in place of {expected}")
    return problems


class FollowsRecipe(KeepsOrder):
    """Mixin for a Transformers `Trainer`: our loss, our learning rates, and the order watched.

    The trainer's dataset is an `ordered_dataset`, its collator `collate`. `follow` comes before
    `train`.
    """

    loss_is_scaled_for_ga = True  # our weights already hold the whole step
    optimizer: Any
    lr_scheduler: Any

    def follow(
        self,
        questions: Questions,
        recipe: Recipe,
        run: str,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Take the order and recipe to follow.

        Args:
            run: what checkpoints of this run are known by.
            on_step: called with the number of questions seen so far.
        """
        total = len(questions.order)
        self.order, self.recipe, self.run, self.on_step = questions.order, recipe, run, on_step
        self.rates = learning_rates(recipe, steps_of(recipe, total))
        self.losses = np.full(len(self.rates), np.nan)
        # Fillers stand at the end, fewer than a batch, and weigh nothing.
        weights = np.pad(position_weights(questions, recipe), (0, recipe.batch_size))
        self.weights = torch.from_numpy(weights).float()
        self._step: list[tuple[Tensor, Tensor]] = []

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if num_training_steps != len(self.rates):
            raise TuningError(
                f"The trainer plans {num_training_steps} steps, the recipe {len(self.rates)}."
            )
        factors = self.rates / self.recipe.learning_rate
        # It is asked for one step more than there are.
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: float(factors[min(step, len(factors) - 1)]),
        )
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        losses = answer_losses(
            model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        )
        gathered = self.accelerator.gather((inputs["question"], losses.detach()))
        self._step.append(gathered)
        if self.accelerator.sync_gradients:
            self._end_step()
        self.weights = self.weights.to(losses.device)
        # Gradients are averaged over processes; a step's weights add up over all of them.
        weighted: Tensor = (losses * self.weights[inputs["position"]]).sum()
        return weighted * float(self.accelerator.num_processes)

    def _end_step(self) -> None:
        """Look at the step whose last batch has just been fed, before the weights move."""
        step, parts, self._step = int(self.state.global_step), self._step, []
        fed = torch.cat([questions for questions, _ in parts]).cpu().numpy()
        losses = torch.cat([losses for _, losses in parts]).double().cpu().numpy()
        problems = order_problems({step: fed}, self.order, self.recipe)
        if problems:
            raise TuningError(f"The trainer did not keep the order: {problems[0]}.")
        rate = float(self.optimizer.param_groups[0]["lr"])
        if not np.isclose(rate, self.rates[step], rtol=1e-6, atol=0):
            raise TuningError(
                f"The trainer's learning rate at step {step + 1} is {rate}, the recipe's "
                f"{self.rates[step]}: something else, such as a configuration of DeepSpeed, set it."
            )
        self.losses[step] = losses[fed != FILLER].mean()
        if not np.isfinite(self.losses[step]):
            raise TuningError(
                f"The loss became {self.losses[step]} at step {step + 1} of {len(self.rates)}. A "
                "lower learning_rate usually helps."
            )
        if self.on_step:
            self.on_step(min(len(self.order), (step + 1) * self.recipe.step_size))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            steps = int(self.state.global_step)
            mark = {"run": self.run, "losses": self.losses[:steps].tolist()}
            write_json(Path(self.args.output_dir) / f"checkpoint-{steps}" / MARK, mark)


def write_json(file: Path, value: Any) -> None:
    """Write a file that is whole from the moment it has its name."""
    scratch = file.with_name(f"{file.name}.part")
    scratch.write_text(json.dumps(value), encoding="utf-8")
    scratch.replace(file)
