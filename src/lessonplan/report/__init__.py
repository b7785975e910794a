"""The report: one self-contained page, its tables and its figures."""

from lessonplan.report.write import write_report

__all__ = ["write_report"]
