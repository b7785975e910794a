"""Fine-tuning with LoRA that keeps the order exactly."""

from __future__ import annotations

from lessonplan.training.recipe import Recipe, Scoring

__all__ = ["Recipe", "Scoring"]
