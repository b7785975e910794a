"""From a record of results to findings: accuracy, gains, winners, luck, floor, groups, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lessonplan.evaluation.outcomes import Outcome, Record
from lessonplan.statistics.crossed import (
    Estimate,
    bootstrap_interval,
    complete_runs,
    mean_interval,
    smallest_visible,
)
from lessonplan.statistics.efficiency import Efficiency, efficiencies
from lessonplan.statistics.family import (
    ALPHA,
    Gain,
    all_pairs,
    best_of_all,
    count_distinct,
    difference,
    gains,
    generalises,
    holm,
    judged,
    pooled_arms,
    seeds_differ,
)
from lessonplan.statistics.forgetting import Forgetting, forgetting
from lessonplan.statistics.grid import Grid, study_grid
from lessonplan.statistics.labels import (
    UNLABELLED,
    LabelStrength,
    Received,
    label_strength,
    received,
)
from lessonplan.statistics.luck import best_of
from lessonplan.statistics.power import components, smallest_gain
from lessonplan.statistics.result import ACCURACY, GroupScore, Result, limit_reached
from lessonplan.statistics.sources import (
    Agreement,
    Leak,
    Overlap,
    SourceGain,
    agreements,
    correct_sources,
    leak,
    overlaps,
    source_gains,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Analysis:
    """All findings of a study.

    Attributes:
        family: number of tests that Holm's correction runs over.
        level: the first step's level, 0.05 / family.
        agreements, overlaps, source_gains: every two sources of a label compared; empty where
            each label has one. leaks: one for each source of difficulty of
            questions with options.
        grid: several models or evaluation sets side by side; None for a single result.
        efficiency: one for each arm that was scored along its runs.
        forgetting: one for each arm whose orders are known, where questions have categories.
    """

    results: list[Result]
    labels: list[LabelStrength]
    received: list[Received]
    family: int
    level: float
    agreements: list[Agreement] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    source_gains: list[SourceGain] = field(default_factory=list)
    grid: Grid | None = None
    efficiency: list[Efficiency] = field(default_factory=list)
    forgetting: list[Forgetting] = field(default_factory=list)


def floors(outcome: Outcome) -> tuple[float | None, float | None]:
    """Return the accuracy of uniform guessing and of the best constant letter, None if unknown."""
    if outcome.metric != ACCURACY:
        return None, None
    kept = judged(outcome)
    chance = constant = None
    if outcome.n_options is not None:
        chance = float((1.0 / outcome.n_options[kept]).mean())
    if outcome.letters_matter and outcome.answers is not None:
        constant = float(np.bincount(outcome.answers[kept]).max() / kept.sum())
    return chance, constant


def score_interval(values: FloatArray, metric: str) -> Estimate:
    """Return `mean_interval`, kept inside 0 and 1 for an accuracy.

    Where all answers of all runs are right, or all wrong, Wilson's interval over the questions
    stands in for one of no width.
    """
    estimate = mean_interval(values)
    if metric != ACCURACY or np.isnan(estimate.low):
        return estimate
    low, high = estimate.low, estimate.high
    if estimate.se == 0 and estimate.mean in (0.0, 1.0):
        from statsmodels.stats.proportion import proportion_confint

        right = round(estimate.mean * estimate.questions)
        low, high = proportion_confint(right, estimate.questions, method="wilson")
    return replace(estimate, low=max(0.0, float(low)), high=min(1.0, float(high)))


def analyse(record: Record) -> Analysis:
    """Turn a record of results into findings.

    The primary family is every arm on every model and evaluation set, corrected by Holm over the
    whole study. A gain that cannot be tested (fewer than three shared seeds, seeds whose runs are
    all the same, a model at the floor or the ceiling) stays in the family with p = 1, so that it
    makes the others' threshold no easier. All else (pairs, groups, label sources, the bootstrap) is
    descriptive.

    Raises:
        KeyError: an outcome has no arm of its baseline's name.
        ValueError: a run has scores for a part of the questions only, or two sources of a label
            are of different length.
    """
    results = [_result(outcome) for outcome in record.outcomes]
    family = sum(len(result.gains) for result in results)
    level = ALPHA / max(family, 1)
    everything = [gain for result in results for gain in result.gains]
    corrected = holm(
        [g.estimate.p if g.testable and g.estimate is not None else 1.0 for g in everything]
    )
    called = iter(
        replace(gain, p_holm=float(p), smallest=smallest_visible(g.se, g.df, level))
        if gain.testable and (g := gain.estimate) is not None
        else gain
        for gain, p in zip(everything, corrected, strict=True)
    )
    finished = []
    for result in results:
        own = [next(called) for _ in result.gains]
        smallest = typical_smallest(result.outcome, [g for g in own if g.testable], level)
        finished.append(replace(result, gains=own, smallest=smallest))
    strengths = [label_strength(check) for check in record.label_checks]
    rates = [row for picture in record.orders for row in received(picture)]
    by_source = [g for r in finished for g in source_gains(r.outcome, r.blocked)]
    return Analysis(
        finished,
        strengths,
        rates,
        family,
        level,
        agreements=agreements(record.label_sources),
        overlaps=overlaps(record.label_sources),
        leaks=[
            leak(s)
            for s in record.label_sources
            if s.kind == "difficulty" and s.answers is not None
        ],
        source_gains=correct_sources(by_source),
        grid=study_grid(finished),
        efficiency=[e for outcome in record.outcomes for e in efficiencies(outcome)],
        forgetting=[f for outcome in record.outcomes for f in forgetting(outcome)],
    )


def limit(outcome: Outcome) -> str:
    """Return why nothing can be concluded from the scores, as `Result.blocked`, from them alone."""
    values = outcome.arms[outcome.baseline][:, judged(outcome)]
    baseline = None if np.isnan(values).all() else score_interval(values, outcome.metric)
    return limit_reached(*_limits(outcome, baseline, _untuned_score(outcome)))


def _untuned_score(outcome: Outcome) -> Estimate | None:
    kept = judged(outcome)
    if outcome.untuned is None or np.isnan(outcome.untuned[kept]).any():
        return None
    return score_interval(outcome.untuned[kept][None, :], outcome.metric)


def _limits(
    outcome: Outcome, baseline: Estimate | None, untuned: Estimate | None
) -> tuple[bool, bool]:
    """Return whether neither model clears the floor, and whether the baseline may be perfect.

    Whether a few questions more could have been answered is a matter of the questions. An interval
    over seeds, symmetric and with two degrees of freedom, reaches 100% from far below.
    """
    if baseline is None or outcome.metric != ACCURACY:
        return False, False
    floor = max((f for f in floors(outcome) if f is not None), default=None)
    cleared = [floor is None or e.low > floor for e in (untuned, baseline) if e is not None]
    values = outcome.arms[outcome.baseline][:, judged(outcome)]
    by_question = values[complete_runs(values)].mean(axis=0, keepdims=True)
    high = score_interval(by_question, outcome.metric).high
    # Wilson's bound comes with rounding; a single question has none.
    return not any(cleared), high >= 1.0 - 1e-9 or bool((by_question == 1.0).all())


def _result(outcome: Outcome) -> Result:
    kept = judged(outcome)
    scores = {
        arm: score_interval(values[:, kept], outcome.metric)
        for arm, values in outcome.arms.items()
        if not np.isnan(values).all()
    }
    untuned = _untuned_score(outcome)
    chance, constant = floors(outcome)
    at_floor, at_ceiling = _limits(outcome, scores.get(outcome.baseline), untuned)
    blocked = at_floor or at_ceiling
    judgeable = not blocked and seeds_differ(outcome)
    found = [
        replace(
            gain,
            testable=judgeable and generalises(gain.estimate),
            bootstrap=None
            if gain.estimate is None
            else bootstrap_interval(difference(outcome, gain.arm, outcome.baseline)),
        )
        for gain in gains(outcome)
    ]
    best = None
    if any(gain.testable for gain in found):  # of what seeds do, too few tell nothing
        values = np.stack([difference(outcome, g.arm, outcome.baseline) for g in found])
        best = best_of(values, pooled=pooled_arms(outcome))
    pairs = all_pairs(outcome) if judgeable else []
    return Result(
        outcome=outcome,
        scores=scores,
        untuned=untuned,
        chance=chance,
        constant=constant,
        at_floor=at_floor,
        at_ceiling=at_ceiling,
        gains=found,
        best=best,
        pairs=pairs,
        best_of_all=best_of_all(outcome, pairs),
        smallest=None,
        groups=group_scores(outcome),
        notes=_run_notes(outcome),
    )


def typical_smallest(outcome: Outcome, gains: Sequence[Gain], level: float) -> float | None:
    """Return the gain that the study could have seen for an order like these, None for no gains.

    From components averaged over the arms: with three seeds those of a single arm differ so much by
    luck that the smallest gain of each arm, taken alone, says little.
    """
    found = components(outcome)
    if not gains or found is None:
        return None
    if max(found.seed, found.question, found.rest) < 1e-24:  # no arm ever differs: rounding alone
        return None
    seeds = int(np.median([g.estimate.seeds for g in gains if g.estimate is not None]))
    smallest = smallest_gain(
        found,
        seeds,
        int(judged(outcome).sum()),
        arms=min(len(gains) + 1, count_distinct(outcome)),
        level=level,
    )
    return smallest if smallest > 0 else None


def group_scores(outcome: Outcome) -> list[GroupScore]:
    """Return every arm's score by category and by whether the answer was seen in training."""
    kept = judged(outcome)
    rows: list[GroupScore] = []
    parts: list[tuple[str, str, NDArray[np.bool_]]] = []
    if outcome.categories is not None:
        labels = np.array([c if c else UNLABELLED for c in outcome.categories], dtype=object)
        parts += [("category", str(c), kept & (labels == c)) for c in sorted(set(labels[kept]))]
    if outcome.answer_seen is not None:
        parts += [
            ("answer", "seen in training", kept & outcome.answer_seen),
            ("answer", "not seen in training", kept & ~outcome.answer_seen),
        ]
    if not kept.all():
        parts.append(("judged apart", "options that point at other options", ~kept))
    for kind, name, chosen in parts:
        if chosen.any():
            rows += _scores_of_part(outcome, kind, name, chosen)
    return rows


