"""A table as rows, and its forms: HTML, Markdown, CSV and LaTeX, safe whatever the text in it."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lessonplan.statistics.verdict import MINUS

Datum = str | float | int | None


@dataclass(frozen=True)
class Cell:
    """What is read in a cell, what it is sorted by (None: last), and how strongly it is tinted.

    A tint runs from -1 (orange) to 1 (blue); mark is a CSS class.
    """

    text: str
    key: float | str | None = None
    tint: float = 0.0
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table as read (heads, rows) and as data (fields, records), for HTML and CSV.

    Attributes:
        name: the file's name without ending.
        caption: one sentence.
        heads, rows: as read; the first column names the row, the others are numbers unless they
            stand in `worded`.
        fields, records: as data, numbers in full.
        worded: columns of text, by index, besides the first.
    """

    name: str
    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    fields: list[str]
    records: list[list[Datum]]
    worded: frozenset[int] = field(default_factory=frozenset)


def words(text: str) -> Cell:
    """Show text, sorted without regard to case."""
    return Cell(text, text.lower())


def to_html(table: Table, *, caption: str | None = None) -> str:
    """Return the table; the page's script makes its heads sort. All text is escaped."""
    heads = "".join(
        f'<th scope="col" class="{"w" if i == 0 or i in table.worded else "n"}">'
        f"{html.escape(head)}</th>"
        for i, head in enumerate(table.heads)
    )
    lines = []
    for row in table.rows:
        cells = []
        for i, cell in enumerate(row):
            kind = "w" if i == 0 or i in table.worded else "n"
            key = "" if cell.key is None or cell.key != cell.key else html.escape(str(cell.key))
            tag = 'th scope="row"' if i == 0 else "td"
            tint = ""
            if abs(cell.tint) >= 0.02:
                rgb = "59,125,216" if cell.tint > 0 else "224,118,47"
                tint = f' style="background:rgba({rgb},{0.45 * abs(cell.tint):.2f})"'
            classes = f"{kind} {cell.mark}".strip()
            cells.append(
                f'<{tag} class="{classes}" data-key="{key}"{tint}>{html.escape(cell.text)}'
                f"</{tag[:2]}>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    said = html.escape(table.caption if caption is None else caption)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{said}">'
        f'<table class="sortable"><caption>{said}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def to_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, with its caption below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def safe(text: str) -> str:
        text = html.escape(" ".join(text.split()), quote=False)
        return re.sub(r"([\\|`*\[\]])", r"\\\1", text)

    rule = [":--" if i == 0 or i in table.worded else "--:" for i in range(len(table.heads))]
    rows = [line([safe(c.text) for c in row]) for row in table.rows]
    head = line([safe(h) for h in table.heads])
    return "\n".join([head, line(rule), *rows, "", safe(table.caption), ""])


FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # East Asian forms, too


def to_csv(table: Table) -> str:
    """Return the data as CSV; text that a spreadsheet would take for a formula gets a ' before."""

    def safe(value: Datum) -> str | float | int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, str) and value.startswith(FORMULA_STARTS):
            return "'" + value
        return value

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.fields)
    writer.writerows([safe(v) for v in record] for record in table.records)
    return out.getvalue()


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: r"$-$",
    "–": "--",
    "…": r"\ldots{}",
}


TEXT_WIDTH, PAGE_LINES = 65, 40
"""Characters and rows of a table that fit on a page of LaTeX's article."""


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """Return table environments; they need booktabs, graphicx, and T1 fonts for quotes.

    A table wider than the text is scaled down to it; one longer than a page is cut into several.
    """
    columns = "".join("l" if i == 0 or i in table.worded else "r" for i in range(len(table.heads)))
    texts = [table.heads, *([c.text for c in row] for row in table.rows)]
    width = sum(max(map(len, column)) + 2 for column in zip(*texts, strict=True))
    scale = r"\resizebox{\textwidth}{!}{" if width > TEXT_WIDTH else "{"
    # An empty group before each cell: a row that begins with [ would be read as an option of \\.
    head, *lines = (" & ".join("{}" + latex(text) for text in row) + r" \\" for row in texts)
    parts = [lines[i : i + PAGE_LINES] for i in range(0, max(1, len(lines)), PAGE_LINES)]
    out = []
    for number, part in enumerate(parts):
        caption = latex(table.caption) if number == 0 else "(continued)"
        out += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"{scale}\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *part,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    return "\n".join(out)
