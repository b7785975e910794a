"""Fine-tuning against TRL's SFTTrainer: the same rows, order, adapter and steps.

A run takes all threads on both sides. A study's runs go side by side, in processes of one thread,
as they do with `workers: 2` and `threads: 1`, and two by two in lock-step (`lockstep: 2`); the
peer, which knows of no studies, is timed side by side and one run at a time, and the faster counts.

TRL 1.16 projects the answers' positions alone where it has Triton, that is on GPUs; on a CPU it
projects every position. What it would take with its GPU's way is measured, too (`peer_compact`).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.compare import (
    Seconds,
    agreement,
    keep,
    peak_memory,
    peak_memory_here,
    ratios,
    seconds,
    spread,
    take_turns,
)
from bench.roofline import Roof, fed, lower_work, ours_work, peer_work
from bench.side_by_side import LOCKSTEP, Crew, Losses
from bench.tuning_arms import Ours, Peer, answer_rows, order_of, recipe_of
from lessonplan.models.batch import collate

TOP = 8  # of 30 layers
STUDY = 12  # runs that share their lower layers
LIMIT = 1e-4  # nats, of a step's loss


def compare(
    layers: int | str, n: int, alternations: int, threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a fine-tuning of some layers takes (one or two results) and its roofline."""
    recipe = recipe_of(layers, threads)
    rows = answer_rows(n, recipe)
    order = order_of(0, n)
    ours, peer = Ours(recipe, rows), Peer(recipe, rows)
    ours.warm_up(order)
    peer.warm_up(order)

    losses: dict[str, list[NDArray[np.float64]]] = {"ours": [], "peer": [], "peer_compact": []}
    steps = [order[first : first + recipe.batch_size] for first in range(0, n, recipe.batch_size)]
    batches = [collate([rows[i] for i in step]) for step in steps]
    roof = Roof(ours.model.network, round(fed(batches) / len(batches)), back=True)
    arms: dict[str, Callable[[], float]] = {
        **roof.arms,
        "lower": lambda: seconds(ours.lower),
        "ours": lambda: keep(losses["ours"], lambda: ours.run(order).losses),
        "peer": lambda: peer.run(order, losses["peer"]),
        "peer_compact": lambda: peer.run(order, losses["peer_compact"], compact=True),
    }
    study = None
    if layers == "all":
        del arms["lower"]
    else:
        study = Study(int(layers), n, threads)
        arms |= study.arms
    taken = take_turns(arms, alternations)
    if study is not None:
        study.close()

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
    what = f"LoRA on {'all' if layers == 'all' else f'the top {layers} of'} {depth} layers"
    about = {
        "questions": n,
        "agreement": agreed(len(steps), losses["ours"], losses["peer"], losses["peer_compact"]),
    }
    peers = {"peer": taken["peer"], "peer_compact": taken["peer_compact"]}
    if study is None:
        return {"tune_all": {"what": what, **about} | against(taken["ours"], **peers)}, {
            "tune_all": roofline
        }

    pairs = list(zip(taken["lower"], taken["ours"], strict=True))
    single = {
        "what": f"{what}: one run, its lower layers included",
        **about,
        "seconds_lower": spread(taken["lower"]),
        "seconds_run": spread(taken["ours"]),
        **against([lower + run for lower, run in pairs], **peers),
    }
    one_at_a_time = [(lower + STUDY * run) / STUDY for lower, run in pairs]
    in_study = {
        "what": f"{what}: a run in a study of {STUDY}",
        "questions": n,
        "agreement": study.agreed(len(steps)),
        **study.result(taken),
        "one_at_a_time": against(one_at_a_time, **peers),
    }
    return {"tune_top_study": in_study, "tune_top_single": single}, {"tune_top": roofline}


