"""Ordering ten million questions: lessonplan against a plain pandas implementation.

Prints a Markdown table of medians over alternating repetitions in one process, and checks that both
orders obey the same sentence of the table of strategies (their random keys differ).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

import lessonplan
from lessonplan.orders import STRATEGIES

BLOCKS = 3


def pandas_order(strategy: str, frame: pd.DataFrame, seed: int) -> np.ndarray:
    """Group by, sort, split, concatenate: as one would write it by hand."""
    shuffled = frame.sample(frac=1, random_state=seed)
    if strategy == "random":
        return shuffled.index.to_numpy()
    if strategy == "curriculum":
        return shuffled.sort_values("difficulty", kind="stable").index.to_numpy()
    groups = dict(list(shuffled.groupby("category", sort=False)))
    if strategy.endswith("curriculum"):
        groups = {k: g.sort_values("difficulty", kind="stable") for k, g in groups.items()}
    if strategy.startswith("blocked"):
        return pd.concat(groups.values()).index.to_numpy()
    parts = [np.array_split(g.index.to_numpy(), BLOCKS) for g in groups.values()]
    return np.concatenate([part[block] for block in range(BLOCKS) for part in parts])


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def check(strategy: str, frame: pd.DataFrame, order: np.ndarray) -> None:
    """Both must be permutations with the strategy's structure."""
    n = len(frame)
    assert np.array_equal(np.sort(order), np.arange(n))
    category = frame["category"].cat.codes.to_numpy()[order]
    difficulty = frame["difficulty"].to_numpy()[order]
    if strategy == "curriculum":
        assert (np.diff(difficulty) >= 0).all()
    if strategy.startswith("blocked"):
        assert (np.diff(category) != 0).sum() == frame["category"].nunique() - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    names = np.array([f"category {i:02}" for i in range(20)])
    frame = pd.DataFrame(
        {
            "category": pd.Categorical(names[rng.integers(len(names), size=arguments.rows)]),
            "difficulty": rng.random(arguments.rows),
        }
    )
    category, difficulty = frame["category"].to_numpy(), frame["difficulty"].to_numpy()
    print(f"{arguments.rows:,} rows, median of {arguments.repetitions} alternating repetitions\n")
    print("| strategy | lessonplan (s) | pandas (s) | pandas / lessonplan |")
    print("|---|---:|---:|---:|")
    for strategy in (s for s in STRATEGIES if s != "original"):
        ours, theirs = [], []
        for seed in range(arguments.repetitions):
            seconds, order = timed(
                lambda s=strategy, seed=seed: lessonplan.order(
                    s, category=category, difficulty=difficulty, seed=seed
                )
            )
            ours.append(seconds)
            check(strategy, frame, order)
            seconds, order = timed(lambda s=strategy, seed=seed: pandas_order(s, frame, seed))
            theirs.append(seconds)
            check(strategy, frame, order)
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"| {strategy} | {a:.2f} | {b:.2f} | {b / a:.2f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of the process, data and both arms: {peak:.1f} GiB")


if __name__ == "__main__":
    main()
