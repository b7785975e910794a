"""Dataset cartography: how a model's belief in the right option moves while it is fine-tuned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def cartography(right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return confidence and variability of each question (Swayamdipta et al. 2020, 2009.10795).

    Args:
        right: float64 ``[P, n]`` probability of the right option at each of P checkpoints of a run.

    Returns:
        confidence, the mean over checkpoints, and variability, their standard deviation, both
        float64 ``[n]``. Low confidence marks hard (or wrongly labelled) questions, high variability
        ambiguous ones.
    """
    return right.mean(axis=0), right.std(axis=0)
