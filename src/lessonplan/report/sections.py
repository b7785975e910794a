"""The sections of the page below the answer, each a function from findings to HTML."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from lessonplan.evaluation.outcomes import Record
from lessonplan.report.figures import INK, MUTED, RULE
from lessonplan.report.formats import Cell, Table, to_html, words
from lessonplan.report.marks import Marks, curve_key, curve_marks
from lessonplan.report.tables import (
    FLOOR,
    UNTUNED,
    best_table,
    few_seeds,
    group_table,
    labels_table,
    p_cell,
    pairs_table,
    range_cell,
    received_table,
    score_cell,
)
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.result import ACCURACY, Result
from lessonplan.statistics.verdict import (
    amount,
    baseline_words,
    result_verdict,
    signed,
    spoken,
    unit,
)

BADGES = {
    "winner": "a gain beyond luck",
    "no difference": "no gain beyond luck",
    "too few seeds": "no conclusion: too few seeds",
    "floor": "no conclusion: at the floor",
    "ceiling": "no conclusion: at the ceiling",
    "no runs": "no conclusion: no runs",
}

Pictures = Mapping[str, tuple[str, str]]
"""Name of a figure -> its SVG for a desk and for a phone."""


def inline(svg: str, prefix: str, label: str, marks: Marks) -> str:
    """Fit a figure into the page: own ids, the page's colours for dark mode, full width.

    The groups that `marks` names get what they say as data, for the page's script.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for colour, variable in ((INK, "--ink"), (MUTED, "--muted"), (RULE, "--rule")):
        svg = svg.replace(colour, f"var({variable})")
    for ident, series in marks.items():
        said = escape(json.dumps(series.points, ensure_ascii=False))
        svg = svg.replace(
            f'<g id="{prefix}-{ident}">',
            f'<g id="{prefix}-{ident}" data-series="{ident}" data-name="{escape(series.name)}"'
            f' data-points="{said}">',
        )
    tag, rest = svg.split(">", 1)
    tag = re.sub(r'\s(width|height)="[^"]*"', "", tag)
    return f'{tag} role="img" aria-label="{escape(label)}">{rest}'


