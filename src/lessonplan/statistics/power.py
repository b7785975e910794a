"""How many seeds and questions it takes to see a gain: from variance components to power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.seeds import stream
from lessonplan.statistics.crossed import (
    LEAST_SEEDS,
    Pooled,
    complete_runs,
    mean_squares,
    mean_variance,
)
from lessonplan.statistics.family import difference, pooled_arms

FloatArray = NDArray[np.float64]
DRAWS = 4000
MOST_SEEDS = 200


@dataclass(frozen=True)
class Components:
    """What makes a gain vary: variances in squared units of the score.

    A gain measured with S seeds and Q questions has the variance
    ``seed / S + question / Q + rest / (S * Q)``.

    Attributes:
        seed: between the gains that different seeds would give, over all questions.
        question: between the gains on different questions, over all seeds.
        rest: of a single question under a single seed beyond both.
        seed_high: upper 90% confidence bound of `seed`, which few seeds tell roughly; `seed` itself
            where it is stated and not estimated.
        df: degrees of freedom that `seed` was estimated with; 0 where it is stated.
    """

    seed: float
    question: float
    rest: float
    seed_high: float
    df: int = 0

    @property
    def cautious(self) -> Components:
        """The same with `seed` at its upper bound."""
        return replace(self, seed=self.seed_high)


DEMO = Components(seed=0.0, question=0.0102, rest=0.127, seed_high=0.00021, df=10)
"""Those of accuracy in the demo study (`examples/demo.yaml`): SmolLM2-135M, 320 training and 200
test questions of ICD-10-CM, six arms, three seeds."""


def components(outcome: Outcome) -> Components | None:
    """Estimate the components of a typical gain of an outcome, None from too few runs.

    By mean squares (analysis of variance): `seed` from all arms together, `question` and `rest`
    averaged over the gains. A negative component counts as zero. It takes two seeds at least.
    """
    from scipy.special import chdtri

    pooled = pooled_arms(outcome)
    found = []
    for arm in outcome.arms:
        values = difference(outcome, arm, outcome.baseline)
        values = values[complete_runs(values)]
        if arm != outcome.baseline and len(values) > 1 and values.shape[1] > 1:
            _, question, rest = mean_squares(values)
            found.append(((question - rest) / len(values), rest))
    if pooled is None or not found:
        return None
    question, rest = np.mean(np.array(found, dtype=np.float64), axis=0)
    highest = pooled.seed * pooled.df / chdtri(pooled.df, 0.9)
    seed, high = (
        max(0.0, 2.0 * float(square - pooled.rest) / values.shape[1])
        for square in (pooled.seed, highest)
    )
    return Components(seed, max(0.0, float(question)), float(rest), high, pooled.df)


def mean_components(several: Sequence[Components]) -> Components:
    """Return the mean of components, part by part; degrees of freedom add up.

    Raises:
        ValueError: there are none.
    """
    if not several:
        raise ValueError("no components")
    seed, question, rest, high = np.mean(
        [(c.seed, c.question, c.rest, c.seed_high) for c in several], axis=0
    )
    df = sum(c.df for c in several)
    return Components(float(seed), float(question), float(rest), float(high), df)


def power(
    found: Components,
    gain: float,
    seeds: int,
    questions: int,
    *,
    arms: int,
    level: float,
) -> float:
    """Return the probability that an arm with this true gain is called better than the baseline.

    The mean squares that an analysis would find are drawn (chi-squares, from a fixed seed) and go
    through `mean_variance`, as in an analysis; given its interval's half width, the gain is normal.

    Args:
        found: components of the gain.
        gain: in units of the score, 0.02 for two points of accuracy.
        seeds, questions: of the study that is planned; below three seeds the power is 0.
        arms: how many share one model and evaluation set, baseline included.
        level: two-sided level of the test: 0.05 over the family at the first step of Holm's
            procedure. Later steps are easier, so with several true gains power is a little higher.

    Raises:
        ValueError: fewer than two arms or questions.
    """
    if seeds < LEAST_SEEDS:
        return 0.0
    from scipy.special import ndtr

    needed, spread = _needed(found, seeds, questions, arms, level)
    return float(ndtr((gain - needed) / spread).mean()) if spread > 0 else float(gain > 0)


def smallest_gain(
    found: Components,
    seeds: int,
    questions: int,
    *,
    arms: int,
    level: float,
    power: float = 0.8,
) -> float:
    """Return the true gain that is seen with this power; NaN below three seeds. See `power`."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if seeds < LEAST_SEEDS:
        return float("nan")
    needed, spread = _needed(found, seeds, questions, arms, level)
    if spread == 0:
        return 0.0

    def lacking(gain: float) -> float:
        return float(ndtr((gain - needed) / spread).mean()) - power

    return float(brentq(lacking, 0.0, float(needed.max()) + 10 * spread))


def seeds_needed(
    found: Components,
    gain: float,
    questions: int,
    *,
    arms: int,
    level: float,
    power: float = 0.8,
) -> int | None:
    """Return the fewest seeds that see a gain with this power; None where `MOST_SEEDS` do not."""

    def seen(seeds: int) -> bool:
        smallest = smallest_gain(found, seeds, questions, arms=arms, level=level, power=power)
        return smallest <= gain

    low, high = LEAST_SEEDS - 1, LEAST_SEEDS
    while not seen(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def _needed(
    found: Components, seeds: int, questions: int, arms: int, level: float
) -> tuple[FloatArray, float]:
    """Return the estimate that is significant in each of `DRAWS` studies, and its true spread."""
    from scipy.special import stdtrit

    if arms < 2 or questions < 2:
        raise ValueError(f"{arms} arms and {questions} questions; at least 2 of each are needed")
    rng = stream(0, "power")

    def drawn(expected: float, df: int) -> FloatArray:
        return expected * rng.chisquare(df, DRAWS) / df if df else np.zeros(DRAWS)

    df_seed, df_others = seeds - 1, (arms - 2) * (seeds - 1)
    of_seeds = found.rest + questions * found.seed
    own, others = drawn(of_seeds, df_seed), drawn(of_seeds, df_others)
    together = (own * df_seed + others * df_others) / (df_seed + df_others)
    rest = drawn(found.rest, df_seed * (questions - 1))
    pooled = Pooled(together, np.full(DRAWS, found.rest), df_seed + df_others)
    variance, df = mean_variance(
        own,
        drawn(found.rest + seeds * found.question, questions - 1),
        rest,
        seeds,
        questions,
        pooled,
        weight=1.0,
    )
    spread = found.seed / seeds + found.question / questions + found.rest / (seeds * questions)
    return np.asarray(stdtrit(df, 1 - level / 2) * np.sqrt(variance)), float(np.sqrt(spread))
