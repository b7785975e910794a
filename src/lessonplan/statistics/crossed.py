"""Means over seeds crossed with questions: estimate, interval, p-value, smallest visible effect.

The model is ``y[s, q] = mu + seed[s] + question[q] + rest[s, q]``, with seeds and questions both
drawn at random from those that might have been drawn. The values are those of an arm, or more often
of a difference of arms, and then the other arms help to tell how much seeds make such differences
vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.seeds import stream

FloatArray = NDArray[np.float64]

SEEDS_AND_QUESTIONS = "seeds and questions"
THESE_RUNS = "these runs"
SEEDS = "seeds, this question"
LEAST_SEEDS = 3
"""Fewer seeds than this say nothing about other seeds: no winner is called."""
DIFFER = 0.2
"""Level at which an arm's seeds are held to differ from the other arms' and are not pooled. So high
because the test has few degrees of freedom. Among six arms, where one spreads over seeds twice
(three times) as wide as the others, its intervals cover 91 to 95% (88 to 94%); without the test
they would cover 88 to 93% (82 to 90%)."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: the mean over the runs that exist and all questions.
        low, high: the confidence interval; NaN where there is a single run of a single question.
        p: two-sided p-value of the mean being 0.
        df, se: Satterthwaite degrees of freedom and standard error; df is NaN where se is 0.
        scope: what the interval speaks of: "seeds and questions" (others like them), "these runs"
            (other questions, but only these one or two seeds) or "seeds, this question".
        seeds, questions: how many went into it.
    """

    mean: float
    low: float
    high: float
    p: float
    df: float
    se: float
    scope: str
    seeds: int = 0
    questions: int = 0


def complete_runs(*arrays: FloatArray) -> NDArray[np.bool_]:
    """Return bool ``[S]``: the seeds whose run exists in every array ``[S, Q]``.

    Raises:
        ValueError: a run has scores for some questions but not for others.
    """
    complete = np.ones(arrays[0].shape[0], dtype=bool)
    for values in arrays:
        missing = np.isnan(values)
        if (missing.any(axis=1) & ~missing.all(axis=1)).any():
            row = int(np.argmax(missing.any(axis=1) & ~missing.all(axis=1)))
            raise ValueError(
                f"run {row} has no score for {int(missing[row].sum())} of {missing.shape[1]} "
                "questions; a run is either scored on all questions or missing (all NaN)"
            )
        complete &= ~missing.any(axis=1)
    return complete


def mean_squares(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the mean squares of seeds, of questions and of the rest, each ``[...]``.

    The two-way layout without replication (Searle, Casella & McCulloch 1992, *Variance
    Components*, section 4.6).

    Args:
        values: ``[..., S, Q]`` with S and Q at least 2; leading axes are separate studies.
    """
    n_seeds, n_questions = values.shape[-2:]
    grand = values.mean(axis=(-2, -1), keepdims=True)
    by_seed = values.mean(axis=-1, keepdims=True) - grand
    by_question = values.mean(axis=-2, keepdims=True) - grand
    rest = values - grand - by_seed - by_question
    seed = n_questions * (by_seed**2).sum(axis=(-2, -1)) / (n_seeds - 1)
    question = n_seeds * (by_question**2).sum(axis=(-2, -1)) / (n_questions - 1)
    residual = (rest**2).sum(axis=(-2, -1)) / ((n_seeds - 1) * (n_questions - 1))
    return seed, question, residual


@dataclass(frozen=True)
class Pooled:
    """What all arms of an outcome tell together about seeds that suit one arm more than another.

    Attributes:
        seed: mean square of the seed by arm interaction, ``[...]``, in the units of one arm.
        rest: mean square of what arm, seed and question leave, ``[...]``.
        df: degrees of freedom of `seed`: (A - 1)(S - 1) of A distinct arms with no run missing.
    """

    seed: FloatArray
    rest: FloatArray
    df: int


def distinct_arms(arms: FloatArray) -> FloatArray:
    """Return arms ``[..., A, S, Q]`` without those whose runs are all another's.

    Two strategies can come to the same order, with labels that are all equal for instance. Their
    runs are then one, and the second tells nothing more about seeds.
    """
    kept: list[int] = []
    for number in range(arms.shape[-3]):
        own = arms[..., number, :, :]
        if not any(np.array_equal(own, arms[..., k, :, :], equal_nan=True) for k in kept):
            kept.append(number)
    return arms[..., kept, :, :]


