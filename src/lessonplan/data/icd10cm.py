"""The built-in bank: which ICD-10-CM category is this term classified under?

ICD-10-CM is the public-domain US classification of diseases, a tree of chapters, blocks, categories
and subcategories. Under its codes it lists terms that mean the same or belong there ("Whitmore's
disease" under "Melioidosis"), and these make questions whose answer, category (the chapter) and
difficulty (how near the wrong options lie, and what the classification says of the right one) come
with the classification, so nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lessonplan import seeds
from lessonplan.data.bank import MOST_NEAR, TEST_SHARE, WRONG, as_bank, balanced
from lessonplan.data.wording import alike, key, stems, unlikeness, words
from lessonplan.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# The chapters of diseases and injuries. The other four (symptoms; external causes; contact with
# health services; special purposes) name no diseases.
CHAPTERS = {
    "1": "Infectious and parasitic diseases",
    "2": "Neoplasms",
    "3": "Blood and immune system",
    "4": "Endocrine, nutritional and metabolic diseases",
    "5": "Mental and behavioral disorders",
    "6": "Nervous system",
    "7": "Eye and adnexa",
    "8": "Ear and mastoid process",
    "9": "Circulatory system",
    "10": "Respiratory system",
    "11": "Digestive system",
    "12": "Skin and subcutaneous tissue",
    "13": "Musculoskeletal system and connective tissue",
    "14": "Genitourinary system",
    "15": "Pregnancy and childbirth",
    "16": "Perinatal conditions",
    "17": "Congenital malformations",
    "19": "Injury and poisoning",
}
# Categories with fewer terms could hardly be learnt from some and asked with others; with more, a
# few long lists ("Complications of ...") would fill their chapter.
TERMS_PER_ANSWER = range(2, 6 + 1)
FAR_CHOICE = 12  # far options are drawn from so many that are most like the right one in form

# Entries that point elsewhere in the classification or make no sense outside it.
REFERENCE = re.compile(
    r"\b(above|below|classifiable|classified|codes?|conditions?|listed|specified|unspecified|"
    r"other|elsewhere|NEC|the following|see|[A-TV-Z]\d\d)\b",
    re.IGNORECASE,
)
# A category for what has no other: all that it says of its members is what they are not.
RESIDUAL = re.compile(r"\b(other|unspecified|elsewhere)\b", re.IGNORECASE)
# Brackets inside a word, of which dropping the bracket leaves nonsense: "inv(16)", "hemianop(s)ia".
BROKEN = re.compile(r"\w[(\[](?!e?s\))|[)\]]\w")


class Term(NamedTuple):
    """One term and the category (a three-character code) that it is classified under."""

    text: str
    answer: str


@cache
def build(seed: int = 0) -> Dataset:
    """Make the bank: about 2,000 questions of five options.

    Every term is unique after normalising case, punctuation and word order, stands under one
    category in the whole classification, and shares no content word with any of its five options.
    The options are alike in form, so that what differs is how near they lie: of the four wrong
    ones, 0 to 2 are of the right one's chapter (of its block, and with the term's words among their
    entries, where there are such), the others of other chapters; equally often within each chapter
    and part. Difficulty is `_difficulty`, evenly spread over each chapter and part. Terms alike
    (Jaccard >= 0.5) under one answer all go to the same part.

    Args:
        seed: chooses terms, wrong options, their places and the split. The same seed and version of
            `simple-icd-10-cm` give the same bank.

    Returns:
        The question columns, then ``code`` (of the right category), ``nearness`` (share of the
        wrong options that lie near) and ``split`` (``"train"`` or ``"test"``).

    Raises:
        InputError: the package `simple-icd-10-cm` is missing.
    """
    tree = _classification()
    rng = seeds.stream(seed, "icd10cm")
    terms = _choose_terms(_clean_terms(tree), tree, rng)
    # Wrong options come from the answers alone: a text that is never right would give itself away.
    answers = sorted({term.answer for term in terms})
    terms = [term for term in terms if _can_be_near(term, answers, tree)]
    unlike = dict(
        zip(answers, unlikeness([tree.description[code] for code in answers]), strict=True)
    )

    rows = []
    for chapter, label in CHAPTERS.items():
        parts = _split([t for t in terms if tree.chapter[t.answer] == chapter], rng)
        for split, part in parts.items():
            levels = balanced(len(part), MOST_NEAR + 1, rng)
            places = balanced(len(part), WRONG + 1, rng)
            difficulty = _difficulty(part, levels, tree)
            for term, near, place, hard in zip(part, levels, places, difficulty, strict=True):
                wrong = _wrong_options(term, near, answers, unlike, tree, rng)
                options = [tree.description[code] for code in wrong]
                options.insert(place, tree.description[term.answer])
                rows.append(
                    {
                        "id": f"{term.answer}-{'-'.join(words(term.text))}",
                        "question": f'Which diagnostic category covers "{term.text}"?',
                        "options": options,
                        "answer": place,
                        "category": label,
                        "difficulty": hard,
                        "code": term.answer,
                        "nearness": near / WRONG,
                        "split": split,
                    }
                )
    return as_bank(rows, rng)


class Classification(NamedTuple):
    """The tree, as plain look-ups by category code; `order` is the place in the printed book."""

    description: dict[str, str]
    vocabulary: dict[str, set[str]]  # stems of everything that stands under a category
    block: dict[str, str]
    chapter: dict[str, str]
    order: dict[str, int]
    entries: list[tuple[str, str]]  # (text, category) of each description and listed term
    listed: list[tuple[str, str]]  # the listed terms alone


def _classification() -> Classification:
    try:
        import simple_icd_10_cm as icd
    except ImportError as error:
        raise InputError(
            "The built-in bank icd10cm needs the package simple-icd-10-cm: "
            "pip install simple-icd-10-cm"
        ) from error

    tree = Classification({}, defaultdict(set), {}, {}, {}, [], [])
    chapter = block = category = ""
    for code in icd.get_all_codes(True):
        if icd.is_chapter(code):
            chapter = code
            continue
        if icd.is_category(code):
            # A block of one category bears the category's code; the list names it twice.
            if code in tree.order:
                continue
            category, block = code, icd.get_parent(code)
            tree.description[code] = icd.get_description(code)
            tree.block[code], tree.chapter[code] = block, chapter
            tree.order[code] = len(tree.order)
        elif not icd.is_subcategory(code, False):
            continue  # blocks, and codes that a seventh character makes (right, left, follow-up)
        tree.entries.append((icd.get_description(code), category))
        listed = [(t, category) for t in icd.get_inclusion_term(code) + icd.get_includes(code)]
        tree.listed.extend(listed)
        tree.entries.extend(listed)
    for text, category in tree.entries:
        tree.vocabulary[category] |= stems(text)
    return tree


def _clean_terms(tree: Classification) -> list[Term]:
    """Return the terms that can be asked: clear by themselves, unique, and without the answer."""
    places = defaultdict(set)
    for text, category in tree.entries:
        # Both forms, since the clean one may stand in full under another category.
        places[key(text)].add(category)
        places[key(_plain(text))].add(category)

    terms: dict[tuple[str, ...], Term] = {}
    for text, category in tree.listed:
        plain = _plain(text)
        if (
            tree.chapter[category] in CHAPTERS
            and plain[:1].isupper()  # others go on from a heading: "specimen from larynx"
            and not BROKEN.search(text)
            and not plain.isupper()  # a bare abbreviation
            and 4 <= len(plain) <= 70
            and not REFERENCE.search(plain)
            and places[key(plain)] == {category}
            and stems(plain).isdisjoint(stems(tree.description[category]))
        ):
            terms.setdefault(key(plain), Term(plain, category))
    return list(terms.values())


def _choose_terms(terms: list[Term], tree: Classification, rng: np.random.Generator) -> list[Term]:
    """Return random terms of each category that has enough of them, in the tree's order."""
    by_answer = defaultdict(list)
    for term in terms:
        by_answer[term.answer].append(term)
    chosen: list[Term] = []
    for answer in sorted(by_answer, key=tree.order.__getitem__):
        group = by_answer[answer]
        if len(group) >= TERMS_PER_ANSWER.start:
            picks = rng.permutation(len(group))[: TERMS_PER_ANSWER.stop - 1]
            chosen.extend(group[i] for i in sorted(picks))
    return chosen


