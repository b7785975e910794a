"""Orders in other people's training loops.

`OrderSampler` is for PyTorch's `DataLoader`, the mixin `KeepsOrder` for `transformers.Trainer` and
TRL's `SFTTrainer`, `DPOTrainer` and `GRPOTrainer`. `trainer_settings` says how trainers that read
a file are to be set, for the files that ``lessonplan order`` writes. PyTorch is imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lessonplan.integrations.settings import TRAINERS, trainer_settings

if TYPE_CHECKING:
    from lessonplan.training.sampling import KeepsOrder, OrderSampler

__all__ = ["TRAINERS", "KeepsOrder", "OrderSampler", "trainer_settings"]


def __getattr__(name: str) -> Any:
    if name not in ("KeepsOrder", "OrderSampler"):
        raise AttributeError(f"module 'lessonplan.integrations' has no attribute {name!r}")
    from lessonplan.training import sampling

    return getattr(sampling, name)
