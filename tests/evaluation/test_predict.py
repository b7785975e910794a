"""Predictions against the plain way and against lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lessonplan.errors import InputError
from lessonplan.evaluation.predict import evaluate, predictions, scoring_rows
from lessonplan.models.engine import Engine
from lessonplan.models.lora import add_adapter
from lessonplan.training.recipe import Recipe, Scoring

LEAD = (
    "Answer the following multiple choice question by giving the most appropriate response. "
    "Answer should be one among ["
)


def bank() -> Dataset:
    rng = np.random.default_rng(2)
    words = ["the", "plague", "disease", "of", "category", "A", "Müller", "one", "β-cells", "12"]
    n = 14

    def some(low: int, high: int) -> str:
        return " ".join(rng.choice(words, size=rng.integers(low, high)))

    options = [[f"{some(1, 6)} {j}" for j in range(2 + i % 4)] for i in range(n)]
    options[3][0] = options[2][0]  # an option that two questions share
    return Dataset.from_dict(
        {
            "id": [f"q{i}" for i in range(n)],
            "question": [some(2, 40) + "?" for _ in range(n)],
            "options": options,
            "answer": [i % len(o) for i, o in enumerate(options)],
        }
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def network(tiny_llama: Path):
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return network.requires_grad_(False).eval()


@torch.no_grad()
def plain(network, tokenizer, prompt: str, words: str) -> tuple[float, int]:
    encoded = tokenizer(f"{prompt} {words}", return_offsets_mapping=True)
    ids = encoded["input_ids"]
    logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    scored = [j for j, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)]
    return sum(logprobs[j - 1, ids[j]].item() for j in scored), len(scored)


def prompts(questions: Dataset, form: str) -> list[tuple[str, list[str]]]:
    found = []
    for question, options in zip(questions["question"], questions["options"], strict=True):
        if form == "cloze":
            found.append((f"Question: {question}\nAnswer:", list(options)))
            continue
        letters = list("ABCDE"[: len(options)])
        listed = "".join(f"{x}) {o}\n" for x, o in zip(letters, options, strict=True))
        prompt = f"{LEAD}{', '.join(letters)}].\n\nQuestion: {question}\n{listed}\n### Answer:"
        found.append((prompt, letters))
    return found


@pytest.mark.parametrize(
    ("form", "score"),
    [
        *(("cloze", score) for score in ("sum", "per_token", "per_byte", "unconditional")),
        *(("letter", score) for score in ("sum", "per_token")),
    ],
)
def test_the_table_against_the_plain_way(network, tokenizer, form: str, score: str) -> None:
    questions = bank()
    scoring = Scoring(form=form, score=score)
    rows, alone = scoring_rows(tokenizer, questions, scoring, 512)
    table = predictions(Engine(network), questions, rows, alone, scoring, checkpoint=7)
    assert table.column_names == [
        "checkpoint",
        "id",
        "answer",
        "chosen",
        "correct",
        "loglikelihood",
        "tokens",
        "bytes",
        "unconditional",
    ]
    assert table.schema.field("loglikelihood").type == pa.list_(pa.float64())
    assert table.schema.field("unconditional").type == pa.list_(pa.float64())
    assert table["checkpoint"].to_pylist() == [7] * len(questions)
    assert table["id"].to_pylist() == questions["id"][:]
    assert table["answer"].to_pylist() == questions["answer"][:]
    expected = prompts(questions, form)
    for found, (prompt, continuations) in zip(table.to_pylist(), expected, strict=True):
        values = []
        for k, words in enumerate(continuations):
            total, n = plain(network, tokenizer, prompt, words)
            assert found["loglikelihood"][k] == pytest.approx(total, abs=1e-4)
            assert found["tokens"][k] == n
            assert found["bytes"][k] == len(words.encode())
            bare = 0.0
            if form == "cloze":
                bare, _ = plain(network, tokenizer, "Answer:", words)
                assert found["unconditional"][k] == pytest.approx(bare, abs=1e-4)
            values.append(
                total
                if form == "letter"
                else {
                    "sum": total,
                    "per_token": total / n,
                    "per_byte": total / len(words.encode()),
                    "unconditional": total - bare,
                }[score]
            )
        if form == "letter":
            assert found["unconditional"] is None
        assert len(found["loglikelihood"]) == len(continuations)
        assert found["chosen"] == int(np.argmax(values))
        assert found["correct"] == (found["chosen"] == found["answer"])


def test_a_part_is_those_rows_of_the_whole(network, tokenizer) -> None:
    questions, scoring = bank(), Scoring()
    rows, alone = scoring_rows(tokenizer, questions, scoring, 512)
    engine = Engine(network, keep_below=2)
    whole = predictions(engine, questions, rows, alone, scoring).to_pylist()
    part = np.array([9, 2, 3])
    assert alone is not None
    for hidden, hidden_alone in ((None, None), (engine.lower(rows), engine.lower(alone.rows))):
        some = predictions(
            engine,
            questions,
            rows,
            alone,
            scoring,
            hidden=hidden,
            hidden_unconditional=hidden_alone,
            part=part,
        ).to_pylist()
        for found, i in zip(some, part, strict=True):
            for key, value in whole[i].items():
                if key in ("loglikelihood", "unconditional"):
                    np.testing.assert_allclose(found[key], value, atol=1e-4)
                else:
                    assert found[key] == value


def test_too_long_names_the_question(tokenizer) -> None:
    questions = bank()
    with pytest.raises(InputError, match="exam q1: "):
        scoring_rows(
            tokenizer,
            questions.map(lambda q: {"options": [o * 30 for o in q["options"]]}).select([1, 2]),
            Scoring(),
            60,
            "exam",
        )


@pytest.mark.parametrize("form", ["cloze", "letter"])
def test_lm_evaluation_harness_agrees(network, tokenizer, form: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    questions = bank()
    harness = HFLM(
        pretrained=network, tokenizer=tokenizer, batch_size=4, device="cpu", add_bos_token=True
    )
    expected = prompts(questions, form)
    requests = [
        Instance("loglikelihood", {}, (prompt, f" {words}"), k)
        for prompt, continuations in expected
        for k, words in enumerate(continuations)
    ]
    answers = iter(harness.loglikelihood(requests, disable_tqdm=True))
    scoring = Scoring(form=form, score="sum")
    rows, alone = scoring_rows(tokenizer, questions, scoring, 512)
    engine = Engine(network, keep_below=2)
    by_sum = predictions(engine, questions, rows, alone, scoring).to_pylist()
    scoring = Scoring(form=form, score="per_byte" if form == "cloze" else "sum")
    by_byte = predictions(engine, questions, rows, alone, scoring).to_pylist()
    compared = 0
    for found, bytewise, (_, continuations) in zip(by_sum, by_byte, expected, strict=True):
        sums = np.array([next(answers)[0] for _ in continuations])
        np.testing.assert_allclose(found["loglikelihood"], sums, atol=1e-3)
        assert found["chosen"] == np.argmax(sums)  # their acc
        # Their lengths are in characters.
        lengths = np.array([len(words) for words in continuations])
        if form == "cloze" and lengths.tolist() == found["bytes"]:
            compared += 1
            assert bytewise["chosen"] == np.argmax(sums / lengths)  # their acc_norm
    assert next(answers, None) is None
    assert compared > 2 or form == "letter"
    # The comparison could fail: first options differ from question to question.
    assert np.std([found["loglikelihood"][0] for found in by_sum]) > 0.05


def test_evaluate_with_and_without_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    questions, recipe = bank(), Recipe(threads=1)
    base = evaluate(questions, str(tiny_llama), recipe=recipe)
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    adapter = add_adapter(network, rank=2, alpha=4, dropout=0.4)
    adapter.save(tmp_path / "fresh", "m")
    fresh = evaluate(questions, str(tiny_llama), adapter=tmp_path / "fresh", recipe=recipe)
    assert fresh.equals(base)
    with torch.no_grad():
        for part in adapter.parameters:
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) / 4)
    adapter.save(tmp_path / "tuned", "m")
    tuned = evaluate(questions, str(tiny_llama), adapter=tmp_path / "tuned", recipe=recipe)
    again = evaluate(questions, str(tiny_llama), adapter=tmp_path / "tuned", recipe=recipe)
    assert tuned.equals(again)
    assert tuned["loglikelihood"] != base["loglikelihood"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for found, (prompt, options) in zip(
        tuned.to_pylist(), prompts(questions, "cloze"), strict=True
    ):
        for k, words in enumerate(options):
            expected = plain(network, tokenizer, prompt, words)[0]
            assert found["loglikelihood"][k] == pytest.approx(expected, abs=2e-4)


def test_scores_that_are_no_numbers_choose_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    adapter = add_adapter(network, rank=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for part in adapter.parameters:
            part.fill_(1e30)
    adapter.save(tmp_path / "huge", "m")
    with pytest.raises(InputError, match=r"log-likelihoods by .* are no finite numbers"):
        evaluate(bank(), str(tiny_llama), adapter=tmp_path / "huge", recipe=Recipe(threads=1))


@pytest.mark.parametrize("name", ["medmcqa_dev_2400.jsonl", "medqa_us_test_700.jsonl"])
def test_real_exam_questions(shared_data: Path, network, tokenizer, name: str) -> None:
    """Real texts (dirty, long, with symbols) in both forms, some of them cut."""
    from lessonplan.data import read_questions

    questions = read_questions(str(shared_data / name), bad_rows="drop").questions
    questions = questions.select(range(25))
    engine = Engine(network)
    cut = 0
    for form, limit in (("cloze", 200), ("letter", 700)):
        scoring = Scoring(form=form)
        rows, alone = scoring_rows(tokenizer, questions, scoring, limit)
        table = predictions(engine, questions, rows, alone, scoring).to_pylist()
        cut += sum(row.cut > 0 for row in rows)
        kept = [q[row.cut :] for q, row in zip(questions["question"], rows, strict=True)]
        seen = questions.remove_columns("question").add_column("question", kept)
        for i in [*sorted(range(25), key=lambda i: -rows[i].cut)[:3], 0, 1]:
            prompt, continuations = prompts(seen, form)[i]
            for k, words in enumerate(continuations):
                expected, n = plain(network, tokenizer, prompt, words)
                assert table[i]["loglikelihood"][k] == pytest.approx(expected, abs=5e-4)
                assert table[i]["tokens"][k] == n
    assert cut > 0
