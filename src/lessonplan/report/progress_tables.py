"""The tables of learning along a run: efficiency and forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lessonplan.report.formats import Cell, Datum, Table, words
from lessonplan.report.tables import range_cell, score_cell
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.efficiency import Efficiency
from lessonplan.statistics.forgetting import Forgetting
from lessonplan.statistics.verdict import MINUS, signed, spoken

DROP = f"just seen {MINUS} long ago"


def reached_words(seen: float) -> str:
    """Return a number of questions, or that a level is not reached."""
    return f"{seen:,.0f}" if math.isfinite(seen) else "not reached"


def efficiency_table(found: Sequence[Efficiency]) -> Table | None:
    """Area under the learning curve and questions to the baseline's level; None where unknown."""
    if not found:
        return None
    several = len({(e.model, e.evaluation) for e in found}) > 1
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for e in found:
        gain: list[Cell] = [Cell("baseline"), Cell("–")]
        if e.gain is not None:
            gain = [
                Cell(signed(e.gain.mean, e.metric), e.gain.mean),
                range_cell(e.gain.low, e.gain.high, e.metric, sign=True),
            ]
        rows.append(
            [
                words(spoken(e.arm)),
                *([words(e.model), words(e.evaluation)] if several else []),
                score_cell(e.area.mean, e.metric),
                *gain,
                Cell(reached_words(e.reached), e.reached if math.isfinite(e.reached) else None),
                Cell(f"{reached_words(e.low)} to {reached_words(e.high)}"),
                Cell(f"{e.end:,}", e.end),
            ]
        )
        g = e.gain
        records.append(
            [
                e.model, e.evaluation, e.arm, e.area.mean, e.area.low, e.area.high,
                *((None,) * 4 if g is None else (g.mean, g.low, g.high, g.p)),
                *(x if math.isfinite(x) else "not reached" for x in (e.reached, e.low, e.high)),
                e.share, e.end, e.area.seeds, e.area.questions, e.area.scope,
            ]
        )  # fmt: skip
    place = ["model", "evaluation"] if several else []
    return Table(
        "efficiency",
        "Area under the learning curve (the score averaged over the questions seen), its gain over "
        "the baseline, and the questions seen until an order has what the baseline has at its end.",
        ["order", *place, "area", "gain", "95% interval", "questions to the baseline's end",
         "95% interval", "of"],
        rows,
        ["model", "evaluation", "order", "area", "area_low", "area_high", "gain", "low", "high",
         "p", "reached", "reached_low", "reached_high", "share_reached", "end", "seeds",
         "questions", "scope"],
        records,
        frozenset(range(1, 1 + len(place))),
    )  # fmt: skip


def forgetting_table(found: Sequence[Forgetting]) -> Table | None:
    """Scores by how long ago the category was last seen; None where that is unknown."""
    if not found:
        return None
    several = len({(f.model, f.evaluation) for f in found}) > 1
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for f in found:
        place = [words(f.model), words(f.evaluation)] if several else []
        for r in f.recalls:
            if r.answers:
                rows.append(
                    [
                        words(spoken(f.arm)),
                        *place,
                        Cell(r.bin, r.since),
                        Cell(f"{r.answers:,}", r.answers),
                        score_cell(r.score, f.metric),
                        _gain_cell(r.gain, f.metric),
                        range_cell(r.low, r.high, f.metric, sign=True),
                    ]
                )
                records.append(
                    [f.model, f.evaluation, f.arm, r.bin, r.since, r.answers, r.score, r.gain,
                     r.low, r.high]
                )  # fmt: skip
        drop, low, high = f.drop
        if not math.isnan(drop):
            ends = [_gain_cell(drop, f.metric), range_cell(low, high, f.metric, sign=True)]
            rows.append([words(spoken(f.arm)), *place, Cell(DROP), Cell("–"), Cell("–"), *ends])
            records.append([f.model, f.evaluation, f.arm, DROP, None, None, None, drop, low, high])
    where = ["model", "evaluation"] if several else []
    return Table(
        "forgetting",
        "Scores at the checkpoints and at the end by how long ago the question's category was last "
        "seen in training, and the gain over the baseline's answers to the same questions at the "
        "same point.",
        ["order", *where, "category last seen", "answers", "score", "gain", "95% interval"],
        rows,
        ["model", "evaluation", "order", "last_seen", "questions_since", "answers", "score",
         "gain", "low", "high"],
        records,
        frozenset(range(1, 2 + len(where))),
    )  # fmt: skip


def _gain_cell(gain: float, metric: str) -> Cell:
    return Cell("–") if math.isnan(gain) else Cell(signed(gain, metric), gain)


def progress_tables(analysis: Analysis) -> list[Table]:
    """Return the tables that have something to say."""
    tables = [efficiency_table(analysis.efficiency), forgetting_table(analysis.forgetting)]
    return [table for table in tables if table is not None]
