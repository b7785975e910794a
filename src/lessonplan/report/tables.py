"""The tables of a report, from the findings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.report.formats import Cell, Datum, Table, words
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.crossed import LEAST_SEEDS, THESE_RUNS
from lessonplan.statistics.labels import Received
from lessonplan.statistics.result import ACCURACY, GroupScore, Result
from lessonplan.statistics.verdict import MINUS, UNITS, signed, spoken

UNTUNED = "untuned model"
FLOOR = "floor"


def score_cell(value: float | None, metric: str, tint: float = 0.0) -> Cell:
    """Show a score: an accuracy in per cent, a log-likelihood in nats, else four digits."""
    if value is None or math.isnan(value):
        return Cell("–")
    text = f"{value:.4g}"
    if metric in UNITS:
        text = f"{value * (100 if metric == ACCURACY else 1):.{UNITS[metric][1]}f}"
    return Cell(text.replace("-", MINUS), value, tint)


def range_cell(low: float, high: float, metric: str, *, sign: bool) -> Cell:
    """Show an interval of gains (signed) or of scores."""
    if math.isnan(low):
        return Cell("–")
    if sign:
        return Cell(f"{signed(low, metric)} to {signed(high, metric)}", low)
    return Cell(f"{score_cell(low, metric).text} to {score_cell(high, metric).text}", low)


def p_cell(p: float | None) -> Cell:
    """Show a p-value to three digits."""
    if p is None or math.isnan(p):
        return Cell("–")
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def _several(results: Sequence[Result]) -> bool:
    return len(results) > 1 or any(r.outcome.model or r.outcome.evaluation for r in results)


def _where(result: Result, shown: bool) -> list[Cell]:
    return [words(result.outcome.model), words(result.outcome.evaluation)] if shown else []


def few_seeds(results: Sequence[Result]) -> str:
    """Return what a caption adds where intervals say nothing of other seeds, else ""."""
    estimates = [e for r in results for e in r.scores.values()]
    estimates += [g.estimate for r in results for g in r.gains if g.estimate is not None]
    if not any(e.scope == THESE_RUNS for e in estimates):
        return ""
    return f" With fewer than {LEAST_SEEDS} seeds, intervals and p speak of these runs alone."


def accuracy_table(results: Sequence[Result]) -> Table:
    """Scores of every arm, of the untuned model, and the floor."""
    several = _several(results)
    f1 = any(r.outcome.f1 for r in results)
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for r in results:
        o = r.outcome
        lines = [(arm, r.scores.get(arm)) for arm in o.arms]
        if r.untuned is not None:
            lines.insert(0, (UNTUNED, r.untuned))
        for arm, e in lines:
            cells = [words(spoken(arm)), *_where(r, several)]
            if e is None:
                rows.append([*cells, *([Cell("–")] * (2 + f1)), Cell("0", 0)])
                records.append([o.model, o.evaluation, arm, *([None] * 4), 0, None, ""])
                continue
            runs = "–" if arm == UNTUNED else str(e.seeds)
            rows.append(
                [
                    *cells,
                    score_cell(e.mean, o.metric),
                    range_cell(e.low, e.high, o.metric, sign=False),
                    *([score_cell(mean_f1(o, arm), o.metric)] if f1 else []),
                    Cell(runs, e.seeds),
                ]
            )
            count = 0 if arm == UNTUNED else e.seeds
            records.append(
                [
                    o.model, o.evaluation, arm, e.mean, e.low, e.high, mean_f1(o, arm), count,
                    e.questions, e.scope,
                ]
            )  # fmt: skip
        if r.floor is not None:
            cells = [words(FLOOR), *_where(r, several)]
            rows.append([*cells, score_cell(r.floor, o.metric), *([Cell("–")] * (2 + f1))])
            records.append([o.model, o.evaluation, FLOOR, r.floor, None, None, None, 0, None, ""])
    metrics = {r.outcome.metric for r in results}
    metric = metrics.pop() if len(metrics) == 1 else "score"
    name = "accuracy (%)" if metric == ACCURACY else metric
    place = ["model", "evaluation"] if several else []
    return Table(
        "accuracy" if metric == ACCURACY else "scores",
        "Score of each order, with its 95% interval over seeds and questions."
        + few_seeds(results),
        ["order", *place, name, "95% interval", *(["weighted F1 (%)"] if f1 else []), "runs"],
        rows,
        [
            "model", "evaluation", "order", "score", "low", "high", "weighted_f1", "runs",
            "questions", "scope",
        ],
        records,
        frozenset(range(1, 1 + len(place))),
    )  # fmt: skip


def mean_f1(outcome: Outcome, arm: str) -> float | None:
    """Return the mean weighted F1 score of an arm's runs; None where the choices are unknown."""
    found = outcome.f1.get("untuned" if arm == UNTUNED else arm)
    if found is None or np.isnan(found).all():
        return None
    return float(np.nanmean(found))