def _scores_of_part(
    outcome: Outcome, kind: str, name: str, chosen: NDArray[np.bool_]
) -> list[GroupScore]:
    rows = []
    size = int(chosen.sum())
    if outcome.untuned is not None:
        rows.append(GroupScore(kind, name, size, "", float(outcome.untuned[chosen].mean()), None))
    baseline = outcome.arms[outcome.baseline][:, chosen]
    pooled = pooled_arms(outcome, chosen)
    for arm, values in outcome.arms.items():
        part = values[:, chosen]
        present = complete_runs(part)
        if not present.any():
            continue
        gain = None
        both = present & complete_runs(baseline)
        if arm != outcome.baseline and both.any():
            gain = mean_interval(part[both] - baseline[both], pooled=pooled)
        rows.append(GroupScore(kind, name, size, arm, float(part[present].mean()), gain))
    return rows


def _run_notes(outcome: Outcome) -> list[str]:
    notes = []
    have = {arm: complete_runs(values) for arm, values in outcome.arms.items()}
    base = have[outcome.baseline]
    alike = {outcome.baseline}
    for arm, present in have.items():
        if arm == outcome.baseline:
            continue
        both = present & base
        alone = present & ~base
        lacking = base & ~present
        if alone.any():
            notes.append(
                f"{arm}: {_seeds(outcome, alone)} has no run of {outcome.baseline} to be paired "
                "with and was left out of the gain."
            )
        if lacking.any():
            rest = "; the other pairs are used" if both.any() else ""
            notes.append(f"{arm}: {_seeds(outcome, lacking)} is missing{rest}.")
        if _same(outcome, arm, outcome.baseline):
            alike.add(arm)
            notes.append(
                f"{arm}: every score is that of {outcome.baseline}. Check that the runs are its "
                "own, and that the two orders differ."
            )
    for arm, other in combinations(outcome.arms, 2):
        if not {arm, other} & alike and _same(outcome, arm, other):
            alike.add(other)
            notes.append(
                f"{other}: every score is that of {arm}. Where two orders are the same, their runs "
                "are, too; what they tell about seeds counts once."
            )
    for arm, present in have.items():
        copies = _copies(outcome.arms[arm], present)
        if copies.any():
            notes.append(
                f"{arm}: {_seeds(outcome, copies)} has the same scores, question by question. "
                "Copies of one run are no further seeds."
            )
    apart = int((~judged(outcome)).sum())
    if apart:
        notes.append(
            f"{apart} of {len(outcome.ids)} questions have options that point at other options; "
            "they are judged apart and do not count here."
        )
    return notes


def _same(outcome: Outcome, arm: str, other: str) -> bool:
    """Whether two arms have runs of the same seeds, and all their scores are the same."""
    gap = difference(outcome, arm, other)
    gap = gap[complete_runs(gap)]
    return len(gap) > 0 and not gap.any()


def _copies(values: FloatArray, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return bool ``[S]``, the most runs that are the same; none where their scores are all one."""
    alike = np.zeros(len(values), dtype=bool)
    varied = np.flatnonzero(present & (values.min(axis=1) < values.max(axis=1)))
    if len(varied):
        kinds = np.unique(values[varied], axis=0, return_inverse=True)[1].ravel()
        chosen = varied[kinds == np.bincount(kinds).argmax()]
        alike[chosen] = len(chosen) > 1
    return alike


def _seeds(outcome: Outcome, chosen: Sequence[bool] | NDArray[np.bool_]) -> str:
    numbers = [str(seed) for seed, c in zip(outcome.seeds, chosen, strict=True) if c]
    return ("seed " if len(numbers) == 1 else "each of seeds ") + ", ".join(numbers)
