"""From a study file to the runs that it asks for, each with its identity.

A tuning's id digests what determines its result: the base model's content, the training token rows,
the order, the recipe, the seeds and the version of the engine's numerics. Names, paths and library
versions do not enter. An evaluation's id adds its own token rows and the scoring, so a new
evaluation set or score tunes nothing again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lessonplan import orders
from lessonplan.data import folds, overlap, read_questions, sample
from lessonplan.errors import InputError, nearest
from lessonplan.evaluation.predict import Unconditional, scoring_rows
from lessonplan.labels import read_answers
from lessonplan.models import NUMERICS
from lessonplan.models.loading import check_length, fingerprint, load_tokenizer, resolve
from lessonplan.models.rows import (
    Row,
    points_elsewhere,
    question_texts,
    rows_digest,
    token_rows,
)
from lessonplan.orders import STRATEGIES
from lessonplan.seeds import stream
from lessonplan.study.config import (
    ArmSpec,
    DataSpec,
    LabelSpec,
    ModelSpec,
    Study,
    TrainingSpec,
    model_recipe,
)
from lessonplan.training.recipe import Recipe

UNTUNED = "untuned"
KINDS = ("difficulty", "category")


@dataclass(frozen=True)
class QuestionSet:
    """Questions under the name that the study calls them by, with the labels asked for.

    Attributes:
        labels: (kind, source) -> float64 ``[n]`` difficulties or a list of n categories.
        fold: int64 ``[n]`` part that each question is held out in; None without folds.
    """

    name: str
    questions: Any
    notes: list[str]
    labels: dict[tuple[str, str], Any] = field(default_factory=dict)
    fold: NDArray[np.int64] | None = None


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
    sources: dict[str, str]
    seed: int
    fold: int | None
    order: NDArray[np.int64] | None
    training_seed: int
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class ModelPlan:
    """One model of the study and all that it has to do."""

    spec: ModelSpec
    recipe: Recipe
    folder: Path
    digest: str
    rows: dict[str, RowSet]
    runs: list[Run]


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


def make_plan(study: Study) -> Plan:
    """Read the data and labels of a study and lay out its runs.

    Raises:
        InputError: data, labels or models that cannot be used; text that stands in both a training
            and an evaluation set, unless the study allows it.
    """
    names = [name for name, _, _ in arms(study)]
    if study.baseline not in names:
        raise InputError(
            f"baseline: {study.baseline!r} runs under several label sources; name one of the arms "
            f"{', '.join(names)}."
        )
    training = [_training_set(spec, study) for spec in study.training]
    evaluation = [_evaluation_set(spec) for spec in study.evaluation]
    notes = [note for questions in training + evaluation for note in questions.notes]
    notes += _overlaps(study, training, evaluation)
    models = [_model_plan(study, spec, training, evaluation, notes) for spec in study.models]
    return Plan(study, training, evaluation, models, list(dict.fromkeys(notes)))


def held_out_name(training: str) -> str:
    """Return the name of the evaluation on a training set's folds."""
    return f"{training} (held out)"


def _training_set(spec: TrainingSpec, study: Study) -> QuestionSet:
    fixed = ("difficulty", "category")
    asked = [s.column for kind in KINDS for s in getattr(study.labels, kind).values() if s.column]
    questions, notes = _read(spec, keep=[c for c in dict.fromkeys(asked) if c not in fixed])
    result = QuestionSet(spec.title, questions, notes)
    for kind in KINDS:
        if any(_uses(arm)[kind] for arm in study.strategies):
            for source, label in getattr(study.labels, kind).items():
                result.labels[kind, source] = _label(result, kind, label)
        elif None not in questions[kind]:
            # No arm uses it, but pictures and tables can show it.
            result.labels[kind, "given"] = _label(result, kind, LabelSpec(column=kind))
    if spec.folds:
        if spec.folds > len(questions):
            raise InputError(
                f"{spec.title}: {spec.folds} folds need more than {len(questions)} questions."
            )
        result = replace(result, fold=folds(len(questions), spec.folds, spec.fold_seed))
    return result


def _evaluation_set(spec: DataSpec) -> QuestionSet:
    questions, notes = _read(spec, keep=[])
    return QuestionSet(spec.title, questions, notes)


def _read(spec: DataSpec, keep: list[str]) -> tuple[Any, list[str]]:
    reading = read_questions(
        spec.data,
        split=spec.split,
        columns=spec.columns,
        format=spec.format,
        bad_rows=spec.bad_rows,
        keep=keep,
        answer_base=spec.answer_base,
    )
    questions = reading.questions
    if spec.sample is not None:
        questions = sample(questions, spec.sample, spec.sample_seed)
    if len(questions) == 0:
        raise InputError(f"{spec.data}: no questions are left to use.")
    return questions, [f"{spec.title}: {note}" for note in reading.notes]


def _label(of: QuestionSet, kind: str, spec: LabelSpec) -> Any:
    if spec.answers is not None:
        values, notes = read_answers(of.questions, spec.answers, key=spec.key)
        of.notes.extend(f"{of.name}: {note}" for note in notes)
        return values
    names = of.questions.column_names
    if spec.column not in names:
        raise InputError(
            f"{of.name}: there is no column {spec.column!r} for a {kind} label."
            + nearest(str(spec.column), names)
        )
    values = of.questions[spec.column]
    if kind == "category":
        return [None if value is None else str(value) for value in values]
    try:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{of.name}: the column {spec.column!r} holds no numbers, so it is no difficulty."
        ) from None


