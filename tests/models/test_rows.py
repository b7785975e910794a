"""Token rows against plain encoding of prompt + " " + option."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lessonplan.errors import InputError
from lessonplan.models.rows import (
    Text,
    points_elsewhere,
    question_texts,
    rows_digest,
    token_rows,
    unconditional_texts,
)

TEXTS = [
    Text("Question: ", "Why is it so?", "\nAnswer:", ["yes", "no, never", "yes and no"]),
    Text("Question: ", "x", "\nAnswer:", ["same", "same", "a"]),
    Text("Question: ", "Größe → µm 😀?", "\nAnswer:", ["😀", "é", "日本 語"]),
    Text("", "Question", "", [" leading", "trailing ", "\n"]),
]


@pytest.fixture(scope="module")
def plain(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


def merging_tokenizer(regex: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens run across words, also from the prompt into the option."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = ["Answer: yes", "Answer: no", "so?\nAnswer: yes and", "Question: Why", "Answer: a"] * 9
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def check(tokenizer, text: Text, row) -> None:
    """Every option's tokens and scored tokens are those of the one string, encoded plainly."""
    assert row.n_options == len(text.continuations)
    assert row.lengths.tolist() == [len(c.encode("utf-8")) for c in text.continuations]
    for k, continuation in enumerate(text.continuations):
        whole = text.before + text.question + text.after + " " + continuation
        encoded = tokenizer(whole, return_offsets_mapping=True)
        tokens = list(encoded["input_ids"])
        ends = [end for _, end in encoded["offset_mapping"]]
        while tokens[-1] == tokenizer.eos_token_id and ends[-1] == 0:
            tokens.pop()
            ends.pop()
        beyond = len(whole) - len(" " + continuation)
        expected = [j for j, end in enumerate(ends) if end > beyond]
        # What the last one read sees: all tokens but the last, in their own positions.
        of_option = row.option == k
        last = row.read[of_option].max()
        mine = np.array([i for i in range(last + 1) if last < row.end[i]])
        assert row.ids[mine].tolist() == tokens[:-1]
        assert row.positions[mine].tolist() == list(range(len(mine)))
        # The scored ones: each read where the token before it stands.
        assert row.target[of_option].tolist() == [tokens[j] for j in expected]
        reads = row.read[of_option]
        assert row.positions[reads].tolist() == [j - 1 for j in expected]
        assert np.isin(reads, mine).all()
        assert expected  # something is scored


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["plain", "merging", "words"])
def test_rows_are_the_plain_encoding(plain, kind: str, text: Text) -> None:
    tokenizer = plain if kind == "plain" else merging_tokenizer(regex=kind == "words")
    (row,) = token_rows(tokenizer, [text], max_tokens=400)
    assert row.cut == 0
    check(tokenizer, text, row)


def test_a_token_across_the_boundary_is_scored() -> None:
    tokenizer = merging_tokenizer()
    text = TEXTS[0]
    (row,) = token_rows(tokenizer, [text], max_tokens=400)
    first = tokenizer.decode(row.target[row.option == 0][0])
    # "Answer: yes" is one token here: it ends beyond the prompt but begins within it.
    assert first.endswith(": yes")
    assert len(first) > len(" yes")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12)


@given(
    question=st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30),
    options=st.lists(WORDS, min_size=1, max_size=5),
    merging=st.booleans(),
)
def test_any_text(tiny_llama: Path, question: str, options: list[str], merging: bool) -> None:
    tokenizer = merging_tokenizer() if merging else AutoTokenizer.from_pretrained(tiny_llama)
    text = Text("Question: ", question, "\nAnswer:", options)
    (row,) = token_rows(tokenizer, [text], max_tokens=1000)
    check(tokenizer, text, row)


def test_the_prefix_is_shared_as_far_as_the_tokens_agree(plain) -> None:
    text = Text("", "Question", ":", ["the disease of A", "the disease of B"])
    (row,) = token_rows(plain, [text], max_tokens=100)
    common = plain("Question: the disease of")["input_ids"]
    assert row.ids.tolist() == common  # "A" and "B" are only predicted, never fed
    # What all options share is read in the prefix, once for each option.
    assert (np.bincount(row.read) == 2).any()
    check(plain, text, row)


def test_one_option_is_a_single_line(plain) -> None:
    text = Text("", "Question", ":", ["one"])
    (row,) = token_rows(plain, [text], max_tokens=100)
    assert row.ids.tolist() == plain("Question: one")["input_ids"][:-1]


