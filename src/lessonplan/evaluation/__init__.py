"""From log-likelihoods to choices, and from choices to what a comparison needs."""

from __future__ import annotations

from lessonplan.evaluation.outcomes import (
    Curve,
    LabelCheck,
    LabelSource,
    OrderPicture,
    Outcome,
    Record,
)
from lessonplan.evaluation.scores import accuracy, choose, weighted_f1

__all__ = [
    "Curve",
    "LabelCheck",
    "LabelSource",
    "OrderPicture",
    "Outcome",
    "Record",
    "accuracy",
    "choose",
    "weighted_f1",
]
