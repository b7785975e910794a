"""Gains, intervals and tests: arrays of seed by question in, findings out.

Importing this package loads NumPy alone; SciPy, statsmodels and PyArrow come with the first call.
"""

from lessonplan.statistics.analysis import Analysis, analyse
from lessonplan.statistics.cells import grid
from lessonplan.statistics.crossed import Estimate, bootstrap_interval, mean_interval
from lessonplan.statistics.family import Gain, gains
from lessonplan.statistics.result import Result
from lessonplan.statistics.table import Comparison, compare
from lessonplan.statistics.verdict import Verdict, verdict

__all__ = [
    "Analysis",
    "Comparison",
    "Estimate",
    "Gain",
    "Result",
    "Verdict",
    "analyse",
    "bootstrap_interval",
    "compare",
    "gains",
    "grid",
    "mean_interval",
    "verdict",
]