def test_no_texts_no_rows(plain) -> None:
    assert token_rows(plain, [], max_tokens=100) == []


def longest(tokenizer, text: Text, question: str) -> int:
    return max(
        len(tokenizer(f"{text.before}{question}{text.after} {c}")["input_ids"])
        for c in text.continuations
    )


@pytest.mark.parametrize("limit", [60, 41, 30, 24])
def test_too_long_a_question_loses_its_beginning(plain, limit: int) -> None:
    words = "It is the disease of the first category 😀 and 日本 of Müller " * 3
    text = Text("Question: ", words + "END", "\nAnswer:", ["yes", "no, never", "of all"])
    (row,) = token_rows(plain, [text], max_tokens=limit)
    kept = text.question[row.cut :]
    assert row.cut > 0
    assert text.question.endswith(kept)
    assert longest(plain, text, kept) <= limit
    check(plain, Text(text.before, kept, text.after, text.continuations), row)
    # No more was cut than had to be: a few characters more do not fit.
    start = max(0, row.cut - 12)
    assert longest(plain, text, text.question[start:]) > limit


def test_questions_that_fit_are_left_alone(plain) -> None:
    long = Text("Question: ", "disease " * 60, "\nAnswer:", ["yes", "no"])
    rows = token_rows(
        plain, [TEXTS[0], long, TEXTS[1]], max_tokens=longest(plain, TEXTS[0], "") + 20
    )
    assert [row.cut > 0 for row in rows] == [False, True, False]
    check(plain, TEXTS[0], rows[0])
    check(plain, TEXTS[1], rows[2])


def test_a_question_of_one_word_can_be_cut_whole(plain) -> None:
    # " disease" is one token that begins in what stands before the question.
    text = Text("Question: ", "disease", "E\nAnswer:", ["yes", "no"])
    bare = longest(plain, text, "")
    assert longest(plain, text, "disease") > bare
    (row,) = token_rows(plain, [text], max_tokens=bare)
    assert row.cut == len("disease")
    check(plain, Text("Question: ", "", "E\nAnswer:", ["yes", "no"]), row)


def test_options_that_never_fit_are_an_error_that_names_the_question(plain) -> None:
    text = Text("Question: ", "Why is it so?", "\nAnswer:", ["yes", "of all diseases " * 20])
    with pytest.raises(InputError, match=r"question 17: .*even without the question"):
        token_rows(plain, [TEXTS[0], text], max_tokens=50, names=["question 3", "question 17"])


def test_nothing_before_the_answer(plain) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(plain._tokenizer.to_str()))
    bare._tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    with pytest.raises(InputError, match="no tokens before the answer"):
        token_rows(bare, [Text("", "", "", ["A", "B"])], max_tokens=50)


def test_an_option_without_tokens_is_an_error() -> None:
    tokenizer = Tokenizer.from_str(merging_tokenizer()._tokenizer.to_str())
    from tokenizers import normalizers

    tokenizer.normalizer = normalizers.Replace(" \u200b", "")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    with pytest.raises(InputError, match=r"u200b.* no tokens of its own"):
        token_rows(fast, [Text("", "Why", ":", ["yes", "\u200b"])], max_tokens=50)


def bank() -> Dataset:
    return Dataset.from_dict(
        {
            "id": ["1", "2"],
            "question": ["Why {question} {options}?", "Which {0} {x!r}%s?"],
            "options": [["{letters}", "b"], ["p", "{q}", "r"]],
            "answer": [1, 2],
        }
    )


def test_letters_list_the_options_in_the_papers_prompt() -> None:
    first, second = question_texts(bank(), "letter")
    assert first.continuations == ["A", "B"]
    assert second.continuations == ["A", "B", "C"]
    assert second.prompt == (
        "Answer the following multiple choice question by giving the most appropriate response. "
        "Answer should be one among [A, B, C].\n\nQuestion: Which {0} {x!r}%s?\n"
        "A) p\nB) {q}\nC) r\n\n### Answer:"
    )
    assert "A) {letters}\nB) b" in first.prompt  # braces in options and questions are text
    assert "Question: Why {question} {options}?\n" in first.prompt


