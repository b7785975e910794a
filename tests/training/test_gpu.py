"""The same fine-tunings on a GPU: its scores and losses against the CPU's, twice the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lessonplan.models.rows import Row, Text, token_rows
from lessonplan.training import Recipe
from lessonplan.training.train import prepare
from lessonplan.training.tune import tune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLAIN = {"threads": 1, "learning_rate": 1e-3, "adapter": {"layers": 2, "dropout": 0}}


@pytest.fixture(scope="module")
def rows(byte_tokenizer) -> list[Row]:
    answers = ["the plague", "one of the diseases", "A", "among the best"]
    texts = [
        Text("Question: ", f"Which disease is it? {n}", "\nAnswer:", [answers[n % 4]])
        for n in range(24)
    ]
    return token_rows(byte_tokenizer, texts, max_tokens=200)


def tuned(model: Path, rows: list[Row], device: str, **changed) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of a fine-tuning's steps and the scores after it."""
    recipe = Recipe(**{**PLAIN, "device": device, **changed})
    _, engine, adapter = prepare(str(model), recipe)
    assert engine.sharing
    assert engine.packing
    order = np.random.default_rng(0).permutation(len(rows))
    log = tune(engine, adapter, rows, order, recipe, seed=0, hidden=engine.lower(rows))
    return log.losses, np.concatenate(engine.score(rows)[0])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt_neox"])
def test_a_gpu_tunes_and_scores_as_the_cpu(tiny_models: dict[str, Path], rows, kind: str) -> None:
    on_cpu = tuned(tiny_models[kind], rows, "cpu")
    on_gpu = tuned(tiny_models[kind], rows, "cuda")
    for a, b in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changed", [{}, {"dtype": "bfloat16"}])
def test_twice_the_same_bytes(tiny_llama: Path, rows, changed: dict[str, str]) -> None:
    first, second = (tuned(tiny_llama, rows, "cuda", **changed) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_bfloat16_is_near_float32(tiny_llama: Path, rows) -> None:
    whole, half = tuned(tiny_llama, rows, "cuda"), tuned(tiny_llama, rows, "cuda", dtype="bfloat16")
    np.testing.assert_allclose(half[0], whole[0], rtol=0.05)


def test_paged_eight_bit_adamw_learns(tiny_llama: Path, rows) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    losses, _ = tuned(tiny_llama, rows * 4, "cuda", optimizer="paged_adamw_8bit")
    assert losses[-3:].mean() < 0.9 * losses[:3].mean()
