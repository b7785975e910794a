"""What a comparison needs: the scores of every arm, as arrays of seed by question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import counted

FloatArray = NDArray[np.float64]


def place_of(model: str, evaluation: str) -> str:
    """Return "model on evaluation set", or as much of it as is known."""
    return " on ".join(part for part in (model, evaluation) if part)


@dataclass(frozen=True)
class Curve:
    """Scores along a run, on the fixed part of the evaluation set that is scored on the way.

    Attributes:
        seen: questions seen at each checkpoint, int64 ``[P]``, ascending; 0 is the untuned model.
        values: ``[S, P, C]`` for S seeds, P checkpoints and C questions; NaN: the run is missing.
        questions: int64 ``[C]``, the place of each in `Outcome.ids`; None where unknown.
    """

    seen: NDArray[np.int64]
    values: FloatArray
    questions: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Outcome:
    """The results of all arms for one model on one evaluation set.

    Attributes:
        model, evaluation: names as the study file has them ("" where a table has none).
        metric: "accuracy" (values are 0 or 1), or the name of a real-valued score.
        seeds: the S seeds, in the order of the first axis of each arm.
        ids: the Q question ids, in the order of the second axis.
        arms: arm name -> float64 ``[S, Q]``, NaN where that run is missing. An arm is a strategy,
            with its label sources in brackets where the study has several:
            ``"curriculum [difficulty=llm]"``.
        strategies: arm name -> strategy name.
        sources: arm name -> {"difficulty": source, "category": source}, only labels it uses.
        baseline: the arm that gains are measured against, usually "random".
        untuned: float64 ``[Q]``, the model before fine-tuning; None where unknown.
        f1: arm name -> weighted F1 score of each seed's run, float64 ``[S]``, NaN where missing;
            empty where the choices are unknown. ``"untuned"`` has one entry.
        questions: text of each question, length Q; None where unknown.
        options: options of each question in their order, length Q; None where unknown.
        answers: index of the right option, int64 ``[Q]``; None where unknown.
        n_options: number of options, int64 ``[Q]``; None where unknown.
        letters_matter: True for letter scoring, where a constant letter can beat chance.
        categories: category of each question, length Q; None where unknown.
        difficulty: float64 ``[Q]``; None where unknown.
        answer_seen: bool ``[Q]``, the right answer's text is also a right answer in training;
            None where unknown.
        curves: arm name -> Curve; empty where no checkpoints were scored.
        folds: number of cross-validation folds pooled within each seed (1: none).
        meaningless: bool ``[Q]``, options point at other options ("all of the above"), which
            cloze scoring cannot judge; None where not applicable.
        shown: arm -> int64 ``[S, n]``, the category (index into `taught`) of each training question
            in the order that each seed's run saw them, -1 where it has none or the run is missing;
            empty where unknown, and with folds, where a seed has several orders.
        taught: names of the training set's categories, as in `categories`.
    """

    model: str
    evaluation: str
    seeds: list[int]
    ids: list[str]
    arms: dict[str, FloatArray]
    strategies: dict[str, str]
    sources: dict[str, dict[str, str]]
    baseline: str = "random"
    metric: str = "accuracy"
    untuned: FloatArray | None = None
    f1: dict[str, FloatArray] = field(default_factory=dict)
    questions: list[str] | None = None
    options: list[list[str]] | None = None
    answers: NDArray[np.int64] | None = None
    n_options: NDArray[np.int64] | None = None
    letters_matter: bool = False
    categories: list[str] | None = None
    difficulty: FloatArray | None = None
    answer_seen: NDArray[np.bool_] | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    folds: int = 1
    meaningless: NDArray[np.bool_] | None = None
    shown: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    taught: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Model and evaluation set in words, "" where a table has none."""
        return place_of(self.model, self.evaluation)


@dataclass(frozen=True)
class OrderPicture:
    """What a model saw when, under one arm and seed (the first seed of the study).

    Attributes:
        arm: arm name, as in `Outcome.arms`.
        categories: category of each question in the order shown, length n; None if unlabelled.
        difficulty: float64 ``[n]`` in the order shown; None if unlabelled.
        learning_rate: float64 ``[n]``, the rate of the step that each question was trained in.
    """

    training: str
    arm: str
    seed: int
    categories: list[str] | None
    difficulty: FloatArray | None
    learning_rate: FloatArray


@dataclass(frozen=True)
class LabelCheck:
    """A difficulty label beside the untuned model's loss on the same training questions.

    Attributes:
        source: label source ("human", ...).
        difficulty, loss: float64 ``[n]``, row by row; loss in nats a question.
    """

    model: str
    training: str
    source: str
    difficulty: FloatArray
    loss: FloatArray


@dataclass(frozen=True)
class LabelSource:
    """A label of a training set under one source.

    Attributes:
        kind: "difficulty" or "category".
        source: what the study file calls it ("human", "llm", "cluster", ...).
        origin: how it was made, in words ("column 'subject_name'", "probability of the right
            option, smollm2-135m, cloze").
        values: float64 ``[n]`` difficulties (0 easiest, 1 hardest), or n categories; NaN or None
            where a question has none.
        answers: int64 ``[n]`` index of the right option; None where there is nothing to choose.
        place: float64 ``[n, 2]``, each question's place on a map on which like lies near like;
            None where there is no map.
    """

    training: str
    kind: str
    source: str
    origin: str
    values: FloatArray | list[str | None]
    answers: NDArray[np.int64] | None
    place: FloatArray | None = None


@dataclass(frozen=True)
class Record:
    """All that a report says, read from a study folder or made from a table of results.

    Attributes:
        title: the study's name.
        outcomes: one for each model and evaluation set.
        orders, label_checks, label_sources: pictures and diagnostics; empty for a bare table of
            results.
        config: the study file as resolved (YAML text); "" for a bare table.
        recipe: what to print about the fine-tuning, label -> text, in order.
        versions: library -> versions seen over all runs (more than one is a mixture).
        notes: data quality notes, one sentence each (dropped rows, cut questions, overlaps).
        runs_done, runs_planned: counts of fine-tunings.
        failures: one sentence for each run that failed: what it was and why.
        unfinished: runs that were begun, but are not tuned and scored on every set.
        to_do: runs that were never begun.
        seconds: total time of tuning and scoring over all runs.
        machine: the processor and thread count, in words.
    """

    title: str
    outcomes: list[Outcome]
    orders: list[OrderPicture] = field(default_factory=list)
    label_checks: list[LabelCheck] = field(default_factory=list)
    label_sources: list[LabelSource] = field(default_factory=list)
    config: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runs_done: int = 0
    runs_planned: int = 0
    failures: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    to_do: list[str] = field(default_factory=list)
    seconds: float = 0.0
    machine: str = ""


def open_runs(failed: int, unfinished: int, to_do: int) -> list[str]:
    """Return a sentence on each kind of runs that are not done, and what to do about them."""
    said = {
        "failed; the report lists the reasons. Starting the study again tries what failed "
        "again.": failed,
        "begun and not finished: under way now, or interrupted. Starting the study again does "
        "what was interrupted.": unfinished,
        "still to be done; starting the study again goes on.": to_do,
    }
    return [f"{counted(count, 'run')} {text}" for text, count in said.items() if count]