def test_cloze_continues_with_the_options() -> None:
    first, second = question_texts(bank(), "cloze")
    assert first.prompt == "Question: Why {question} {options}?\nAnswer:"
    assert second.continuations == ["p", "{q}", "r"]
    answers = question_texts(bank(), "cloze", only_answer=True)
    assert [t.continuations for t in answers] == [["b"], ["r"]]
    answers = question_texts(bank(), "letter", only_answer=True)
    assert [t.continuations for t in answers] == [["B"], ["C"]]
    assert answers[0].prompt == question_texts(bank(), "letter")[0].prompt


@pytest.mark.parametrize(
    ("form", "template", "message"),
    [
        ("cloze", "no place", r"\{question\} once"),
        ("cloze", "{question} and {question}", r"\{question\} once"),
        ("cloze", "{question} {category}", r"names \{category\}"),
        ("letter", "{question} Answer:", r"list the \{options\}"),
    ],
)
def test_bad_templates(form, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        question_texts(bank(), form, template=template)


def test_own_template() -> None:
    (first, _) = question_texts(bank(), "letter", template="{options}\n[{letters}] {question} =")
    assert first.prompt == "A) {letters}\nB) b\n[A, B] Why {question} {options}? ="


def test_more_options_than_letters() -> None:
    many = Dataset.from_dict({"question": ["q"], "options": [["x"] * 27], "answer": [0]})
    with pytest.raises(InputError, match="27 options"):
        question_texts(many, "letter")


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        (None, "Answer:"),
        ("Q: {question}\nThe answer is", "The answer is"),
        ("Q: {question} A:", "Answer:"),
        ("{question}\n{options}", "Answer:"),
        ("{question}\n", "Answer:"),
    ],
)
def test_unconditional_prompt(template: str | None, tail: str) -> None:
    texts = unconditional_texts(bank(), template=template)
    assert [t.prompt for t in texts] == [tail, tail]
    assert texts[1].continuations == ["p", "{q}", "r"]


def test_letter_rows_differ_in_the_letter_alone(plain) -> None:
    rows = token_rows(plain, question_texts(bank(), "letter"), max_tokens=400)
    for row, k in zip(rows, (2, 3), strict=True):
        assert (row.end == len(row)).all()  # one token a letter: no branches at all
        assert row.target.tolist() == [plain(f": {x}")["input_ids"][-1] for x in "ABC"[:k]]


def test_digest_sees_every_column_and_not_the_cut(plain) -> None:
    (row,) = token_rows(plain, TEXTS[:1], max_tokens=400)
    digests = {rows_digest([row])}
    for name in ("ids", "positions", "end", "read", "target", "option", "lengths"):
        changed = getattr(row, name).copy()
        changed[-1] += 1
        digests.add(rows_digest([dataclasses.replace(row, **{name: changed})]))
    assert len(digests) == 8
    assert rows_digest([dataclasses.replace(row, cut=5)]) in digests
    assert rows_digest([row, row]) not in digests


@pytest.mark.parametrize(
    "option",
    [
        "All of the above", "None of the above.", "Both A and B", "A and C", "a, b & d", "None",
        "All of these", "both of the above", "Any of the above", "(A) and (B)", "A or B only",
        "Both AB", "Either AB", "Some of the above", "Can be any of the above", "Option 1 and 2",
        "Neither A nor B", "None of these options",
    ],
)  # fmt: skip
def test_options_that_point_at_others(option: str) -> None:
    assert points_elsewhere(["x", option])


@pytest.mark.parametrize(
    "option",
    [
        "Altitude of area above sea level", "All plaque is pathogenic", "Hepatitis B and C",
        "Vitamin A and D", "Both active and passive immunization soon after birth", "A", "b",
        "All-trans retinoic acid", "Acute lymphoid leukemia (ALL)", "All nucleated cells",
        "Below SMAS and above parotidomassetric fascia", "Both equally", "Either jaw", "A band",
        "Absent in both inflamed and normal pulp.", "Increase in both Km and Vmax",
    ],
)  # fmt: skip
def test_options_that_stand_alone(option: str) -> None:
    assert not points_elsewhere([option])


def test_real_options_that_point_at_others(shared_data: Path) -> None:
    lines = (shared_data / "medmcqa_dev_2400.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    options = [[q[k] for k in ("opa", "opb", "opc", "opd")] for q in questions]
    flagged = [o for o in options if points_elsewhere(o)]
    naive = [o for o in options if any("of the above" in x.lower() for x in o)]
    assert all(points_elsewhere(o) for o in naive)
    assert len(naive) > 100
    assert len(naive) < len(flagged) < 0.15 * len(options)
