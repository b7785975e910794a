"""What the built-in banks make of texts: when two share a word, say the same, or look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SAME_WORDING = 0.5  # word-set Jaccard from which two terms of one answer count as the same wording

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and any as at be but by due during for from has have if in into is it its no nor not "
        "of on or per than that the their these this those to under when where which while with "
        "without",
    )
)


@cache
def words(text: str) -> tuple[str, ...]:
    """Return the words without case, accents, punctuation and possessive s."""
    return _tokens(re.sub(r"['’]s\b", "", text, flags=re.IGNORECASE))


@cache
def key(text: str) -> tuple[str, ...]:
    """Return what two terms have in common that differ in case, punctuation or word order alone."""
    return tuple(sorted(words(text)))


@cache
def stems(text: str) -> frozenset[str]:
    """Return the first letters of each content word: cysts count as cyst, gouty as gout."""
    return frozenset((word.removesuffix("s") or word)[:5] for word in _content(text))


def alike(a: str, b: str) -> bool:
    """Tell whether two terms have the same wording: Jaccard of their words >= 0.5."""
    # By all words, by content words, and with the s of a possessive as a word of its own, so that
    # the promise holds whichever way one counts.
    return any(
        len(x & y) >= SAME_WORDING * len(x | y)
        for x, y in (
            (set(words(a)), set(words(b))),
            (_content(a), _content(b)),
            (set(_tokens(a)), set(_tokens(b))),
        )
    )


def unlikeness(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return how unlike in form each two of n texts are: float64[n, n].

    1 - Jaccard of all words ("other", "of" and their like included) + |log ratio of the lengths|.
    A language model scores a text for its form before its content ("Gout" far below "Other
    disorders of ..."), so only among options of one form does it show how near they lie. The rank
    correlation of difficulty with the loss of the untuned SmolLM2-135M (choice among the options'
    mean log-likelihoods) was 0.01 without this (266 questions of ICD-10-CM) and 0.10 with it (917).
    """
    vocabulary = {word: i for i, word in enumerate(sorted({w for t in texts for w in words(t)}))}
    has = np.zeros((len(texts), len(vocabulary)))
    for row, text in enumerate(texts):
        has[row, [vocabulary[w] for w in words(text)]] = 1
    both = has @ has.T
    size = has.sum(1)
    length = np.log([len(t) for t in texts])
    cost: NDArray[np.float64] = (
        1 - both / (size[:, None] + size - both) + abs(length[:, None] - length)
    )
    return cost


@cache
def _tokens(text: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in text if not unicodedata.combining(c))
    return tuple(re.findall(r"[a-z0-9]+", plain))


def _content(text: str) -> set[str]:
    return set(words(text)) - FUNCTION_WORDS
