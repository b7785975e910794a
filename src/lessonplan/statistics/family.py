"""Gains over the baseline, and the one family of tests in which winners are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.statistics.crossed import (
    LEAST_SEEDS,
    Estimate,
    Pooled,
    complete_runs,
    distinct_arms,
    mean_interval,
    pooled_squares,
)

FloatArray = NDArray[np.float64]
ALPHA = 0.05


@dataclass(frozen=True)
class Gain:
    """An arm minus the baseline: same model, same seed, question by question.

    Attributes:
        model, evaluation, arm, strategy: as in `Outcome`.
        estimate: of the gain; None where no seed has both runs.
        testable: whether it can be a winner at all: at least three seeds, whose runs are not all
            the same, two questions, and a model neither at the floor nor at the ceiling.
        p_holm: p-value corrected by Holm over the whole study; None where not testable.
        smallest: the gain that would have been seen with a power of 80% at the first step of
            Holm's procedure; None where not testable.
        bootstrap: the cross-check's interval; None where not computed.
    """

    model: str
    evaluation: str
    arm: str
    strategy: str
    estimate: Estimate | None
    testable: bool = False
    p_holm: float | None = None
    smallest: float | None = None
    bootstrap: tuple[float, float] | None = None

    @property
    def winner(self) -> bool:
        """Better than the baseline, by the corrected p-value."""
        return self._shown() and self.estimate is not None and self.estimate.mean > 0

    @property
    def loser(self) -> bool:
        """Worse than the baseline, by the corrected p-value."""
        return self._shown() and self.estimate is not None and self.estimate.mean < 0

    def _shown(self) -> bool:
        return self.testable and self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Pair:
    """One arm minus another; p_holm is corrected over all pairs of the same outcome."""

    arm: str
    other: str
    estimate: Estimate
    p_holm: float


def judged(outcome: Outcome) -> NDArray[np.bool_]:
    """Return bool ``[Q]``: the questions that count.

    Questions whose options point at other options mean nothing where each option is scored alone,
    so they are left out, unless there are no others.
    """
    kept = np.ones(len(outcome.ids), dtype=bool)
    if outcome.meaningless is not None and not outcome.meaningless.all():
        kept &= ~outcome.meaningless
    return kept


def difference(outcome: Outcome, arm: str, other: str) -> FloatArray:
    """Return ``[S, Q]``, one arm minus another over the questions that count.

    A seed that misses either run is a row of NaN.
    """
    kept = judged(outcome)
    first, second = outcome.arms[arm][:, kept], outcome.arms[other][:, kept]
    values = np.full_like(first, np.nan)
    both = complete_runs(first, second)
    values[both] = first[both] - second[both]
    return values


def pooled_arms(outcome: Outcome, chosen: NDArray[np.bool_] | None = None) -> Pooled | None:
    """Return `pooled_squares` of all arms, over the questions that count or those chosen."""
    kept = judged(outcome) if chosen is None else chosen
    if kept.sum() < 2:
        return None
    return pooled_squares(np.stack([values[:, kept] for values in outcome.arms.values()]))


def count_distinct(outcome: Outcome) -> int:
    """Return how many arms there are, counting those whose scores are all the same once."""
    kept = judged(outcome)
    return len(distinct_arms(np.stack([values[:, kept] for values in outcome.arms.values()])))


def gains(outcome: Outcome) -> list[Gain]:
    """Return the gain of each arm over the baseline, in the order of the arms.

    Winners are not called here: that takes the whole study (`lessonplan.statistics.analyse`).

    Raises:
        KeyError: the outcome has no baseline arm.
    """
    found = []
    pooled = pooled_arms(outcome)
    for arm in outcome.arms:
        if arm == outcome.baseline:
            continue
        values = difference(outcome, arm, outcome.baseline)
        estimate = None if np.isnan(values).all() else mean_interval(values, pooled=pooled)
        strategy = outcome.strategies.get(arm, arm)
        found.append(Gain(outcome.model, outcome.evaluation, arm, strategy, estimate))
    return found


def generalises(estimate: Estimate | None) -> bool:
    """Whether an estimate says anything about other seeds and questions than these."""
    return estimate is not None and estimate.seeds >= LEAST_SEEDS and estimate.questions > 1


def seeds_differ(outcome: Outcome) -> bool:
    """Whether any arm has two runs that differ; else the seeds say no more than one of them."""
    kept = judged(outcome)
    for values in outcome.arms.values():
        runs = values[:, kept][complete_runs(values[:, kept])]
        if (runs != runs[:1]).any():
            return True
    return False


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Return p-values corrected by Holm's step-down procedure, in the order given.

    Holm 1979, *Scandinavian Journal of Statistics* 6:65.

    Args:
        p_values: ``[..., K]``, a family along the last axis.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    corrected = np.empty_like(p)
    stepped = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    np.put_along_axis(corrected, order, stepped, axis=-1)
    return corrected


def all_pairs(outcome: Outcome) -> list[Pair]:
    """Compare every two arms, baseline included, with Holm's correction among these pairs.

    Descriptive: outside the primary family. Pairs that share fewer than three seeds are left out.
    """
    found: list[tuple[str, str, Estimate]] = []
    pooled = pooled_arms(outcome)
    for arm, other in combinations(outcome.arms, 2):
        values = difference(outcome, arm, other)
        if not np.isnan(values).all():
            estimate = mean_interval(values, pooled=pooled)
            if generalises(estimate):
                found.append((arm, other, estimate))
    corrected = holm([estimate.p for _, _, estimate in found])
    return [Pair(a, b, e, float(p)) for (a, b, e), p in zip(found, corrected, strict=True)]


def best_of_all(outcome: Outcome, pairs: list[Pair]) -> str | None:
    """Return the arm that is better than every other one by the corrected p-values, if any is."""
    for arm in outcome.arms:
        beaten = {
            pair.other if pair.arm == arm else pair.arm
            for pair in pairs
            if pair.p_holm < ALPHA
            and (
                (pair.arm == arm and pair.estimate.mean > 0)
                or (pair.other == arm and pair.estimate.mean < 0)
            )
        }
        if len(outcome.arms) > 1 and len(beaten) == len(outcome.arms) - 1:
            return arm
    return None
