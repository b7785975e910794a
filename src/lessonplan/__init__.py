"""lessonplan: in what order should a model see its fine-tuning data, and does it really help?

    >>> import lessonplan
    >>> lessonplan.order("interleaved", category=["a", "a", "b", "b"], blocks=2, seed=0).shape
    (4,)

Names are imported on first use, so that ordering data needs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "STRATEGIES": "orders",
    "Recipe": "training",
    "Scoring": "training",
    "Study": "study",
    "analyse": "statistics",
    "compare": "statistics",
    "evaluate": "evaluation.predict",
    "grid": "statistics",
    "label": "study.labelling",
    "load_questions": "data",
    "load_study": "study",
    "order": "orders",
    "read_record": "study",
    "run_study": "study",
    "train": "training.train",
    "write_report": "report",
}

__all__ = [
    "STRATEGIES",
    "InputError",
    "Recipe",
    "Scoring",
    "Study",
    "analyse",
    "compare",
    "evaluate",
    "grid",
    "label",
    "load_questions",
    "load_study",
    "order",
    "read_record",
    "run_study",
    "train",
    "write_report",
]

if TYPE_CHECKING:
    from lessonplan.data import load_questions
    from lessonplan.errors import InputError
    from lessonplan.evaluation.predict import evaluate
    from lessonplan.orders import STRATEGIES, order
    from lessonplan.report import write_report
    from lessonplan.statistics import analyse, compare
    from lessonplan.statistics.cells import grid  # not the module beside it
    from lessonplan.study import Study, load_study, read_record, run_study
    from lessonplan.study.labelling import label
    from lessonplan.training import Recipe, Scoring
    from lessonplan.training.train import train


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lessonplan' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"lessonplan.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
