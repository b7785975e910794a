"""How fast each product of a step runs by each of torch's two libraries.

`lessonplan.models.products` chooses between them by what this prints: the frozen products of a
layer and of the vocabulary, forward and back, and those of rank 16. Weights are gone through in
turn, as in a step, so that they come from memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from bench.compare import seconds, take_turns
from lessonplan.models.products import HAS_ONEDNN, by_onednn

# SmolLM2-135M's, with the tokens that a tuning step of 8 questions feeds, or reads.
SHAPES = {
    "queries": (576, 576, 140),
    "keys": (192, 576, 140),
    "gates": (1536, 576, 140),
    "down": (576, 1536, 140),
    "vocabulary": (49152, 576, 62),
    "rank 16, in": (16, 576, 140),
    "rank 16, out": (576, 16, 140),
}
ENOUGH = 2**25  # weights to go through: 128 MiB, more than caches hold

Product = Callable[[Tensor, Tensor], Tensor]


def onednn(x: Tensor, y: Tensor) -> Tensor:
    return by_onednn(x, y.t())


def through(product: Product, x: Tensor, weights: Sequence[Tensor]) -> Callable[[], float]:
    """Return what multiplies x by all of the weights and tells the seconds."""

    @torch.no_grad()
    def multiply() -> None:
        for weight in weights:
            product(x, weight)

    return lambda: seconds(multiply)


def rates(outputs: int, inputs: int, tokens: int, turns: int) -> dict[str, float]:
    """Return the GFLOP/s of each direction by each library."""
    weights = [torch.randn(outputs, inputs) for _ in range(max(1, ENOUGH // (outputs * inputs)))]
    arms = {}
    libraries = {"MKL": torch.mm} | ({"oneDNN": onednn} if HAS_ONEDNN else {})
    for library, product in libraries.items():
        arms[f"{library} forward"] = through(
            product, torch.randn(tokens, inputs), [weight.t() for weight in weights]
        )
        arms[f"{library} back"] = through(product, torch.randn(tokens, outputs), weights)
    for arm in arms.values():
        arm()  # once before it is timed
    work = 2e-9 * tokens * outputs * inputs * len(weights)
    return {name: work / median(taken) for name, taken in take_turns(arms, turns).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.products",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f"GFLOP/s, {torch.backends.cpu.get_cpu_capability()}, {a.threads} threads")
    for name, shape in SHAPES.items():
        found = rates(*shape, a.turns)
        print(f"{name:>13}: " + ", ".join(f"{rate:.0f} {arm}" for arm, rate in found.items()))


if __name__ == "__main__":
    main()
