"""The tables of a grid: orders by model and by evaluation set, the best ones, and label sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lessonplan.report.formats import Cell, Datum, Table, words
from lessonplan.report.tables import p_cell
from lessonplan.statistics.crossed import LEAST_SEEDS, THESE_RUNS
from lessonplan.statistics.family import ALPHA
from lessonplan.statistics.grid import (
    CELL,
    EVALUATION,
    MEAN,
    MODEL,
    Column,
    Grid,
    Wins,
    average_best,
    count_wins,
)
from lessonplan.statistics.result import ACCURACY
from lessonplan.statistics.verdict import MINUS, spoken

KINDS = {MODEL: "model", EVALUATION: "evaluation set", CELL: "model and evaluation set"}


def exact(value: float, metric: str, *, sign: bool = False) -> str:
    """Return a score (accuracies in per cent) or a gain to two decimals, or to four digits.

    One decimal more than elsewhere: means over a grid are surer than their parts.
    """
    if math.isnan(value):
        return "–"
    scaled, form = (value * 100, ".2f") if metric == ACCURACY else (value, ".4g")
    text = format(scaled, f"{'+' if sign else ''}{form}")
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def grid_tables(grid: Grid) -> list[Table]:
    """Return all tables of a grid that have something to say."""
    kinds = [by for by in (MODEL, EVALUATION) if grid.of(by, blocked=True)]
    tables = [scores_table(grid, by) for by in kinds] + [gains_by_table(grid, by) for by in kinds]
    found = [*tables, best_of_grid_table(grid), wins_table(grid), contrasts_table(grid)]
    return [table for table in found if table is not None]


def _columns(grid: Grid, by: str) -> list[Column]:
    return grid.of(by, blocked=True) + ([grid.means[by]] if by in grid.means else [])


def _heads(columns: Sequence[Column]) -> list[str]:
    return [c.name + (f" ({c.blocked})" if c.blocked else "") for c in columns]


def _averaged(by: str) -> str:
    over = EVALUATION if by == MODEL else MODEL
    return f"by {KINDS[by]}, averaged over {KINDS[over]}s"


def scores_table(grid: Grid, by: str) -> Table:
    """Score of each order in each column of a kind, tinted by its gain."""
    columns = _columns(grid, by)
    arms = list(dict.fromkeys(arm for c in columns for arm in c.scores))
    strongest = max((abs(e.mean) for c in columns for e in c.gains.values()), default=0) or 1.0
    rows, records = [], []
    for arm in arms:
        cells = [words(spoken(arm))]
        for c in columns:
            score, gain = c.scores.get(arm, math.nan), c.gains.get(arm)
            tint = gain.mean / strongest if gain and not c.blocked else 0.0
            cells.append(Cell(exact(score, grid.metric), score, tint))
            records.append([by, c.name, arm, c.scores.get(arm), c.blocked])
        rows.append(cells)
    unit = "Accuracy (%)" if grid.metric == ACCURACY else "Score"
    return Table(
        f"grid_by_{by}",
        f"{unit} of each order {_averaged(by)}. The mean leaves out what is at the floor or the "
        "ceiling.",
        ["order", *_heads(columns)],
        rows,
        ["by", "column", "order", "score", "blocked"],
        records,
    )


def gains_by_table(grid: Grid, by: str) -> Table:
    """Gain of each order over the baseline in each column of a kind, with what is known of it."""
    columns = _columns(grid, by)
    arms = list(dict.fromkeys(arm for c in columns for arm in c.gains))
    few = any(
        e.scope == THESE_RUNS and not math.isnan(e.low) for c in columns for e in c.gains.values()
    )
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for arm in arms:
        cells = [words(spoken(arm))]
        for c in columns:
            e, p = c.gains.get(arm), c.p_holm.get(arm)
            if e is None:
                cells.append(Cell("–"))
                continue
            text = exact(e.mean, grid.metric, sign=True)
            if not math.isnan(e.low):
                low, high = (exact(x, grid.metric, sign=True) for x in (e.low, e.high))
                text += f" ({low} to {high})"
            clear = p is not None and p < ALPHA
            mark = ("good" if e.mean > 0 else "bad") if clear else ""
            cells.append(Cell(text + ("*" if clear else ""), e.mean, mark=mark))
            records.append(
                [by, c.name, arm, e.mean, e.low, e.high, e.se, e.df, e.p, p, e.scope, c.blocked]
            )
        rows.append(cells)
    return Table(
        f"grid_gains_by_{by}",
        f"Gain over {spoken(grid.baseline)} {_averaged(by)}, with 95% intervals where they are "
        "known. A star: p below 0.05 after Holm's correction over this table. Descriptive."
        + (
            f" Where fewer than {LEAST_SEEDS} seeds are in common, or all alike, intervals speak "
            "of these runs alone."
            if few
            else ""
        ),
        ["order", *_heads(columns)],
        rows,
        ["by", "column", "order", "gain", "low", "high", "se", "df", "p", "p_holm", "scope",
         "blocked"],
        records,
    )  # fmt: skip


def best_of_grid_table(grid: Grid) -> Table | None:
    """The best order of each column beside what luck gives, and the averages over columns."""
    several = len(grid.settings) > 1
    every = [c for by in KINDS for c in (*grid.of(by, blocked=True), *_mean_of(grid, by))]
    noises = list(dict.fromkeys(kind for c in every for b in c.best for kind in b.luck))
    tested = any(not math.isnan(b.low) for c in every for b in c.best)
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []

    def line(
        name: list[str], arm: str, gain: float, luck: dict[str, float], tail: list[Cell]
    ) -> None:
        shown = [words(part) for part in (name if several else [name[0], name[2]])]
        lucks = [exact(luck.get(kind, math.nan), grid.metric, sign=True) for kind in noises]
        cells = [words(spoken(arm)), Cell(exact(gain, grid.metric, sign=True), gain)]
        rows.append([*shown, *cells, *(Cell(t) for t in lucks), *(tail if tested else [])])

    for by, kind in KINDS.items():
        own = grid.of(by, blocked=True)
        for setting in grid.settings:
            for c in (*own, *_mean_of(grid, by)):
                for b in (b for b in c.best if b.setting == setting.name):
                    name = f"all {kind}s" if c.name == MEAN else c.name
                    name += f" ({c.blocked})" if c.blocked else ""
                    low, high = (exact(x, grid.metric, sign=True) for x in (b.low, b.high))
                    line(
                        [name, setting.name, kind], b.arm, b.gain, b.luck,
                        [Cell("–" if math.isnan(b.low) else f"{low} to {high}"), p_cell(b.p)],
                    )  # fmt: skip
                    records.append(
                        [by, c.name, setting.name, b.arm, b.k, b.gain,
                         *(b.luck.get(noise) for noise in noises), b.low, b.high, b.p, c.blocked]
                    )  # fmt: skip
            for columns in _averaged_over(grid, by):
                average = average_best(columns, setting.name)
                if average is None:
                    continue
                blocked = any(c.blocked for c in columns)
                name = f"average of {average.columns} {kind}s" + (", all" if blocked else "")
                line(
                    [name, setting.name, kind], "its own best", average.gain, average.luck,
                    [Cell("–"), Cell("–")],
                )  # fmt: skip
                records.append(
                    [by, name, setting.name, "", None, average.gain,
                     *(average.luck.get(noise) for noise in noises), None, None, None, ""]
                )  # fmt: skip
    if not rows:
        return None
    place = ["column", *(["labels"] if several else []), "kind"]
    return Table(
        "grid_best",
        "The best gain of each column, what luck alone gives the best of as many orders, and their "
        "averages.",
        [*place, "best order", "gain", *(f"by luck ({n})" for n in noises),
         *(["corrected interval", "corrected p"] if tested else [])],
        rows,
        ["by", "column", "labels", "best", "k", "gain",
         *("luck_" + n.replace(" ", "_") for n in noises), "low", "high", "p", "blocked"],
        records,
        frozenset(range(1, 1 + len(place))),
    )  # fmt: skip


def _mean_of(grid: Grid, by: str) -> list[Column]:
    return [grid.means[by]] if by in grid.means else []


def _averaged_over(grid: Grid, by: str) -> list[list[Column]]:
    """Return the columns that count and, where some do not, all of them."""
    kept, every = grid.of(by), grid.of(by, blocked=True)
    return [part for part in ([kept] if kept == every else [kept, every]) if len(part) > 1]


def wins_table(grid: Grid) -> Table | None:
    """How often each strategy is the best one, by kind of column."""
    margins = [c for by in (MODEL, EVALUATION) for c in grid.of(by)]
    every = [c for by in (MODEL, EVALUATION) for c in grid.of(by, blocked=True)]
    parts = {KINDS[by]: grid.of(by) for by in KINDS if grid.of(by)}
    parts["models and sets"] = margins
    if len(every) > len(margins):
        parts["with those left out"] = every
    if not margins or sum(len(c.best) for c in every) < 2:
        return None
    counted = {name: {w.strategy: w for w in count_wins(cs)} for name, cs in parts.items()}
    strategies = list(dict.fromkeys(strategy for own in counted.values() for strategy in own))
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for strategy in strategies:
        found = {name: own.get(strategy, Wins(strategy, 0, 0)) for name, own in counted.items()}
        numbers = [*(w.wins for w in found.values()), found["models and sets"].different]
        rows.append([words(spoken(strategy)), *(Cell(str(n), n) for n in numbers)])
        records += [[strategy, name, w.wins, w.different] for name, w in found.items()]
    heads = [f"{name} (of {sum(len(c.best) for c in cs)})" for name, cs in parts.items()]
    return Table(
        "grid_wins",
        "In how many columns each strategy is the best, under each choice of labels. The last "
        "column counts those of models and sets, one run seen under several labels once.",
        ["strategy", *heads, "different runs"],
        rows,
        ["strategy", "columns", "wins", "different"],
        records,
    )  # fmt: skip


def contrasts_table(grid: Grid) -> Table | None:
    """Strategies under one source of a label minus the same under another, column by column."""
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for by in (MODEL, EVALUATION):
        for c in (*grid.of(by, blocked=True), *_mean_of(grid, by)):
            for k in c.contrasts:
                e = k.estimate
                low, high = (exact(x, grid.metric, sign=True) for x in (e.low, e.high))
                name = f"all {KINDS[by]}s" if c.name == MEAN else c.name
                pair = f"{k.source} {MINUS} {k.other}" + (f" [{k.fixed}]" if k.fixed else "")
                rows.append(
                    [
                        words(name + (f" ({c.blocked})" if c.blocked else "")),
                        words(k.kind),
                        words(pair),
                        Cell(str(len(k.strategies)), len(k.strategies)),
                        Cell(exact(e.mean, grid.metric, sign=True), e.mean),
                        Cell("–" if math.isnan(e.low) else f"{low} to {high}", e.low),
                        p_cell(e.p),
                    ]
                )
                records.append(
                    [by, c.name, k.kind, k.source, k.other, k.fixed, "; ".join(k.strategies),
                     e.mean, e.low, e.high, e.p, e.scope, c.blocked]
                )  # fmt: skip
    if not rows:
        return None
    return Table(
        "grid_sources",
        "Strategies that use a label, under one source of it minus the same under another, "
        "averaged over these strategies.",
        ["column", "label", "sources", "strategies", "difference", "95% interval", "p"],
        rows,
        ["by", "column", "label", "source", "other", "fixed", "strategies", "difference", "low",
         "high", "p", "scope", "blocked"],
        records,
        frozenset({1, 2}),
    )  # fmt: skip
