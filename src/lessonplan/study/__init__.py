"""The grid of runs: its file, its plan, its folder, and what came out."""

from __future__ import annotations

from lessonplan.study.config import Study
from lessonplan.study.record import read_record
from lessonplan.study.run import run_study
from lessonplan.study.study_file import load_study
from lessonplan.study.watch import Watch

__all__ = ["Study", "Watch", "load_study", "read_record", "run_study"]
