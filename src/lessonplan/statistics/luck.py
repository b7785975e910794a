"""What the best of several arms gains by luck alone, and an interval that allows for the choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessonplan.seeds import stream
from lessonplan.statistics.crossed import LEAST_SEEDS, Pooled, complete_runs, mean_interval

FloatArray = NDArray[np.float64]
DRAWS = 20_000


@dataclass(frozen=True)
class BestOf:
    """The largest of K gains.

    Attributes:
        index: which of the K it is.
        gain: its size.
        luck: the largest gain to be expected if no arm differed from the baseline.
        low, high: its interval, corrected for having been chosen among K.
        p: how often luck alone gives a difference as clear, in either direction, among the K.
        k: how many there were.
        scope: as in `Estimate`.
    """

    index: int
    gain: float
    luck: float
    low: float
    high: float
    p: float
    k: int
    scope: str


def gain_covariance(values: FloatArray) -> FloatArray:
    """Return the covariance ``[K, K]`` of K gains, by the two-way layout with matrices.

    Mean squares become matrices of mean squares and products over the arms; the components of seed
    and of question are projected to the nearest positive semi-definite matrix, which is what
    counting a negative variance as zero is in more than one dimension. With fewer than three seeds
    it is the covariance over questions alone.

    Args:
        values: ``[K, S, Q]``, without NaN, Q at least 2.
    """
    _, n_seeds, n_questions = values.shape
    by_question = values.mean(axis=1)
    if n_seeds < LEAST_SEEDS:
        return np.asarray(np.atleast_2d(np.cov(by_question)) / n_questions)
    grand = values.mean(axis=(1, 2))[:, None]
    seeds = values.mean(axis=2) - grand
    questions = by_question - grand
    rest = values - grand[:, :, None] - seeds[:, :, None] - questions[:, None, :]
    rest = rest.reshape(len(values), -1)
    noise = rest @ rest.T / ((n_seeds - 1) * (n_questions - 1))
    of_seeds = _semi_definite(seeds @ seeds.T / (n_seeds - 1) - noise / n_questions)
    of_questions = _semi_definite(questions @ questions.T / (n_questions - 1) - noise / n_seeds)
    return np.asarray(
        of_seeds / n_seeds + of_questions / n_questions + noise / (n_seeds * n_questions)
    )


def _semi_definite(matrix: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def best_of(
    values: FloatArray, confidence: float = 0.95, seed: int = 0, *, pooled: Pooled | None = None
) -> BestOf | None:
    """Return the best of K gains beside what luck gives, by simulation from a fixed seed.

    K correlated gains of mean zero are drawn with the standard errors of `mean_interval` and the
    correlations of `gain_covariance`. Their expected maximum is the luck. The interval and p-value
    come from the least of the K p-values in each draw (the max-statistic, Westfall & Young 1993),
    so that an arm with few degrees of freedom and one with many weigh alike.

    Args:
        values: ``[K, S, Q]``, arm minus baseline; an arm's row of NaN is a missing run.
        pooled: of all arms, as in `mean_interval`.

    Returns:
        None where no arm has a gain with a standard error.
    """
    from scipy.special import chdtri, stdtr, stdtrit

    present = [k for k in range(len(values)) if not np.isnan(values[k]).all()]
    if not present or values.shape[2] < 2:
        return None
    estimates = [mean_interval(values[k], pooled=pooled) for k in present]
    se = np.array([e.se for e in estimates])
    if not (se > 0).any():
        return None
    common = complete_runs(*(values[k] for k in present))
    correlation = np.eye(len(present))
    if common.any():
        covariance = gain_covariance(values[present][:, common])
        scale = np.sqrt(np.diag(covariance))
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.nan_to_num(covariance / np.outer(scale, scale))
        np.fill_diagonal(correlation, 1.0)

    rng = stream(seed, "luck")
    spectrum, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(spectrum, 0.0))
    normal = rng.standard_normal((DRAWS, len(present))) @ root.T
    luck = float((normal * se).max(axis=1).mean()) if len(present) > 1 else 0.0

    df = np.array([e.df if e.se > 0 else np.inf for e in estimates])
    uniform = rng.random(DRAWS)
    least = np.ones(DRAWS)
    for k in range(len(present)):
        if se[k] > 0:
            spread = np.sqrt(chdtri(df[k], uniform) / df[k])
            least = np.minimum(least, 2 * stdtr(df[k], -np.abs(normal[:, k]) / spread))

    top = int(np.argmax([e.mean for e in estimates]))
    best = estimates[top]
    low = high = best.mean
    if best.se > 0:
        level = float(np.quantile(least, 1 - confidence))
        half = float(stdtrit(best.df, 1 - level / 2)) * best.se
        low, high = best.mean - half, best.mean + half
    # One more of either, so that it is never 0 (Phipson & Smyth 2010).
    p = float(((least <= best.p).sum() + 1) / (DRAWS + 1))
    return BestOf(present[top], best.mean, luck, low, high, p, len(present), best.scope)
