"""A study's runs several at a time, in processes of one thread each, as its `workers` do them.

Each process of ours tunes `LOCKSTEP` runs step by step together, as by `lockstep` in a study file.

On a few cores this is the way to do many runs: where two threads share one run, the second waits
whenever the first does what is too small to share. The peer is given the same chance.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.compare import seconds
from bench.tuning_arms import Ours, Peer, answer_rows, order_of, recipe_of

Losses = list[NDArray[np.float64]]  # of each run
LOCKSTEP = 2  # runs of ours that a process tunes step by step together


class Crew:
    """Processes that have loaded the model, each for itself, and wait for runs.

    Run i of a study takes the questions in `order_of(i, n)`. All start from the same adapter.

    Args:
        arm: "ours" or "peer".
        layers: how many of the top layers are tuned.
        n: questions.
        size: how many processes, of one thread each.
    """

    def __init__(self, arm: str, layers: int, n: int, size: int) -> None:
        self.size = size
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Barrier(size)
        self._pool = ProcessPoolExecutor(size, spawn, _start, (arm, layers, n, ready))
        list(self._pool.map(int, range(size)))

    def study(self, runs: int, losses: list[Losses]) -> float:
        """Do a study by our engine, and return the seconds that each of its runs took.

        All processes compute the lower layers together, into a file that each of them reads.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, "lower"))  # of this study alone: no other has this folder
            groups = [range(runs)[first : first + LOCKSTEP] for first in range(0, runs, LOCKSTEP)]
            found: list[Losses] = []
            taken = seconds(
                lambda: found.extend(self._pool.map(_run_ours, [file] * len(groups), groups))
            )
        losses.append([of_run for group in found for of_run in group])
        return taken / runs

    def peers(self, losses: list[Losses], *, compact: bool = False) -> float:
        """Let each process do one run by the peer, and return the seconds that each run took."""
        found = list(self._pool.map(_run_peer, range(self.size), [compact] * self.size))
        losses.append([of_run for _, of_run in found])
        return statistics.mean(taken for taken, _ in found) / self.size

    def close(self) -> None:
        self._pool.shutdown()


# What the processes do

_mine: Any = None  # this process's `Ours` or `Peer`


def _start(arm: str, layers: int, n: int, ready: Any) -> None:
    global _mine
    recipe = recipe_of(layers, threads=1)
    rows = answer_rows(n, recipe)
    _mine = Ours(recipe, rows) if arm == "ours" else Peer(recipe, rows)
    _mine.warm_up(order_of(0, n))
    ready.wait()


def _run_ours(file: str, runs: Sequence[int]) -> Losses:
    _mine.lower(Path(file))  # made by the first that ask, and read by all
    logs = _mine.run_in_lockstep([order_of(run, len(_mine.rows)) for run in runs])
    return [log.losses for log in logs]


def _run_peer(run: int, compact: bool) -> tuple[float, NDArray[np.float64]]:
    losses: Losses = []
    taken = _mine.run(order_of(run, len(_mine.dataset)), losses, compact=compact)
    return taken, losses[0]
