"""The promises of the built-in bank, checked from its rows with code of their own."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from itertools import combinations

import pytest
import simple_icd_10_cm as icd
from datasets import Dataset

from lessonplan.data import icd10cm, overlap, read_questions
from lessonplan.errors import InputError

LITTLE = set(
    re.findall(r"\w+", "a an and as at by due for from in into of on or the to with without not")
)


@pytest.fixture(scope="module")
def bank() -> Dataset:
    return icd10cm.build(0)


def term(question: str) -> str:
    found = re.fullmatch(r'Which diagnostic category covers "(.+)"\?', question)
    assert found
    return found[1]


def words(text: str) -> list[str]:
    for mark in string.punctuation:
        text = text.replace(mark, " ")
    return text.lower().split()


def test_size_shape_and_distinct_options(bank: Dataset) -> None:
    assert len(bank) >= 1500
    assert len(set(bank["question"])) == len(set(bank["id"])) == len(bank)
    for row in bank:
        assert len({" ".join(o.lower().split()) for o in row["options"]}) == 5
        assert 0 <= row["answer"] < 5


def test_right_option_describes_the_category_of_the_code(bank: Dataset) -> None:
    for row in bank:
        assert row["options"][row["answer"]] == icd.get_description(row["code"])
        assert row["code"] in row["id"]
        # The term is listed there, but for what stood in brackets.
        listed = [
            t
            for code in [row["code"], *icd.get_descendants(row["code"])]
            for t in icd.get_inclusion_term(code) + icd.get_includes(code)
        ]
        needed = set(words(term(row["question"])))
        assert any(needed <= set(words(t)) for t in listed)


def test_terms_are_unique_but_for_case_punctuation_and_word_order(bank: Dataset) -> None:
    keys = Counter(tuple(sorted(words(term(q)))) for q in bank["question"])
    assert keys.most_common(1)[0][1] == 1


def test_terms_stand_under_one_category_of_the_whole_classification(bank: Dataset) -> None:
    places = defaultdict(set)
    for code in icd.get_all_codes(True):
        if icd.is_category(code) or icd.is_subcategory(code, False):
            for t in [
                icd.get_description(code),
                *icd.get_inclusion_term(code),
                *icd.get_includes(code),
            ]:
                places[tuple(sorted(words(t)))].add(code[:3])
    for row in bank:
        key = tuple(sorted(words(term(row["question"]))))
        assert places.get(key, {row["code"]}) == {row["code"]}, row["question"]


def test_no_content_word_is_shared_with_any_option(bank: Dataset) -> None:
    for row in bank:
        asked = {w.rstrip("s") for w in words(term(row["question"]))} - LITTLE
        for option in row["options"]:
            shared = asked & ({w.rstrip("s") for w in words(option)} - LITTLE)
            assert not {w for w in shared if len(w) > 1}, row


def test_no_test_term_resembles_a_training_term_of_the_same_answer(bank: Dataset) -> None:
    by_answer = defaultdict(list)
    for row in bank:
        by_answer[row["code"]].append((row["split"], set(words(term(row["question"])))))
    pairs = 0
    for terms in by_answer.values():
        for (split_a, a), (split_b, b) in combinations(terms, 2):
            pairs += 1
            assert split_a == split_b or len(a & b) / len(a | b) < 0.5
            content_a, content_b = a - LITTLE, b - LITTLE
            assert split_a == split_b or len(content_a & content_b) < 0.5 * len(
                content_a | content_b
            )
    assert pairs > 500


def test_split_and_seen_answers(bank: Dataset) -> None:
    train = {r["code"] for r in bank if r["split"] == "train"}
    test = [r["code"] for r in bank if r["split"] == "test"]
    assert 0.28 <= len(test) / len(bank) <= 0.32
    seen = sum(code in train for code in test) / len(test)
    assert 0.6 <= seen <= 0.95


def test_nearness_and_difficulty_are_balanced_within_each_chapter_of_each_part(
    bank: Dataset,
) -> None:
    for split in ("train", "test"):
        for chapter in icd10cm.CHAPTERS.values():
            part = [r for r in bank if r["split"] == split and r["category"] == chapter]
            levels = Counter(r["nearness"] for r in part)
            counts = [levels[d] for d in (0.0, 0.25, 0.5)]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == len(part) > 0
            # Evenly spread: the k-th easiest of n has (k + 1/2) / n.
            spread = [(k + 0.5) / len(part) for k in range(len(part))]
            assert sorted(r["difficulty"] for r in part) == pytest.approx(spread)
    assert len(icd10cm.CHAPTERS) == 18
    assert set(bank["category"]) == set(icd10cm.CHAPTERS.values())


def test_each_part_of_difficulty_makes_a_question_harder(bank: Dataset) -> None:
    def mean(rows: list[dict[str, object]]) -> float:
        return sum(float(str(r["difficulty"])) for r in rows) / len(rows)

    rows = list(bank)
    assert mean([r for r in rows if r["nearness"] == 0.5]) > mean(
        [r for r in rows if r["nearness"] == 0]
    )
    residual = [bool(re.search(r"\bother\b", r["options"][r["answer"]], re.I)) for r in rows]
    assert mean([r for r, yes in zip(rows, residual, strict=True) if yes]) > mean(
        [r for r, yes in zip(rows, residual, strict=True) if not yes]
    )


def test_nearness_is_the_share_of_wrong_options_of_the_same_chapter(bank: Dataset) -> None:
    chapters = defaultdict(set)
    for chapter in icd10cm.CHAPTERS:
        for code in icd.get_descendants(chapter):
            if icd.is_category(code):
                chapters[icd.get_description(code)].add(icd10cm.CHAPTERS[chapter])
    for row in bank:
        wrong = [o for i, o in enumerate(row["options"]) if i != row["answer"]]
        near = sum(row["category"] in chapters[o] for o in wrong)
        assert row["nearness"] == near / 4


def test_answer_places_are_uniform_and_every_option_is_right_somewhere(bank: Dataset) -> None:
    counts = Counter(bank["answer"])
    expected = len(bank) / 5
    # Chi-squared with 4 degrees of freedom: 18.5 is passed by chance once in a thousand seeds.
    assert sum((counts[i] - expected) ** 2 / expected for i in range(5)) < 18.5
    right = {row["options"][row["answer"]] for row in bank}
    assert {o for options in bank["options"] for o in options} <= right


def test_terms_read_well(bank: Dataset) -> None:
    for question in bank["question"]:
        text = term(question)
        assert 4 <= len(text) <= 70
        assert text == text.strip(" .,;:-")
        assert not re.search(r"[()\[\]]|\bNOS\b|  | ,|\bclassified|[A-Z]\d\d\.", text), text


def test_deterministic_by_seed(bank: Dataset) -> None:
    again = icd10cm.build.__wrapped__(0)
    assert again.to_dict() == bank.to_dict()
    other = icd10cm.build(1)
    assert set(other["question"]) != set(bank["question"])
    assert len(other) >= 1500


def test_read_by_name() -> None:
    train = read_questions("icd10cm", split="train", keep=["code"])
    test = read_questions("icd10cm", split="test")
    everything = read_questions("icd10cm")
    assert train.rows + test.rows == everything.rows == len(everything.questions)
    assert train.questions.column_names[-1] == "code"
    assert test.questions.column_names == [
        "id", "question", "options", "answer", "category", "difficulty",
    ]  # fmt: skip
    assert train.notes == []
    assert "simple-icd-10-cm" in train.source
    assert overlap(train.questions, test.questions) == []
    with pytest.raises(InputError, match="has the splits train and test, not 'dev'"):
        read_questions("icd10cm", split="dev")
    with pytest.raises(InputError, match="no column 'chapter'"):
        read_questions("icd10cm", keep=["chapter"])
    with pytest.raises(InputError, match="built in"):
        read_questions("icd10cm", format="medqa")
