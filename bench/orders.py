"""Ordering ten million questions: lessonplan against a plain pandas implementation.

Prints a Markdown table for each kind of category column. Both arms get the same column of the same
data frame: ``category`` as a pandas categorical, as strings (Python objects) or as 64-bit integers,
``difficulty`` as float64.

- Seconds: wall clock, median and range over repetitions in one process, in which the arms take
  turns, each as often first as second where the repetitions are even.
- Peak memory: the highest resident memory that the operating system saw during one call, above
  that of the same process just before it, which holds Python, the libraries and the data. Every
  figure is from a process of its own.
- Agreement: given the same shuffle and the same order of categories, pandas returns the very same
  order, row for row. (In the timed runs pandas draws its own shuffle, as one would by hand.)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lessonplan
from lessonplan.orders import STRATEGIES
from lessonplan.seeds import stream

BLOCKS = 3
CATEGORIES = 20
KINDS = ("categorical", "strings", "integers")
PAPER = [strategy for strategy in STRATEGIES if strategy != "original"]


def questions(kind: str, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    codes = rng.integers(CATEGORIES, size=rows)
    names = np.array([f"category {i:02}" for i in range(CATEGORIES)], dtype=object)
    category: Any = {
        "categorical": lambda: pd.Categorical.from_codes(codes, names),
        "strings": lambda: pd.Series(names[codes], dtype=object),
        "integers": lambda: codes,
    }[kind]()
    return pd.DataFrame({"category": category, "difficulty": rng.random(rows)})


def ours(
    strategy: str, frame: pd.DataFrame, seed: int, turns: list[Any] | None = None
) -> np.ndarray:
    settings: dict[str, Any] = {}
    if STRATEGIES[strategy].uses_blocks:
        settings["blocks"] = BLOCKS
    if turns and STRATEGIES[strategy].uses_category:
        settings["category_order"] = turns
    return lessonplan.order(
        strategy,
        category=frame["category"],
        difficulty=frame["difficulty"],
        seed=seed,
        **settings,
    )


def shuffle_and_sort(strategy: str, frame: pd.DataFrame, seed: int) -> np.ndarray:
    return by_hand(strategy, frame.sample(frac=1, random_state=seed))


def by_hand(strategy: str, shuffled: pd.DataFrame) -> np.ndarray:
    """Group by, sort, split, concatenate: as one would write it in pandas."""
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


ARMS: dict[str, Callable[[str, pd.DataFrame, int], np.ndarray]] = {
    "ours": ours,
    "peer": shuffle_and_sort,
}


def agree(strategy: str, frame: pd.DataFrame) -> bool:
    """Both must return the same order, row for row, from the same shuffle and category order.

    pandas takes the categories as they first appear in the shuffle. `np.array_split` cuts a
    category into three parts just where lessonplan does; for more blocks the two may differ.
    """
    shuffled = frame.iloc[stream(0, "shuffle", 0).permutation(len(frame))]
    turns = shuffled["category"].unique().tolist()
    return np.array_equal(ours(strategy, frame, 0, turns), by_hand(strategy, shuffled))


def seconds(call: Callable[[], np.ndarray]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_memory(arm: str, strategy: str, kind: str, rows: int) -> int:
    """Return the bytes that one call adds at its peak, measured in a new process."""
    command = [sys.executable, __file__, "--peak-of", arm, strategy, kind, "--rows", str(rows)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_memory_here(arm: str, strategy: str, kind: str, rows: int) -> int:
    ARMS[arm](strategy, questions(kind, 100), 0)  # loads what is loaded at first use
    frame = questions(kind, rows)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of making the data
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ARMS[arm](strategy, frame, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return grown * (1 if sys.platform == "darwin" else 1024)
    before = _status("VmRSS")
    ARMS[arm](strategy, frame, 0)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(
    rows: int = 10_000_000, repeats: int = 3, kinds: tuple[str, ...] = KINDS
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by kind of column and strategy, the figures of both arms.

    ``ours`` and ``peer`` are ``{"seconds": median, "range": [least, most], "peak_bytes": ...}``,
    ``ratio`` is the peer's seconds over ours, ``agreement`` whether both return the same order.
    """
    return {
        kind: {strategy: _compare(strategy, kind, frame, repeats) for strategy in PAPER}
        for kind in kinds
        for frame in [questions(kind, rows)]
    }


def _compare(strategy: str, kind: str, frame: pd.DataFrame, repeats: int) -> dict[str, Any]:
    agreement = agree(strategy, frame)  # also warms both up
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(repeats):
        for arm in list(ARMS)[:: 1 if seed % 2 == 0 else -1]:
            taken[arm].append(seconds(lambda arm=arm, seed=seed: ARMS[arm](strategy, frame, seed)))
    result: dict[str, Any] = {
        arm: {
            "seconds": statistics.median(times),
            "range": [min(times), max(times)],
            "peak_bytes": peak_memory(arm, strategy, kind, len(frame)),
        }
        for arm, times in taken.items()
    }
    ratio = result["peer"]["seconds"] / result["ours"]["seconds"]
    return result | {"ratio": ratio, "agreement": agreement}


def table(by_strategy: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| strategy | lessonplan (s) | pandas (s) | pandas / lessonplan "
        "| lessonplan, peak (GiB) | pandas, peak (GiB) | same order |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for strategy, found in by_strategy.items():
        times = [
            "{:.2f} ({:.2f} to {:.2f})".format(found[arm]["seconds"], *found[arm]["range"])
            for arm in ARMS
        ]
        peaks = [f"{found[arm]['peak_bytes'] / 2**30:.2f}" for arm in ARMS]
        agreement = "yes" if found["agreement"] else "NO"
        cells = [strategy, *times, f"{found['ratio']:.2f}", *peaks, agreement]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak_memory_here(*arguments.peak_of, arguments.rows))
        return
    figures = {}
    print(f"{arguments.rows:,} questions, median (range) of {arguments.repetitions} repetitions")
    for kind in arguments.kinds:
        figures |= measure(arguments.rows, arguments.repetitions, (kind,))
        print(f"\nCategories as {kind}:\n\n{table(figures[kind])}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not all(found["agreement"] for of_kind in figures.values() for found in of_kind.values()):
        raise SystemExit("The two arms disagree.")


if __name__ == "__main__":
    main()
