"""The question sets of a study: read as its file says, with the labels that its arms use."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.data import Reading, folds, overlap, read_questions, sample
from lessonplan.errors import InputError, counted
from lessonplan.labels.label import KINDS, Kind, Label
from lessonplan.study.arms import label_sources
from lessonplan.study.config import DataSpec, Study, TrainingSpec
from lessonplan.study.labelling import column_label, make_label
from lessonplan.study.model_labels import Means


@dataclass(frozen=True)
class QuestionSet:
    """Questions under the name that the study calls them by, with the labels asked for.

    Attributes:
        labels: by kind and source.
        fold: int64 ``[n]`` part that each question is held out in; None without folds.
    """

    name: str
    questions: Any
    notes: list[str]
    labels: dict[tuple[Kind, str], Label] = field(default_factory=dict)
    fold: NDArray[np.int64] | None = None


def training_set(spec: TrainingSpec, study: Study, means: Means) -> QuestionSet:
    """Return a set to fine-tune on, with all labels that some arm of the study uses.

    Raises:
        InputError: data or labels that cannot be used; more folds than questions.
    """
    sources = [
        (kind, source, label) for kind in KINDS for source, label in label_sources(study, kind)
    ]
    asked = [
        name
        for _, _, label in sources
        for name in (label.column if label.table is None else None, label.share_right)
    ]
    questions, notes = _read(
        spec, keep=[c for c in dict.fromkeys(asked) if c and c not in ("difficulty", "category")]
    )
    made = {}
    for kind, source, label in sources:
        name = f"{spec.title}, {kind} {source!r}"
        found = make_label(kind, label, questions, name, means)
        notes += [f"{name}: {note}" for note in found.notes]
        made[kind, source] = found
    for kind in KINDS:
        if not any(k == kind for k, _, _ in sources) and None not in questions[kind][:]:
            # No arm uses it, but pictures and tables can show it.
            made[kind, "given"] = column_label(kind, kind, questions, spec.title)
    if study.labels.missing == "drop" and made:
        lacking = np.any([label.missing for label in made.values()], axis=0)
        if lacking.any():
            kept = np.flatnonzero(~lacking)
            if not len(kept):
                raise InputError(f"{spec.title}: no question has all labels that the study uses.")
            notes.append(
                f"{spec.title}: {int(lacking.sum())} of {len(lacking)} questions lack a label and "
                "are left out (labels.missing: drop)."
            )
            questions = questions.select(kept)
            made = {key: label.part(kept) for key, label in made.items()}
    fold = None
    if spec.folds:
        if spec.folds > len(questions):
            raise InputError(
                f"{spec.title}: {spec.folds} folds need more than {len(questions)} questions."
            )
        fold = folds(len(questions), spec.folds, spec.fold_seed)
    return QuestionSet(spec.title, questions, notes, made, fold)


def evaluation_set(spec: DataSpec) -> QuestionSet:
    """Return a set to evaluate on.

    Raises:
        InputError: data that cannot be used.
    """
    questions, notes = _read(spec, keep=[])
    return QuestionSet(spec.title, questions, notes)


def read_set(spec: DataSpec, keep: Sequence[str] = ()) -> Reading:
    """Read all questions of a set, before a sample of them is drawn.

    Raises:
        InputError: data that cannot be used.
    """
    return read_questions(
        spec.data,
        split=spec.split,
        columns=spec.columns,
        format=spec.format,
        bad_rows=spec.bad_rows,
        keep=keep,
        answer_base=spec.answer_base,
    )


def _read(spec: DataSpec, keep: Sequence[str]) -> tuple[Any, list[str]]:
    reading = read_set(spec, keep)
    questions = reading.questions
    if spec.sample is not None:
        questions = sample(questions, spec.sample, spec.sample_seed)
    if len(questions) == 0:
        raise InputError(f"{spec.data}: no questions are left to use.")
    return questions, [f"{spec.title}: {note}" for note in reading.notes]


def overlaps(study: Study, training: list[QuestionSet], evaluation: list[QuestionSet]) -> list[str]:
    """Say which questions are both trained and evaluated on.

    Raises:
        InputError: there are some, and the study does not allow it.
    """
    notes = []
    for trained, evaluated in itertools.product(training, evaluation):
        both = overlap(trained.questions, evaluated.questions)
        if both and not study.allow_overlap:
            raise InputError(
                f"The training set {trained.name} also holds {counted(len(both), 'question')} of "
                f"{evaluated.name} (the first is {both[0]}), so scores there would be inflated. "
                "Take them out, or set allow_overlap: true."
            )
        if both:
            held = counted(len(both), "question")
            notes.append(f"{trained.name} also holds {held} of {evaluated.name}.")
    return notes
