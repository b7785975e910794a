"""The section on learning along a run: how fast, and what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from lessonplan.evaluation.outcomes import Record, place_of
from lessonplan.report.formats import to_html
from lessonplan.report.progress_tables import efficiency_table, forgetting_table
from lessonplan.report.sections import Pictures, figure
from lessonplan.statistics.analysis import Analysis
from lessonplan.statistics.efficiency import Efficiency
from lessonplan.statistics.forgetting import EDGES, Forgetting
from lessonplan.statistics.verdict import (
    amount,
    capital,
    interval_words,
    listing,
    signed,
    spoken,
    unit,
)


def progress_section(record: Record, analysis: Analysis, pictures: Pictures) -> str:
    """Return learning efficiency and forgetting, "" where neither is known.

    Args:
        pictures: "efficiency" and "forgetting", where they could be drawn.
    """
    efficiency = efficiency_table(analysis.efficiency)
    recalls = forgetting_table(analysis.forgetting)
    blocked = [
        f"{r.outcome.place or 'the model'} is at the {r.blocked}"
        for r in analysis.results
        if r.blocked
    ]
    caution = ""
    if blocked:
        caution = f"<p>{escape(f'This says nothing about orders where {listing(blocked)}.')}</p>"
    parts = []
    if efficiency is not None:
        parts += [
            "<h2>How fast it learns</h2>",
            caution,
            f"<p>{escape(' '.join(efficiency_sentences(analysis.efficiency)))}</p>",
            f"<p>{escape(unannealed(record.recipe))}</p>",
            figure(
                pictures,
                "efficiency",
                "Questions that each order needs to the baseline's final score.",
                "Where the mean curve first has what the baseline has at its end (dashed: the end "
                "of the run). Bars are 95% intervals from resampling seeds and questions (with one "
                "or two seeds, questions alone); an "
                "arrow: beyond the end, not reached. The baseline itself may be there early, since "
                "a curve wavers: compare with it, not with the end.",
            ),
            f'<div class="dense">{to_html(efficiency)}</div>',
        ]
    if recalls is not None:
        near, far = (f"{edge:.0%}" for edge in EDGES)
        parts += [
            "<h2>What is forgotten</h2>",
            caution,
            f"<p>{escape(' '.join(forgetting_sentences(analysis.forgetting)))}</p>",
            "<p>Descriptive. Each answer at a checkpoint, and at the end, is set beside the "
            "baseline's answer to the same question at the same point of the run. A category was "
            f"just seen where less than {near} of the run has gone by since its last question, "
            f"and seen long ago where it is {far} or more.</p>",
            figure(
                pictures,
                "forgetting",
                "Gain over the baseline by how long ago the question's category was last seen.",
                "Bars are 95% intervals from resampling seeds and categories (with one or two "
                "seeds, categories alone).",
            ),
            f'<div class="dense">{to_html(recalls)}</div>',
        ]
    return "".join(parts)


def unannealed(recipe: Mapping[str, object]) -> str:
    """Say what the learning rate's schedule means for scores in the middle of a run."""
    schedules = {str(v) for k, v in recipe.items() if k.split(" (")[0] == "schedule"}
    if not schedules:
        return "The schedule of the learning rate is unknown here."
    if schedules == {"constant"}:
        return (
            "The learning rate is constant, so a checkpoint is, but for the warm-up, what a run "
            "that ended there would have given."
        )
    decaying = listing(sorted(schedules - {"constant"}))
    return (
        f"The learning rate decays ({decaying}): a checkpoint in the middle of a run is "
        "un-annealed and stands lower than a run that ended there would. So these figures compare "
        "orders; they do not say how short a run could be. A study with schedule: constant does."
    )


def efficiency_sentences(found: list[Efficiency]) -> list[str]:
    """Say which arm has the largest area and which gets soonest to the baseline's final score."""
    said = []
    places = list(dict.fromkeys((e.model, e.evaluation) for e in found))
    for model, evaluation in places:
        own = [e for e in found if (e.model, e.evaluation) == (model, evaluation)]
        others = [e for e in own if e.gain is not None]
        base = next((e for e in own if e.gain is None), None)
        if not others or base is None:
            continue
        where = f"{place_of(model, evaluation)}: " if len(places) > 1 else ""
        top = max(others, key=lambda e: e.gain.mean if e.gain else -math.inf)
        assert top.gain is not None
        gained = (
            f"{signed(top.gain.mean, top.metric)}{unit(top.metric)} against {spoken(base.arm)} "
            f"({interval_words(top.gain, top.metric)})."
        )
        said.append(
            f"{where}{_named(top.arm, where)} has the largest area under its learning curve, "
            f"{gained}"
            if top.gain.mean > 0
            else f"{where}{_named(base.arm, where)} has the largest area under its learning curve; "
            f"the nearest order, {spoken(top.arm)}, has {gained}"
        )
        soon = min(others, key=lambda e: e.reached)
        itself = f"{spoken(base.arm)} itself first has it after {base.reached:,.0f}."
        if math.isinf(soon.reached):
            said.append(f"No other order reaches the final score of {spoken(base.arm)}.")
        elif soon.reached < base.reached:
            said.append(
                f"{capital(spoken(soon.arm))} is the first to have the final score of "
                f"{spoken(base.arm)}, after {soon.reached:,.0f} of {soon.end:,} questions; {itself}"
            )
        else:
            said.append(
                f"No order has the final score of {spoken(base.arm)} sooner than it: the first, "
                f"{spoken(soon.arm)}, after {soon.reached:,.0f} of {soon.end:,} questions; {itself}"
            )
    return said


def forgetting_sentences(found: list[Forgetting]) -> list[str]:
    """Say by how much each order does worse on what it saw long ago."""
    said = []
    places = list(dict.fromkeys((f.model, f.evaluation) for f in found))
    for model, evaluation in places:
        own = [f for f in found if (f.model, f.evaluation) == (model, evaluation)]
        shown = [f for f in own if not math.isnan(f.drop[1])]
        where = f"{place_of(model, evaluation)}: " if len(places) > 1 else ""
        told = [
            f"{spoken(f.arm)} by {amount(f.drop[0], f.metric)} "
            f"({signed(f.drop[1], f.metric)} to {signed(f.drop[2], f.metric)})"
            for f in shown
            if f.drop[1] > 0
        ]
        if told:
            sentence = (
                "set beside the baseline at the same point, these do better on categories that "
                f"they just saw than on those they saw long ago: {listing(told)}."
            )
        elif shown:
            sentence = (
                "no order is clearly better on categories that it just saw than on those it saw "
                "long ago."
            )
        else:
            sentence = "no order leaves a category unseen long enough for forgetting to show."
        said.append(where + (sentence if where else sentence[0].upper() + sentence[1:]))
    return said


def _named(arm: str, where: str) -> str:
    return spoken(arm) if where else capital(spoken(arm))