def gains_table(results: Sequence[Result]) -> Table:
    """Gains over the baseline with intervals and p-values, and the best of K beside luck."""
    several = _several(results)
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for r in results:
        o = r.outcome
        for g in r.gains:
            e = g.estimate
            finding = "winner" if g.winner else "worse" if g.loser else ""
            start: list[Datum] = [o.model, o.evaluation, g.arm, o.baseline]
            cells = [words(spoken(g.arm)), *_where(r, several)]
            if e is None:
                rows.append([*cells, *([Cell("–")] * 5), words("no runs")])
                records.append([*start, *([None] * 11), "", "no runs"])
                continue
            rows.append(
                [
                    *cells,
                    Cell(signed(e.mean, o.metric), e.mean),
                    range_cell(e.low, e.high, o.metric, sign=True),
                    p_cell(e.p),
                    p_cell(g.p_holm),
                    Cell(
                        "–" if g.smallest is None else signed(g.smallest, o.metric).lstrip("+"),
                        g.smallest,
                    ),
                    words(finding),
                ]
            )
            boot = g.bootstrap or (None, None)
            records.append(
                [
                    *start, e.mean, e.low, e.high, e.se, e.df, e.p, g.p_holm, g.smallest, *boot,
                    e.seeds, e.scope, finding,
                ]
            )  # fmt: skip
    place = ["model", "evaluation"] if several else []
    return Table(
        "gains",
        "Gain of each order over the baseline, paired by seed and question."
        + few_seeds(results),
        ["order", *place, "gain", "95% interval", "p", "Holm p", "smallest visible", "finding"],
        rows,
        [
            "model", "evaluation", "order", "baseline", "gain", "low", "high", "se", "df", "p",
            "p_holm", "smallest_visible", "bootstrap_low", "bootstrap_high", "seeds", "scope",
            "finding",
        ],
        records,
        frozenset({*range(1, 1 + len(place)), 6 + len(place)}),
    )  # fmt: skip


def best_table(results: Sequence[Result]) -> Table | None:
    """The best of the K gains of each result beside what luck gives; None where there is none."""
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for r in results:
        if r.best is None:
            continue
        o, b = r.outcome, r.best
        arm = r.gains[b.index].arm
        rows.append(
            [
                words(o.place or "all"),
                words(spoken(arm)),
                Cell(signed(b.gain, o.metric), b.gain),
                Cell(signed(b.luck, o.metric), b.luck),
                range_cell(b.low, b.high, o.metric, sign=True),
                p_cell(b.p),
            ]
        )
        records.append([o.model, o.evaluation, arm, b.k, b.gain, b.luck, b.low, b.high, b.p])
    if not rows:
        return None
    return Table(
        "best",
        "The best gain of each comparison, what luck alone gives the best of as many orders, and "
        "an interval that allows for having picked the best.",
        ["comparison", "best order", "gain", "by luck", "corrected interval", "corrected p"],
        rows,
        ["model", "evaluation", "best", "k", "gain", "luck", "low", "high", "p"],
        records,
        frozenset({1}),
    )


def pairs_table(results: Sequence[Result]) -> Table | None:
    """Every two arms compared; descriptive."""
    several = _several(results)
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for r in results:
        o = r.outcome
        for pair in r.pairs:
            e = pair.estimate
            rows.append(
                [
                    words(f"{spoken(pair.arm)} {MINUS} {spoken(pair.other)}"),
                    *_where(r, several),
                    Cell(signed(e.mean, o.metric), e.mean),
                    range_cell(e.low, e.high, o.metric, sign=True),
                    p_cell(e.p),
                    p_cell(pair.p_holm),
                ]
            )
            records.append(
                [
                    o.model,
                    o.evaluation,
                    pair.arm,
                    pair.other,
                    e.mean,
                    e.low,
                    e.high,
                    e.p,
                    pair.p_holm,
                ]
            )
    if not rows:
        return None
    place = ["model", "evaluation"] if several else []
    return Table(
        "pairs",
        "Every two orders compared, with Holm's correction among the pairs of a comparison.",
        ["orders", *place, "difference", "95% interval", "p", "Holm p"],
        rows,
        ["model", "evaluation", "order", "other", "difference", "low", "high", "p", "p_holm"],
        records,
        frozenset(range(1, 1 + len(place))),
    )


