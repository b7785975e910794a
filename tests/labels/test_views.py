"""Views of models against one plain forward pass for every rotation of every question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from lessonplan.labels import views
from lessonplan.labels.endpoint import Endpoint
from lessonplan.labels.letters import LetterAnswers
from lessonplan.labels.views import (
    View,
    accuracy_over_chance,
    endpoint_view,
    local_view,
    measured,
    text_length,
    view_rows,
)
from lessonplan.models.engine import Engine
from lessonplan.models.rows import LETTER_PROMPT, joint_rows, rotated_texts

QUESTIONS = Dataset.from_dict(
    {
        "id": ["a", "b", "c"],
        "question": ["Which is the disease?", "What of {options}, then?", "One among which?"],
        "options": [["A", "the plague", "B one"], ["x", "y", "z", "the w"], ["yes", "no"]],
        "answer": [1, 3, 0],
    }
)
ANSWERS = np.array(QUESTIONS["answer"][:])
SIZES = np.array([3, 4, 2])


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> tuple[Any, Any]:
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    return network.requires_grad_(False), AutoTokenizer.from_pretrained(tiny_llama)


def letter_logprobs(network: Any, tokenizer: Any, question: str, options: list[str]) -> np.ndarray:
    """Log-probability of each letter after the prompt, by the model's own plain pass."""
    letters = "ABCDE"[: len(options)]
    prompt = (
        LETTER_PROMPT.replace("{letters}", ", ".join(letters))
        .replace("{options}", "\n".join(f"{x}) {o}" for x, o in zip(letters, options, strict=True)))
        .replace("{question}", question, 1)
    )
    found = []
    for letter in letters:
        ids = tokenizer(f"{prompt} {letter}")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        logprobs = torch.log_softmax(network(torch.tensor([ids])).logits[0], dim=-1)
        found.append(sum(float(logprobs[j - 1, ids[j]]) for j in range(start, len(ids))))
    return np.array(found)


def test_each_option_stands_once_behind_each_letter() -> None:
    groups = rotated_texts(QUESTIONS)
    assert [len(group) for group in groups] == [3, 4, 2]
    for group, options in zip(groups, QUESTIONS["options"], strict=True):
        for k, letter in enumerate("ABCDE"[: len(options)]):
            shown = [
                next(line for line in text.prompt.splitlines() if line.startswith(f"{letter}) "))
                for text in group
            ]
            assert sorted(shown) == sorted(f"{letter}) {option}" for option in options)
            assert shown[0] == f"{letter}) {options[k]}"


def test_options_that_point_at_others_stay_where_they_are(tiny: tuple[Any, Any]) -> None:
    """Rotated, "Both A and B" would be another option."""
    network, tokenizer = tiny
    options = ["Fever", "Cough", "Rash", "Both A and B"]
    questions = Dataset.from_dict(
        {"id": ["p", "q"], "question": ["What?", "Which?"], "options": [options, options[:3]]}
    )
    groups = rotated_texts(questions)
    assert [len(group) for group in groups] == [1, 3]
    rows = view_rows(tokenizer, questions, "letter", template=None, max_tokens=400)
    answers, sizes = np.array([3, 1]), np.array([4, 3])
    view = local_view(Engine(network), rows, answers, sizes, "letter", "sum", name="tiny")
    logprobs = letter_logprobs(network, tokenizer, "What?", options)
    expected = np.exp(logprobs) / np.exp(logprobs).sum()
    np.testing.assert_allclose(view.probabilities[0], expected, atol=1e-5)
    assert view.loss[0] == pytest.approx(-logprobs[3], abs=1e-4)


def test_letters_are_averaged_over_all_rotations(tiny: tuple[Any, Any]) -> None:
    network, tokenizer = tiny
    rows = view_rows(tokenizer, QUESTIONS, "letter", template=None, max_tokens=400)
    assert len(rows) == 3
    done = []
    view = local_view(
        Engine(network), rows, ANSWERS, SIZES, "letter", "sum", name="tiny", on_rows=done.append
    )
    assert sum(done) == 3
    for i, (question, options) in enumerate(
        zip(QUESTIONS["question"], QUESTIONS["options"], strict=True)
    ):
        expected = np.zeros(len(options))
        loss = 0.0
        for r in range(len(options)):
            turned = [*options[r:], *options[:r]]
            logprobs = letter_logprobs(network, tokenizer, question, turned)
            shares = np.exp(logprobs) / np.exp(logprobs).sum()
            for j, option in enumerate(options):
                expected[j] += shares[turned.index(option)] / len(options)
            loss -= logprobs[turned.index(options[ANSWERS[i]])] / len(options)
        np.testing.assert_allclose(view.probabilities[i], expected, atol=1e-5)
        np.testing.assert_allclose(view.loss[i], loss, atol=1e-4)
        assert view.probabilities[i].sum() == pytest.approx(1)


class AlwaysA:
    """An engine whose letter A is nine times as likely as any other, whatever is asked."""

    def score(self, rows: Any, on_rows: Any = None) -> Any:
        sums = []
        for row in rows:
            side = round(row.n_options**0.5)
            table = np.full((side, side), np.log(0.01))
            table[:, 0] = np.log(0.09)
            sums.append(table.ravel())
        return sums, [np.ones(len(s)) for s in sums]


