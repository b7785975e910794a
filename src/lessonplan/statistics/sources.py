"""Label sources beside one another: do they agree, do they give answers away, does it matter.

Where a study has several sources of difficulty (people, language models) or of category (an
editor's, clusters), each pair is compared on the training questions and by the scores of the same
strategies under both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import LabelSource, Outcome
from lessonplan.seeds import stream
from lessonplan.statistics.crossed import Estimate, mean_interval
from lessonplan.statistics.family import (
    ALPHA,
    difference,
    generalises,
    holm,
    judged,
    pooled_arms,
    seeds_differ,
)
from lessonplan.statistics.labels import rank_correlation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

KINDS = ("difficulty", "category")
DRAWS = 1999
"""Shuffles of a permutation test; with the observed table that makes 2,000."""
LEAK_LEVEL = 0.01
"""Leaks are checked source by source, so a clean label shall be accused once in a hundred times."""
MOST_BINS = 10
NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How far two sources of one label agree on the questions of a training set.

    Attributes:
        kind: "difficulty" (value is Spearman's rank correlation) or "category" (value is the
            mutual information adjusted for chance: 0 as unrelated labels, 1 the same partition).
        value: NaN where a source is constant, or fewer than four questions carry both difficulties.
        low, high: 95% interval of the correlation; NaN for categories.
        luck, luck_high: mean and 95th percentile of the adjusted mutual information when one
            source is dealt out at random; NaN for difficulties.
        questions: how many both sources label.
        levels: number of distinct labels of each on those questions.
    """

    training: str
    kind: str
    source: str
    other: str
    value: float
    low: float
    high: float
    luck: float
    luck_high: float
    questions: int
    levels: tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Where the questions of one category stand under another source.

    Attributes:
        category: under `source`; questions: how many of them both sources label.
        top: the largest categories under `other`, with counts, at most three.
    """

    training: str
    source: str
    other: str
    category: str
    questions: int
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Leak:
    """Whether a difficulty goes with the position of the right answer.

    Attributes:
        bits: mutual information of difficulty and position, from the table of counts.
        luck: its mean when the positions are shuffled, which is above 0 for so many cells.
        position_bits: entropy of the position, the most that any label could tell.
        p: of the permutation test; 1 where the difficulty or the position is constant.
        questions: how many carry a difficulty.
        bins: number of levels of difficulty that were told apart.
    """

    training: str
    source: str
    bits: float
    luck: float
    position_bits: float
    p: float
    questions: int
    bins: int

    @property
    def testable(self) -> bool:
        """Whether both the difficulty and the position vary."""
        return self.bins > 1 and self.position_bits > 0

    @property
    def found(self) -> bool:
        """Whether the difficulty tells more of the position than luck would have it."""
        return self.p < LEAK_LEVEL


@dataclass(frozen=True)
class SourceGain:
    """A strategy under one label source minus the same strategy under another.

    Attributes:
        kind: the label whose source differs, "difficulty" or "category".
        source, other: the difference is source minus other; other is the one listed first.
        strategies: with their settings; one, or those that were averaged.
        averaged: how many differences the line is the mean of; more than there are strategies
            where these ran under several sources of the other label.
        pooled: whether this line answers for the pair of sources as a whole.
        fixed: the source of the other kind of label, ``"category=human"``; "" where the strategy
            uses none, or where the line averages several.
        score, other_score: means over the seeds that both have.
        estimate: of the difference.
        blocked: "floor" or "ceiling" where scores there say nothing about labels, else "".
        alike: whether the seeds' runs are all the same, so that they say no more than one.
        p_holm: corrected by Holm over the study, pooled lines and single ones apart; None where
            nothing is claimed beyond these runs.
    """

    model: str
    evaluation: str
    metric: str
    kind: str
    source: str
    other: str
    strategies: tuple[str, ...]
    averaged: int
    pooled: bool
    fixed: str
    score: float
    other_score: float
    estimate: Estimate
    blocked: str = ""
    alike: bool = False
    p_holm: float | None = None

    @property
    def testable(self) -> bool:
        """Three seeds that differ, two questions, neither at the floor nor at the ceiling."""
        return not self.blocked and not self.alike and generalises(self.estimate)

    @property
    def found(self) -> bool:
        """Whether the two sources differ by the corrected p-value."""
        return self.p_holm is not None and self.p_holm < ALPHA


def mutual_information(tables: IntArray) -> FloatArray:
    """Return the mutual information in bits of tables of counts, ``[..., R, C]`` to ``[...]``.

    The plug-in estimate: frequencies stand for probabilities (Cover & Thomas 2006, *Elements of
    Information Theory*, section 2.3).
    """
    from scipy.special import xlogy

    counts = np.asarray(tables, dtype=np.float64)
    rows, columns, total = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    nats = (
        xlogy(counts, counts).sum(axis=(-2, -1))
        - xlogy(rows, rows).sum(axis=-1)
        - xlogy(columns, columns).sum(axis=-1)
        + xlogy(total, total)
    ) / total
    # The sums are large and nearly cancel, which can leave -1e-16 where there is none.
    return np.asarray(np.maximum(nats, 0.0) / np.log(2))


def entropy(counts: IntArray) -> float:
    """Return the entropy in bits of counts ``[K]``, none of them 0."""
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def shuffled_information(
    table: IntArray, rng: np.random.Generator, draws: int = DRAWS
) -> FloatArray:
    """Return the mutual information in bits, ``[draws]``, with one of two labels dealt out anew.

    Shuffling a label keeps both margins of the table of counts, so tables are drawn with those
    margins (Patefield 1981, *Applied Statistics* 30:91) and no question is touched.

    Args:
        table: counts ``[R, C]`` with no empty row or column.
    """
    from scipy.stats import random_table

    dealt = random_table(table.sum(axis=1), table.sum(axis=0), seed=rng)
    # A part at a time: two labels of a thousand categories make tables of a million cells.
    part = max(1, 2_000_000 // table.size)
    sizes = [min(part, draws - start) for start in range(0, draws, part)]
    return np.concatenate([mutual_information(dealt.rvs(size)) for size in sizes])


def cross_table(first: IntArray, second: IntArray) -> IntArray:
    """Return how often each pair of labels occurs, ``[R, C]``, without empty rows or columns.

    Args:
        first, second: int64 ``[n]``, row by row.
    """
    rows, row = np.unique(first, return_inverse=True)
    columns, column = np.unique(second, return_inverse=True)
    cells = row * len(columns) + column
    counted = np.bincount(cells, minlength=len(rows) * len(columns))
    return np.asarray(counted.reshape(len(rows), len(columns)), dtype=np.int64)


def category_codes(values: Sequence[str | None] | FloatArray) -> tuple[IntArray, list[str]]:
    """Return the number of each question's category, int64 ``[n]``, and the names, sorted.

    A question without one (None, NaN or "") has -1.
    """
    shown = [str(v) if v is not None and v == v and v != "" else None for v in values]
    names = sorted({v for v in shown if v is not None})
    number = {name: i for i, name in enumerate(names)}
    return np.array([-1 if v is None else number[v] for v in shown], dtype=np.int64), names


def difficulty_bins(difficulty: FloatArray) -> IntArray:
    """Return the bin of each difficulty ``[n]``: its level, or its tenth where there are over ten.

    Equal difficulties share a bin, so with many ties there are fewer than ten.

    Args:
        difficulty: float64 ``[n]``, without NaN.
    """
    levels = np.unique(difficulty)
    if len(levels) > MOST_BINS:
        levels = np.unique(np.quantile(difficulty, np.arange(1, MOST_BINS) / MOST_BINS))
    return np.asarray(np.searchsorted(levels, difficulty, side="left"), dtype=np.int64)


def leak(source: LabelSource) -> Leak:
    """Test whether a difficulty tells the position of the right answer.

    A labelling model that always says A finds every question hard whose answer is not A; an order
    by such a difficulty sorts the questions by letter. The p-value counts the observed table among
    the shuffled ones (Phipson & Smyth 2010, *Stat. Appl. Genet. Mol. Biol.* 9:39).

    Raises:
        ValueError: there are no answers, or labels and answers differ in length.
    """
    if source.answers is None:
        raise ValueError(f"{source.source!r} of {source.training!r} has no right options")
    difficulty = np.asarray(source.values, dtype=np.float64)
    if difficulty.shape != source.answers.shape:
        raise ValueError(
            f"difficulty {source.source!r} of {source.training!r}: {len(difficulty)} labels for "
            f"{len(source.answers)} answers"
        )
    kept = np.isfinite(difficulty) & (source.answers >= 0)
    n = int(kept.sum())
    if n == 0:
        return Leak(source.training, source.source, NAN, NAN, NAN, 1.0, 0, 0)
    table = cross_table(difficulty_bins(difficulty[kept]), source.answers[kept])
    bits = float(mutual_information(table))
    luck, p = 0.0, 1.0
    if min(table.shape) > 1:
        shuffled = shuffled_information(table, stream(0, "label leak"))
        luck = float(shuffled.mean())
        # Tables that are equal but for the order of their cells add up to within rounding.
        p = (1 + int((shuffled >= bits - 1e-9).sum())) / (1 + DRAWS)
    return Leak(
        source.training, source.source, bits, luck, entropy(table.sum(axis=0)), p, n, len(table)
    )


def source_pairs(
    sources: Sequence[LabelSource], kind: str
) -> Iterator[tuple[LabelSource, LabelSource]]:
    """Yield every two sources of one kind on one training set, in the order listed.

    Raises:
        ValueError: they label different numbers of questions.
    """
    for first, second in combinations([s for s in sources if s.kind == kind], 2):
        if first.training == second.training:
            if len(first.values) != len(second.values):
                raise ValueError(
                    f"{kind} of {first.training!r}: {len(first.values)} labels from "
                    f"{first.source!r}, {len(second.values)} from {second.source!r}"
                )
            yield first, second


def agreements(sources: Sequence[LabelSource]) -> list[Agreement]:
    """Compare every two sources of one kind on one training set, difficulties first."""
    difficulties = [difficulty_agreement(a, b) for a, b in source_pairs(sources, "difficulty")]
    return difficulties + [category_agreement(a, b) for a, b in source_pairs(sources, "category")]


def difficulty_agreement(first: LabelSource, second: LabelSource) -> Agreement:
    """Correlate two difficulties over the questions that carry both."""
    x = np.asarray(first.values, dtype=np.float64)
    y = np.asarray(second.values, dtype=np.float64)
    rho, low, high, n = rank_correlation(x, y)
    both = np.isfinite(x) & np.isfinite(y)
    levels = len(np.unique(x[both])), len(np.unique(y[both]))
    return Agreement(
        first.training, "difficulty", first.source, second.source, rho, low, high, NAN, NAN, n,
        levels,
    )  # fmt: skip


def category_agreement(first: LabelSource, second: LabelSource) -> Agreement:
    """Return the adjusted mutual information of two partitions, and what luck gives.

    Normalised by the arithmetic mean of the two entropies (Vinh, Epps & Bailey 2010, *JMLR*
    11:2837). Questions to which either source gives no category are left out.
    """
    from sklearn.metrics import adjusted_mutual_info_score
    from sklearn.metrics.cluster import expected_mutual_information

    one, two = category_codes(first.values)[0], category_codes(second.values)[0]
    both = (one >= 0) & (two >= 0)
    one, two = one[both], two[both]
    table = cross_table(one, two)
    n = len(one)
    value = luck = luck_high = NAN
    # With a category a question, either way, the mutual information has no room to vary.
    if min(table.shape) > 1 and max(table.shape) < n:
        value = float(adjusted_mutual_info_score(one, two))
        # Dealing a source out anew keeps its margins, and with them the adjustment.
        expected = float(expected_mutual_information(table, n)) / np.log(2)
        ceiling = (entropy(table.sum(axis=0)) + entropy(table.sum(axis=1))) / 2
        shuffled = shuffled_information(table, stream(0, "label agreement"))
        adjusted = (shuffled - expected) / (ceiling - expected)
        luck, luck_high = float(adjusted.mean()), float(np.quantile(adjusted, 0.95))
    return Agreement(
        first.training, "category", first.source, second.source, value, NAN, NAN, luck, luck_high,
        n, (table.shape[0], table.shape[1]),
    )  # fmt: skip


def overlaps(sources: Sequence[LabelSource]) -> list[Overlap]:
    """Return where each category stands under the other source, largest categories first.

    The source listed later is told in terms of the one listed first: the clusters, say, in terms
    of the editor's categories.
    """
    rows = []
    for other, source in source_pairs(sources, "category"):
        numbers, names = category_codes(source.values)
        other_numbers, other_names = category_codes(other.values)
        both = (numbers >= 0) & (other_numbers >= 0)
        sizes = np.bincount(numbers[both], minlength=len(names))
        for number in np.argsort(-sizes, kind="stable"):
            if sizes[number]:
                held = np.bincount(other_numbers[both & (numbers == number)])
                top = [i for i in np.argsort(-held, kind="stable")[:3] if held[i]]
                rows.append(
                    Overlap(
                        source.training,
                        source.source,
                        other.source,
                        names[number],
                        int(sizes[number]),
                        tuple((other_names[i], int(held[i])) for i in top),
                    )
                )
    return rows


def strategy_of(outcome: Outcome, arm: str) -> str:
    """Return an arm's strategy with its settings: its name without the label sources at its end."""
    shown = [f"{kind}={source}" for kind, source in outcome.sources.get(arm, {}).items()]
    for size in range(len(shown), 0, -1):
        for part in permutations(shown, size):
            ending = f" [{', '.join(part)}]"
            if arm.endswith(ending):
                return arm.removesuffix(ending)
    return arm


