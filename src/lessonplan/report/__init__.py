"""The report: one self-contained page, its tables and its figures."""

from lessonplan.report.write import write_grid, write_report

__all__ = ["write_grid", "write_report"]