def test_a_model_that_always_says_a_sorts_nothing(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    rows = view_rows(tokenizer, QUESTIONS, "letter", template=None, max_tokens=400)
    view = local_view(AlwaysA(), rows, ANSWERS, SIZES, "letter", "sum", name="a")
    for p, options in zip(view.probabilities, QUESTIONS["options"], strict=True):
        np.testing.assert_allclose(p, 1 / len(options))
    share, low, chance = accuracy_over_chance(view, ANSWERS)
    assert share == pytest.approx(chance)
    assert low < chance


def test_all_rotations_of_a_long_question_are_cut_alike(tiny: tuple[Any, Any]) -> None:
    _, tokenizer = tiny
    long = Dataset.from_dict(
        {"id": ["q"], "question": ["word " * 200], "options": [["a", "b longer", "c"]]}
    )
    groups = rotated_texts(long)
    (row,) = joint_rows(tokenizer, groups, max_tokens=300)
    assert row.cut > 0
    assert row.positions.max() + 2 <= 300  # the letter itself is predicted, not fed
    kept = "word " * 200
    kept = kept[row.cut :]
    for r, text in enumerate(groups[0]):
        prompt = text.before + kept + text.after
        for k, letter in enumerate("ABC"):
            last = row.read[row.option == 3 * r + k].max()
            path = [i for i in range(last + 1) if last < row.end[i]]
            assert row.ids[path].tolist() == tokenizer(f"{prompt} {letter}")["input_ids"][:-1]


def test_a_server_with_the_same_letters_gives_the_same_view(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network, tokenizer = tiny

    def ask(endpoint: Endpoint, prompts: Any, letters: Any, log: Path, **_: Any) -> LetterAnswers:
        found = []
        for prompt, names in zip(prompts, letters, strict=True):
            out = network(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
            logprobs = torch.log_softmax(out, dim=-1)
            tokens = [tokenizer(f"{prompt} {x}")["input_ids"] for x in names]
            start = len(tokenizer(prompt)["input_ids"])
            assert all(len(t) == start + 1 for t in tokens)
            found.append(np.array([float(logprobs[t[start]]) for t in tokens]))
        return LetterAnswers(found, 10, 2, len(prompts), 0)

    monkeypatch.setattr(views, "ask_letters", ask)
    view = endpoint_view(Endpoint("m", "http://localhost/v1"), QUESTIONS, tmp_path / "log.jsonl")
    assert view.tokens == 12
    assert view.missing.sum() == 0
    rows = view_rows(tokenizer, QUESTIONS, "letter", template=None, max_tokens=400)
    local = local_view(Engine(network), rows, ANSWERS, SIZES, "letter", "sum", name="m")
    for p, q in zip(view.probabilities, local.probabilities, strict=True):
        np.testing.assert_allclose(p, q, atol=1e-5)
    np.testing.assert_allclose(view.loss, local.loss, atol=1e-4)


def test_letters_that_a_server_does_not_give_are_marked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nan = float("nan")
    tables = [
        [[-1, -2, nan], [-1, -2, -3], [-1, -2, -3]],
        [[-1, -2, -3, -4]] * 4,
        [[nan, nan], [-1, -1]],
    ]
    flat = [np.array(line, dtype=float) for table in tables for line in table]
    monkeypatch.setattr(views, "ask_letters", lambda *_, **__: LetterAnswers(flat, 0, 0, 9, 0))
    view = endpoint_view(Endpoint("m", "http://localhost/v1"), QUESTIONS, tmp_path / "log.jsonl")
    assert view.missing.tolist() == [1, 0, 2]
    first = np.exp([-1, -2, -np.inf])
    rest = np.exp([-1, -2, -3])
    # Rotation r shows option (k + r) % 3 behind letter k.
    turned = [np.roll(first, 0), np.roll(rest, 1), np.roll(rest, 2)]
    expected = np.mean([t / t.sum() for t in turned], axis=0)
    np.testing.assert_allclose(view.probabilities[0], expected)
    assert np.isnan(view.probabilities[2]).all()
    assert np.isnan(measured(view, "probability", ANSWERS)).tolist() == [False, False, True]
    assert np.isnan(measured(view, "margin", ANSWERS)).tolist() == [False, False, True]
    assert np.isnan(measured(view, "entropy", ANSWERS)).tolist() == [False, False, True]
    assert any("3 letters of 2 questions" in note for note in view.notes)
    assert any("no difficulty for 1 question, because" in note for note in view.notes)


def test_measures() -> None:
    view = View(
        "m",
        [np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.5]), np.array([1.0, 0.0])],
        np.array([0.5, 1.0, 0.0]),
        np.zeros(3, dtype=np.int64),
    )
    answers = np.array([1, 0, 0])
    close = np.testing.assert_allclose
    close(measured(view, "probability", answers), [0.8, 0.5, 0.0])
    close(measured(view, "loss", answers), 1 - np.exp([-0.5, -1.0, 0.0]))
    close(measured(view, "margin", answers), [0.75, 0.5, 0.0])
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    close(measured(view, "entropy", answers), [entropy, 1.0, 0.0], atol=1e-12)


def test_length_is_a_rank_from_0_to_1() -> None:
    assert text_length(QUESTIONS).tolist() == [1.0, 0.5, 0.0]
