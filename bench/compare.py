"""What all comparisons share: arms that take turns, paired ratios, peak memory."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Seconds = list[float]


def plain_network(name: str) -> Any:
    """Return a model as Transformers loads it: without the products and hooks of our engine."""
    from transformers import AutoModelForCausalLM

    from lessonplan.models.loading import resolve

    network = AutoModelForCausalLM.from_pretrained(resolve(name), dtype="float32")
    return network.requires_grad_(False).eval()


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def keep(results: list[Any], call: Callable[[], Any]) -> float:
    """Return the seconds of a call, and append what it returns to `results`."""
    return seconds(lambda: results.append(call()))


def take_turns(arms: dict[str, Callable[[], float]], alternations: int) -> dict[str, Seconds]:
    """Return the seconds of each arm by turn: first to last, then last to first, and so on.

    Whatever slows the machine for a while then slows all arms alike, and the ratios of one turn
    can be compared with those of another. An arm returns the seconds that it took, so that it can
    leave out what it prepares.
    """
    taken: dict[str, Seconds] = {name: [] for name in arms}
    for turn in range(alternations):
        for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            taken[name].append(arms[name]())
            print(f"  turn {turn + 1}: {name} {taken[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return taken


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


def ratios(ours: Seconds, peer: Seconds) -> dict[str, Any]:
    """Return how many times as long the peer takes: the spread of the ratios turn by turn."""
    return spread([theirs / own for own, theirs in zip(ours, peer, strict=True)])


def agreement(compared: str, largest_difference: float, limit: float, ok: bool = True) -> Any:
    return {
        "compared": compared,
        "largest_difference": largest_difference,
        "limit": limit,
        "ok": bool(ok and largest_difference <= limit),
    }


def peak_memory(module: str, *arguments: str) -> float:
    """Return the peak memory in MiB of `python -m module arguments`, a process of its own.

    The process prints its own peak, from `peak_memory_here`, as its last line.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def peak_memory_here() -> float:
    """Return the most memory in MiB that this process has had, Python and libraries included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Under Linux `getrusage` also counts the memory of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