def group_table(results: Sequence[Result], kind: str, name: str, caption: str) -> Table | None:
    """Scores by part of the evaluation set, a column an arm, tinted by the gain; None if empty."""
    several = len(results) > 1
    arms = list(dict.fromkeys(arm for r in results for arm in r.outcome.arms))
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    with_untuned = any(g.arm == "" for r in results for g in r.groups if g.kind == kind)
    columns = ["", *arms] if with_untuned else arms
    for r in results:
        o = r.outcome
        parts: dict[str, dict[str, GroupScore]] = {}
        for g in r.groups:
            if g.kind == kind:
                parts.setdefault(g.group, {})[g.arm] = g
        tints = [abs(g.gain.mean) for p in parts.values() for g in p.values() if g.gain is not None]
        strongest = max(tints, default=0.0) or 1.0
        for group, scores in parts.items():
            size = next(iter(scores.values())).questions
            cells = [words(group), *_where(r, several), Cell(str(size), size)]
            for arm in columns:
                s = scores.get(arm)
                tint = s.gain.mean / strongest if s is not None and s.gain is not None else 0.0
                cells.append(score_cell(None if s is None else s.score, o.metric, tint))
            rows.append(cells)
            for arm, s in scores.items():
                gain = s.gain
                numbers = (None, None, None) if gain is None else (gain.mean, gain.low, gain.high)
                records.append(
                    [o.model, o.evaluation, group, size, arm or UNTUNED, s.score, *numbers]
                )
    if not rows:
        return None
    place = ["model", "evaluation"] if several else []
    return Table(
        name,
        caption,
        [kind, *place, "questions", *(spoken(arm) or "untuned" for arm in columns)],
        rows,
        ["model", "evaluation", kind, "questions", "order", "score", "gain", "low", "high"],
        records,
        frozenset(range(1, 1 + len(place))),
    )


def labels_table(analysis: Analysis) -> Table | None:
    """The difficulty labels beside the untuned loss."""
    if not analysis.labels:
        return None
    rows: list[list[Cell]] = []
    records: list[list[Datum]] = []
    for s in analysis.labels:
        rho = "–" if math.isnan(s.rho) else f"{s.rho:.2f}".replace("-", MINUS)
        interval = "–" if math.isnan(s.low) else f"{s.low:.2f} to {s.high:.2f}".replace("-", MINUS)
        rows.append(
            [
                words(s.source),
                words(s.training),
                words(s.model),
                Cell(rho, s.rho),
                Cell(interval, s.low),
                Cell(str(s.n), s.n),
                words(s.word),
            ]
        )
        records.append([s.model, s.training, s.source, s.rho, s.low, s.high, s.n, s.word])
    return Table(
        "labels",
        "Rank correlation (Spearman) of each difficulty label with the untuned model's loss on the "
        "same training questions.",
        ["difficulty", "training", "model", "rank correlation", "95% interval", "questions",
         "visible to the model"],
        rows,
        ["model", "training", "difficulty", "rho", "low", "high", "questions", "visible"],
        records,
        frozenset({1, 2, 6}),
    )  # fmt: skip


def received_table(received: Sequence[Received], kind: str) -> Table | None:
    """The mean learning rate by group, a column an arm, as per cent of the mean over all."""
    chosen = [r for r in received if r.kind == kind]
    if not chosen:
        return None
    several = len({r.training for r in chosen}) > 1
    arms = list(dict.fromkeys(r.arm for r in chosen))
    parts: dict[tuple[str, str], dict[str, Received]] = {}
    for r in chosen:
        parts.setdefault((r.training, r.group), {})[r.arm] = r
    rows = []
    for (training, group), by_arm in parts.items():
        size = max(r.questions for r in by_arm.values())
        cells = [words(group), *([words(training)] if several else []), Cell(str(size), size)]
        for arm in arms:
            if arm not in by_arm or math.isnan(by_arm[arm].relative):
                cells.append(Cell("–"))
                continue
            share = by_arm[arm].relative
            cells.append(Cell(f"{share * 100:.0f}", share, max(-1.0, min(1.0, share - 1))))
        rows.append(cells)
    place = ["training"] if several else []
    return Table(
        f"learning_rate_by_{kind}",
        f"Mean learning rate that each {kind if kind == 'category' else 'level of difficulty'}"
        " was trained with, in per cent of the mean over all questions.",
        [kind, *place, "questions", *(spoken(arm) for arm in arms)],
        rows,
        ["training", "order", kind, "questions", "learning_rate", "relative"],
        [[r.training, r.arm, r.group, r.questions, r.rate, r.relative] for r in chosen],
        frozenset(range(1, 1 + len(place))),
    )
