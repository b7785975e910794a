"""Put a report on disk, all or nothing as far as its page goes."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lessonplan.evaluation.outcomes import Record
from lessonplan.report import figures
from lessonplan.report.formats import Table, to_csv, to_latex, to_markdown
from lessonplan.report.grid_section import grid_page
from lessonplan.report.grid_tables import grid_tables
from lessonplan.report.maps import map_figure, mapped
from lessonplan.report.order_pictures import orders_figure
from lessonplan.report.page import page
from lessonplan.report.progress_figures import efficiency_figure, forgetting_figure
from lessonplan.report.progress_tables import progress_tables
from lessonplan.report.source_tables import (
    agreement_table,
    leak_table,
    overlap_table,
    source_gains_table,
)
from lessonplan.report.tables import (
    accuracy_table,
    best_table,
    gains_table,
    group_table,
    labels_table,
    pairs_table,
    received_table,
)
from lessonplan.statistics.analysis import Analysis, analyse
from lessonplan.statistics.grid import Grid
from lessonplan.statistics.table import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = re.compile(
    r"(accuracy|scores|gains|best|pairs|by_category|by_answer|judged_apart|labels"
    r"|label_(agreement|overlap|leak|gains)|learning_rate_by_\w+|curves|orders(-\d+)?|map-\d+"
    r"|grid_\w+|efficiency|forgetting)\.(md|csv|tex|svg|png)"
)
"""The names of the files that a report writes beside its page."""


def write_report(record: Record | Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write a report and return the path of its page, ``folder/index.html``.

    Beside the page stand the tables as .md, .csv and .tex and the figures as .svg and .png. The
    same record gives the same bytes. Everything is computed first, each file is renamed into place
    when whole, and the page comes last: an interrupted report leaves the page that was there.
    Other files in the folder are left alone.

    Args:
        record: of a study, or what `lessonplan.statistics.compare` returns.
        folder: made where it does not exist.

    Raises:
        OSError: the folder cannot be written to.
    """
    if isinstance(record, Comparison):
        files = report_files(record.record, record.analysis)
    else:
        files = report_files(record, analyse(record))
    return _put(files, Path(folder))


def write_grid(grid: Grid, folder: str | os.PathLike[str], *, title: str = "Grid") -> Path:
    """Write the tables of a grid alone, as `write_report` does, and return the path of its page."""
    files = _table_files(grid_tables(grid))
    files["index.html"] = grid_page(grid, title).encode()
    return _put(files, Path(folder))


def _put(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        for name, content in files.items():
            (Path(scratch) / name).write_bytes(content)
        for name in files:
            os.replace(Path(scratch) / name, folder / name)
    for old in folder.iterdir():
        if OWN.fullmatch(old.name) and old.name not in files:
            old.unlink()
    return folder / "index.html"


def report_files(record: Record, analysis: Analysis) -> dict[str, bytes]:
    """Return every file of a report by name, the page last."""
    files = _table_files(report_tables(analysis))
    pictures: dict[str, tuple[str, str]] = {}
    results = analysis.results

    gains = figures.gains_figure(results)
    narrow = figures.gains_figure(results, figures.NARROW)
    if gains is not None and narrow is not None:
        pictures["gains"] = figures.svg(gains), figures.svg(narrow)
        _keep(files, "gains", gains)
    curves = figures.curves_figure(results)
    if curves is not None:
        _keep(files, "curves", curves)
    for number, result in enumerate(results):
        wide = figures.curves_figure([result], legend=False)
        narrow = figures.curves_figure([result], figures.NARROW, legend=False)
        if wide is not None and narrow is not None:
            pictures[f"curves-{number}"] = figures.svg(wide), figures.svg(narrow)
    progress = {
        "efficiency": (
            efficiency_figure(analysis.efficiency),
            efficiency_figure(analysis.efficiency, figures.NARROW),
        ),
        "forgetting": (
            forgetting_figure(analysis.forgetting),
            forgetting_figure(analysis.forgetting, figures.NARROW),
        ),
    }
    for name, (wide, narrow) in progress.items():
        if wide is not None and narrow is not None:
            pictures[name] = figures.svg(wide), figures.svg(narrow)
            _keep(files, name, wide)
    sets = list(dict.fromkeys(p.training for p in record.orders))
    for number, training in enumerate(sets):
        own = [p for p in record.orders if p.training == training]
        wide = orders_figure(own)
        narrow = orders_figure(own, figures.NARROW)
        if wide is not None and narrow is not None:
            pictures[f"orders-{training}"] = figures.svg(wide), figures.svg(narrow)
            _keep(files, "orders" if number == 0 else f"orders-{number + 1}", wide)
    for name, source in mapped(record).items():
        wide = map_figure(source)
        narrow = map_figure(source, figures.NARROW)
        if wide is not None and narrow is not None:
            pictures[name] = figures.svg(wide), figures.svg(narrow)
            _keep(files, name, wide)
    files["index.html"] = page(record, analysis, pictures).encode()
    return files


def _table_files(tables: list[Table]) -> dict[str, bytes]:
    forms = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    return {f"{t.name}.{end}": form(t).encode() for t in tables for end, form in forms.items()}


def _keep(files: dict[str, bytes], name: str, figure: Figure) -> None:
    files[f"{name}.svg"] = figures.svg(figure, background="white").encode()
    files[f"{name}.png"] = figures.png(figure)


def report_tables(analysis: Analysis) -> list[Table]:
    """Return the tables that have something to say."""
    results = analysis.results
    tables = [
        accuracy_table(results),
        gains_table(results),
        best_table(results),
        pairs_table(results),
        group_table(results, "category", "by_category", "Score of each order by category."),
        group_table(
            results,
            "answer",
            "by_answer",
            "Score of each order where the right answer was, or was not, an answer in training.",
        ),
        group_table(
            results,
            "judged apart",
            "judged_apart",
            "Questions whose options point at other options; they do not count elsewhere.",
        ),
        labels_table(analysis),
        agreement_table(analysis),
        overlap_table(analysis),
        leak_table(analysis),
        source_gains_table(analysis),
        received_table(analysis.received, "category"),
        received_table(analysis.received, "difficulty"),
    ]
    found = [table for table in tables if table is not None]
    over = grid_tables(analysis.grid) if analysis.grid is not None else []
    return found + progress_tables(analysis) + over
