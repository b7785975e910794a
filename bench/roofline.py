"""How much arithmetic tuning and scoring need, and how fast this machine does such arithmetic.

Counted are the products of the linear layers, two operations for each multiply-add: forward, back
to the inputs wherever something trained lies below, and for the gradients of the adapters. Padding
is no work, of ours what the questions of a batch begin with counts once, and attention is left out;
so the share of the machine's rate that is reached is a lower bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.compare import Seconds, seconds, spread
from bench.products import Product, onednn
from lessonplan.models.batch import Batch, batches_by_length, collate
from lessonplan.models.products import HAS_ONEDNN
from lessonplan.models.rows import Row


def layer_shapes(network: Any) -> list[dict[str, tuple[int, int]]]:
    """Return the (inputs, outputs) of the linear layers of each decoder layer, by name."""
    return [
        {
            name.removesuffix(".base").rsplit(".", 1)[-1]: (module.in_features, module.out_features)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        for layer in network.base_model.layers
    ]


def body_work(network: Any, tokens: int, *, tuned: int, rank: int, run: int) -> float:
    """Return the operations of the decoder's linear layers, adapters included.

    Args:
        network: a Transformers causal language model.
        tokens: how many tokens are fed.
        tuned: how many of the top layers carry an adapter.
        rank: of the adapter.
        run: how many of the top layers are run at all.
    """
    layers = layer_shapes(network)
    total = 0
    for depth, layer in enumerate(layers):
        from_top = len(layers) - depth
        for name, (inputs, outputs) in layer.items():
            # Nothing trained lies below what the lowest tuned attention reads.
            back = from_top < tuned or (
                from_top == tuned and name not in ("q_proj", "k_proj", "v_proj")
            )
            if from_top > run:
                continue
            total += inputs * outputs * (1 + back)
            if from_top <= tuned:
                # A x and B (A x); the gradients of A, of B, of A x; and, where needed, of x.
                total += rank * ((inputs + outputs) + (inputs + 2 * outputs) + back * inputs)
    return 2.0 * tokens * total


def head_work(network: Any, places: int, products: int) -> float:
    """Return the operations of so many products of the vocabulary's projection at some places."""
    head = network.get_output_embeddings()
    return 2.0 * places * head.in_features * head.out_features * products


def ours_work(network: Any, batches: Sequence[Batch], *, tuned: int, rank: int) -> float:
    """Each batch's distinct tokens through the tuned layers alone, there and back.

    In the last layer and the projection only those that are read; the layers below the tuned ones
    are `lower_work`.
    """
    tokens, reads = fed(batches), sum(len(batch.spots) for batch in batches)

    def body(tokens: int, run: int) -> float:
        return body_work(network, tokens, tuned=tuned, rank=rank, run=run)

    return body(tokens, tuned) - body(tokens, 1) + body(reads, 1) + head_work(network, reads, 2)


def fed(batches: Sequence[Batch]) -> int:
    """Return how many tokens are fed: what all rows of a batch begin with counts once."""
    return sum(len(batch.place) for batch in batches)


def by_length(rows: Sequence[Row]) -> list[Batch]:
    """Return the batches in which rows are scored, and their lower layers computed."""
    return [collate([rows[i] for i in chosen]) for chosen in batches_by_length(rows)]


def lower_work(network: Any, rows: Sequence[Row], *, tuned: int) -> float:
    return _below(network, fed(by_length(rows)), tuned)


def peer_work(network: Any, rows: Sequence[Row], *, tuned: int, rank: int) -> float:
    """All layers, and the projection at every token, where TRL computes it: forward, again, back.

    TRL feeds the last token of an answer, too, from which nothing is predicted.
    """
    tokens = sum(len(row) for row in rows)
    fed = tokens + len(rows)
    depth = len(layer_shapes(network))
    return body_work(network, fed, tuned=tuned, rank=rank, run=depth) + head_work(
        network, tokens, 3
    )


