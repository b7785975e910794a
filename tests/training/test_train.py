"""From questions to an adapter on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import lessonplan
from lessonplan.errors import InputError
from lessonplan.models.engine import Engine
from lessonplan.models.lora import add_adapter, load_adapter
from lessonplan.models.rows import question_texts, token_rows
from lessonplan.training.recipe import Recipe, Scoring
from lessonplan.training.train import prepare, question_order, train
from lessonplan.training.tune import tune

N = 10


@pytest.fixture
def questions() -> Dataset:
    return Dataset.from_dict(
        {
            "id": [f"q{i}" for i in range(N)],
            "question": [f"Which disease is {'A' * (i % 4)} {i}?" for i in range(N)],
            "options": [["the plague", f"category {i}", "one"][: 2 + i % 2] for i in range(N)],
            "answer": [i % 2 for i in range(N)],
            "category": [("x", "y")[i % 2] for i in range(N)],
            "difficulty": [((7 * i) % N) / N for i in range(N)],
        }
    )


def recipe(**settings) -> Recipe:
    return Recipe.model_validate(
        {"adapter": {"rank": 2, "alpha": 4, "layers": 2}, "batch_size": 4, "threads": 1, **settings}
    )


@pytest.mark.parametrize(
    ("loss", "form"), [("answer", "cloze"), ("choice", "cloze"), ("choice", "letter")]
)
def test_train_is_tune_in_the_strategys_order(
    tiny_llama: Path, questions: Dataset, tmp_path: Path, loss, form
) -> None:
    of = recipe(loss=loss, epochs=2, each="anew")
    seen: list[int] = []
    log = train(
        questions,
        str(tiny_llama),
        "interleaved_curriculum",
        tmp_path / "out",
        seed=4,
        recipe=of,
        scoring=Scoring(form=form, score="sum" if form == "letter" else "per_byte"),
        on_step=seen.append,
        blocks=2,
    )
    assert seen == [4, 8, 12, 16, 20]
    shown = lessonplan.order(
        "interleaved_curriculum",
        N,
        category=questions["category"][:],
        difficulty=questions["difficulty"][:],
        seed=4,
        blocks=2,
        epochs=2,
        each="anew",
    )
    loaded, engine, adapter = prepare(str(tiny_llama), of)
    assert engine.keep_below == 2
    texts = question_texts(questions, form, only_answer=loss == "answer")
    again = tune(
        engine,
        adapter,
        token_rows(loaded.tokenizer, texts, max_tokens=512),
        shown,
        of,
        seed=4,
        answers=np.array(questions["answer"][:]),
        score="sum" if form == "letter" else "per_byte",
    )
    np.testing.assert_allclose(log.losses, again.losses, atol=1e-5)
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    load_adapter(network, tmp_path / "out")
    rows = token_rows(loaded.tokenizer, question_texts(questions, form), max_tokens=512)
    for a, b in zip(Engine(network).score(rows)[0], engine.score(rows)[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_an_output_folder_in_use_costs_nothing(questions: Dataset, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        train(questions, "no such model", "random", tmp_path)
    file = tmp_path / "keep"
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        train(questions, "no such model", "random", file)
    assert file.read_text() == "mine"


def test_a_bad_order_is_told_before_the_model_is_loaded(questions: Dataset, tmp_path) -> None:
    nan = questions.remove_columns("difficulty").add_column("difficulty", [None] * N)
    with pytest.raises(ValueError, match="difficulty"):
        train(nan, "no such model", "curriculum", tmp_path / "out")
    with pytest.raises(ValueError, match="curiculum"):
        train(questions, "no such model", "curiculum", tmp_path / "out")


@pytest.mark.parametrize("strategy", ["random", "blocked", "curriculum", "interleaved_curriculum"])
def test_orders_use_the_questions_own_labels(questions: Dataset, strategy: str) -> None:
    found = question_order(questions, strategy, seed=1, recipe=recipe())
    assert sorted(found.tolist()) == list(range(N))
    difficulty = np.array(questions["difficulty"][:])[found]
    category = np.array(questions["category"][:])[found]
    if strategy == "curriculum":
        assert (np.diff(difficulty) >= 0).all()
    if strategy == "blocked":
        assert (category[1:] != category[:-1]).sum() == 1


def test_prepare_keeps_nothing_below_where_all_layers_are_tuned(tiny_llama: Path) -> None:
    adapter = {"rank": 2, "alpha": 4}
    for layers, kept in (("all", 0), (1, 3), (4, 0), (7, 0)):
        _, engine, made = prepare(
            str(tiny_llama), recipe(adapter={**adapter, "layers": layers}), trust_remote_code=False
        )
        assert engine.keep_below == kept
        assert len(made.modules) == 7 * (4 - kept)
    assert torch.get_num_threads() == 1


def test_adapters_are_drawn_from_the_seed_alone(tiny_llama: Path) -> None:
    drawn = []
    for layers in (None, 2):
        network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        adapter = add_adapter(network, rank=2, alpha=4, dropout=0.0, layers=layers)
        adapter.reset(8)
        drawn.append(next(iter(adapter.modules.values())).a.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
