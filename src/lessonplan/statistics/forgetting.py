"""Forgetting: the score on a category by how long ago the run last saw that category."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.seeds import stream
from lessonplan.statistics.crossed import LEAST_SEEDS
from lessonplan.statistics.family import judged

FloatArray = NDArray[np.float64]
DRAWS = 2000
BINS = ("just seen", "a while ago", "long ago", "not yet seen")
EDGES = (0.05, 0.25)
"""Shares of a run: a category last seen less than the first ago was just seen, and so on."""
LEAST_CATEGORIES = 5
"""Resampling fewer would give intervals that mean nothing."""


@dataclass(frozen=True)
class Recall:
    """The score on categories that were last seen about as long ago.

    Attributes:
        bin: one of `BINS`; since: the least number of questions seen since then, None where the
            category was not seen at all.
        answers: how many answers (of a run, at a checkpoint, to a question) went into it.
        score: their mean; gain: over the baseline's answers to the same questions, under the same
            seed, at the same checkpoint. NaN where there are none.
        low, high: 95% interval of the gain; NaN from fewer than five categories.
    """

    bin: str
    since: int | None
    answers: int
    score: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Forgetting:
    """One arm by how long ago the categories were last seen.

    Attributes:
        recalls: one a bin, in the order of `BINS`.
        drop: gain on what was just seen minus gain on what was seen long ago, with its 95%
            interval; NaN where either is unknown or has none.
    """

    model: str
    evaluation: str
    metric: str
    arm: str
    recalls: list[Recall]
    drop: tuple[float, float, float]


def questions_since(shown: NDArray[np.int64], seen: int, n_categories: int) -> FloatArray:
    """Return how many questions ago each category was last seen, float64 ``[S, K]``.

    0: it was the category of the last question; infinite: not yet seen.

    Args:
        shown: int64 ``[S, n]``, category of each question in the order shown, -1 for none.
        seen: questions seen so far.
    """
    since = np.full((len(shown), n_categories), np.inf)
    for row, order in enumerate(shown[:, :seen]):
        last = np.full(n_categories, -1)
        kept = order >= 0
        np.maximum.at(last, order[kept], np.flatnonzero(kept))
        since[row] = np.where(last >= 0, seen - 1 - last, np.inf)
    return since


def forgetting(outcome: Outcome) -> list[Forgetting]:
    """Return each arm's scores by how long ago the categories were last seen.

    Every checkpoint counts, and the end of the run with all of its questions. Categories that
    training never shows, and questions without one, are left out. The gain compares with the
    baseline's answers to the very same questions at the same point of the run, so neither a hard
    category nor an early checkpoint passes for forgetting.

    Intervals come from resampling seeds and categories (how long ago is a property of a category in
    a run, so its questions stay together); with fewer than three seeds, from categories alone.
    """
    if outcome.categories is None or outcome.baseline not in outcome.shown:
        return []
    number = {name: i for i, name in enumerate(outcome.taught)}
    category = np.array([number.get(c, -1) for c in outcome.categories])
    category[~judged(outcome)] = -1
    if (category < 0).all():
        return []
    return [
        _of_arm(outcome, arm, category)
        for arm in outcome.arms
        if arm in outcome.shown and not np.isnan(outcome.arms[arm]).all()
    ]


def _scored(outcome: Outcome, arm: str) -> Iterator[tuple[int, NDArray[np.int64], FloatArray]]:
    """Yield questions seen, places of the questions and scores ``[S, C]`` of each checkpoint."""
    end = outcome.shown[arm].shape[1]
    curve = outcome.curves.get(arm)
    if curve is not None and curve.questions is not None:
        for point, seen in enumerate(curve.seen):
            if 0 < seen < end:
                yield int(seen), curve.questions, curve.values[:, point]
    yield end, np.arange(len(outcome.ids)), outcome.arms[arm]


def _of_arm(outcome: Outcome, arm: str, category: NDArray[np.int64]) -> Forgetting:
    n_categories, n_seeds = len(outcome.taught), len(outcome.seeds)
    shown = outcome.shown[arm]
    edges = np.ceil(np.array(EDGES) * shown.shape[1])
    compared = {seen: (which, values) for seen, which, values in _scored(outcome, outcome.baseline)}
    # By bin, seed and category: sum of scores, their number, sum of gains, their number.
    sums = np.zeros((4, len(BINS), n_seeds, n_categories))
    for seen, which, values in _scored(outcome, arm):
        since = questions_since(shown, seen, n_categories)
        bins = np.where(np.isinf(since), len(BINS) - 1, np.searchsorted(edges, since, side="right"))
        gaps = np.full_like(values, np.nan)
        if seen in compared and np.array_equal(compared[seen][0], which):
            gaps = values - compared[seen][1]
        for row in range(n_seeds):
            for first, scores in ((0, values[row]), (2, gaps[row])):
                kept = (category[which] >= 0) & ~np.isnan(scores)
                own = category[which][kept]
                np.add.at(sums[first, :, row], (bins[row, own], own), scores[kept])
                np.add.at(sums[first + 1, :, row], (bins[row, own], own), 1.0)
    taught = np.zeros(n_categories, dtype=bool)
    taught[np.unique(shown[shown >= 0])] = True
    sums[..., ~taught] = 0.0
    drawn = _resampled(sums[2], sums[3])
    whole = sums.sum(axis=(2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        score, gain = whole[0] / whole[1], whole[2] / whole[3]
    if arm == outcome.baseline:
        gain = np.full_like(gain, np.nan)
    enough = (sums[3].sum(axis=1) > 0).sum(axis=1) >= LEAST_CATEGORIES

    def interval(values: FloatArray, known: bool) -> tuple[float, float]:
        if not known:
            return np.nan, np.nan
        low, high = np.nanquantile(values, [0.025, 0.975])
        return float(low), float(high)

    least = [0, *(int(edge) for edge in edges), None]
    recalls = [
        Recall(
            name, least[i], int(whole[1, i]), float(score[i]), float(gain[i]),
            *interval(drawn[:, i], bool(enough[i]) and not np.isnan(gain[i])),
        )
        for i, name in enumerate(BINS)
    ]  # fmt: skip
    just, long = BINS.index("just seen"), BINS.index("long ago")
    drop = float(gain[just] - gain[long])
    both = bool(enough[just] and enough[long]) and not np.isnan(drop)
    ends = interval(drawn[:, just] - drawn[:, long], both)
    return Forgetting(
        outcome.model, outcome.evaluation, outcome.metric, arm, recalls, (drop, *ends)
    )


def _resampled(total: FloatArray, count: FloatArray) -> FloatArray:
    """Return the mean of each bin in resampled studies, ``[draws, bins]``."""
    _, n_seeds, n_categories = total.shape
    rng = stream(0, "forgetting")
    seeds = np.ones((DRAWS, n_seeds))
    if n_seeds >= LEAST_SEEDS:
        seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), DRAWS).astype(np.float64)
    picked = rng.multinomial(n_categories, np.full(n_categories, 1 / n_categories), DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.einsum("ds,bsk,dk->db", seeds, total, picked, optimize=True)
            / np.einsum("ds,bsk,dk->db", seeds, count, picked, optimize=True)
        )
