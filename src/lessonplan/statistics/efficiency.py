"""How fast a model learns under each order: area under the learning curve, questions to a level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Curve, Outcome
from lessonplan.seeds import stream
from lessonplan.statistics.crossed import (
    LEAST_SEEDS,
    Estimate,
    mean_interval,
    pooled_squares,
)
from lessonplan.statistics.family import judged

FloatArray = NDArray[np.float64]
DRAWS = 2000


@dataclass(frozen=True)
class Efficiency:
    """How fast one arm learns, on the questions that are scored along a run.

    Attributes:
        area: the score averaged over all questions seen, from the untuned model to the end: the
            area under the learning curve (trapezoids) over its width. A constant curve's area is
            its level.
        gain: of the area over the baseline's, paired by seed and question; None for the baseline.
        reached: questions seen when the mean curve first has what the baseline has at its end,
            between checkpoints by a straight line; infinite where it never does.
        low, high: 95% interval of `reached` by resampling seeds and questions, the baseline's
            with the arm's; either may be infinite.
        share: of the resampled studies in which the arm gets there.
        end: questions that a run sees.
    """

    model: str
    evaluation: str
    metric: str
    arm: str
    area: Estimate
    gain: Estimate | None
    reached: float
    low: float
    high: float
    share: float
    end: int


def efficiencies(outcome: Outcome) -> list[Efficiency]:
    """Return the learning efficiency of each arm that was scored along its runs.

    Arms are compared where they were scored at the same checkpoints as the baseline; a seed counts
    that has both runs. Where the untuned model is unknown, curves begin at the first checkpoint.
    """
    base = outcome.curves.get(outcome.baseline)
    if base is None:
        return []
    curves = {
        arm: curve
        for arm, curve in outcome.curves.items()
        if np.array_equal(curve.seen, base.seen) and curve.values.shape == base.values.shape
    }
    values = np.stack([counted_values(outcome, curve) for curve in curves.values()])  # [A, S, P, C]
    points = ~np.isnan(values).all(axis=(0, 1, 3))
    seen, values = base.seen[points].astype(np.float64), values[:, :, points]
    if values.shape[2] < 2 or values.shape[3] == 0:
        return []
    missing = np.asarray(np.isnan(values).any(axis=(2, 3)))
    values[missing] = np.nan
    areas = np.stack([area(seen, own) for own in values])
    pooled = pooled_squares(areas) if areas.shape[2] > 1 else None
    baseline = list(curves).index(outcome.baseline)
    found = []
    for number, arm in enumerate(curves):
        both = ~(missing[number] | missing[baseline])
        if not both.any():
            continue
        pair = values[[number, baseline]][:, both]
        own, other = areas[number, both], areas[baseline, both]
        means = pair.mean(axis=(1, 3))
        drawn = np.concatenate(
            [questions_to_reach(seen, curve[0], curve[1][:, -1]) for curve in resampled_means(pair)]
        )
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        found.append(
            Efficiency(
                model=outcome.model,
                evaluation=outcome.evaluation,
                metric=outcome.metric,
                arm=arm,
                area=mean_interval(own),
                gain=None if number == baseline else mean_interval(own - other, pooled=pooled),
                reached=float(questions_to_reach(seen, means[:1], means[1:, -1])[0]),
                low=float(low),
                high=float(high),
                share=float(np.isfinite(drawn).mean()),
                end=int(base.seen[-1]),
            )
        )
    return found


def counted_values(outcome: Outcome, curve: Curve) -> FloatArray:
    """Return a curve's values on the questions that count, ``[S, P, C]``."""
    if curve.questions is None:
        return curve.values
    return curve.values[:, :, judged(outcome)[curve.questions]]


def area(seen: FloatArray, values: FloatArray) -> FloatArray:
    """Return the area under each curve over its width, ``[S, P, C]`` to ``[S, C]``."""
    steps = np.diff(seen)
    weights = np.zeros(len(seen))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return np.asarray(np.einsum("p,spc->sc", weights / weights.sum(), values))


def questions_to_reach(seen: FloatArray, curves: FloatArray, levels: FloatArray) -> FloatArray:
    """Return where each curve first has a level, float64 ``[B]``, infinite where it never does.

    Args:
        seen: questions seen at each point, ``[P]``, ascending.
        curves: ``[B, P]``. levels: ``[B]``.
    """
    # A mean that equals the level but for rounding has reached it.
    there = curves >= levels[:, None] - 1e-12
    first = there.argmax(axis=1)
    row = np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    rise = curves[row, first] - curves[row, before]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(rise > 0, (levels - curves[row, before]) / rise, 0.0)
    found = seen[before] + np.clip(part, 0.0, 1.0) * (seen[first] - seen[before])
    return np.where(there.any(axis=1), found, math.inf)


def resampled_means(values: FloatArray, draws: int = DRAWS) -> Iterator[FloatArray]:
    """Yield mean curves ``[K, part, P]`` of studies with seeds and questions drawn anew.

    Seeds and questions are drawn independently, with replacement, the same for all K arms; with
    fewer than three seeds the questions alone are drawn, so the result speaks of these runs.

    Args:
        values: ``[K, S, P, C]``, without NaN.
    """
    k, n_seeds, n_points, n_questions = values.shape
    rng = stream(0, "efficiency")
    flat = np.moveaxis(values, 1, 0).reshape(n_seeds, -1)
    for start in range(0, draws, 100):  # in parts: all draws at once would not fit
        part = min(100, draws - start)
        weights = np.full((part, n_seeds), 1 / n_seeds)
        if n_seeds >= LEAST_SEEDS:
            weights = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), part) / n_seeds
        counts = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions), part)
        by_question = (weights @ flat).reshape(part, k, n_points, n_questions)
        yield np.einsum("bkpc,bc->kbp", by_question, counts / n_questions)
