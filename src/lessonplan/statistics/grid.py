"""A study as a grid: orders by model, by evaluation set and by label source, and the best ones.

These are the tables of Yang et al. (2024, arXiv 2408.07888, Tables 1 and 2): accuracy by strategy
and model averaged over data sets, and by strategy and data set averaged over models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import isnan

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome
from lessonplan.statistics.crossed import (
    THESE_RUNS,
    Estimate,
    Pooled,
    mean_interval,
    pooled_squares,
)
from lessonplan.statistics.family import difference, holm, judged, seeds_differ
from lessonplan.statistics.luck import best_of
from lessonplan.statistics.result import Result
from lessonplan.statistics.sources import KINDS, strategy_of

FloatArray = NDArray[np.float64]

MODEL, EVALUATION, CELL = "model", "evaluation", "cell"
MEAN = "mean"
RUNS = "seeds and questions"


@dataclass(frozen=True)
class Setting:
    """One choice of label sources, and the arm that each strategy is under it.

    A strategy that does not use a label is the same arm under all of its sources: it ran once.

    Attributes:
        sources: kind of label -> source, for the kinds that have several.
        arms: strategy with its settings -> arm; without the baseline.
    """

    sources: dict[str, str]
    arms: dict[str, str]

    @property
    def name(self) -> str:
        """``"difficulty=llm"``; "" where each label has one source."""
        return ", ".join(f"{kind}={source}" for kind, source in self.sources.items())


@dataclass(frozen=True)
class Best:
    """The best of the K orders of a setting, in one column.

    Attributes:
        setting: its name.
        strategy, arm: of the best order; the baseline's where no order gains anything.
        k: how many orders it is the best of.
        gain: the largest of the K gains, which may be negative.
        luck: what is assumed to be noise -> the largest gain to be expected if no order differs.
        low, high, p: interval and p-value that allow for the choice; NaN where unknown.
    """

    setting: str
    strategy: str
    arm: str
    k: int
    gain: float
    luck: dict[str, float]
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")


@dataclass(frozen=True)
class Contrast:
    """The strategies that use a label under one source of it minus the same under another.

    Attributes:
        kind: of the label; source, other: the difference is source minus other.
        fixed: the source of the other kind of label, ``"category=human"``, or "".
        strategies: those whose differences were averaged, each weighing alike.
    """

    kind: str
    source: str
    other: str
    fixed: str
    strategies: tuple[str, ...]
    estimate: Estimate


@dataclass(frozen=True)
class Column:
    """One model averaged over its evaluation sets, one set averaged over models, or one of each.

    Attributes:
        by: "model", "evaluation" or "cell".
        name: of the model or set; "model on set" for a cell; "mean" over the columns of a kind.
        scores: arm -> mean score.
        gains: arm -> gain over the baseline; its interval is NaN where nothing is known of it.
        p_holm: arm -> p-value corrected by Holm among the gains of one kind of column.
        best: one a setting. contrasts: every two sources of a label.
        blocked: "floor" or "ceiling": shown, but in no average and no count of winners; else "".
    """

    by: str
    name: str
    scores: dict[str, float]
    gains: dict[str, Estimate]
    best: list[Best]
    contrasts: list[Contrast]
    blocked: str = ""
    p_holm: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """All columns, and for each kind of column their mean.

    Attributes:
        metric, baseline: as in `Outcome`.
        columns: by model, then by evaluation set, then cells; a kind with a single column, or with
            nothing known of it, is left out.
        means: "model" or "evaluation" -> the mean over the columns that are not blocked.
        notes: what a reader must know, one sentence each.
    """

    metric: str
    baseline: str
    settings: list[Setting]
    columns: list[Column]
    means: dict[str, Column]
    notes: list[str] = field(default_factory=list)

    def of(self, by: str, *, blocked: bool = False) -> list[Column]:
        """Return the columns of a kind, those at the floor or ceiling only when asked for."""
        return [c for c in self.columns if c.by == by and (blocked or not c.blocked)]


@dataclass(frozen=True)
class Average:
    """The best gains of a setting, averaged over the columns of a kind.

    Attributes:
        luck: what is assumed to be noise -> its mean over the columns. Expectations add up
            whatever the columns share, so this is right for correlated columns, too.
        columns: how many.
    """

    gain: float
    luck: dict[str, float]
    columns: int


@dataclass(frozen=True)
class Wins:
    """How often a strategy is the best of a column.

    Attributes:
        wins: over columns and label settings.
        different: without those that are one arm seen under several settings.
    """

    strategy: str
    wins: int
    different: int


def average_best(columns: Sequence[Column], setting: str) -> Average | None:
    """Average the best gain of each column under a setting; None for no columns."""
    found = [best for column in columns for best in column.best if best.setting == setting]
    if not found:
        return None
    kinds = [kind for kind in found[0].luck if all(kind in b.luck for b in found)]
    luck = {kind: float(np.mean([b.luck[kind] for b in found])) for kind in kinds}
    return Average(float(np.mean([b.gain for b in found])), luck, len(found))


def count_wins(columns: Sequence[Column]) -> list[Wins]:
    """Count the columns in which each strategy is best, under each label setting; most first."""
    won = [(best.strategy, best.arm, column) for column in columns for best in column.best]
    total = Counter(strategy for strategy, _, _ in won)
    different = Counter(s for s, _, _ in {(s, a, (c.by, c.name)) for s, a, c in won})
    return [Wins(strategy, n, different[strategy]) for strategy, n in total.most_common()]


def corrected(columns: Sequence[Column]) -> list[Column]:
    """Correct the p-values of the gains by Holm among these columns, the blocked ones left out."""
    tests = [
        (i, arm, e.p)
        for i, column in enumerate(columns)
        for arm, e in column.gains.items()
        if not column.blocked and not isnan(e.p) and e.scope != THESE_RUNS
    ]
    found: list[dict[str, float]] = [{} for _ in columns]
    for (i, arm, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        found[i][arm] = float(p)
    return [replace(c, p_holm=p) for c, p in zip(columns, found, strict=True)]


def setting_pairs(
    settings: Sequence[Setting],
) -> Iterator[tuple[str, Setting, Setting, tuple[str, ...]]]:
    """Yield kind, two settings that differ in its source alone, and the strategies that use it.

    The first of the two is the one listed later: LLM minus human where human is listed first.
    """
    for other, setting in combinations(settings, 2):
        differing = [k for k in setting.sources if setting.sources[k] != other.sources[k]]
        both = [s for s in setting.arms if s in other.arms and setting.arms[s] != other.arms[s]]
        if len(differing) == 1 and both:
            yield differing[0], setting, other, tuple(both)


def contrast_of(
    kind: str, setting: Setting, other: Setting, strategies: tuple[str, ...], estimate: Estimate
) -> Contrast:
    """Name the two sources of an estimated difference."""
    rest = {k: s for k, s in setting.sources.items() if k != kind}
    fixed = Setting(rest, {}).name
    return Contrast(kind, setting.sources[kind], other.sources[kind], fixed, strategies, estimate)


def study_grid(results: Sequence[Result]) -> Grid | None:
    """Arrange the results of several models or evaluation sets; None where there is
    a single one of each.

    A column's gain is the mean of its results' gains, with the interval of `mean_interval` for the
    arrays that `joined` makes of them. All is descriptive: winners are called result by result.
    """
    outcomes = [r.outcome for r in results]
    metric, baseline = {o.metric for o in outcomes}, {o.baseline for o in outcomes}
    if len(results) < 2 or len(metric) > 1 or len(baseline) > 1:
        return None
    settings = settings_of(outcomes)
    models = list(dict.fromkeys(o.model for o in outcomes))
    sets = list(dict.fromkeys(o.evaluation for o in outcomes))
    parts: list[tuple[str, str, list[Result]]] = []
    if len(models) > 1:
        parts += [(MODEL, m, [r for r in results if r.outcome.model == m]) for m in models]
    if len(sets) > 1:
        parts += [(EVALUATION, s, [r for r in results if r.outcome.evaluation == s]) for s in sets]
    if len(models) > 1 and len(sets) > 1:
        parts += [(CELL, r.outcome.place, [r]) for r in results]
    columns = [_column(by, name, part, settings) for by, name, part in parts]
    kinds = [by for by in (MODEL, EVALUATION) if any(c.by == by for c in columns)]
    if not kinds:
        return None
    called: list[Column] = []
    means = {}
    for by in kinds:
        whole = _column(by, MEAN, results, settings, _even(by, results))
        *own, mean = corrected([*(c for c in columns if c.by == by), whole])
        called += own
        if not mean.blocked:
            means[by] = mean
    called += corrected([c for c in columns if c.by == CELL])
    left_out = [r for r in results if r.blocked]
    notes = [
        f"{r.outcome.place} is at the {r.blocked}: it is in no average and no count of winners."
        for r in left_out
    ]
    return Grid(metric.pop(), baseline.pop(), settings, called, means, notes)


def settings_of(outcomes: Sequence[Outcome]) -> list[Setting]:
    """Return every combination of label sources that a study has, with its arms."""
    named = dict.fromkeys(
        (kind, source) for o in outcomes for n in o.sources.values() for kind, source in n.items()
    )
    choices = {kind: [s for k, s in named if k == kind] for kind in KINDS}
    several = {kind: sources for kind, sources in choices.items() if len(sources) > 1}
    settings = []
    for picked in product(*several.values()):
        sources = dict(zip(several, picked, strict=True))
        arms: dict[str, str] = {}
        for o in outcomes:
            for arm in o.arms:
                needs = o.sources.get(arm, {})
                if arm != o.baseline and all(needs.get(k, s) == s for k, s in sources.items()):
                    arms[strategy_of(o, arm)] = arm
        settings.append(Setting(sources, arms))
    return settings


def joined(
    parts: Sequence[tuple[Sequence[int], Sequence[str], FloatArray]],
    weights: Sequence[float] | None = None,
) -> FloatArray:
    """Join arrays of several results into one ``[S, N]`` whose mean is the mean of their means.

    What shares a seed or a question is averaged before anything is estimated. Under one seed all
    models see the same order and all sets score the same run, so seeds are matched by number and
    never counted twice; results on the same questions (several models) are averaged question by
    question. Different sets stand side by side, each around its own mean and scaled to weigh by
    its results, not its questions: sets are given, not drawn at random.

    Args:
        parts: seeds, question ids and values ``[seeds, questions]`` of each result; a row of NaN is
            a missing run. A seed counts that every part has.
        weights: of each result in the mean; None: they weigh alike.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    common = [s for s in parts[0][0] if all(s in seeds for seeds, _, _ in parts)]
    by_questions: dict[tuple[str, ...], list[tuple[float, FloatArray]]] = {}
    for weight, (seeds, ids, values) in zip(weights, parts, strict=True):
        rows = [list(seeds).index(s) for s in common]
        by_questions.setdefault(tuple(ids), []).append((weight, values[rows]))
    shares = [sum(w for w, _ in own) / sum(weights) for own in by_questions.values()]
    sets = [
        np.average([values for _, values in own], axis=0, weights=[w for w, _ in own])
        for own in by_questions.values()
    ]
    missing = np.any([np.isnan(values).any(axis=1) for values in sets], axis=0)
    size = sum(values.shape[1] for values in sets)
    if missing.all():
        return np.full((len(common), size), np.nan)
    means = [float(values[~missing].mean()) for values in sets]
    middle = float(np.dot(shares, means))
    scaled = [
        middle + (values - mean) * share * size / values.shape[1]
        for values, mean, share in zip(sets, means, shares, strict=True)
    ]
    whole = np.concatenate(scaled, axis=1)
    whole[missing] = np.nan
    return whole


