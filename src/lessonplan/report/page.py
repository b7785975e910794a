"""The page: the answer first, then what it rests on. All text that comes from data is escaped."""

from __future__ import annotations

import re
from html import escape

from lessonplan.evaluation.outcomes import Record
from lessonplan.report.document import document
from lessonplan.report.grid_section import grid_section
from lessonplan.report.marks import gain_marks
from lessonplan.report.progress_section import progress_section
from lessonplan.report.question_section import questions_section
from lessonplan.report.sections import (
    BADGES,
    Pictures,
    details_section,
    figure,
    labels_section,
    orders_section,
    pooled_section,
    quality_section,
    rates_section,
    result_section,
)
from lessonplan.report.source_section import sources_section
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.crossed import THESE_RUNS
from lessonplan.statistics.verdict import signed, spoken, verdict


def page(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    """Return the whole page as HTML text.

    Args:
        pictures: "gains", "curves-<i>" for result i, "orders-<training set>", and
            "map-<n>" for category source n, "efficiency" and "forgetting", where they could be
            drawn.
    """
    several = len(analysis.results) > 1
    parts = [
        *(
            result_section(result, number, pictures, several)
            for number, result in enumerate(analysis.results)
        ),
        grid_section(analysis),
        progress_section(record, analysis, pictures),
        pooled_section(analysis),
        questions_section(analysis),
        orders_section(record, analysis, pictures),
        labels_section(analysis),
        sources_section(record, analysis, pictures),
        rates_section(record, analysis),
        quality_section(record, analysis),
        details_section(record, analysis),
    ]
    outline, body = outlined("\n".join(part for part in parts if part))
    return document(
        record.title,
        '<a class="skip" href="#below">Skip to the tables and figures</a>'
        f"{_head(record, analysis, pictures)}\n{outline}\n"
        f'<main id="below" tabindex="-1">\n{body}\n</main>\n'
        "<footer>Made by lessonplan. Everything on this page is in this one file; the tables and "
        "figures lie beside it.</footer>",
    )


HEADING = re.compile(r'<h2(?: id="([^"]+)")?>(.*?)</h2>', re.S)


def outlined(body: str) -> tuple[str, str]:
    """Give every h2 an id; return a list of links to them (HTML), and the body."""
    links = []
    taken: set[str] = set()

    def numbered(found: re.Match[str]) -> str:
        ident, text = found.groups()
        if ident is None:
            ident = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
            while ident in taken:
                ident += "-"
        taken.add(ident)
        links.append(f'<li><a href="#{ident}">{text}</a></li>')
        return f'<h2 id="{ident}">{text}</h2>'

    body = HEADING.sub(numbered, body)
    if len(links) < 2:
        return "", body
    return f'<nav class="outline" aria-label="On this page"><ul>{"".join(links)}</ul></nav>', body


def _head(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    said = verdict(record, analysis)
    listed = link = ""
    if said.caveats:
        caveats = "".join(f"<li>{escape(c)}</li>" for c in said.caveats)
        listed = f'<ul class="caveats" id="cautions" aria-label="Cautions">{caveats}</ul>'
        number = len(said.caveats)
        words = "1 caution" if number == 1 else f"{number} cautions"
        link = f'<a class="cautions-link" href="#cautions">{words} below</a>'
    first, second = (escape(s) for s in said.sentences)
    return (
        f"<header><h1>{escape(record.title)}</h1>"
        f'<p class="facts">{escape(_facts(record, analysis))}</p>'
        '<section class="verdict" aria-label="The answer">'
        f'<span class="badge {said.kind.replace(" ", "-")}">{BADGES[said.kind]}</span>{link}'
        f'<p class="first">{first}</p><p class="second">{second}</p></section>'
        f"{_gains(analysis, pictures)}{listed}</header>"
    )


def _facts(record: Record, analysis: Analysis) -> str:
    parts = []
    if len(analysis.results) == 1:
        outcome = analysis.results[0].outcome
        spot = analysis.results[0].outcome.place
        seeds = len(outcome.seeds)
        parts += [spot] if spot else []
        parts += [
            f"{len(outcome.arms)} orders",
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}",
            f"{len(outcome.ids):,} questions",
        ]
    elif analysis.results:
        outcomes = [r.outcome for r in analysis.results]
        models, sets = {o.model for o in outcomes}, {o.evaluation for o in outcomes}
        parts.append(f"{len(models)} {'model' if len(models) == 1 else 'models'}")
        parts.append(f"{len(sets)} evaluation {'set' if len(sets) == 1 else 'sets'}")
    if record.runs_planned:
        parts.append(f"{record.runs_done} of {record.runs_planned} runs")
    if record.seconds:
        parts.append(f"{_duration(record.seconds)} of computing")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _gains(analysis: Analysis, pictures: Pictures) -> str:
    told = []
    scopes = set()
    for result in analysis.results:
        for gain in result.gains:
            if gain.estimate is not None:
                e, metric = gain.estimate, result.outcome.metric
                scopes.add(e.scope)
                told.append(
                    f"{spoken(gain.arm)} {signed(e.mean, metric)} "
                    f"({signed(e.low, metric)} to {signed(e.high, metric)})"
                )
    caption = (
        "Gain of each order over the baseline, same model, same seed, question by question. Bars "
        "are 95% intervals; overlapping bars do not mean that two orders are equal. "
    )
    if any(r.best is not None and r.best.k > 1 for r in analysis.results):
        caption += "The dashed line is where luck alone would put the best order on average. "
    if THESE_RUNS in scopes:
        caption += "Dotted bars speak of these runs alone, not of other seeds. "
    if any(g.winner for r in analysis.results for g in r.gains):
        caption += "A green diamond marks a gain beyond luck, corrected for the number of tests. "
    if any(not g.testable for r in analysis.results for g in r.gains):
        caption += "Hollow marks cannot be tested. "
    label = "Gains over the baseline: " + "; ".join(told)
    return figure(pictures, "gains", label, caption, gain_marks(analysis.results))
