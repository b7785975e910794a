"""From a study file to the runs that it asks for, each with its identity.

A tuning's id digests what determines its result: the base model's content, the training token rows,
the order, the recipe, the seeds and the version of the engine's numerics. Names, paths and library
versions do not enter. An evaluation's id adds its own token rows and the scoring, so a new
evaluation set tunes nothing again, nor does a new score (but where the loss is made of it).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan import orders
from lessonplan.errors import InputError
from lessonplan.evaluation.predict import Unconditional, scoring_rows
from lessonplan.labels.label import Kind
from lessonplan.models import NUMERICS
from lessonplan.models.loading import (
    cache_folder,
    check_length,
    fingerprint,
    load_tokenizer,
    resolve,
)
from lessonplan.models.rows import Row, cut_note, points_elsewhere, question_rows, rows_digest
from lessonplan.seeds import stream
from lessonplan.study.arms import arms, unused_labels
from lessonplan.study.config import ArmSpec, ModelSpec, Study, model_recipe
from lessonplan.study.files import digest
from lessonplan.study.model_labels import Compute, Means, compute_here
from lessonplan.study.sets import QuestionSet, evaluation_set, overlaps, training_set
from lessonplan.study.watch import Watch
from lessonplan.training.recipe import Recipe, check_completions

UNTUNED = "untuned"


@dataclass(frozen=True)
class RowSet:
    """The token rows of a question set for one model.

    Attributes:
        score: one row a question, all options.
        train: one row a question for training: the answer alone, or `score` itself.
        unconditional: the options without their questions; None for letters.
    """

    questions: QuestionSet
    score: list[Row]
    train: list[Row]
    unconditional: Unconditional | None


@dataclass(frozen=True)
class Evaluation:
    """What is scored in a run: all questions at its end, or a part of them along it.

    Attributes:
        of: what the evaluation is called in tables.
        questions: name of the question set.
        kind: "final" or "curve".
        indices: int64, the questions of the set.
        checkpoints: questions seen at each scoring; the end of the run for "final".
    """

    id: str
    of: str
    questions: str
    kind: str
    indices: NDArray[np.int64]
    checkpoints: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Questions scored."""
        return len(self.indices) * len(self.checkpoints)


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its evaluations; `order` is None for the untuned model."""

    id: str
    model: str
    training: str
    arm: str
    strategy: str
    sources: dict[Kind, str]
    seed: int
    fold: int | None
    order: NDArray[np.int64] | None
    training_seed: int
    evaluations: tuple[Evaluation, ...]

    @property
    def title(self) -> str:
        """Model, arm, seed and fold, as messages name the run."""
        return run_title(self.model, self.arm, self.seed, self.fold)


def run_title(model: str, arm: str, seed: int, fold: int | None) -> str:
    """Return what messages call a run."""
    seeded = "" if arm == UNTUNED else f", seed {seed}"
    return f"{model}, {arm}{seeded}" + ("" if fold is None else f", fold {fold}")


@dataclass(frozen=True)
class ModelPlan:
    """One model of the study and all that it has to do.

    Attributes:
        rows: by name of the question set.
        problem: why the model cannot be had; then it has neither folder, digest nor rows, and its
            runs are there to fail.
    """

    spec: ModelSpec
    recipe: Recipe
    folder: Path
    digest: str
    rows: dict[str, RowSet]
    runs: list[Run]
    problem: InputError | None = None


@dataclass(frozen=True)
class Plan:
    """All runs of a study, model by model."""

    study: Study
    training: list[QuestionSet]
    evaluation: list[QuestionSet]
    models: list[ModelPlan]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for model in self.models for run in model.runs]


def make_plan(
    study: Study,
    labels: Path | None = None,
    watch: Watch | None = None,
    compute: Compute = compute_here,
) -> Plan:
    """Read the data of a study, make its labels and lay out its runs.

    Args:
        study: the study.
        labels: folder in which labels that cost time are kept; by default one in the user's cache.
        watch: is told how labelling goes.
        compute: does what models have to do for labels, by default in this process.

    Raises:
        InputError: data or labels that cannot be used; no model at all that can be had; text that
            stands in both a training and an evaluation set, unless the study allows it.
    """
    names = [name for name, _, _ in arms(study)]
    if study.baseline not in names:
        raise InputError(
            f"baseline: {study.baseline!r} runs under several label sources; name one of the arms "
            f"{', '.join(names)}."
        )
    means = Means(
        labels or cache_folder() / "labels",
        study.recipe,
        study.scoring,
        study.models,
        watch or Watch(),
        compute,
    )
    training = [training_set(spec, study, means) for spec in study.training]
    evaluation = [evaluation_set(spec) for spec in study.evaluation]
    notes = [note for questions in training + evaluation for note in questions.notes]
    notes += unused_labels(study)
    notes += overlaps(study, training, evaluation)
    models = [_model_plan(study, spec, training, evaluation, notes) for spec in study.models]
    problems = [model.problem for model in models if model.problem]
    if len(problems) == len(models):
        raise problems[0]
    return Plan(study, training, evaluation, models, list(dict.fromkeys(notes)))


def held_out_name(training: str) -> str:
    """Return the name of the evaluation on a training set's folds."""
    return f"{training} (held out)"


