"""Language models: by name, as token rows, and the engine that scores them."""

from __future__ import annotations

from lessonplan.models.presets import PRESETS, Preset

__all__ = ["NUMERICS", "PRESETS", "Preset"]

# Version of what the engine computes. It enters the identity of every tuning, so it is raised by
# any change that can alter a result's bytes: batching, masks, losses, random streams.
NUMERICS = 6
