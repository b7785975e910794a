"""The section that compares label sources, and the check of difficulties for leaks."""

from __future__ import annotations

import math
from html import escape

from lessonplan.evaluation.outcomes import LabelSource, Record, place_of
from lessonplan.report.formats import to_html
from lessonplan.report.maps import mapped
from lessonplan.report.sections import Pictures, figure
from lessonplan.report.source_tables import (
    agreement_table,
    leak_table,
    number_cell,
    overlap_table,
    source_gains_table,
)
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.sources import Agreement, category_codes
from lessonplan.statistics.verdict import chance_of, listing, source_sentence


def sources_section(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    """Return the comparison of label sources, the maps, and the check for leaks.

    With one source of each label there is nothing to compare, and the parts that remain stand on
    their own.
    """
    agreement, gains = agreement_table(analysis), source_gains_table(analysis)
    drawn = _maps(record, pictures)
    if agreement is None and gains is None:
        leaks = _leaks(analysis, "h3" if analysis.labels else "h2")
        return leaks + (f"<h2>The questions on a map</h2>{drawn}" if drawn else "")
    parts = ["<h2>Which labels?</h2>", _origins(record.label_sources)]
    if agreement is not None:
        said = " ".join(agreement_sentence(a) for a in analysis.agreements)
        parts += [
            "<h3>Do the sources agree?</h3>",
            f"<p>{escape(said)}</p>",
            f'<div class="dense">{to_html(agreement)}</div>',
        ]
    if gains is not None:
        several = len({(g.model, g.evaluation) for g in analysis.source_gains}) > 1
        said = " ".join(
            (f"{place_of(g.model, g.evaluation)}: " if several else "") + source_sentence(g)
            for g in analysis.source_gains
            if g.pooled
        )
        parts += [
            "<h3>Does it matter which?</h3>",
            f"<p>{escape(said)}</p>",
            "<p>Descriptive: outside the family in which winners are called, and corrected among "
            "themselves. The averages are one family, the single strategies another.</p>",
            f'<div class="dense">{to_html(gains)}</div>',
        ]
    parts.append(_leaks(analysis, "h3"))
    overlap = overlap_table(analysis)
    if overlap is not None or drawn:
        parts.append("<h3>What the categories hold</h3>" + drawn)
    if overlap is not None:
        parts.append(
            f"<details><summary>{len(overlap.rows)} categories in terms of the other source"
            f'</summary><div class="dense">{to_html(overlap)}</div></details>'
        )
    return "".join(parts)


def agreement_sentence(agreement: Agreement) -> str:
    """Say how far two sources of a label agree."""
    a = agreement
    noun = "difficulties" if a.kind == "difficulty" else "categories"
    subject = f"The {noun} “{a.source}” and “{a.other}”" + (
        f" on {a.training}" if a.training else ""
    )
    if math.isnan(a.value):
        return f"{subject} cannot be compared: one is constant, or too few questions carry both."
    value = number_cell(a.value).text
    if a.kind == "difficulty":
        low, high = number_cell(a.low).text, number_cell(a.high).text
        found = f"rank correlation {value} (95% interval {low} to {high})"
        if a.low <= 0 <= a.high:
            return f"{subject} show no agreement that luck cannot explain: {found}."
        if a.value < 0:
            return f"{subject} contradict each other: {found}."
        return f"{subject} agree {_grade(a.value)}: {found}."
    found = (
        f"adjusted mutual information {value}, where luck stays below "
        f"{number_cell(a.luck_high).text} in 95% of cases"
    )
    if a.value <= a.luck_high:
        return f"{subject} show no agreement that luck cannot explain: {found}."
    return f"{subject} agree {_grade(a.value)}: {found}."


def _grade(value: float) -> str:
    steps = ((0.3, "weakly"), (0.6, "moderately"), (0.85, "well"))
    return next((word for bound, word in steps if value < bound), "closely")


def _leaks(analysis: Analysis, level: str) -> str:
    table = leak_table(analysis)
    if table is None:
        return ""
    said = []
    for found in (True, False):
        chosen = [k for k in analysis.leaks if k.testable and k.found == found]
        if not chosen:
            continue
        names = listing(
            [
                f"“{k.source}”"
                + (f" on {k.training}" if k.training else "")
                + (
                    f" ({k.bits:.3f} of the position's {k.position_bits:.2f} bits, "
                    f"{k.luck:.3f} by luck; {chance_of(k.p)})"
                    if found
                    else ""
                )
                for k in chosen
            ]
        )
        said.append(
            f"Of {names} this shows: gains or losses of its orders may be those of a sorting by "
            "letter."
            if found
            else f"No sign of it in {names}."
        )
    if not all(k.testable for k in analysis.leaks):
        said.append("Where the difficulty or the position is one and the same, it cannot be told.")
    return (
        f"<{level}>Does the difficulty give the answer's position away?</{level}>"
        "<p>A labelling model that leans to one letter calls hard whatever the other letters "
        "answer, and an order by such a difficulty sorts the questions by the position of their "
        f"right answer. {escape(' '.join(said))}</p>{to_html(table)}"
    )


def _origins(sources: list[LabelSource]) -> str:
    lines = []
    for s in sources:
        where = f" on {s.training}" if s.training else ""
        if s.kind == "category":
            codes, names = category_codes(s.values)
            labelled, levels = int((codes >= 0).sum()), f", {len(names)} categories"
        else:
            labelled, levels = sum(v is not None and v == v for v in s.values), ""
        lines.append(
            f"{s.kind.capitalize()} “{s.source}”{where}: {s.origin or 'origin unknown'} "
            f"({labelled:,} of {len(s.values):,} questions{levels})."
        )
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _maps(record: Record, pictures: Pictures) -> str:
    parts = []
    for name, s in mapped(record).items():
        where = f" of {s.training}" if s.training else ""
        caption = (
            f"The questions{where} on a map on which like lies near like, coloured by the "
            f"category “{s.source}” ({s.origin or 'origin unknown'}). Each number stands by the "
            "middle of its category; distances between far groups mean little."
        )
        label = f"Map of the questions{where} by the category “{s.source}”."
        parts.append(figure(pictures, name, label, escape(caption)))
    return "".join(parts)
