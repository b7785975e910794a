"""The findings in plain words: two sentences, and what must be said beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lessonplan.errors import counted
from lessonplan.evaluation.outcomes import Record, open_runs, place_of
from lessonplan.evaluation.scores import LIKELIHOODS
from lessonplan.orders import STRATEGIES
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.crossed import LEAST_SEEDS, THESE_RUNS, Estimate
from lessonplan.statistics.family import Gain
from lessonplan.statistics.result import ACCURACY, Result
from lessonplan.statistics.sources import SourceGain

MINUS = "\N{MINUS SIGN}"
# Metric -> the unit of a gain in it, and the decimals that it is read with.
UNITS = {
    ACCURACY: ("points", 1),
    LIKELIHOODS["per_token"]: ("nats per token", 4),
    LIKELIHOODS["per_byte"]: ("nats per byte", 4),
    LIKELIHOODS["sum"]: ("nats", 2),
}


@dataclass(frozen=True)
class Verdict:
    """What a comparison says.

    Attributes:
        kind: "winner", "no difference", "too few seeds", "floor", "ceiling" or "no runs".
        sentences: two sentences.
        caveats: further sentences without which the two would mislead.
    """

    kind: str
    sentences: tuple[str, str]
    caveats: tuple[str, ...] = ()


def spoken(arm: str) -> str:
    """Return an arm's name as it is read: ``blocked_curriculum`` becomes "blocked curriculum"."""
    head, bracket, tail = arm.partition(" [")
    return (head.replace("_", " ") if head in STRATEGIES else head) + bracket + tail


def signed(value: float, metric: str) -> str:
    """Return a gain with its sign: in points for an accuracy, in nats, else to three digits."""
    if math.isnan(value):
        return "unknown"
    text = f"{value:+.3g}"
    if metric in UNITS:
        text = f"{value * (100 if metric == ACCURACY else 1):+.{UNITS[metric][1]}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def unit(metric: str) -> str:
    """Return the unit of a gain with a space before it, "" where it has none."""
    return f" {UNITS[metric][0]}" if metric in UNITS else ""


def amount(value: float, metric: str) -> str:
    """Return a size with its unit: "2.1 points" for an accuracy, in nats, else to three digits."""
    if metric not in UNITS:
        return f"{value:.3g}"
    text = signed(value, metric).lstrip("+")
    return f"{text} point" if text == "1.0" and metric == ACCURACY else text + unit(metric)


