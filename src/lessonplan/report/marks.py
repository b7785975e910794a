"""What the marks of a figure say when pointed at, and the key beside a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lessonplan.report.figures import INK, curve_looks, curve_points
from lessonplan.statistics.crossed import THESE_RUNS, Estimate
from lessonplan.statistics.family import Gain
from lessonplan.statistics.result import ACCURACY, Result
from lessonplan.statistics.verdict import chance_of, interval_words, signed, spoken, unit

SHAPES = {
    "o": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "s": "M-3.2-3.2h6.4v6.4h-6.4z",
    "D": "M0-4.6L4.6 0 0 4.6-4.6 0z",
    "^": "M0-4L4 3.4h-8z",
    "v": "M0 4L4-3.4h-8z",
    "P": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
    "X": "M-4-2l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
}
"""Matplotlib's markers as paths around 0, 0."""


@dataclass(frozen=True)
class Series:
    """The marks of one arm in a figure: its name, and what each mark says, from left to right."""

    name: str
    points: list[str]


Marks = Mapping[str, Series]
"""Id of a group in the SVG -> the series that it draws."""


def gain_marks(results: Sequence[Result]) -> dict[str, Series]:
    """Return the marks of `lessonplan.report.figures.gains_figure`."""
    found = {}
    for n, result in enumerate(results):
        where = f", {result.outcome.place}" if len(results) > 1 else ""
        for i, gain in enumerate(result.gains):
            if gain.estimate is not None:
                said = _gain_words(gain, gain.estimate, result.outcome.metric)
                found[f"gain-{n}-{i}"] = Series(f"{spoken(gain.arm)}{where}", [said])
    return found


def _gain_words(gain: Gain, e: Estimate, metric: str) -> str:
    lines = [signed(e.mean, metric) + unit(metric), interval_words(e, metric)]
    if gain.testable and gain.p_holm is not None:
        lines.append(f"{chance_of(e.p)}; after Holm's correction {chance_of(gain.p_holm)}")
    seeds = "1 seed" if e.seeds == 1 else f"{e.seeds} seeds"
    lines.append(f"{seeds}, {e.questions:,} questions")
    if e.scope == THESE_RUNS:
        lines.append("speaks of these runs alone")
    return "\n".join(lines)


def curve_marks(result: Result) -> dict[str, Series]:
    """Return the marks of `lessonplan.report.figures.curves_figure` of this result alone."""
    outcome = result.outcome
    found = {}
    for i, arm in enumerate(outcome.arms):
        seen, means = curve_points(outcome, arm)
        points = [
            f"{score * 100:.1f}% right\n{n:,} questions seen"
            if outcome.metric == ACCURACY
            else f"{outcome.metric} {score:.4g}\n{n:,} questions seen"
            for n, score in zip(seen, means, strict=True)
        ]
        if points:
            found[f"curve-0-{i}"] = Series(spoken(arm), points)
    return found


def curve_key(result: Result) -> str:
    """Return the key of a result's curves as a list (HTML); the script turns it into toggles."""
    outcome = result.outcome
    looks = curve_looks(outcome)
    items = []
    for i, arm in enumerate(outcome.arms):
        if not len(curve_points(outcome, arm)[0]):
            continue
        look = looks[arm]
        colour = "var(--ink)" if look["color"] == INK else look["color"]
        dash = {"-": "", "--": "6 3", ":": "2 3"}.get(str(look["ls"]), "6 3")
        items.append(
            f'<li data-series="curve-0-{i}">'
            '<svg viewBox="-14 -6 28 12" width="28" height="12" aria-hidden="true">'
            f'<path d="M-14 0h28" fill="none" stroke="{colour}" stroke-width="{look["lw"]}"'
            f' stroke-dasharray="{dash}"/><path d="{SHAPES[look["marker"]]}" fill="{colour}"/>'
            f"</svg><span>{escape(spoken(arm))}</span></li>"
        )
    return f'<ul class="key">{"".join(items)}</ul>'