def ours_scoring_work(network: Any, rows: Sequence[Row]) -> float:
    """Each batch's distinct tokens; in the last layer and the projection those that are read."""
    batches = by_length(rows)
    reads = sum(len(batch.spots) for batch in batches)
    last = body_work(network, reads, tuned=0, rank=0, run=1)
    return last + _below(network, fed(batches), 1) + head_work(network, reads, 1)


def peer_scoring_work(network: Any, texts: Sequence[Sequence[int]]) -> float:
    """Every token of every text, through all layers and the projection."""
    tokens = sum(map(len, texts))
    depth = len(layer_shapes(network))
    return body_work(network, tokens, tuned=0, rank=0, run=depth) + head_work(network, tokens, 1)


def _below(network: Any, tokens: int, layers: int) -> float:
    """Return the operations of all but the top layers, forward alone."""
    whole = body_work(network, tokens, tuned=0, rank=0, run=len(layer_shapes(network)))
    return whole - body_work(network, tokens, tuned=0, rank=0, run=layers)


class Roof:
    """The rate of the bare products, timed in turns with the arms whose share of it is asked for.

    Attributes:
        arms: seconds of the products, by way.
    """

    def __init__(self, network: Any, tokens: int, *, back: bool) -> None:
        self.tokens = tokens
        self.work, ways = products(network, tokens, back=back)
        for way in ways.values():
            way()  # once before it is timed
        self.arms: dict[str, Callable[[], float]] = {
            name: lambda way=way: seconds(way) for name, way in ways.items()
        }

    def figures(self, work: dict[str, float], taken: dict[str, Seconds]) -> dict[str, Any]:
        """Return the products' rates, and what each arm of `work` reaches of the fastest."""
        by_way = [taken[way] for way in self.arms]
        machine = [self.work / min(turn) for turn in zip(*by_way, strict=True)]
        rates = {way: spread([self.work / s / 1e9 for s in taken[way]]) for way in self.arms}
        return {
            "tokens_in_a_product": self.tokens,
            "gflops_by_way": rates,
            **{arm: _reached(of_arm, taken[arm], machine) for arm, of_arm in work.items()},
        }


def _reached(work: float, taken: Seconds, machine: Sequence[float]) -> dict[str, Any]:
    """Return an arm's work, its rate, and the share of the machine's rate in the same turn."""
    rates = [work / s for s in taken]
    return {
        "gflop": work / 1e9,
        "gflops": statistics.median(rates) / 1e9,
        "share": spread([rate / most for rate, most in zip(rates, machine, strict=True)]),
    }


def products(
    network: Any, tokens: int, *, back: bool
) -> tuple[float, dict[str, Callable[[], None]]]:
    """Return the operations of the decoder's frozen products, and ways to compute them.

    Forward and, if asked for, back to the inputs, and nothing else. All layers are gone through, as
    in a step, so their weights come from memory. The machine's rate is that of the fastest way:
    which library leaves the least of it unused depends on the CPU and the direction.
    """
    weights = [
        module.weight.detach()
        for layer in network.base_model.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    ]
    batch = {size: torch.randn(tokens, size) for weight in weights for size in weight.shape}

    def by(forward: Product, backward: Product) -> Callable[[], None]:
        @torch.no_grad()
        def all_layers() -> None:
            for weight in weights:
                outputs, inputs = weight.shape
                forward(batch[inputs], weight.t())
                if back:
                    backward(batch[outputs], weight)

        return all_layers

    ways = {"torch.mm": by(torch.mm, torch.mm)}
    if HAS_ONEDNN:
        ways["oneDNN"] = by(onednn, onednn)
        if back:
            ways["oneDNN forward and torch.mm back"] = by(onednn, torch.mm)
    operations = 2.0 * tokens * sum(weight.numel() for weight in weights)
    return operations * (1 + back), ways