def _overlaps(
    study: Study, training: list[QuestionSet], evaluation: list[QuestionSet]
) -> list[str]:
    notes = []
    for trained, evaluated in itertools.product(training, evaluation):
        both = overlap(trained.questions, evaluated.questions)
        if both and not study.allow_overlap:
            raise InputError(
                f"{len(both)} questions of {evaluated.name} also stand in the training set "
                f"{trained.name} (the first is {both[0]}), so accuracy there would be inflated. "
                "Take them out, or set allow_overlap: true."
            )
        if both:
            notes.append(f"{len(both)} questions of {evaluated.name} also stand in {trained.name}.")
    return notes


def arms(study: Study) -> Iterator[tuple[str, ArmSpec, dict[str, str]]]:
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


def _uses(spec: ArmSpec) -> dict[str, bool]:
    """Return which kinds of label an arm's order depends on."""
    uses = STRATEGIES[spec.strategy]
    return {
        "difficulty": uses.uses_difficulty
        or spec.blocks == "band"
        or (uses.uses_category and spec.category_order == "difficulty"),
        "category": uses.uses_category,
    }


def _model_plan(
    study: Study,
    spec: ModelSpec,
    training: list[QuestionSet],
    evaluation: list[QuestionSet],
    notes: list[str],
) -> ModelPlan:
    recipe = model_recipe(study, spec)
    folder = resolve(spec.model)
    tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
    check_length(folder, recipe.max_tokens, spec.title)
    rows = {s.name: _row_set(study, recipe, tokenizer, s) for s in training + evaluation}
    for row_set in rows.values():
        cut = sum(row.cut > 0 for row in row_set.score)
        if cut:
            notes.append(
                f"{row_set.questions.name}: {cut} questions are longer than {recipe.max_tokens} "
                f"tokens of {spec.title} and lost their beginning."
            )
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
        texts = question_texts(data, scoring.form, template=scoring.template, only_answer=True)
        names = [f"{name} {identifier}" for identifier in data["id"]]
        train = token_rows(tokenizer, texts, max_tokens=recipe.max_tokens, names=names)
    return RowSet(questions, score, train, unconditional)


def _tuned_runs(
    study: Study,
    model: ModelPlan,
    questions: QuestionSet,
    evaluation: list[QuestionSet],
    name: str,
    arm: ArmSpec,
    sources: dict[str, str],
    seed: int,
) -> Iterator[Run]:
    order_seed = seed if study.order_seed is None else study.order_seed
    training_seed = seed if study.training_seed is None else study.training_seed
    n, answers = len(questions.questions), questions.questions["answer"][:]
    for fold in [None] if questions.fold is None else range(int(questions.fold.max()) + 1):
        shown = np.arange(n) if questions.fold is None else np.flatnonzero(questions.fold != fold)
        labels = {
            kind: [values[i] for i in shown]
            if isinstance(values := questions.labels[kind, source], list)
            else values[shown]
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
            **_numerics(model),
            "recipe": model.recipe.model_dump(exclude={"epochs", "each"}),
            "score": study.scoring.score if model.recipe.loss == "choice" else None,
            "rows": rows_digest([train_rows[i] for i in order]),
            # The lower layers are computed over the whole set; its padding enters the last digits.
            "set": rows_digest(train_rows),
            "answers": [answers[i] for i in order] if model.recipe.loss == "choice" else None,
            "training_seed": training_seed,
        }
        yield Run(
            _digest(identity), model.spec.title, questions.name, name, arm.strategy, sources,
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
    identity = _numerics(model) | {"recipe": {"adapter": model.recipe.adapter.model_dump()}}
    return Run(
        _digest(identity), model.spec.title, "", UNTUNED, UNTUNED, {}, 0, None, None, 0,
        tuple(evaluations),
    )  # fmt: skip


def _numerics(model: ModelPlan) -> dict[str, Any]:
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
        return Evaluation(_digest(identity), name, questions.name, kind, part, checkpoints)

    found = [evaluation("final", indices, (exposures,))]
    step = model.recipe.step_size
    at = sorted({round(share * exposures / step) * step for share in study.checkpoints.at})
    at = [seen for seen in at if 0 < seen < exposures]
    if at:
        parts = (
            1 if questions.fold is None or name == questions.name else int(questions.fold.max()) + 1
        )
        most = max(1, study.checkpoints.questions // parts)
        part = indices
        if len(indices) > most:
            part = np.sort(stream(0, "curve").permutation(len(indices))[:most])
            part = indices[part]
        found.append(evaluation("curve", part, tuple(at)))
    return found


def elsewhere(questions: Any, form: str) -> NDArray[np.bool_]:
    """Return which questions cloze scoring cannot judge: an option points at other options."""
    if form != "cloze":
        return np.zeros(len(questions), dtype=np.bool_)
    return np.array([points_elsewhere(options) for options in questions["options"]], dtype=np.bool_)


def _digest(identity: Any) -> str:
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
