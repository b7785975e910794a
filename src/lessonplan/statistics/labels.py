"""Do the labels reach the model: difficulty against untuned loss, and who got the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import LabelCheck, OrderPicture

FloatArray = NDArray[np.float64]
UNLABELLED = "(no category)"


@dataclass(frozen=True)
class LabelStrength:
    """Spearman's correlation of a difficulty label with the untuned model's loss.

    Attributes:
        rho, low, high: the correlation and its interval; NaN where the label is constant or fewer
            than four questions carry it.
        visible: whether the whole interval lies above 0. A label that is not visible to the model
            may make its curriculum a placebo.
        against: whether all of it lies below 0: what the label calls hard is easy for this model.
    """

    model: str
    training: str
    source: str
    rho: float
    low: float
    high: float
    n: int
    visible: bool
    against: bool = False

    @property
    def word(self) -> str:
        """How tables say it: "yes", "no", or "the other way"."""
        return "yes" if self.visible else "the other way" if self.against else "no"


@dataclass(frozen=True)
class Received:
    """The mean learning rate that a group of training questions was trained with.

    Attributes:
        kind: "category" or "difficulty".
        group: the category, or the band of difficulty.
        rate: the mean rate; relative: the same as a share of the mean over all questions.
    """

    training: str
    arm: str
    kind: str
    group: str
    questions: int
    rate: float
    relative: float


def rank_correlation(
    first: FloatArray, second: FloatArray, confidence: float = 0.95
) -> tuple[float, float, float, int]:
    """Return Spearman's correlation, its interval, and how many rows have both values.

    The interval is Fisher's z with the variance ``(1 + rho**2 / 2) / (n - 3)`` (Bonett & Wright
    2000, *Psychometrika* 65:23). All three are NaN where either side is constant or fewer than
    four rows are left.

    Args:
        first, second: float64 ``[n]``; rows with a NaN in either are left out.
    """
    from scipy.stats import norm, spearmanr

    kept = np.isfinite(first) & np.isfinite(second)
    x, y = first[kept], second[kept]
    n = int(kept.sum())
    if n <= 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan"), n
    rho = float(spearmanr(x, y).statistic)
    # At +-1 Fisher's z is infinite; the interval is then the point itself.
    z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    half = float(norm.ppf(0.5 + confidence / 2)) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    return rho, float(np.tanh(z - half)), float(np.tanh(z + half)), n


def label_strength(check: LabelCheck, confidence: float = 0.95) -> LabelStrength:
    """Correlate a difficulty label with the untuned loss (`rank_correlation`).

    Questions without a label or a loss are left out.
    """
    rho, low, high, n = rank_correlation(check.difficulty, check.loss, confidence)
    return LabelStrength(
        check.model,
        check.training,
        check.source,
        rho,
        low,
        high,
        n,
        visible=bool(low > 0),
        against=bool(high < 0),
    )


def difficulty_bands(difficulty: FloatArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return the band of each question, int64 ``[n]`` (-1 where NaN), and the bands' names.

    Up to six distinct values are bands of their own; more are cut into thirds.
    """
    known = np.isfinite(difficulty)
    levels = np.unique(difficulty[known])
    bands = np.full(len(difficulty), -1, dtype=np.int64)
    if len(levels) <= 6:
        bands[known] = np.searchsorted(levels, difficulty[known])
        return bands, [f"{level:g}" for level in levels]
    cuts = np.quantile(difficulty[known], [1 / 3, 2 / 3])
    bands[known] = np.searchsorted(cuts, difficulty[known], side="left")
    return bands, ["easiest third", "middle third", "hardest third"]


def received(picture: OrderPicture) -> list[Received]:
    """Return the mean learning rate that each category and band of difficulty received."""
    rows: list[Received] = []
    rate = np.asarray(picture.learning_rate, dtype=np.float64)
    overall = float(rate.mean()) if len(rate) else 0.0

    def add(kind: str, index: NDArray[np.int64], names: Sequence[str]) -> None:
        for number, name in enumerate(names):
            chosen = index == number
            if chosen.any():
                mean = float(rate[chosen].mean())
                relative = mean / overall if overall > 0 else float("nan")
                rows.append(
                    Received(
                        picture.training, picture.arm, kind, name, int(chosen.sum()), mean, relative
                    )
                )

    if picture.categories is not None:
        labels = [c if c else UNLABELLED for c in picture.categories]
        names = sorted(set(labels))
        place = {name: i for i, name in enumerate(names)}
        add("category", np.array([place[label] for label in labels], dtype=np.int64), names)
    if picture.difficulty is not None:
        bands, band_names = difficulty_bands(np.asarray(picture.difficulty, dtype=np.float64))
        add("difficulty", bands, band_names)
    return rows