def tuned_on_name(evaluation: str, training: str) -> str:
    """Return the name of an evaluation where there are several sets to train on."""
    return f"{evaluation} (tuned on {training})"


def named_evaluations(study: Study) -> Iterator[tuple[str, str]]:
    """Yield each evaluation as tables name it, and the name of its set."""
    for spec in study.training:
        if spec.folds:
            yield held_out_name(spec.title), spec.title
        for other in study.evaluation:
            several = len(study.training) > 1
            yield tuned_on_name(other.title, spec.title) if several else other.title, other.title


def _model_plan(
    study: Study,
    spec: ModelSpec,
    training: list[QuestionSet],
    evaluation: list[QuestionSet],
    notes: list[str],
) -> ModelPlan:
    recipe = model_recipe(study, spec)
    try:
        folder = resolve(spec.model)
        tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
    except InputError as problem:
        runs = list(_doomed_runs(study, spec, training, evaluation))
        return ModelPlan(spec, recipe, Path(), "", {}, runs, problem)
    check_length(folder, recipe.max_tokens, spec.title)
    for questions in training:
        check_completions(questions.questions, study.scoring, questions.name, recipe)
    for questions in evaluation:
        check_completions(questions.questions, study.scoring, questions.name)
    rows = {s.name: _row_set(study, recipe, tokenizer, s) for s in training + evaluation}
    for name, row_set in rows.items():
        cut = cut_note(row_set.score, recipe.max_tokens, spec.title)
        notes += [f"{name}: {note}" for note in cut]
    model = ModelPlan(spec, recipe, folder, fingerprint(folder), rows, [])
    model.runs.append(_untuned_run(study, model, training, evaluation))
    for questions in training:
        for name, arm, sources in arms(study):
            for seed in study.seeds:
                model.runs.extend(
                    _tuned_runs(study, model, questions, evaluation, name, arm, sources, seed)
                )
    return model


def _row_set(study: Study, recipe: Recipe, tokenizer: Any, questions: QuestionSet) -> RowSet:
    data, scoring = questions.questions, study.scoring
    name = f"{questions.name}, question"
    score, unconditional = scoring_rows(tokenizer, data, scoring, recipe.max_tokens, name)
    train = score
    if recipe.loss == "answer":
        train = question_rows(
            tokenizer,
            data,
            scoring.form,
            template=scoring.template,
            max_tokens=recipe.max_tokens,
            only_answer=True,
            name=name,
        )
    return RowSet(questions, score, train, unconditional)


def _tuned_runs(
    study: Study,
    model: ModelPlan,
    questions: QuestionSet,
    evaluation: list[QuestionSet],
    name: str,
    arm: ArmSpec,
    sources: dict[Kind, str],
    seed: int,
) -> Iterator[Run]:
    order_seed = seed if study.order_seed is None else study.order_seed
    training_seed = seed if study.training_seed is None else study.training_seed
    n, answers = len(questions.questions), questions.questions["answer"][:]
    for fold in [None] if questions.fold is None else range(int(questions.fold.max()) + 1):
        shown = np.arange(n) if questions.fold is None else np.flatnonzero(questions.fold != fold)
        labels: dict[str, Any] = {
            kind: questions.labels[kind, source].values_of(shown)
            for kind, source in sources.items()
        }
        try:
            order = orders.order(
                arm.strategy,
                len(shown),
                seed=order_seed,
                blocks=arm.blocks,
                bands=arm.bands,
                category_order=arm.category_order,
                hardest_first=arm.hardest_first,
                epochs=model.recipe.epochs,
                each=model.recipe.each,
                repeat=arm.repeat,
                **labels,
            )
        except InputError as error:
            if isinstance(error, orders.Unlabelled):
                error = error.at(f"question {questions.questions['id'][int(shown[error.row])]!r}")
            origin = ", ".join(f"{kind} {source!r}" for kind, source in sources.items())
            raise InputError(f"{questions.name}, strategy {name} ({origin}): {error}") from None
        order = shown[order]
        evaluations: list[Evaluation] = []
        if fold is not None:
            evaluations += _evaluations(
                study, model, questions, held_out_name(questions.name),
                np.flatnonzero(questions.fold == fold), len(order),
            )  # fmt: skip
        for evaluated in evaluation:
            everything = np.arange(len(evaluated.questions))
            evaluations += _evaluations(
                study, model, evaluated, evaluated.name, everything, len(order)
            )
        train_rows = model.rows[questions.name].train
        identity = {
            **numerics(model),
            "recipe": model.recipe.model_dump(exclude={"epochs", "each"}),
            "score": study.scoring.score if model.recipe.loss == "choice" else None,
            "rows": rows_digest([train_rows[i] for i in order]),
            # The lower layers are computed over the whole set; its padding enters the last digits.
            "set": rows_digest(train_rows),
            "answers": [answers[i] for i in order] if model.recipe.loss == "choice" else None,
            "training_seed": training_seed,
        }
        yield Run(
            digest(identity), model.spec.title, questions.name, name, arm.strategy, sources,
            seed, fold, order, training_seed, tuple(evaluations),
        )  # fmt: skip


