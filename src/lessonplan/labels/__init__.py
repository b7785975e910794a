"""Labels that an order needs: difficulty and category, by source."""

from __future__ import annotations

from lessonplan.labels.answers import (
    difficulty_from_answers,
    difficulty_from_share,
    label_column,
    read_answers,
)
from lessonplan.labels.irt import ItemResponse, fit_irt
from lessonplan.labels.label import Label
from lessonplan.labels.tables import read_labels

__all__ = [
    "ItemResponse",
    "Label",
    "difficulty_from_answers",
    "difficulty_from_share",
    "fit_irt",
    "label_column",
    "read_answers",
    "read_labels",
]