def pooled_squares(arms: FloatArray) -> Pooled | None:
    """Return the interaction of seed and arm over all arms, None where the runs leave none.

    Arm and seed are fitted by least squares to the runs that exist, question by question, and what
    is left is split into its mean over questions and the rest (Searle, Casella & McCulloch 1992,
    *Variance Components*, sections 4.6 and 5.3). Where no run is missing these are the mean squares
    of the balanced three-way layout. Arms that are the same count once (`distinct_arms`).

    Args:
        arms: ``[..., A, S, Q]`` with Q at least 2; a run of NaN is missing, the same ones in all
            studies of the leading axes.
    """
    arms = distinct_arms(arms)
    n_arms, n_seeds, n_questions = arms.shape[-3:]
    present = ~np.isnan(arms[..., 0]).reshape(-1, n_arms, n_seeds).any(axis=0)
    arm, seed = np.nonzero(present)
    design = np.zeros((len(arm), n_arms + n_seeds))
    design[np.arange(len(arm)), arm] = 1.0
    design[np.arange(len(arm)), n_arms + seed] = 1.0
    fitted = design @ np.linalg.pinv(design)
    df = len(arm) - round(float(np.trace(fitted)))
    if df < 1:
        return None
    left = (np.eye(len(arm)) - fitted) @ arms[..., arm, seed, :]
    seeds = n_questions * (left.mean(axis=-1) ** 2).sum(axis=-1)
    whole = np.einsum("...rq,...rq->...", left, left)
    return Pooled(seeds / df, np.maximum(whole - seeds, 0.0) / (df * (n_questions - 1)), df)


def mean_variance(
    seed: Any,
    question: Any,
    rest: Any,
    n_seeds: int,
    n_questions: int,
    pooled: Pooled | None = None,
    weight: float = 2.0,
) -> tuple[FloatArray, FloatArray]:
    """Return the variance of the grand mean and its degrees of freedom, each ``[...]``.

    The variance is ``(seed + max(question - rest, 0)) / (S * Q)`` in mean squares, its degrees of
    freedom Satterthwaite's (1946, *Biometrics Bulletin* 2:110).

    * **Pooled.** Of the three, the mean square of seeds alone has few degrees of freedom (S - 1).
      Where the values are a difference of arms it is taken from all arms: the component of seed by
      arm of `pooled` beside the values' own rest. Questions and rest stay the values' own.
    * **Unless the arms plainly differ.** Where the values' own mean square of seeds is above that
      of the other contrasts by an F test at `DIFFER`, it takes the pooled one's place. (With its
      own S - 1 degrees of freedom, too, three seeds would need twice the gain to see anything.)
    * **Seeds are not cut off at zero.** A mean square of seeds below the rest stays, as in a t test
      over the seeds' means, down to the lowest tenth of what luck makes of the rest. Raised to the
      rest it would make the intervals of studies in which seeds make no difference cover 98%; let
      down to 0, three runs with the same number of right answers would give an interval of no
      width. A negative component of questions counts as zero.
    * **Degrees of freedom on the safe side.** Satterthwaite's formula is liberal where a mean
      square with few degrees of freedom comes out small by luck: with 3 seeds and two arms,
      intervals cover as little as 92% and a 1% test errs in 3.5%. So in it the mean squares of
      seeds and of questions stand at their upper 75% confidence bounds, which matters little
      where many are pooled.

    `python -m bench.validation` prints how intervals and tests made of it hold.

    Args:
        seed, question, rest: mean squares of the values, from `mean_squares`.
        pooled: of all arms; None: the values' own mean square of seeds is all there is.
        weight: sum of the squared weights of the arms in the values, 2 for a difference of two.
    """
    from scipy.special import chdtri, fdtrc

    seed, question, rest = (np.asarray(m, dtype=np.float64) for m in (seed, question, rest))
    df_seed, df_question = n_seeds - 1, n_questions - 1
    df_rest = df_seed * df_question
    if pooled is not None and pooled.df > df_seed:
        together, noise = weight * pooled.seed, weight * pooled.rest
        with np.errstate(invalid="ignore", divide="ignore"):
            others = (together * pooled.df - seed * df_seed) / (pooled.df - df_seed)
            apart = fdtrc(df_seed, pooled.df - df_seed, seed / np.maximum(others, 0.0)) < DIFFER
            shared = np.where(together < noise, rest * together / noise, rest + together - noise)
        seed = np.where(apart, seed, shared)
        df_seed = pooled.df
    seed = np.maximum(seed, rest * chdtri(df_seed, 0.9) / df_seed)
    variance = seed + np.maximum(question - rest, 0.0)
    upper_seed = seed * df_seed / chdtri(df_seed, 0.75)
    upper_question = question * df_question / chdtri(df_question, 0.75)
    total = upper_seed + np.maximum(upper_question - rest, 0.0)
    spread = upper_seed**2 / df_seed + upper_question**2 / df_question + rest**2 / df_rest
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(spread > 0, total**2 / spread, np.nan)
    return variance / (n_seeds * n_questions), np.maximum(df, min(df_seed, df_question))


