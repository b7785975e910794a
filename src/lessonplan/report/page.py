"""The page: the answer first, then what it rests on. All text that comes from data is escaped."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from lessonplan.evaluation.outcomes import Record
from lessonplan.report.grid_section import grid_section
from lessonplan.report.progress_section import progress_section
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
from lessonplan.report.style import CSS, SCRIPT
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.crossed import THESE_RUNS
from lessonplan.statistics.verdict import place, signed, spoken, verdict


def page(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    """Return the whole page as HTML text.

    Args:
        pictures: "gains", "curves-<i>" for result i, "orders-<training set>", and
            "map-<n>" for category source n, "efficiency" and "forgetting", where they could be
            drawn.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = [_head(record, analysis, pictures), "<main>"]
    several = len(analysis.results) > 1
    for number, result in enumerate(analysis.results):
        parts.append(result_section(result, number, pictures, several))
    parts += [
        grid_section(analysis),
        progress_section(record, analysis, pictures),
        pooled_section(analysis),
        orders_section(record, analysis, pictures),
        labels_section(analysis),
        sources_section(record, analysis, pictures),
        rates_section(analysis),
        quality_section(record, analysis),
        details_section(record, analysis),
        "</main>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(record.title)}</title><style>{CSS}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + "<footer>Made by lessonplan. Everything on this page is in this one file; the tables and "
        "figures lie beside it.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _head(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    said = verdict(record, analysis)
    caveats = "".join(f"<li>{escape(c)}</li>" for c in said.caveats)
    listed = f'<ul class="caveats">{caveats}</ul>' if caveats else ""
    links = ""
    if len(analysis.results) > 1:
        items = "".join(
            f'<li><a href="#result-{i}">{escape(place(r))}</a></li>'
            for i, r in enumerate(analysis.results)
        )
        links = f'<nav aria-label="Comparisons"><ul>{items}</ul></nav>'
    first, second = (escape(s) for s in said.sentences)
    return (
        f"<header><h1>{escape(record.title)}</h1>"
        f'<p class="facts">{escape(_facts(record, analysis))}</p>'
        f'<section class="verdict" aria-label="The answer">'
        f'<span class="badge {said.kind.replace(" ", "-")}">{BADGES[said.kind]}</span>'
        f'<p class="first">{first}</p><p class="second">{second}</p>'
        f"{listed}</section>"
        f"{_gains(analysis, pictures)}{links}</header>"
    )


def _facts(record: Record, analysis: Analysis) -> str:
    parts = []
    if len(analysis.results) == 1:
        outcome = analysis.results[0].outcome
        spot = place(analysis.results[0])
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
    return figure(pictures, "gains", "Gains over the baseline: " + "; ".join(told), caption)