def source_gains(outcome: Outcome, blocked: str = "") -> list[SourceGain]:
    """Compare each strategy under every two sources of a label, and all strategies together.

    The other kind of label has the same source on both sides. The pooled line is the mean of the
    differences seed by seed and question by question, every strategy weighing alike, however many
    sources of the other label it ran under; a seed counts that has all the runs. A strategy whose
    two sources share no seed is left out. Where there is a single difference, it is the pooled one.

    Args:
        blocked: "floor" or "ceiling": numbers are given, and nothing is claimed.
    """
    found: list[SourceGain] = []
    named = {(k, s) for needs in outcome.sources.values() for k, s in needs.items()}
    several = {kind for kind in KINDS if sum(k == kind for k, _ in named) > 1}
    for kind in KINDS:
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for arm in outcome.arms:
            needs = outcome.sources.get(arm, {})
            if kind in needs:
                fixed = ", ".join(f"{k}={s}" for k, s in needs.items() if k in several - {kind})
                cells.setdefault((strategy_of(outcome, arm), fixed), {})[needs[kind]] = arm
        names = list(dict.fromkeys(source for arms in cells.values() for source in arms))
        for other, source in combinations(names, 2):
            found += _pair_gains(outcome, kind, source, other, cells, blocked)
    return found


def _pair_gains(
    outcome: Outcome,
    kind: str,
    source: str,
    other: str,
    cells: dict[tuple[str, str], dict[str, str]],
    blocked: str,
) -> list[SourceGain]:
    kept, pooled_seeds, alike = judged(outcome), pooled_arms(outcome), not seeds_differ(outcome)
    parts: dict[tuple[str, str], tuple[FloatArray, FloatArray]] = {}
    for cell, arms in cells.items():
        if source in arms and other in arms:
            gap = difference(outcome, arms[source], arms[other])
            if not np.isnan(gap).all():
                parts[cell] = outcome.arms[arms[source]][:, kept], gap

    def line(
        cells: Sequence[tuple[str, str]], pooled: bool, scores: FloatArray, gap: FloatArray
    ) -> SourceGain:
        # Strategies weigh alike; each is split among its cells, one arm minus another.
        often = Counter(strategy for strategy, _ in cells)
        weight = sum(2.0 / often[strategy] for strategy in often) / len(often) ** 2
        estimate = mean_interval(gap, pooled=pooled_seeds, weight=weight)
        score = float(scores[~np.isnan(gap).any(axis=1)].mean())
        return SourceGain(
            model=outcome.model,
            evaluation=outcome.evaluation,
            metric=outcome.metric,
            kind=kind,
            source=source,
            other=other,
            strategies=tuple(dict.fromkeys(strategy for strategy, _ in cells)),
            averaged=len(cells),
            pooled=pooled,
            fixed=cells[0][1] if len(cells) == 1 else "",
            score=score,
            other_score=score - estimate.mean,
            estimate=estimate,
            blocked=blocked,
            alike=alike,
        )

    lines = [line([cell], len(parts) == 1, *part) for cell, part in parts.items()]
    if len(parts) > 1:
        by_strategy: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
        for (strategy, _), part in parts.items():
            by_strategy.setdefault(strategy, []).append(part)
        # Axes: score or difference, seed, question. A missing run is a row of NaN, which a mean
        # hands on: the seed does not count.
        scores, gap = np.mean([np.mean(own, axis=0) for own in by_strategy.values()], axis=0)
        if not np.isnan(gap).all():
            lines.append(line(list(parts), True, scores, gap))
    return lines


def correct_sources(lines: Sequence[SourceGain]) -> list[SourceGain]:
    """Correct the p-values by Holm, pooled lines among themselves and single ones likewise.

    The pooled lines answer the question whether the source matters; the single ones say where, and
    do not weaken that answer by their number.
    """
    found = list(lines)
    for pooled in (True, False):
        chosen = [i for i, g in enumerate(found) if g.pooled == pooled and g.testable]
        corrected = holm([found[i].estimate.p for i in chosen])
        for i, p in zip(chosen, corrected, strict=True):
            found[i] = replace(found[i], p_holm=float(p))
    return found
