"""What a grid shows in words, its section of the page, and a page for bare accuracies."""

from __future__ import annotations

from html import escape

from lessonplan.errors import counted
from lessonplan.report.document import document
from lessonplan.report.formats import to_html
from lessonplan.report.grid_tables import KINDS, exact, grid_tables
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.grid import (
    EVALUATION,
    MODEL,
    Average,
    Grid,
    average_best,
    count_wins,
)
from lessonplan.statistics.verdict import capital, listing, spoken, unit


def grid_sentences(grid: Grid) -> list[str]:
    """Say how large the best gains are beside luck, how often the best order changes, and more."""
    said = list(grid.notes)
    for by in (MODEL, EVALUATION):
        kept, every = grid.of(by), grid.of(by, blocked=True)
        for setting in grid.settings:
            average = average_best(kept, setting.name)
            alone = average is not None and average.columns < 2
            if average is None or (alone and len(grid.columns) > 1):
                continue
            k = max(b.k for c in kept for b in c.best if b.setting == setting.name)
            gained = exact(average.gain, grid.metric, sign=True) + unit(grid.metric)
            told = (
                f"The best of {counted(k, 'order')} gains {gained}"
                + ("" if alone else f" on average over {average.columns} {KINDS[by]}s")
                + (f" with {setting.name}" if setting.name else "")
            )
            whole = average_best(every, setting.name)
            if whole is not None and whole.columns > average.columns:
                told += (
                    f" ({exact(whole.gain, grid.metric, sign=True)} with those that are left out)"
                )
            said.append(told + _by_luck(average, grid) + ".")
    said += _changes(grid)
    return said


def _by_luck(average: Average, grid: Grid) -> str:
    if not average.luck:
        return ""
    several = len(average.luck) > 1
    lucks = [
        exact(value, grid.metric, sign=True) + (f" ({kind})" if several else "")
        for kind, value in average.luck.items()
    ]
    return f"; luck alone gives {' or '.join(lucks)}"


def _changes(grid: Grid) -> list[str]:
    columns = grid.of(MODEL) + grid.of(EVALUATION)
    total = sum(len(c.best) for c in columns)
    wins = count_wins(columns)
    if total < 2:
        return []
    if len(wins) == 1:
        return [f"{capital(spoken(wins[0].strategy))} is the best in all {total} columns."]
    counted = [f"{spoken(w.strategy)} in {w.wins}" for w in wins]
    return [
        f"The best order changes: of {total} columns, {listing(counted)}. Luck alone would make it "
        "change, too: of orders that differ by nothing, each is the best as often as any other."
    ]


def grid_section(analysis: Analysis) -> str:
    """Return the tables over models, evaluation sets and label sources; "" for a single result."""
    if analysis.grid is None:
        return ""
    note = "Descriptive: winners are called for each model and evaluation set by itself."
    return f"<h2>Over models, sets and labels</h2>{_body(analysis.grid, note)}"


def _body(grid: Grid, note: str) -> str:
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in grid_sentences(grid))
    tables = "".join(f'<div class="dense">{to_html(t)}</div>' for t in grid_tables(grid))
    return f"{said}<p>{note}</p>{tables}"


def grid_page(grid: Grid, title: str) -> str:
    """Return a page that holds nothing but a grid."""
    note = "From bare accuracies no winner is called: nothing is known of seeds and questions."
    heading = f"<header><h1>{escape(title)}</h1></header>"
    return document(title, f"{heading}<main>{_body(grid, note)}</main>")
