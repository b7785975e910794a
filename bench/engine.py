"""The engine's shortcuts against the plain way, on the same questions, in one process.

Prints a Markdown table of medians over alternating repetitions: cloze scoring one padded row an
option (what evaluation harnesses do) against one row a question, and fine-tuning the top layers
with and without the kept output of the lower ones. The largest difference is printed beside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lessonplan.data import load_questions, sample
from lessonplan.evaluation.predict import scoring_rows
from lessonplan.models.engine import Engine
from lessonplan.training import Recipe, Scoring
from lessonplan.training.train import prepare
from lessonplan.training.tune import tune


def alternate(arms: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Return the median seconds of each arm, run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def line(what: str, n: int, seconds: dict[str, float], agreement: str) -> None:
    ours, plain = seconds["ours"], seconds["plain"]
    print(
        f"| {what} | {n / ours:.1f} | {n / plain:.1f} | {plain / ours:.2f} | {agreement} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    n = arguments.questions
    questions = sample(load_questions("icd10cm", split="train"), n, 0)
    recipe = Recipe(loss="choice", threads=arguments.threads, adapter={"layers": arguments.layers})
    model, engine, adapter = prepare(arguments.model, recipe)
    adapter.reset(0)
    plain = Engine(model.network)
    plain.sharing = plain.reading = False
    rows, _ = scoring_rows(model.tokenizer, questions, Scoring(), recipe.max_tokens)
    print(f"{n} questions, {arguments.threads} threads, medians of {arguments.repetitions}\n")
    print("| | ours (questions/s) | plain (questions/s) | ratio | largest difference |")
    print("|---|---:|---:|---:|---:|")

    difference = max(
        abs(a - b).max() for a, b in zip(engine.score(rows)[0], plain.score(rows)[0], strict=True)
    )
    seconds = alternate(
        {"ours": lambda: engine.score(rows), "plain": lambda: plain.score(rows)},
        arguments.repetitions,
    )
    line("cloze scoring", n, seconds, f"{difference:.1e} nats")

    answers = np.asarray(questions["answer"][:])
    order = np.arange(n)

    def ours() -> Any:
        return tune(engine, adapter, rows, order, recipe, seed=0, hidden=hidden, answers=answers)

    def without() -> Any:
        return tune(engine, adapter, rows, order, recipe, seed=0, answers=answers)

    started = time.perf_counter()
    hidden = engine.lower(rows)
    kept = time.perf_counter() - started
    difference = abs(ours().losses - without().losses).max()
    seconds = alternate({"ours": ours, "plain": without}, arguments.repetitions)
    line(f"tuning the top {arguments.layers} layers", n, seconds, f"{difference:.1e} nats")
    print(f"\nkeeping the lower layers' output once: {n / kept:.1f} questions/s")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