def _split(terms: list[Term], rng: np.random.Generator) -> dict[str, list[Term]]:
    """Split one chapter's terms; alike wordings of one answer stay together."""
    groups: list[list[Term]] = []
    for term in terms:
        same = [g for g in groups if any(_alike(term, other) for other in g)]
        groups = [g for g in groups if g not in same]
        groups.append([*(t for g in same for t in g), term])
    test: list[Term] = []
    train: list[Term] = []
    for i in rng.permutation(len(groups)):
        into_test = len(test) + len(groups[i]) <= round(TEST_SHARE * len(terms))
        (test if into_test else train).extend(groups[i])
    return {"train": train, "test": test}


def _difficulty(terms: list[Term], near: list[int], tree: Classification) -> list[float]:
    """Return the difficulty of one chapter's questions: ranks, evenly spread over (0, 1).

    Three things that the classification knows make a question hard: wrong options that lie near
    the right one; a right one that is a residual category ("Other disorders of ..."); and one with
    few listed terms, so of which little is said. They add up as near / 2 + residual / 2 - rank by
    listed terms / 2. The weights were fixed on 943 training questions (seed 0), where the rank
    correlation with the loss of the untuned SmolLM2-135M was 0.10 for nearness alone and 0.18 for
    the sum; `lessonplan report` states it for the questions of a study.
    """
    from scipy.stats import rankdata

    listed = Counter(category for _, category in tree.listed)
    said = rankdata([listed[term.answer] for term in terms]) / len(terms)
    hard = [
        level / MOST_NEAR + bool(RESIDUAL.search(tree.description[term.answer])) / 2 - rank / 2
        for term, level, rank in zip(terms, near, said, strict=True)
    ]
    return [float(rank - 0.5) / len(terms) for rank in rankdata(hard, method="ordinal")]


