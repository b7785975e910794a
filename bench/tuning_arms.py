"""The two sides of fine-tuning's comparison: our engine, and TRL's SFTTrainer under PEFT.

Both start from the same adapter (ours, in PEFT's format) and make the same steps of AdamW under the
same learning rates, with a loss that is the mean over the answers' tokens in a step. Timed is the
loop alone: loading, tokenising and a few steps to warm up are left out for both.

TRL gets pre-tokenised rows, sequential sampling, no gradient checkpointing and no bfloat16 (its
defaults are to have both), no evaluation, checkpoints, logging or progress bar.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench.compare import plain_network, seconds
from lessonplan.data import load_questions, sample
from lessonplan.models.loading import load_tokenizer, resolve
from lessonplan.models.lora import add_adapter, remove_adapter
from lessonplan.models.rows import Row, question_texts, token_rows
from lessonplan.training import Recipe
from lessonplan.training.train import prepare
from lessonplan.training.tune import TuningLog, tune_in_lockstep

MODEL = "smollm2-135m"
SEED = 0
WARM_UP = 2  # steps


def recipe_of(layers: int | str, threads: int) -> Recipe:
    adapter = {"rank": 16, "alpha": 64, "dropout": 0, "layers": layers}
    return Recipe(loss="answer", weight="token", batch_size=8, threads=threads, adapter=adapter)


def answer_rows(n: int, recipe: Recipe) -> list[Row]:
    """Return the token rows of n questions, each followed by its right answer."""
    questions = sample(load_questions("icd10cm", split="train"), n, SEED)
    texts = question_texts(questions, "cloze", only_answer=True)
    return token_rows(load_tokenizer(resolve(MODEL)), texts, max_tokens=recipe.max_tokens)


def order_of(run: int, n: int) -> NDArray[np.int64]:
    """Return the order in which a run of a study takes n questions."""
    return np.random.default_rng(SEED + run).permutation(n)


# Ours


@dataclass
class Ours:
    """A model with a fresh adapter, and the rows it is tuned on."""

    recipe: Recipe
    rows: list[Row]

    def __post_init__(self) -> None:
        self.model, self.engine, self.adapter = prepare(MODEL, self.recipe)
        self.hidden: Any = None

    def lower(self, file: Path | None = None) -> None:
        self.hidden = self.engine.lower(self.rows, file)

    def warm_up(self, order: NDArray[np.int64]) -> None:
        self.lower()
        self.run(order[: WARM_UP * self.recipe.batch_size])

    def run(self, order: NDArray[np.int64]) -> TuningLog:
        return self.run_in_lockstep([order])[0]

    def run_in_lockstep(self, orders: Sequence[NDArray[np.int64]]) -> list[TuningLog]:
        return tune_in_lockstep(
            self.engine,
            self.adapter.several(len(orders)),
            self.rows,
            orders,
            self.recipe,
            seeds=[SEED] * len(orders),
            hidden=self.hidden,
        )


# The peer


class Peer:
    """The same model under PEFT and TRL, all of it theirs. `run` makes a new trainer each time."""

    def __init__(self, recipe: Recipe, rows: Sequence[Row]) -> None:
        from datasets import Dataset
        from peft import PeftModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.tokenizer = load_tokenizer(resolve(MODEL))
        network = plain_network(MODEL)
        shape = recipe.adapter
        adapter = add_adapter(
            network,
            rank=shape.rank,
            alpha=shape.alpha,
            dropout=shape.dropout,
            layers=None if shape.layers == "all" else shape.layers,
        )
        adapter.reset(SEED)
        with tempfile.TemporaryDirectory() as folder:
            adapter.save(Path(folder), MODEL)
            remove_adapter(network, adapter)
            self.network = PeftModel.from_pretrained(network, folder, is_trainable=True)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]
        whole = [np.append(row.ids, row.target[-1]) for row in rows]
        self.dataset = Dataset.from_dict(
            {
                "input_ids": whole,
                "labels": [
                    np.append(np.full(len(ids) - len(row.target), -100), row.target)
                    for ids, row in zip(whole, rows, strict=True)
                ],
            }
        )

    def warm_up(self, order: NDArray[np.int64]) -> None:
        few = order[: WARM_UP * self.recipe.batch_size]
        self.run(few, [])
        self.run(few, [], compact=True)

    def run(
        self,
        order: NDArray[np.int64],
        losses: list[NDArray[np.float64]],
        *,
        compact: bool = False,
    ) -> float:
        """Tune on rows in an order and return the seconds that the training loop took.

        Args:
            order: row numbers.
            losses: the mean loss of the questions in each step is appended here.
            compact: project the labelled positions alone, as TRL does on GPUs.
        """
        found: list[float] = []

        def note(_module: Any, _inputs: Any, out: Any) -> None:
            tokens = out.label_mask.sum(1)
            found.append((-out.log_probs.detach().sum(1) / tokens).double().mean().item())

        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for parameter, value in zip(self.trained, self.start, strict=True):
                parameter.copy_(value)
            trainer = self._trainer(self.dataset.select(order), folder)
            handle = self.network.register_forward_hook(note)
            way = mock.patch("trl.trainer.utils._use_triton", return_value=True)
            with torch.enable_grad(), way if compact else contextlib.nullcontext():
                taken = seconds(trainer.train)
        handle.remove()
        losses.append(np.array(found))
        return taken

    def _trainer(self, dataset: Any, folder: str) -> Any:
        from transformers import PrinterCallback
        from trl import SFTConfig, SFTTrainer

        recipe = self.recipe
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=recipe.batch_size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=0,
            max_grad_norm=recipe.max_grad_norm,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            self.network, config, train_dataset=dataset, processing_class=self.tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        return trainer