class Study:
    """The arms in which runs go side by side, and the losses that they came to."""

    def __init__(self, layers: int, n: int, processes: int) -> None:
        self._ours = Crew("ours", layers, n, processes)
        self._peer = Crew("peer", layers, n, processes)
        self._losses: dict[str, list[Losses]] = {
            "study": [],
            "peers": [],
            "peers_compact": [],
        }
        self.arms: dict[str, Callable[[], float]] = {
            "study": lambda: self._ours.study(STUDY, self._losses["study"]),
            "peers": lambda: self._peer.peers(self._losses["peers"]),
            "peers_compact": lambda: self._peer.peers(self._losses["peers_compact"], compact=True),
        }

    def result(self, taken: dict[str, Seconds]) -> dict[str, Any]:
        """Return what a run took, and by the peer side by side or one at a time."""
        return {
            "how": "ours: a run's share of a whole study's wall time, lower layers included, side "
            f"by side in processes of one thread, {LOCKSTEP} runs in lock-step in each; the peer: "
            "the faster of side by side and one at a time",
            **against(
                taken["study"],
                peer=faster(taken["peers"], taken["peer"]),
                peer_compact=faster(taken["peers_compact"], taken["peer_compact"]),
            ),
            "peer_side_by_side": spread(taken["peers"]),
        }

    def agreed(self, steps: int) -> dict[str, Any]:
        """Return how far the losses are apart in the runs that both sides do."""
        peers, compact = self._losses["peers"], self._losses["peers_compact"]
        ours = [runs[: len(peers[0])] for runs in self._losses["study"]]
        return agreed(steps, ours, peers, compact)

    def close(self) -> None:
        self._ours.close()
        self._peer.close()


def faster(*ways: Seconds) -> Seconds:
    return min(ways, key=statistics.median)


def agreed(steps: int, ours: Any, peer: Any, peer_compact: Any) -> dict[str, Any]:
    """Return the largest difference of the losses ``[..., steps]`` of every turn."""

    def apart(of_arm: Any) -> float:
        return float(abs(np.array(ours) - np.array(of_arm)).max())

    off = apart(peer)
    print(f"  losses differ by {off:.1e}", file=sys.stderr, flush=True)
    compared = f"mean loss of the questions in each of {steps} steps (nats)"
    return agreement(compared, off, LIMIT) | {
        "largest_difference_peer_compact": apart(peer_compact)
    }


def against(ours: Seconds, *, peer: Seconds, peer_compact: Seconds) -> dict[str, Any]:
    return {
        "ours": spread(ours) | {"unit": "s"},
        "peer": spread(peer) | {"unit": "s", "name": "TRL SFTTrainer"},
        "ratio": ratios(ours, peer),
        "peer_compact": spread(peer_compact)
        | {"unit": "s", "name": "TRL SFTTrainer, made to project the answers alone"},
        "ratio_compact": ratios(ours, peer_compact),
    }


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
        found, roof = compare(layers, n, alternations, threads)
        for title, result in found.items():
            in_study = title == "tune_top_study"
            processes = threads if in_study else 1
            result["peak_memory_mib"] = {
                arm: processes * peak(arm, layers, n, threads // processes, runs)
                for arm, runs in (("ours", LOCKSTEP if in_study else 1), ("peer", 1))
            }
        gc.collect()
        results |= found
        rooflines |= roof
    return results, rooflines


def peak(arm: str, layers: int | str, n: int, threads: int, runs: int) -> float:
    """Return the peak memory in MiB of a process that does so many runs in lock-step."""
    given = {"--memory": arm, "--layers": layers, "--questions": n, "--threads": threads}
    given["--runs"] = runs
    return peak_memory("bench.tuning", *(str(word) for pair in given.items() for word in pair))


def memory(arm: str, layers: int | str, n: int, threads: int, runs: int) -> float:
    """Return this process's peak after the three steps with the longest rows.

    No other step of the run needs more; the optimiser's state is there after the first.
    """
    recipe = recipe_of(layers, threads)
    rows = answer_rows(n, recipe)
    longest = np.argsort([-len(row) for row in rows], kind="stable")[: 3 * recipe.batch_size]
    if arm == "ours":
        ours = Ours(recipe, rows)
        ours.lower()
        ours.run_in_lockstep([longest] * runs)
    else:
        Peer(recipe, rows).run(longest, [])
    return peak_memory_here()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", choices=("ours", "peer"), required=True)
    parser.add_argument("--layers", default="all", type=lambda x: x if x == "all" else int(x))
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    found = memory(asked.memory, asked.layers, asked.questions, asked.threads, asked.runs)
    print(f"{found:.0f}")


if __name__ == "__main__":
    main()