def chance_of(p: float) -> str:
    """Return a p-value as "p = 0.012" or "p < 0.001"."""
    if math.isnan(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def interval_words(estimate: Estimate, metric: str) -> str:
    """Return "95% interval -0.3 to +2.1", or that there is none."""
    if math.isnan(estimate.low):
        return "no interval from a single run of a single question"
    return f"95% interval {signed(estimate.low, metric)} to {signed(estimate.high, metric)}"


def listing(names: list[str]) -> str:
    """Join names with commas and a last "and"."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def baseline_words(result: Result) -> str:
    """Return "the random shuffle", or the baseline's own name."""
    name = result.outcome.baseline
    return "the random shuffle" if name == "random" else spoken(name)


def result_verdict(result: Result) -> Verdict:
    """Say what was found for one model on one evaluation set."""
    metric = result.outcome.metric
    base = baseline_words(result)
    measured = [g for g in result.gains if g.estimate is not None]
    if result.outcome.baseline not in result.scores or not measured:
        lacking = base if result.outcome.baseline not in result.scores else "every other order"
        return Verdict(
            "no runs",
            (
                f"Nothing can be compared yet: {lacking} has no finished run to compare with.",
                "Start the study again to run what is missing.",
            ),
        )
    if result.at_floor:
        return _floor(result)
    if result.at_ceiling:
        score = result.scores[result.outcome.baseline]
        return Verdict(
            "ceiling",
            (
                f"Nothing can be concluded about the orders: {base} already answers "
                f"{score.mean:.1%} of the questions (95% interval {score.low:.1%} to "
                f"{score.high:.1%}), which cannot be told from all of them.",
                "A harder evaluation set would leave room for a gain, and a larger one narrows the "
                "interval.",
            ),
        )
    tested = [g for g in measured if g.testable]
    if not tested:
        return _too_few(result, max(measured, key=_mean))
    winners = sorted((g for g in tested if g.winner), key=_mean, reverse=True)
    if winners:
        return _winner(result, winners, metric)
    return _no_difference(result, max(tested, key=_mean))


def _mean(gain: Gain) -> float:
    return gain.estimate.mean if gain.estimate is not None else -math.inf


def _floor(result: Result) -> Verdict:
    floor = result.floor if result.floor is not None else math.nan
    by_letter = result.constant is not None and result.constant == result.floor
    what = "always answering the same letter" if by_letter else "guessing"
    tuned = result.scores[result.outcome.baseline]
    base = baseline_words(result)
    before = f"{result.untuned.mean:.1%} before tuning and " if result.untuned else ""
    return Verdict(
        "floor",
        (
            "Nothing can be concluded about the orders: the model cannot be told from the floor, "
            f"with {before}{tuned.mean:.1%} after tuning on {base} (95% interval {tuned.low:.1%} "
            f"to {tuned.high:.1%}), where {what} reaches {floor:.1%}.",
            "A model that has not learned the task shows no difference between orders that "
            "means anything, so no winner is called here; a larger evaluation set tells sooner "
            "whether it has.",
        ),
    )


def _too_few(result: Result, best: Gain) -> Verdict:
    assert best.estimate is not None
    metric = result.outcome.metric
    base = baseline_words(result)
    seeds = max(g.estimate.seeds for g in result.gains if g.estimate is not None)
    if best.estimate.questions == 1:
        reason = "there is a single question"
    elif seeds >= LEAST_SEEDS:
        reason = (
            f"the runs of all seeds are the same, and at least {LEAST_SEEDS} that differ are needed"
        )
    else:
        runs = "one seed" if seeds == 1 else f"{seeds} seeds"
        reason = f"each order was run with {runs}, and at least {LEAST_SEEDS} are needed"
    scope = "over the questions, for these runs alone" if best.estimate.scope == THESE_RUNS else ""
    gained = f"{signed(best.estimate.mean, metric)}{unit(metric)}"
    return Verdict(
        "too few seeds",
        (
            f"Nothing can be concluded yet: {reason} to tell an order from luck.",
            (
                f"In these runs {spoken(best.arm)} came out highest, {gained} against {base}"
                if best.estimate.mean > 0
                else f"In these runs no order came out above {base}; the nearest, "
                f"{spoken(best.arm)}, stands at {gained}"
            )
            + f" ({interval_words(best.estimate, metric)}{', ' if scope else ''}{scope}).",
        ),
    )


def _winner(result: Result, winners: list[Gain], metric: str) -> Verdict:
    base = baseline_words(result)
    top = winners[0]
    assert top.estimate is not None
    assert top.p_holm is not None
    first = (
        f"{capital(spoken(top.arm))} beat {base} by {amount(top.estimate.mean, metric)} "
        f"({interval_words(top.estimate, metric)}; {chance_of(top.p_holm)} after Holm's correction)"
    )
    others = [spoken(w.arm) + f" by {signed(_mean(w), metric)}{unit(metric)}" for w in winners[1:]]
    first += f"; so did {listing(others)}." if others else "."
    if len(result.gains) == 1:
        second = "No other order was compared."
    elif result.best_of_all == top.arm:
        second = "It is also better than every other order here."
    else:
        second = "Whether it is the best of all orders here cannot be said: "
        second += "it does not clearly beat each of the others."
    if result.best is not None and result.best.k > 1:
        second += (
            f" Luck alone would give the best of {result.best.k} orders "
            f"{signed(result.best.luck, metric)}{unit(metric)}."
        )
    return Verdict("winner", (first, second), _losers(result))


def _no_difference(result: Result, best: Gain) -> Verdict:
    assert best.estimate is not None
    metric = result.outcome.metric
    base = baseline_words(result)
    losers = [g for g in result.gains if g.loser]
    first = (
        f"No order beat {base}"
        if losers
        else f"No difference from {base} was found that luck cannot explain"
    )
    first += (
        f": the highest, {spoken(best.arm)}, stands at {signed(best.estimate.mean, metric)}"
        f"{unit(metric)} ({_interval_of_chosen(result, best)})"
    )
    second = ""
    if result.best is not None and result.best.k > 1:
        second = (
            f"luck alone gives the best of {result.best.k} orders "
            f"{signed(result.best.luck, metric)}{unit(metric)} on average, and "
        )
    equal = "the others are equal to it" if losers else "the orders are equal"
    second += f"this does not show that {equal}"
    if result.smallest is not None:
        second += (
            f": only a gain of about {amount(result.smallest, metric)} or more would have been "
            "seen with a power of 80%"
        )
    second = capital(second) + "."
    return Verdict("no difference", (first + ".", second), _losers(result))


def _interval_of_chosen(result: Result, chosen: Gain) -> str:
    """Return the interval of the highest gain: one that allows for its having been chosen."""
    assert chosen.estimate is not None
    metric, best = result.outcome.metric, result.best
    if best is None or best.k == 1 or result.gains[best.index].arm != chosen.arm:
        return interval_words(chosen.estimate, metric)
    return (
        f"95% interval {signed(best.low, metric)} to {signed(best.high, metric)}, allowing for the "
        f"choice of {best.k}"
    )


def _losers(result: Result) -> tuple[str, ...]:
    metric = result.outcome.metric
    worse = [g for g in result.gains if g.loser]
    if not worse:
        return ()
    names = listing([f"{spoken(g.arm)} ({signed(_mean(g), metric)}{unit(metric)})" for g in worse])
    return (f"Worse than {baseline_words(result)}, beyond luck: {names}.",)


def capital(text: str) -> str:
    """Return a text with its first letter raised and all others as they are."""
    return text[:1].upper() + text[1:]


def source_sentence(gain: SourceGain) -> str:
    """Say what the scores under two sources of a label tell, from their pooled line."""
    e, metric = gain.estimate, gain.metric
    if gain.blocked:
        return (
            f"Of the {gain.kind} by “{gain.source}” or by “{gain.other}” nothing is claimed: "
            f"scores at the {gain.blocked} do not tell one label from another."
        )
    size = amount(abs(e.mean), metric)
    level = float(size.split()[0]) == 0
    stands = "level with" if level else f"{size} {'above' if e.mean > 0 else 'below'}"
    told = f"{_strategies_words(gain)}, “{gain.source}” stands {stands} “{gain.other}”"
    interval = interval_words(e, metric)
    if gain.p_holm is None:
        runs = "one run each" if e.seeds == 1 else f"{e.seeds} seeds"
        lacking = f"{runs}, where {LEAST_SEEDS} seeds are needed"
        if e.questions == 1:
            lacking = "a single question"
        elif gain.alike and e.seeds >= LEAST_SEEDS:
            lacking = f"the runs of all seeds are the same, where {LEAST_SEEDS} others are needed"
        return f"{told} ({interval}) in these runs alone: {lacking} to tell it from luck."
    told += f" ({interval}; {chance_of(gain.p_holm)} after Holm's correction)"
    return f"{told}: {'beyond luck' if gain.found else 'no difference that luck cannot explain'}."


def _strategies_words(gain: SourceGain) -> str:
    if len(gain.strategies) > 1:
        return (
            f"Averaged over the {len(gain.strategies)} strategies that ran under both sources of "
            f"{gain.kind}"
        )
    return f"For {spoken(gain.strategies[0])} by its source of {gain.kind}"


def _source_caveat(analysis: Analysis) -> list[str]:
    """Return one sentence on the label sources whose pooled difference is beyond luck, or none."""
    found = [g for g in analysis.source_gains if g.pooled and g.found]
    if not found:
        return []
    several = len({(g.model, g.evaluation) for g in analysis.source_gains}) > 1
    told = []
    for g in found[:3]:
        better, worse = (g.source, g.other) if g.estimate.mean > 0 else (g.other, g.source)
        where = f" for {place_of(g.model, g.evaluation)}" if several else ""
        told.append(
            f"{g.kind} “{better}” beat “{worse}” by {amount(abs(g.estimate.mean), g.metric)}{where}"
        )
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return [f"It matters where the labels come from: {'; '.join(told)}{more}, beyond luck."]


def verdict(record: Record, analysis: Analysis) -> Verdict:
    """Say what a whole study found, in two sentences and caveats."""
    results = analysis.results
    caveats: list[str] = []
    if record.runs_planned > record.runs_done:
        caveats.append(
            f"{record.runs_done} of {record.runs_planned} planned runs are done; "
            "this speaks of those alone."
        )
    caveats += open_runs(len(record.failures), len(record.unfinished), len(record.to_do))
    for label in analysis.labels:
        if not label.visible and any(
            "difficulty" in needs for r in results for needs in r.outcome.sources.values()
        ):
            known = not math.isnan(label.rho)
            found = (
                f"rank correlation {label.rho:.2f}, 95% interval {label.low:.2f} to "
                f"{label.high:.2f}".replace("-", MINUS)
                if known
                else "it does not vary, or too few questions carry it"
            )
            subject = f"The difficulty “{label.source}”"
            loss = f"the loss of the untuned {label.model} on {label.training} ({found})"
            caveats.append(
                f"{subject} goes against {loss}: what it calls hard is easy for this model, so "
                "its easy to hard orders are hard to easy here."
                if label.against
                else f"{subject} was not shown to predict {loss}: to this model its easy to hard "
                "orders may be just another shuffle, and their gain or loss does not speak of "
                "easy to hard."
            )
    caveats += _source_caveat(analysis)
    if not results:
        empty = ("Nothing can be compared yet: there are no results.", "Start the study first.")
        return Verdict("no runs", empty, tuple(caveats))
    if len(results) == 1:
        own = result_verdict(results[0])
        return Verdict(own.kind, own.sentences, (*own.caveats, *caveats))
    overall = _overall(results)
    return Verdict(overall.kind, overall.sentences, (*overall.caveats, *caveats))


def _overall(results: list[Result]) -> Verdict:
    verdicts = [result_verdict(result) for result in results]
    kinds = [v.kind for v in verdicts]
    winners = [(r, g) for r in results for g in r.gains if g.winner]
    winners.sort(key=lambda pair: _mean(pair[1]), reverse=True)
    judgeable = [r for r, kind in zip(results, kinds, strict=True) if kind in CONCLUSIVE]
    silent = len(results) - len(judgeable)
    if winners:
        told = []
        for result, gain in winners[:3]:
            assert gain.estimate is not None
            metric = result.outcome.metric
            told.append(
                f"{spoken(gain.arm)} by {amount(gain.estimate.mean, metric)} "
                f"for {result.outcome.place} ({interval_words(gain.estimate, metric)})"
            )
        more = f", and {len(winners) - 3} more" if len(winners) > 3 else ""
        first = f"Better than {baseline_words(results[0])}, beyond luck: {'; '.join(told)}{more}."
        kind = "winner"
    elif judgeable:
        base = baseline_words(results[0])
        first = (
            f"In none of {counted(len(judgeable), 'comparison')} was a gain over {base} found "
            "that luck cannot explain."
        )
        kind = "no difference"
    else:
        first = f"Nothing can be concluded in any of the {len(results)} comparisons."
        kind = kinds[0]
    parts = []
    sizes = [(r.smallest, r.outcome.metric) for r in judgeable if r.smallest is not None]
    if sizes and len({metric for _, metric in sizes}) == 1:
        low, high = amount(*min(sizes)), amount(*max(sizes))
        parts.append(
            f"the smallest gain that could have been seen is about {low}"
            if low == high
            else f"the smallest gains that could have been seen range from {low} to {high}"
        )
    if silent:
        which = [
            f"{r.outcome.place} ({kind})"
            for r, kind in zip(results, kinds, strict=True)
            if kind not in CONCLUSIVE
        ]
        parts.append(f"nothing can be concluded for {listing(which)}")
    second = capital("; ".join(parts)) + "." if parts else "Each comparison stands below."
    return Verdict(kind, (first, second), tuple(c for v in verdicts for c in v.caveats))


CONCLUSIVE = {"winner", "no difference"}