def _alike(a: Term, b: Term) -> bool:
    return a.answer == b.answer and alike(a.text, b.text)


def _wrong_options(
    term: Term,
    near: int,
    answers: list[str],
    unlike: dict[str, NDArray[np.float64]],
    tree: Classification,
    rng: np.random.Generator,
) -> list[str]:
    """Return four category codes in random order, `near` of them near the right one."""
    right, asked = term.answer, stems(term.text)
    cost: dict[str, float] = dict(zip(answers, unlike[right].tolist(), strict=True))

    def near_cost(code: str) -> float:
        other_block = float(tree.block[code] != tree.block[right])
        return cost[code] + other_block / 2 - len(asked & tree.vocabulary[code]) / len(asked)

    def first(candidates: Iterable[str], count: int) -> list[str]:
        """Return the first that can be told from those before, and not by the term's words."""
        found: list[str] = []
        texts = {key(tree.description[right])}
        for code in candidates:
            if len(found) == count:
                break
            wording = key(tree.description[code])
            # The right option shares no word with the term; a wrong one that did would be known
            # to be wrong by that.
            if wording not in texts and asked.isdisjoint(stems(tree.description[code])):
                found.append(code)
                texts.add(wording)
        return found

    chapter = tree.chapter[right]
    inside = [a for a in answers if tree.chapter[a] == chapter and a != right]
    outside = [a for a in answers if tree.chapter[a] != chapter]
    wrong = first(sorted(inside, key=near_cost), near)
    far = first(sorted(outside, key=cost.__getitem__), FAR_CHOICE)
    known = {key(tree.description[code]) for code in wrong}
    far = [code for code in far if key(tree.description[code]) not in known]
    wrong += [far[i] for i in rng.permutation(len(far))[: WRONG - len(wrong)]]
    return [wrong[i] for i in rng.permutation(WRONG)]


def _can_be_near(term: Term, answers: list[str], tree: Classification) -> bool:
    """Say whether a chapter has enough wrong options that share no word with the term."""
    asked, chapter = stems(term.text), tree.chapter[term.answer]
    near = (a for a in answers if tree.chapter[a] == chapter and a != term.answer)
    return sum(asked.isdisjoint(stems(tree.description[a])) for a in near) >= MOST_NEAR


def _plain(text: str) -> str:
    """Return a term without what stands in brackets and without "NOS" (not otherwise specified)."""
    text = re.sub(r"\((of|in|to|due to)\)", r"\1", text)  # "Adhesions (of) omentum" needs its "of"
    text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", text)
    text = re.sub(r",?\s*\bNOS\b", "", text)
    return re.sub(r"\s+([,;])", r"\1", " ".join(text.split())).strip(" .,;:-")


def version() -> str:
    """Return the name and version of the package that the bank is made from."""
    from importlib.metadata import version

    return f"simple-icd-10-cm {version('simple-icd-10-cm')}"
