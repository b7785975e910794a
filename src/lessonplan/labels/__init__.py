"""Labels that an order needs: difficulty and category, by source."""

from __future__ import annotations

from lessonplan.labels.answers import difficulty_from_answers, label_column, read_answers

__all__ = ["difficulty_from_answers", "label_column", "read_answers"]
