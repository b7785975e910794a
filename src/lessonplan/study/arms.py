"""The arms of a study: its strategies, each with the label sources that it uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lessonplan import orders
from lessonplan.labels.label import KINDS, Kind
from lessonplan.study.config import ArmSpec, Study
from lessonplan.study.sources import LabelSpec, LabelSpecs


def arms(study: Study) -> Iterator[tuple[str, ArmSpec, dict[Kind, str]]]:
    """Yield each arm's name, strategy and label sources.

    A strategy is paired with the sources of the labels that it uses, and of no others, so none is
    run twice. Sources stand in the name only where there are several of their kind.
    """
    for spec in study.strategies:
        used = _uses(spec)
        choices = [list(getattr(study.labels, kind)) if used[kind] else [None] for kind in KINDS]
        for picked in itertools.product(*choices):
            sources = {kind: name for kind, name in zip(KINDS, picked, strict=True) if name}
            shown = [f"{k}={s}" for k, s in sources.items() if len(getattr(study.labels, k)) > 1]
            yield spec.title + (f" [{', '.join(shown)}]" if shown else ""), spec, sources


def label_sources(study: Study, kind: Kind) -> list[tuple[str, LabelSpec]]:
    """Return the sources of a kind of label that some arm uses."""
    used = any(_uses(arm)[kind] for arm in study.strategies)
    return list(getattr(study.labels, kind).items()) if used else []


def unused_labels(study: Study) -> list[str]:
    """Say which kinds of label the study file asks for in vain."""
    default = LabelSpecs()
    return [
        f"labels.{kind}: no strategy uses a {kind}, so none is taken from "
        f"{', '.join(getattr(study.labels, kind))}."
        for kind in KINDS
        if getattr(study.labels, kind) != getattr(default, kind) and not label_sources(study, kind)
    ]


def _uses(spec: ArmSpec) -> dict[Kind, bool]:
    """Return which kinds of label an arm's order depends on."""
    used = orders.labels_used(spec.strategy, blocks=spec.blocks, category_order=spec.category_order)
    return {kind: kind in used for kind in KINDS}