def mean_interval(
    values: FloatArray,
    confidence: float = 0.95,
    *,
    pooled: Pooled | None = None,
    weight: float = 2.0,
) -> Estimate:
    """Estimate a mean over seeds and questions, with its interval.

    With three or more seeds the interval speaks of other seeds and other questions
    (`mean_variance`). With one or two, seeds cannot be told from luck, so it is the t interval over
    the questions' means and speaks of these runs alone. With a single question it is the t interval
    over the seeds. Where all values are equal the interval has no width, and the p-value of a mean
    that is not 0 is ``2 ** (1 - Q)``, the least that a sign test over Q questions gives.

    Args:
        values: ``[S, Q]``; a row of NaN is a missing run and is left out.
        confidence: between 0 and 1.
        pooled, weight: as in `mean_variance`, for a difference of arms.

    Raises:
        ValueError: no run exists, a run is partly NaN, or the shape is not ``[S, Q]``.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected an array of seed by question, got shape {values.shape}")
    values = values[complete_runs(values)]
    n_seeds, n_questions = values.shape
    if n_seeds == 0:
        raise ValueError("no run has scores")
    mean = float(values.mean())
    scope = SEEDS_AND_QUESTIONS
    if n_questions == 1:
        scope = SEEDS if n_seeds >= LEAST_SEEDS else THESE_RUNS
    elif n_seeds < LEAST_SEEDS:
        scope = THESE_RUNS

    variance, df = np.nan, np.nan
    if scope == SEEDS_AND_QUESTIONS:
        squares = mean_squares(values)
        variance, df = (
            float(x) for x in mean_variance(*squares, n_seeds, n_questions, pooled, weight)
        )
    elif n_questions > 1:
        variance, df = float(values.mean(axis=0).var(ddof=1)) / n_questions, n_questions - 1.0
    elif n_seeds > 1 and scope == SEEDS:
        variance, df = float(values.var(ddof=1)) / n_seeds, n_seeds - 1.0
    return _estimate(mean, variance, df, confidence, scope, n_seeds, n_questions)


def _estimate(
    mean: float, variance: float, df: float, confidence: float, scope: str, seeds: int, count: int
) -> Estimate:
    from scipy.special import stdtr, stdtrit

    if np.isnan(variance):
        nan = float("nan")
        return Estimate(mean, nan, nan, nan, nan, nan, scope, seeds, count)
    # Rounding leaves about 1e-32 of variance in values that are all equal.
    if variance <= (1e-12 * max(1.0, abs(mean))) ** 2:
        p = 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - count)
        return Estimate(mean, mean, mean, p, float("nan"), 0.0, scope, seeds, count)
    se = float(np.sqrt(variance))
    half = float(stdtrit(df, 0.5 + confidence / 2)) * se
    p = float(2 * stdtr(df, -abs(mean) / se))
    return Estimate(mean, mean - half, mean + half, p, float(df), se, scope, seeds, count)


def bootstrap_interval(
    values: FloatArray, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of resampling seeds and questions independently.

    A cross-check alone: it counts the interaction of seed and question several times over, and
    with few seeds it is narrow (Owen 2007, *Annals of Applied Statistics* 1:386).

    Args:
        values: ``[S, Q]``, rows of NaN left out. With one or two seeds only questions are drawn.
        draws: number of resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: as `mean_interval`.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[complete_runs(values)]
    n_seeds, n_questions = values.shape
    if n_seeds == 0:
        raise ValueError("no run has scores")
    rng = stream(seed, "bootstrap")
    means = []
    for start in range(0, draws, 250):  # in parts: draws x questions would not fit for large Q
        part = min(250, draws - start)
        weights = np.full((part, n_seeds), 1 / n_seeds)
        if n_seeds >= LEAST_SEEDS:
            weights = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), part) / n_seeds
        picks = rng.integers(n_questions, size=(part, n_questions))
        picks += np.arange(part)[:, None] * n_questions
        counts = np.bincount(picks.ravel(), minlength=part * n_questions)
        means.append(((weights @ values) * counts.reshape(part, n_questions)).sum(axis=1))
    low, high = np.quantile(
        np.concatenate(means) / n_questions, [0.5 - confidence / 2, 0.5 + confidence / 2]
    )
    return float(low), float(high)


def smallest_visible(se: float, df: float, alpha: float, power: float = 0.8) -> float:
    """Return the true mean that a two-sided test at level alpha detects with the given power.

    The test statistic is normal over the root of an independent chi-square on df degrees of
    freedom; its power is averaged over 2,000 quantiles of the latter. NaN where se is 0 or NaN.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr, stdtrit

    if not se > 0:
        return float("nan")
    spread = np.sqrt(chdtri(df, (np.arange(2000) + 0.5) / 2000) / df)
    threshold = float(stdtrit(df, 1 - alpha / 2)) * spread

    def lacking(effect: float) -> float:
        detected = ndtr(effect - threshold) + ndtr(-threshold - effect)
        return float(detected.mean()) - power

    return float(brentq(lacking, 0.0, float(threshold.max()) + 10)) * se