def figure(
    pictures: Pictures,
    name: str,
    label: str,
    caption: str,
    marks: Marks | None = None,
    key: str = "",
) -> str:
    """Return a figure with its caption (HTML), or "" where it could not be drawn.

    Args:
        label: what a screen reader says of it.
        marks: what its marks say when pointed at.
        key: a list (HTML) above it that tells its series apart.
    """
    if name not in pictures:
        return ""
    wide, narrow = pictures[name]
    ident = "f" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return (
        f'<figure>{key}<div class="wide">{inline(wide, ident + "w", label, marks or {})}</div>'
        f'<div class="narrow">{inline(narrow, ident + "n", label, marks or {})}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def orders_table(result: Result) -> Table:
    """Scores and gains of one comparison, with the untuned model and the floor."""
    o = result.outcome
    gains = {g.arm: g for g in result.gains}
    rows: list[list[Cell]] = []
    for arm in o.arms:
        score, gain = result.scores.get(arm), gains.get(arm)
        mark = "good" if gain and gain.winner else "bad" if gain and gain.loser else ""
        cells = [words(spoken(arm))]
        if score is None:
            rows.append([*cells, *([Cell("–")] * 6), Cell("0", 0)])
            continue
        cells += [
            score_cell(score.mean, o.metric),
            range_cell(score.low, score.high, o.metric, sign=False),
        ]
        if gain is None or gain.estimate is None:
            cells += [Cell("baseline" if arm == o.baseline else "–"), *([Cell("–")] * 3)]
        else:
            e = gain.estimate
            cells += [
                Cell(signed(e.mean, o.metric), e.mean, mark=mark),
                range_cell(e.low, e.high, o.metric, sign=True),
                p_cell(e.p),
                p_cell(gain.p_holm),
            ]
        rows.append([*cells, Cell(str(score.seeds), score.seeds)])
    if result.untuned is not None:
        u = result.untuned
        rows.append(
            [
                Cell(UNTUNED, UNTUNED, mark="quiet"),
                score_cell(u.mean, o.metric),
                range_cell(u.low, u.high, o.metric, sign=False),
                *([Cell("–")] * 5),
            ]
        )
    if result.floor is not None:
        floor = Cell(f"{FLOOR} ({_floor_name(result)})", FLOOR, mark="quiet")
        rows.append([floor, score_cell(result.floor, o.metric), *([Cell("–")] * 6)])
    metric = "accuracy (%)" if o.metric == ACCURACY else o.metric
    return Table(
        "orders",
        f"Orders compared with {baseline_words(result)}." + few_seeds([result]),
        ["order", metric, "95% interval", "gain", "95% interval", "p", "Holm p", "runs"],
        rows,
        [],
        [],
    )


def _floor_name(result: Result) -> str:
    by_letter = result.constant is not None and result.constant == result.floor
    return "best constant letter" if by_letter else "chance"


def result_section(result: Result, number: int, pictures: Pictures, several: bool) -> str:
    """Return the section of one model on one evaluation set."""
    o = result.outcome
    level = "h3" if several else "h2"
    parts = []
    if several:
        said = result_verdict(result)
        parts += [
            f'<h2 id="result-{number}">{escape(result.outcome.place)}</h2>',
            f'<span class="badge {said.kind.replace(" ", "-")}">{BADGES[said.kind]}</span>',
            f"<p>{escape(' '.join(said.sentences))}</p>",
        ]
    parts += [
        f"<{level}>Accuracy and gain</{level}>" if o.metric == ACCURACY
        else f"<{level}>Scores and gain</{level}>",
        to_html(orders_table(result)),
        f"<p>{escape(_luck(result))}</p>" if _luck(result) else "",
    ]  # fmt: skip
    name = f"curves-{number}"
    if name in pictures:
        size = next(iter(o.curves.values())).values.shape[2]
        parts += [
            f"<{level}>Learning curves</{level}>",
            figure(
                pictures,
                name,
                f"Learning curves of {len(o.curves)} orders: score against questions seen.",
                f"Mean over seeds on a fixed part of {size:,} evaluation questions. Where the "
                "learning rate decays, a checkpoint in the middle of a run is un-annealed: it "
                "stands lower than a run that ended there would, so read the shapes, not the "
                "levels.",
                curve_marks(result),
                curve_key(result),
            ),
        ]
    parts += _groups(result, level)
    return "\n".join(part for part in parts if part)


def _luck(result: Result) -> str:
    metric = result.outcome.metric
    parts = []
    if result.best is not None and result.best.k > 1:
        b = result.best
        parts.append(
            f"The best of the {b.k} gains is {signed(b.gain, metric)}{unit(metric)} "
            f"({spoken(result.gains[b.index].arm)}). If no order made any difference, the best of "
            f"{b.k} would still stand at {signed(b.luck, metric)}{unit(metric)} on average; "
            f"allowing for the choice, its 95% interval is {signed(b.low, metric)} to "
            f"{signed(b.high, metric)}."
        )
    if result.smallest is not None:
        parts.append(
            "The smallest gain that this study could have seen, with a power of 80% at the level "
            f"of the first step of Holm's correction, is about {amount(result.smallest, metric)}: "
            "that of a typical order; gains.md has each order's own."
        )
    return " ".join(parts)


def _groups(result: Result, level: str) -> list[str]:
    tinted = "The stronger the tint, the further above (blue) or below (orange) the baseline."
    parts = []
    by_category = group_table([result], "category", "by_category", f"By category. {tinted}")
    if by_category is not None:
        parts += [
            f"<{level}>By category</{level}>",
            "<p>Descriptive: with so many small groups, some differences are sure to be luck.</p>",
            f'<div class="dense">{to_html(by_category)}</div>',
        ]
    by_answer = group_table([result], "answer", "by_answer", f"By answer. {tinted}")
    if by_answer is not None:
        parts += [
            f"<{level}>Answers seen and not seen in training</{level}>",
            "<p>A question counts as seen where its right answer's text is also a right answer in "
            "the training set.</p>",
            f'<div class="dense">{to_html(by_answer)}</div>',
        ]
    apart = group_table(
        [result], "judged apart", "judged_apart", "Questions that do not count above."
    )
    if apart is not None:
        parts += [
            f"<{level}>Options that point at other options</{level}>",
            f'<div class="dense">{to_html(apart)}</div>',
        ]
    return parts


def pooled_section(analysis: Analysis) -> str:
    """Return what looks across comparisons: the best orders, and all pairs."""
    parts = []
    if len(analysis.results) > 1:
        best = best_table(analysis.results)
        if best is not None:
            parts += ["<h2>Best orders and luck</h2>", to_html(best)]
    pairs = pairs_table(analysis.results)
    if pairs is not None:
        parts += [
            "<h2>Every order against every other</h2>",
            "<p>Descriptive, and corrected among themselves: winners are called against the "
            "baseline alone.</p>",
            f"<details><summary>{len(pairs.rows)} pairs</summary>"
            f'<div class="dense">{to_html(pairs)}</div></details>',
        ]
    return "".join(parts)


def orders_section(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    """Return the pictures of the orders."""
    sets = list(dict.fromkeys(p.training for p in record.orders))
    drawn = [t for t in sets if f"orders-{t}" in pictures]
    if not drawn:
        return ""
    parts = ["<h2>What the model saw when</h2>"]
    for training in drawn:
        own = [p for p in record.orders if p.training == training]
        caption = (
            f"Training set {escape(training)}, seed {own[0].seed}. "
            if training
            else f"Seed {own[0].seed}. "
        )
        caption += (
            "Each row is a category, each tick a question at its place in the order; blue is easy, "
            "orange hard. The line below is the running mean of the difficulty."
        )
        arms = ", ".join(spoken(p.arm) for p in own)
        parts.append(
            figure(
                pictures,
                f"orders-{training}",
                f"Category and difficulty of the questions along the training order, for {arms}.",
                caption,
            )
        )
    return "".join(parts)


def labels_section(analysis: Analysis) -> str:
    """Return the check of the difficulty labels."""
    table = labels_table(analysis)
    if table is None:
        return ""
    said = []
    for label in analysis.labels:
        subject = f"The difficulty “{label.source}” on {label.training}"
        said.append(
            f"{subject} predicts the loss of the untuned {label.model}: what it calls hard is hard "
            "for this model."
            if label.visible
            else f"{subject} goes against the loss of the untuned {label.model}: what it calls "
            "hard is easy for this model, so easy to hard by it is hard to easy here."
            if label.against
            else f"{subject} was not shown to predict the loss of the untuned {label.model}: to "
            "this model an order by it may be just another shuffle."
        )
    return (
        "<h2>Does the model notice the difficulty?</h2>"
        f"<p>{escape(' '.join(said))}</p>{to_html(table)}"
    )


def rates_section(record: Record, analysis: Analysis) -> str:
    """Return the learning rate that each group received."""
    tables = [received_table(analysis.received, kind) for kind in ("difficulty", "category")]
    if not any(tables) or all(math.isnan(r.relative) for r in analysis.received):
        return ""
    rates = [np.asarray(picture.learning_rate) for picture in record.orders]
    note = (
        "The learning rate was the same for all questions, so it is not confounded with the order."
        if all(np.ptp(rate) <= 1e-9 * rate.max() for rate in rates if len(rate))
        else "A learning rate that changes along a run is confounded with the order: what comes "
        "where it is small is trained with small steps. 100 is the mean over all questions."
    )
    body = "".join(f'<div class="dense">{to_html(t)}</div>' for t in tables if t is not None)
    return f"<h2>Learning rate received</h2><p>{note}</p>{body}"


def quality_section(record: Record, analysis: Analysis) -> str:
    """Return what is not done, and notes."""
    several = len(analysis.results) > 1
    notes = list(record.notes)
    for r in analysis.results:
        notes += [f"{r.outcome.place}: {note}" if several else note for note in r.notes]
    mixed = [name for name, seen in record.versions.items() if len(seen) > 1]
    if mixed:
        notes.append(f"Runs were made with different versions of {', '.join(mixed)}.")
    parts = []
    for heading, runs in (
        ("Failed runs", record.failures),
        ("Runs begun and not finished", record.unfinished),
        ("Runs still to be done", record.to_do),
    ):
        if runs:
            parts.append(f"<h2>{heading}</h2>" + _bullets(runs))
    if notes:
        parts.append("<h2>Notes on the data and the runs</h2>" + _bullets(notes))
    return "".join(parts)


def _bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _pairs(entries: Mapping[str, object]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
        + "</dl>"
    )


def details_section(record: Record, analysis: Analysis) -> str:
    """Return recipe, versions, study file and method, folded."""
    parts = ["<h2>Recipe, versions and method</h2>"]
    recipe = dict(record.recipe)
    if record.machine:
        recipe["machine"] = record.machine
    if recipe:
        parts.append(f"<details><summary>Recipe</summary>{_pairs(recipe)}</details>")
    if record.versions:
        seen = {name: ", ".join(versions) for name, versions in record.versions.items()}
        parts.append(f"<details><summary>Versions</summary>{_pairs(seen)}</details>")
    if record.config:
        parts.append(
            "<details><summary>The study file, as resolved</summary>"
            f'<pre tabindex="0"><code>{escape(record.config)}</code></pre></details>'
        )
    checks = []
    for r in analysis.results:
        for g in r.gains:
            if g.bootstrap is not None:
                low, high = (signed(x, r.outcome.metric) for x in g.bootstrap)
                where = f", {r.outcome.place}" if len(analysis.results) > 1 else ""
                checks.append(f"{spoken(g.arm)}{where}: {low} to {high}")
    tests = "1 test" if analysis.family == 1 else f"{analysis.family} tests"
    parts.append(
        "<details><summary>How this was computed</summary>"
        "<p>The datum is the score of one question under one seed, and a gain is the difference "
        "between two runs of the same seed, question by question. Means, intervals and p-values "
        "come from a two-way layout in which seeds and questions are both random (variance "
        "components from mean squares, Satterthwaite's degrees of freedom). How much seeds make "
        "orders differ is estimated from all orders together, unless one plainly varies more. "
        "With one or two seeds the interval is over questions and speaks of these runs alone.</p>"
        f"<p>The primary family holds {tests}: every order, model and evaluation set, at the last "
        f"checkpoint, corrected by Holm's procedure; its first step tests at "
        f"{analysis.level:.2g}. What cannot be tested stays in it with p = 1. A winner has at "
        "least three seeds, a gain above zero and a corrected p-value below 0.05. Everything else "
        "here is descriptive. The luck of the best comes from 20,000 simulated studies in which no "
        "order differs, with the errors and correlations found here.</p>"
        + (
            "<p>Cross-check: intervals from resampling seeds and questions independently, which "
            "counts their interaction more than once (with one or two seeds, questions alone). "
            f"{escape('; '.join(checks))}.</p>"
            if checks
            else ""
        )
        + "</details>"
    )
    return "".join(parts)
