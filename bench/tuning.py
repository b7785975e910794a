"""Fine-tuning against TRL's SFTTrainer: the same rows, order, adapter and steps.

Both start from the same adapter (ours, in PEFT's format) and make the same steps of AdamW under the
same learning rates, with a loss that is the mean over the answers' tokens in a step. Timed is the
loop alone: loading, tokenising and a few steps to warm up are left out for both.

TRL gets pre-tokenised rows, sequential sampling, no gradient checkpointing and no bfloat16 (its
defaults are to have both), no evaluation, checkpoints, logging or progress bar.

TRL 1.16 projects the answers' positions alone where it has Triton, that is on GPUs; on a CPU it
projects every position. What it would take with its GPU's way is measured, too (`peer_compact`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench.compare import (
    Seconds,
    agreement,
    keep,
    peak_memory,
    peak_memory_here,
    plain_network,
    ratios,
    seconds,
    spread,
    take_turns,
)
from bench.roofline import Roof, fed, lower_work, ours_work, peer_work
from lessonplan.data import load_questions, sample
from lessonplan.models.batch import collate
from lessonplan.models.loading import load_tokenizer, resolve
from lessonplan.models.lora import add_adapter, remove_adapter
from lessonplan.models.rows import Row, question_texts, token_rows
from lessonplan.training import Recipe
from lessonplan.training.train import prepare
from lessonplan.training.tune import TuningLog, tune

MODEL = "smollm2-135m"
TOP = 8  # of 30 layers
STUDY = 12  # runs that share their lower layers
SEED = 0
WARM_UP = 2  # steps
LIMIT = 1e-4  # nats, of a step's loss


def recipe_of(layers: int | str, threads: int) -> Recipe:
    adapter = {"rank": 16, "alpha": 64, "dropout": 0, "layers": layers}
    return Recipe(loss="answer", weight="token", batch_size=8, threads=threads, adapter=adapter)


def answer_rows(n: int, recipe: Recipe) -> list[Row]:
    """Return the token rows of n questions, each followed by its right answer."""
    questions = sample(load_questions("icd10cm", split="train"), n, SEED)
    texts = question_texts(questions, "cloze", only_answer=True)
    return token_rows(load_tokenizer(resolve(MODEL)), texts, max_tokens=recipe.max_tokens)


# Ours


@dataclass
class Ours:
    """A model with a fresh adapter, and the rows it is tuned on."""

    recipe: Recipe
    rows: list[Row]

    def __post_init__(self) -> None:
        self.model, self.engine, self.adapter = prepare(MODEL, self.recipe)
        self.hidden: Any = None

    def lower(self) -> None:
        self.hidden = self.engine.lower(self.rows)

    def run(self, order: NDArray[np.int64], seed: int = SEED) -> TuningLog:
        return tune(
            self.engine, self.adapter, self.rows, order, self.recipe, seed=seed, hidden=self.hidden
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

    def run(self, order: NDArray[np.int64], losses: list[NDArray[np.float64]]) -> float:
        """Tune on rows in an order and return the seconds that the training loop took.

        The mean loss of the questions in each step is appended to `losses`.
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
            with torch.enable_grad():
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


@contextlib.contextmanager
def projecting_answers_alone() -> Iterator[None]:
    """Let TRL project the labelled positions alone, as it does on GPUs."""
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield


# The comparison