def _untuned_run(
    study: Study, model: ModelPlan, training: list[QuestionSet], evaluation: list[QuestionSet]
) -> Run:
    evaluations = [
        e
        for questions in training + evaluation
        for e in _evaluations(
            study, model, questions, questions.name, np.arange(len(questions.questions)), 0
        )
    ]
    identity = numerics(model) | {
        # Another cut makes other evaluations of the same name.
        "recipe": model.recipe.model_dump(include={"adapter", "max_tokens"})
    }
    return Run(
        digest(identity), model.spec.title, "", UNTUNED, UNTUNED, {}, 0, None, None, 0,
        tuple(evaluations),
    )  # fmt: skip


def _doomed_runs(
    study: Study, spec: ModelSpec, training: list[QuestionSet], evaluation: list[QuestionSet]
) -> Iterator[Run]:
    """Yield the tunings of a model that cannot be had, so that their absence shows.

    What they would read is unknown, so their ids stand for their names alone.
    """
    for questions, (name, arm, sources), seed in itertools.product(
        training, arms(study), study.seeds
    ):
        folds = [None] if questions.fold is None else range(int(questions.fold.max()) + 1)
        scored = [(q.name, q.name) for q in evaluation]
        if questions.fold is not None:
            scored.insert(0, (held_out_name(questions.name), questions.name))
        for fold in folds:
            run_id = digest([spec.title, questions.name, name, seed, fold])
            evaluations = tuple(
                Evaluation(digest([run_id, of]), of, source, "final", np.arange(0), ())
                for of, source in scored
            )
            yield Run(
                run_id, spec.title, questions.name, name, arm.strategy, sources,
                seed, fold, None, seed, evaluations,
            )  # fmt: skip


def numerics(model: ModelPlan) -> dict[str, Any]:
    """Return what the output of a model's own layers depends on, but for their input."""
    recipe = model.recipe
    return {
        "numerics": NUMERICS,
        "model": model.digest,
        "dtype": recipe.dtype,
        "quantization": recipe.quantization,
        "device": recipe.device,
        "threads": recipe.threads,
    }


def _evaluations(
    study: Study,
    model: ModelPlan,
    questions: QuestionSet,
    name: str,
    indices: NDArray[np.int64],
    exposures: int,
) -> list[Evaluation]:
    """Return the final evaluation and, for a tuned model, the one along the run."""
    row_set = model.rows[questions.name]
    whole = {
        "score": rows_digest(row_set.score),
        "unconditional": row_set.unconditional and rows_digest(row_set.unconditional.rows),
        "scoring": study.scoring.model_dump(),
        "ids": questions.questions["id"][:],
        "answers": questions.questions["answer"][:],
    }

    def evaluation(kind: str, part: NDArray[np.int64], checkpoints: tuple[int, ...]) -> Evaluation:
        identity = whole | {"kind": kind, "indices": part.tolist(), "checkpoints": checkpoints}
        return Evaluation(digest(identity), name, questions.name, kind, part, checkpoints)

    found = [evaluation("final", indices, (exposures,))]
    at = curve_points(study, model.recipe, exposures)
    if at:
        parts = (
            1 if questions.fold is None or name == questions.name else int(questions.fold.max()) + 1
        )
        most = curve_questions(study, parts)
        part = indices
        if len(indices) > most:
            part = np.sort(stream(0, "curve").permutation(len(indices))[:most])
            part = indices[part]
        found.append(evaluation("curve", part, tuple(at)))
    return found


def curve_points(study: Study, recipe: Recipe, exposures: float) -> list[int]:
    """Return after how many questions a run of so many is scored on the way."""
    if recipe.trainer == "trl":
        return []  # TRL's trainer is not stopped on the way
    step = recipe.step_size
    at = sorted({round(share * exposures / step) * step for share in study.checkpoints.at})
    return [seen for seen in at if 0 < seen < exposures]


def curve_questions(study: Study, parts: int = 1) -> int:
    """Return the most questions of a set, held out in so many parts, that are scored on the way."""
    return max(1, study.checkpoints.questions // parts)


def elsewhere(questions: Any, form: str) -> NDArray[np.bool_]:
    """Return which questions cloze scoring cannot judge: an option points at other options."""
    listed = questions["options"]
    if form != "cloze":
        return np.zeros(len(listed), dtype=np.bool_)
    return np.array([points_elsewhere(options) for options in listed], dtype=np.bool_)
