"""Scoring options against the LM Evaluation Harness: the same model, questions and tokens.

The harness scores one padded row an option, or, where continuations are single tokens, one row a
question (its cache of logits, which is on). It gets the best of a few batch sizes. Timed is the
scoring of tokens: loading, tokenising and a few questions to warm up are left out for both.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.compare import (
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
from bench.roofline import Roof, by_length, fed, ours_scoring_work, peer_scoring_work
from lessonplan.data import load_questions, sample
from lessonplan.models.batch import SCORING_BATCH
from lessonplan.models.engine import Engine
from lessonplan.models.loading import load, load_tokenizer, resolve
from lessonplan.models.rows import Form, Row, question_texts, token_rows

MODEL = "smollm2-135m"
SEED = 0
BATCH_SIZES = (4, 8, 16, 32)
TRIAL = 16  # questions on which batch sizes are tried, and ours warms up
LIMIT = 1e-3  # nats, of an option's log-likelihood: a sum over its tokens
TIE = 1e-4  # nats
MAX_TOKENS = 512

Sums = list[NDArray[np.float64]]


class Ours:
    """One row a question: a tree of tokens."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.engine, self.rows = Engine(load(MODEL).network), rows

    def run(self, questions: int | None = None) -> Sums:
        return self.engine.score(self.rows[:questions])[0]


class Peer:
    """The harness, with its requests encoded beforehand."""

    def __init__(self, tokenizer: Any, texts: Sequence[Any]) -> None:
        from lm_eval.models.huggingface import HFLM

        network = plain_network(MODEL)
        self.harness = HFLM(pretrained=network, tokenizer=tokenizer, device="cpu", batch_size=8)
        self.options = [len(text.continuations) for text in texts]
        pairs = [(text.prompt, f" {c}") for text in texts for c in text.continuations]
        self.requests = [(pair, *self.harness._encode_pair(*pair)) for pair in pairs]

    def texts(self) -> list[tuple[int, ...]]:
        """Return the token rows that it feeds, each once: options of one token share theirs."""
        return list({(*prompt, *ending)[:-1] for _, prompt, ending in self.requests})

    def run(self, questions: int | None = None) -> Sums:
        """Return the log-likelihood of each option of all questions, or of the first few."""
        options = self.options[:questions]
        requests = self.requests[: sum(options)]
        found = self.harness._loglikelihood_tokens(requests, disable_tqdm=True)
        return np.split(np.array([total for total, _ in found]), np.cumsum(options)[:-1])

    def take_best_batch_size(self) -> dict[int, float]:
        """Try batch sizes, keep the fastest, and return the seconds of each."""
        self.run(TRIAL)
        taken = {}
        for size in BATCH_SIZES:
            self.harness.batch_size_per_gpu = size
            taken[size] = min(seconds(lambda: self.run(TRIAL)) for _ in range(2))
        self.harness.batch_size_per_gpu = min(taken, key=taken.__getitem__)
        return taken


def prepare(form: Form, n: int, threads: int) -> tuple[Any, list[Any], list[Row]]:
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(resolve(MODEL))
    texts = question_texts(sample(load_questions("icd10cm", split="train"), n, SEED), form)
    return tokenizer, texts, token_rows(tokenizer, texts, max_tokens=MAX_TOKENS)


def compare(
    form: Form, n: int, alternations: int, threads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what scoring takes, and its roofline."""
    tokenizer, texts, rows = prepare(form, n, threads)
    ours, peer = Ours(rows), Peer(tokenizer, texts)
    tried = peer.take_best_batch_size()
    ours.run(TRIAL)
    network = ours.engine.network
    work = {
        "ours": ours_scoring_work(network, rows),
        "peer": peer_scoring_work(network, peer.texts()),
    }
    tokens = round(fed(by_length(rows)) / math.ceil(n / SCORING_BATCH))
    roof = Roof(network, tokens, back=False)
    own: list[Sums] = []
    theirs: list[Sums] = []
    arms = {"ours": lambda: keep(own, ours.run), "peer": lambda: keep(theirs, peer.run)}
    taken = take_turns(roof.arms | arms, alternations)
    turns = [agree(mine, other) for mine, other in zip(own, theirs, strict=True)]
    agreed = max(turns, key=lambda turn: (not turn["ok"], turn["largest_difference"]))
    print(f"  sums differ by {agreed['largest_difference']:.1e}", file=sys.stderr, flush=True)
    result = {
        "what": f"scoring all options of a question, {form} form",
        "questions": n,
        "ours": spread(taken["ours"]) | {"unit": "s"},
        "peer": spread(taken["peer"])
        | {
            "unit": "s",
            "name": "LM Evaluation Harness, HFLM",
            "batch_size": peer.harness.batch_size_per_gpu,
            "seconds_tried": tried,
        },
        "ratio": ratios(taken["ours"], taken["peer"]),
        "agreement": agreed,
    }
    return result, roof.figures(work, taken)


def agree(ours: Sums, peer: Sums) -> dict[str, Any]:
    """Compare log-likelihoods, and the options chosen by them; options within `TIE` tie."""
    off = max(float(abs(a - b).max()) for a, b in zip(ours, peer, strict=True))
    other = sum(int(a.max() - a[b.argmax()] > TIE) for a, b in zip(ours, peer, strict=True))
    found = agreement(
        f"log-likelihood (nats) of {sum(map(len, ours))} options, and the option chosen by it",
        off,
        LIMIT,
        ok=other == 0,
    )
    return found | {"questions_chosen_otherwise": other}


def measure(
    n: int,
    alternations: int,
    threads: int = 2,
    names: Sequence[str] = ("score_cloze", "score_letter"),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results and the rooflines of scoring, by name."""
    results, rooflines = {}, {}
    forms: tuple[Form, ...] = ("cloze", "letter")
    for form in forms:
        name = f"score_{form}"
        if name not in names:
            continue
        print(name, file=sys.stderr, flush=True)
        found, rooflines[name] = compare(form, n, alternations, threads)
        gc.collect()
        best = str(found["peer"]["batch_size"])
        arguments = ["--form", form, "--questions", str(n), "--threads", str(threads)]
        memory = {
            arm: peak_memory("bench.scoring", "--memory", arm, *arguments, "--batch-size", best)
            for arm in ("ours", "peer")
        }
        results[name] = found | {"peak_memory_mib": memory}
    return results, rooflines


def memory(arm: str, form: Form, n: int, threads: int, batch_size: int) -> float:
    """Return this process's peak after scoring the questions with the longest rows.

    Both score the longest first, and no later batch needs more.
    """
    tokenizer, texts, rows = prepare(form, n, threads)
    longest = sorted(range(n), key=lambda i: -len(rows[i]))[:32]
    if arm == "ours":
        Ours([rows[i] for i in longest]).run()
    else:
        peer = Peer(tokenizer, [texts[i] for i in longest])
        peer.harness.batch_size_per_gpu = batch_size
        peer.run()
    return peak_memory_here()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", choices=("ours", "peer"), required=True)
    parser.add_argument("--form", choices=("cloze", "letter"), default="cloze")
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    a = parser.parse_args()
    print(f"{memory(a.memory, a.form, a.questions, a.threads, a.batch_size):.0f}")


if __name__ == "__main__":
    main()