def _even(by: str, results: Sequence[Result]) -> list[float]:
    """Return each result's weight in the mean over columns, which weigh alike: 0 where blocked."""
    names = [getattr(r.outcome, by) for r in results]
    used = Counter(name for name, r in zip(names, results, strict=True) if not r.blocked)
    return [0.0 if r.blocked else 1.0 / used[name] for name, r in zip(names, results, strict=True)]


def _column(
    by: str,
    name: str,
    results: Sequence[Result],
    settings: list[Setting],
    weights: Sequence[float] | None = None,
) -> Column:
    chosen = [i for i, r in enumerate(results) if not r.blocked] or list(range(len(results)))
    used = [results[i] for i in chosen]
    weights = None if weights is None or used[0].blocked else [weights[i] for i in chosen]
    baseline = used[0].outcome.baseline
    arms = [arm for arm in used[0].outcome.arms if all(arm in r.scores for r in used)]
    scores = {
        arm: float(np.average([r.scores[arm].mean for r in used], weights=weights)) for arm in arms
    }
    gaps: dict[str, FloatArray] = {}
    for arm in arms:
        if arm != baseline and baseline in arms:
            gap = joined([_part(r.outcome, arm) for r in used], weights)
            if not np.isnan(gap).all():
                gaps[arm] = gap
    pooled = _pooled(gaps)
    alike = not any(seeds_differ(r.outcome) for r in used)

    def estimate(values: FloatArray, weight: float = 2.0) -> Estimate:
        found = mean_interval(values, pooled=pooled, weight=weight)
        return replace(found, scope=THESE_RUNS) if alike else found

    return Column(
        by=by,
        name=name,
        scores=scores,
        gains={arm: estimate(gap) for arm, gap in gaps.items()},
        best=[b for s in settings if (b := _best(s, gaps, baseline, pooled, alike)) is not None],
        contrasts=[
            contrast_of(
                kind,
                setting,
                other,
                both,
                estimate(values, 2.0 / len(both)),
            )
            for kind, setting, other, strategies in setting_pairs(settings)
            for both, values in [_contrast(setting, other, strategies, gaps)]
            if both and not np.isnan(values).all()
        ],
        blocked=used[0].blocked,
    )


