"""The tables that compare label sources: agreement, overlap, leaks and gains."""

from __future__ import annotations

import math

from lessonplan.report.figures import shortened
from lessonplan.report.formats import Cell, Datum, Table, words
from lessonplan.report.tables import p_cell, range_cell, score_cell
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.sources import SourceGain
from lessonplan.statistics.verdict import MINUS, signed, spoken


def number_cell(value: float, digits: int = 2) -> Cell:
    """Show a number with a fixed count of decimals, "–" for NaN."""
    if math.isnan(value):
        return Cell("–")
    text = f"{value:.{digits}f}"
    return Cell((text.lstrip("-") if float(text) == 0 else text).replace("-", MINUS), value)


def agreement_table(analysis: Analysis) -> Table | None:
    """Every two sources of a label; None where each label has one."""
    if not analysis.agreements:
        return None
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for a in analysis.agreements:
        interval = Cell("–")
        if not math.isnan(a.low):
            low, high = number_cell(a.low), number_cell(a.high)
            interval = Cell(f"{low.text} to {high.text}", a.low)
        measure = "rank correlation" if a.kind == "difficulty" else "adjusted mutual information"
        rows.append(
            [
                words(f"{a.source} / {a.other}"),
                words(a.kind),
                words(a.training),
                words(measure),
                number_cell(a.value),
                interval,
                number_cell(a.luck_high),
                Cell(f"{a.levels[0]:,} / {a.levels[1]:,}", a.levels[0]),
                Cell(f"{a.questions:,}", a.questions),
            ]
        )
        records.append(
            [
                a.training, a.kind, a.source, a.other, measure, a.value, a.low, a.high, a.luck,
                a.luck_high, *a.levels, a.questions,
            ]
        )  # fmt: skip
    return Table(
        "label_agreement",
        "Agreement of the label sources: Spearman's rank correlation of difficulties, mutual "
        "information adjusted for chance of categories (0: as unrelated as luck, 1: the same).",
        ["sources", "label", "training", "measure", "agreement", "95% interval",
         "luck stays below (95%)", "distinct labels", "questions"],
        rows,
        ["training", "label", "source", "other", "measure", "agreement", "low", "high", "luck",
         "luck_95", "source_levels", "other_levels", "questions"],
        records,
        frozenset({1, 2, 3}),
    )  # fmt: skip


def overlap_table(analysis: Analysis) -> Table | None:
    """The largest categories of one source in each category of the other."""
    if not analysis.overlaps:
        return None
    several = len({(o.training, o.source, o.other) for o in analysis.overlaps}) > 1
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for o in analysis.overlaps:
        share = o.top[0][1] / o.questions
        told = ", ".join(
            f"{shortened(name, 40)} {count / o.questions:.0%}" for name, count in o.top
        )
        pair = [words(f"{o.source} / {o.other}"), words(o.training)] if several else []
        size = Cell(f"{o.questions:,}", o.questions)
        rows.append([words(o.category), *pair, size, Cell(told, share)])
        records += [
            [o.training, o.source, o.category, o.questions, o.other, name, count,
             count / o.questions]
            for name, count in o.top
        ]  # fmt: skip
    first = analysis.overlaps[0]
    return Table(
        "label_overlap",
        "The largest categories of the other source in each category, with their share of it."
        if several
        else f"The largest “{first.other}” categories in each “{first.source}” category, with "
        "their share of it.",
        ["category", *(["sources", "training"] if several else []), "questions", "made up of"],
        rows,
        [
            "training",
            "source",
            "category",
            "questions",
            "other",
            "other_category",
            "count",
            "share",
        ],
        records,
        frozenset({1, 2, 4} if several else {2}),
    )


def leak_table(analysis: Analysis) -> Table | None:
    """Difficulty beside the position of the right answer."""
    if not analysis.leaks:
        return None
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for k in analysis.leaks:
        rows.append(
            [
                words(k.source),
                words(k.training),
                number_cell(k.bits, 4),
                number_cell(k.luck, 4),
                number_cell(k.position_bits),
                p_cell(k.p),
                Cell(f"{k.questions:,}", k.questions),
                words("yes" if k.found else "no"),
            ]
        )
        records.append(
            [
                k.training, k.source, k.bits, k.luck, k.position_bits, k.p, k.questions, k.bins,
                "yes" if k.found else "no",
            ]
        )  # fmt: skip
    return Table(
        "label_leak",
        "Mutual information, in bits, of each difficulty with the position of the right answer, "
        "and its mean when the positions are shuffled.",
        ["difficulty", "training", "bits", "bits by luck", "bits in the position", "p",
         "questions", "gives the position away"],
        rows,
        ["training", "difficulty", "bits", "bits_by_luck", "position_bits", "p", "questions",
         "bins", "leak"],
        records,
        frozenset({1, 7}),
    )  # fmt: skip


def finding(gain: SourceGain) -> str:
    """Say in a word or two what a line may claim."""
    if gain.blocked:
        return f"no claim: {gain.blocked}"
    if not gain.testable:
        return "these runs alone"
    if gain.found:
        return "above" if gain.estimate.mean > 0 else "below"
    return ""


def strategy_words(gain: SourceGain) -> str:
    """Name the strategy of a line, or how many it averages."""
    if len(gain.strategies) > 1:
        return f"average of {len(gain.strategies)} strategies"
    if gain.averaged > 1:
        return f"average of {spoken(gain.strategies[0])}"
    return spoken(gain.strategies[0]) + (f" [{gain.fixed}]" if gain.fixed else "")


def source_gains_table(analysis: Analysis) -> Table | None:
    """Each strategy under one label source minus the same under another, and their average."""
    if not analysis.source_gains:
        return None
    found = analysis.source_gains
    several = len({(g.model, g.evaluation) for g in found}) > 1
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for g in found:
        e, metric = g.estimate, g.metric
        mark = ("good" if e.mean > 0 else "bad") if g.found else ""
        name = strategy_words(g)
        rows.append(
            [
                Cell(name, name.lower()),
                words(g.kind),
                *([words(g.model), words(g.evaluation)] if several else []),
                words(f"{g.source} {MINUS} {g.other}"),
                score_cell(g.score, metric),
                score_cell(g.other_score, metric),
                Cell(signed(e.mean, metric), e.mean, mark=mark),
                range_cell(e.low, e.high, metric, sign=True),
                p_cell(None if g.blocked else e.p),
                p_cell(g.p_holm),
                Cell(str(e.seeds), e.seeds),
                words(finding(g)),
            ]
        )
        records.append(
            [
                g.model, g.evaluation, g.kind, g.source, g.other, "; ".join(g.strategies),
                "yes" if g.pooled else "no", g.fixed, g.score, g.other_score, e.mean, e.low, e.high,
                e.se, e.df, e.p, g.p_holm, e.seeds, e.scope, finding(g),
            ]
        )  # fmt: skip
    where = ["model", "evaluation"] if several else []
    return Table(
        "label_gains",
        "Each strategy under two sources of a label, the first minus the second, paired by seed "
        "and question.",
        ["strategy", "label", *where, "sources", "first", "second", "difference", "95% interval",
         "p", "Holm p", "runs", "finding"],
        rows,
        ["model", "evaluation", "label", "source", "other", "strategies", "pooled", "fixed",
         "score", "other_score", "difference", "low", "high", "se", "df", "p", "p_holm", "seeds",
         "scope", "finding"],
        records,
        frozenset({*range(1, 3 + len(where)), 10 + len(where)}),
    )  # fmt: skip