def compare(
    layers: int | str, n: int, alternations: int, threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a fine-tuning of some layers takes (one or two results) and its roofline."""
    recipe = recipe_of(layers, threads)
    rows = answer_rows(n, recipe)
    order = np.random.default_rng(SEED).permutation(n)
    ours, peer = Ours(recipe, rows), Peer(recipe, rows)

    losses: dict[str, list[NDArray[np.float64]]] = {"ours": [], "peer": [], "peer_compact": []}

    def peer_compact(order: NDArray[np.int64], losses: list[NDArray[np.float64]]) -> float:
        with projecting_answers_alone():
            return peer.run(order, losses)

    few = order[: WARM_UP * recipe.batch_size]
    ours.lower()
    ours.run(few)
    peer.run(few, [])
    peer_compact(few, [])

    steps = [order[first : first + recipe.batch_size] for first in range(0, n, recipe.batch_size)]
    batches = [collate([rows[i] for i in step]) for step in steps]
    roof = Roof(ours.model.network, round(fed(batches) / len(batches)), back=True)
    arms: dict[str, Callable[[], float]] = {
        **roof.arms,
        "lower": lambda: seconds(ours.lower),
        "ours": lambda: keep(losses["ours"], lambda: ours.run(order).losses),
        "peer": lambda: peer.run(order, losses["peer"]),
        "peer_compact": lambda: peer_compact(order, losses["peer_compact"]),
    }
    if layers == "all":
        del arms["lower"]
    taken = take_turns(arms, alternations)

    off = {
        arm: float(abs(np.array(losses["ours"]) - np.array(of_arm)).max())
        for arm, of_arm in losses.items()
    }
    agreed = agreement(
        f"mean loss of the questions in each of {len(steps)} steps (nats)", off["peer"], LIMIT
    )
    print(f"  losses differ by {off['peer']:.1e}", file=sys.stderr, flush=True)
    network, rank = ours.model.network, recipe.adapter.rank
    depth = len(network.base_model.layers)
    tuned = depth if layers == "all" else int(layers)
    work = {
        "ours": ours_work(network, batches, tuned=tuned, rank=rank),
        "peer": peer_work(network, rows, tuned=tuned, rank=rank),
    }
    if layers != "all":
        work["lower"] = lower_work(network, rows, tuned=tuned)
    roofline = roof.figures(work, taken)
    about = {
        "what": f"LoRA on {'all' if layers == 'all' else f'the top {layers} of'} {depth} layers",
        "questions": n,
        "agreement": agreed | {"largest_difference_peer_compact": off["peer_compact"]},
    }
    if layers == "all":
        return {"tune_all": about | against_peer(taken["ours"], taken)}, {"tune_all": roofline}

    pairs = list(zip(taken["lower"], taken["ours"], strict=True))
    single = [lower + run for lower, run in pairs]
    study = [(lower + STUDY * run) / STUDY for lower, run in pairs]
    shared = {
        "seconds_lower": spread(taken["lower"]),
        "seconds_run": spread(taken["ours"]),
    }
    in_a_row = study_in_a_row(ours) if alternations > 1 else None
    results = {
        "tune_top_study": about
        | {
            "what": f"{about['what']}: a run in a study of {STUDY}",
            "how": f"ours is (lower layers + {STUDY} runs) / {STUDY}; the peer repeats one run",
            "seconds_a_run_measured_in_a_row": in_a_row,
        }
        | shared
        | against_peer(study, taken),
        "tune_top_single": about
        | {"what": f"{about['what']}: one run, its lower layers included"}
        | shared
        | against_peer(single, taken),
    }
    return results, {"tune_top": roofline}


def against_peer(ours: Seconds, taken: dict[str, Seconds]) -> dict[str, Any]:
    return {
        "ours": spread(ours) | {"unit": "s"},
        "peer": spread(taken["peer"]) | {"unit": "s", "name": "TRL SFTTrainer"},
        "ratio": ratios(ours, taken["peer"]),
        "peer_compact": spread(taken["peer_compact"])
        | {"unit": "s", "name": "TRL SFTTrainer, made to project the answers alone"},
        "ratio_compact": ratios(ours, taken["peer_compact"]),
    }


def study_in_a_row(ours: Ours) -> float:
    """Return the seconds a run of a study takes, measured as a whole: other seeds, other orders."""

    def study() -> None:
        ours.lower()
        for seed in range(STUDY):
            ours.run(np.random.default_rng(seed).permutation(len(ours.rows)), seed)

    return seconds(study) / STUDY


def measure(
    n: int, alternations: int, threads: int = 2, names: Sequence[str] = ("tune_all", "tune_top")
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results and the rooflines of fine-tuning, by name."""
    results: dict[str, Any] = {}
    rooflines: dict[str, Any] = {}
    for name, layers in (("tune_all", "all"), ("tune_top", TOP)):
        if not any(asked.startswith(name) for asked in names):
            continue
        print(name, file=sys.stderr, flush=True)
        arguments = ["--layers", str(layers), "--questions", str(n), "--threads", str(threads)]
        memory = {
            arm: peak_memory("bench.tuning", "--memory", arm, *arguments)
            for arm in ("ours", "peer")
        }
        found, roof = compare(layers, n, alternations, threads)
        gc.collect()
        results |= {name: result | {"peak_memory_mib": memory} for name, result in found.items()}
        rooflines |= roof
    return results, rooflines


def memory(arm: str, layers: int | str, n: int, threads: int) -> float:
    """Return this process's peak after the three steps with the longest rows.

    No other step of the run needs more; the optimiser's state is there after the first.
    """
    recipe = recipe_of(layers, threads)
    rows = answer_rows(n, recipe)
    longest = np.argsort([-len(row) for row in rows], kind="stable")[: 3 * recipe.batch_size]
    if arm == "ours":
        ours = Ours(recipe, rows)
        ours.lower()
        ours.run(longest)
    else:
        Peer(recipe, rows).run(longest, [])
    return peak_memory_here()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", choices=("ours", "peer"), required=True)
    parser.add_argument("--layers", default="all", type=lambda x: x if x == "all" else int(x))
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(
        f"{memory(arguments.memory, arguments.layers, arguments.questions, arguments.threads):.0f}"
    )


if __name__ == "__main__":
    main()