def _part(outcome: Outcome, arm: str) -> tuple[list[int], list[str], FloatArray]:
    # Sets that number their questions alike are told apart by the text, or else by their name.
    texts = outcome.questions or [outcome.evaluation] * len(outcome.ids)
    ids = [f"{outcome.ids[i]} {texts[i]}" for i in np.flatnonzero(judged(outcome))]
    return outcome.seeds, ids, difference(outcome, arm, outcome.baseline)


def _pooled(gaps: dict[str, FloatArray]) -> Pooled | None:
    """Return what all arms tell together; the baseline is in every gap, so its own is 0."""
    arms = list(gaps.values())
    return pooled_squares(np.stack([np.zeros_like(arms[0]), *arms])) if arms else None


def _best(
    setting: Setting,
    gaps: dict[str, FloatArray],
    baseline: str,
    pooled: Pooled | None,
    alike: bool,
) -> Best | None:
    have = [(strategy, arm) for strategy, arm in setting.arms.items() if arm in gaps]
    if not have:
        return None
    found = best_of(np.stack([gaps[arm] for _, arm in have]), pooled=pooled)
    if found is None:
        return None
    strategy, arm = have[found.index] if found.gain > 0 else (baseline, baseline)
    if alike or found.scope == THESE_RUNS:
        # What luck gives takes in what seeds do, which is unknown.
        return Best(setting.name, strategy, arm, found.k, found.gain, {})
    return Best(
        setting.name, strategy, arm, found.k, found.gain, {RUNS: found.luck}, found.low,
        found.high, found.p,
    )  # fmt: skip


def _contrast(
    setting: Setting, other: Setting, strategies: tuple[str, ...], gaps: dict[str, FloatArray]
) -> tuple[tuple[str, ...], FloatArray]:
    """Return the strategies that have both arms, and the mean of their differences ``[S, N]``."""
    both = tuple(s for s in strategies if setting.arms[s] in gaps and other.arms[s] in gaps)
    pairs = [gaps[setting.arms[s]] - gaps[other.arms[s]] for s in both]
    return both, np.mean(pairs, axis=0) if pairs else np.empty((0, 0))
