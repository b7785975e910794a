"""Labels by models: their view of the options, the loss of completions, a fine-tuning watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lessonplan.errors import InputError, counted
from lessonplan.labels.dynamics import cartography
from lessonplan.labels.endpoint import Endpoint, parse_endpoint
from lessonplan.labels.label import Label
from lessonplan.labels.views import (
    MEASURES,
    View,
    accuracy_over_chance,
    endpoint_view,
    local_view,
    measured,
    view_rows,
)
from lessonplan.models import NUMERICS
from lessonplan.models.loading import (
    cache_folder,
    check_length,
    fingerprint,
    load,
    load_tokenizer,
    release,
    resolve,
)
from lessonplan.models.rows import cut_note, points_elsewhere, rows_digest
from lessonplan.study.config import ModelSpec, changed_recipe
from lessonplan.study.files import digest, read_table, write_table
from lessonplan.study.sources import LabelSpec
from lessonplan.study.watch import Watch
from lessonplan.training.dynamics import training_dynamics
from lessonplan.training.recipe import Recipe, Scoring


@dataclass(frozen=True)
class Task:
    """What a model does for a label. It can be pickled and done elsewhere.

    Attributes:
        model: as the user names it.
        digest: of its content.
        recipe: says the threads and the device, among others.
        call: does it with the model in a folder, tells a watch how it goes, and returns a table.
    """

    model: str
    digest: str
    recipe: Recipe
    call: Callable[[Path, Watch], pa.Table]


# Does tasks, here or elsewhere, and yields their tables in the tasks' order.
Compute = Callable[[Sequence[Task], Watch], Iterator[pa.Table]]


def compute_here(tasks: Sequence[Task], watch: Watch) -> Iterator[pa.Table]:
    """Do tasks in this process, one after the other."""
    for task in tasks:
        yield task.call(resolve(task.model), watch)
        release()


@dataclass(frozen=True)
class Means:
    """What labels are made with.

    Attributes:
        folder: where work is kept and looked for.
        recipe, scoring: of the study: how models are loaded, tuned and read.
        models: the study's models, which measure difficulty where a source names none.
        watch: is told what goes on.
        compute: does what models that run here (and not behind a server) have to do.
    """

    folder: Path
    recipe: Recipe = field(default_factory=Recipe)
    scoring: Scoring = field(default_factory=Scoring)
    models: Sequence[ModelSpec] = ()
    watch: Watch = field(default_factory=Watch)
    compute: Compute = compute_here


def from_views(spec: LabelSpec, questions: Any, means: Means) -> Label:
    """Return the difficulty of questions by what models think of their options.

    Averaged over the models; a note says how many questions each of them gets right, and models
    that do no better than guessing stand in `Label.uninformative`.
    """
    scoring = means.scoring
    answers = np.asarray(questions["answer"][:], dtype=np.int64)
    chosen = _models(spec, means.models)
    served = [e for model in chosen if (e := parse_endpoint(model.model)) is not None]
    if served and spec.form == "cloze":
        raise InputError(
            f"{served[0].model} is behind a server, which is asked for letters alone; form: cloze "
            "is for models that run here."
        )
    form = "letter" if served else spec.form or scoring.form
    if form == "cloze" and scoring.score == "unconditional":
        raise InputError(
            "Labels by models compare options by sum, per_token or per_byte, not unconditional. "
            "Set form: letter for this label, or another scoring.score."
        )
    if form != scoring.form:
        scoring = Scoring(form=form)
    own = [model for model in chosen if parse_endpoint(model.model) is None]
    seen = iter(_own_views(own, questions, answers, scoring, means))
    views = []
    for model in chosen:
        endpoint = parse_endpoint(model.model)
        if endpoint is None:
            views.append(next(seen))
            continue
        view = _served_view(endpoint, spec, questions, scoring, means.watch)
        twice = sum(e.model == endpoint.model for e in served) > 1
        views.append(replace(view, model=model.model) if twice else view)
    measure: Any = spec.measure
    each = [measured(view, measure, answers) for view in views]
    details: dict[str, Any] = {}
    notes: list[str] = []
    uninformative: list[str] = []
    if apart := sum(map(points_elsewhere, questions["options"])):
        notes.append(
            f"{counted(apart, 'question')} with options that point at others (as “Both A and B” "
            + (
                "does) are asked as they stand, without rotating them."
                if form == "letter"
                else "does), which the cloze form cannot judge."
            )
        )
    for view, difficulty in zip(views, each, strict=True):
        right = [p[a] for p, a in zip(view.probabilities, answers, strict=True)]
        details[f"right: {view.model}"] = pa.array(right, from_pandas=True)
        if len(views) > 1:
            details[f"{measure}: {view.model}"] = pa.array(difficulty, from_pandas=True)
        if view.missing.any():
            details[f"missing: {view.model}"] = view.missing
        share, low, chance = accuracy_over_chance(view, answers)
        found = f"{view.model} chooses the right option of {share:.1%} of the questions"
        if low > chance:
            notes.append(f"{found}, guessing of {chance:.1%}.")
        else:
            uninformative.append(f"{found}, no better than guessing ({chance:.1%}).")
        if view.tokens:
            notes.append(f"{view.model} read and wrote {view.tokens:,} tokens.")
        notes += view.notes
    origin = f"{MEASURES[measure]}, {' and '.join(view.model for view in views)}, {form}"
    return Label(
        "difficulty", np.mean(each, axis=0), origin, notes + uninformative, uninformative, details
    )


def from_losses(spec: LabelSpec, questions: Any, means: Means) -> Label:
    """Return the difficulty of prompts with completions: how unlikely models find the completion.

    1 minus the geometric mean of its tokens' probabilities, averaged over the models.
    """
    chosen = _models(spec, means.models)
    for model in chosen:
        if parse_endpoint(model.model) is not None:
            raise InputError(
                f"{model.model} is behind a server, which is asked for letters alone; the loss of "
                "completions needs models that run here."
            )
    if spec.form == "letter":
        raise InputError("form: letter lists options, and prompts with completions have none.")
    answers = np.zeros(len(questions), dtype=np.int64)
    views = _own_views(chosen, questions, answers, Scoring(), means)
    each = [measured(view, "loss", answers) for view in views]
    details = {f"loss: {view.model}": pa.array(x) for view, x in zip(views, each, strict=True)}
    return Label(
        "difficulty",
        np.mean(each, axis=0),
        "1 minus the probability of the completion, per token, "
        + " and ".join(view.model for view in views),
        [note for view in views for note in view.notes],
        details=details if len(views) > 1 else {},
    )


def _models(spec: LabelSpec, models: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Return the models to ask, with what the study says of those that are its own."""
    if not spec.models:
        if not models:
            raise InputError(
                f"measure: {spec.measure} needs models; name one or several (--model)."
            )
        return list(models)
    twice = sorted({name for name in spec.models if spec.models.count(name) > 1})
    if twice:
        raise InputError(f"The model {twice[0]} stands twice among the models of a label.")
    own = {name: model for model in models for name in (model.model, model.name) if name}
    chosen = [own.get(name, ModelSpec(model=name)) for name in spec.models]
    titles = [model.title for model in chosen]
    return [
        model.model_copy(update={"name": model.model}) if titles.count(model.title) > 1 else model
        for model in chosen
    ]


def _own_views(
    models: Sequence[ModelSpec],
    questions: Any,
    answers: NDArray[np.int64],
    scoring: Scoring,
    means: Means,
) -> list[View]:
    """Score the options with models that run here, or take it from an earlier time."""
    score = "sum" if scoring.form == "letter" else scoring.score
    sizes = np.array([len(options) for options in questions["options"]], dtype=np.int64)
    tasks: list[tuple[Path, Task]] = []
    notes: list[list[str]] = []
    for model in models:
        own = changed_recipe(means.recipe, model.recipe)
        home = resolve(model.model)
        check_length(home, own.max_tokens, model.title)
        tokenizer = load_tokenizer(home, trust_remote_code=model.trust_remote_code)
        rows = view_rows(
            tokenizer,
            questions,
            scoring.form,
            template=scoring.template,
            max_tokens=own.max_tokens,
        )
        content = fingerprint(home)
        identity = {
            "view": NUMERICS,
            "model": content,
            "rows": rows_digest(rows),
            "answers": answers.tolist(),
            "score": score,
            **own.model_dump(include={"dtype", "quantization", "device", "threads"}),
        }
        call = partial(
            _score, model, questions["id"][:], rows, answers, sizes, own, scoring.form, score
        )
        file = means.folder / f"view-{digest(identity)}.parquet"
        tasks.append((file, Task(model.model, content, own, call)))
        notes.append(cut_note(rows, own.max_tokens, model.title))
    return [
        View(
            model.title,
            [np.array(p) for p in table["probabilities"].to_pylist()],
            table["loss"].to_numpy(),
            np.zeros(len(table), dtype=np.int64),
            notes=said,
        )
        for model, table, said in zip(models, _kept(tasks, means), notes, strict=True)
    ]


def _kept(tasks: Sequence[tuple[Path, Task]], means: Means) -> list[pa.Table]:
    """Return the tables in files. Those that are not there yet are made."""
    lacking = {file: task for file, task in tasks if not file.is_file()}
    made = means.compute(list(lacking.values()), means.watch)
    for file, table in zip(lacking, made, strict=True):
        write_table(file, table)
    return [read_table(file) for file, _ in tasks]


def _score(
    model: ModelSpec,
    ids: list[str],
    rows: Any,
    answers: NDArray[np.int64],
    options: NDArray[np.int64],
    recipe: Recipe,
    form: Literal["cloze", "letter"],
    score: str,
    home: Path,
    watch: Watch,
) -> pa.Table:
    import torch

    from lessonplan.models.engine import Engine

    torch.set_num_threads(recipe.threads)
    loaded = load(
        str(home),
        dtype=recipe.dtype,
        quantization=recipe.quantization,
        device=recipe.device,
        trust_remote_code=model.trust_remote_code,
    )
    engine = Engine(loaded.network, longest=recipe.max_tokens)
    text = f"difficulty by {model.title}"
    view = local_view(
        engine,
        rows,
        answers,
        options,
        form,
        score,
        name=model.title,
        on_rows=watch.counter(text, len(rows)),
    )
    probabilities = [p.tolist() for p in view.probabilities]
    return pa.table({"id": ids, "probabilities": probabilities, "loss": view.loss})


def _served_view(
    endpoint: Endpoint,
    spec: LabelSpec,
    questions: Any,
    scoring: Scoring,
    watch: Watch,
) -> View:
    asked = Endpoint(endpoint.model, endpoint.url, **spec.endpoint.model_dump())
    # Paid for, so in the user's cache: other studies of the same questions ask for nothing again.
    log = cache_folder() / "answers" / f"{digest([asked.base, asked.model, asked.api])}.jsonl"
    text = f"difficulty by {asked.model} at {asked.url}"
    view = endpoint_view(
        asked,
        questions,
        log,
        template=scoring.template,
        on_answers=partial(watch.progress, text),
    )
    if view.kept:
        watch.note(
            f"{view.kept} answers of {asked.model} at {asked.url} are from earlier. If another "
            f"model stands behind that name now, delete {log} to ask again."
        )
    return view


def from_dynamics(spec: LabelSpec, questions: Any, means: Means) -> Label:
    """Return the difficulty of questions by how models learn them in a fine-tuning.

    Source: dataset cartography (arXiv 2009.10795), see `lessonplan.labels.dynamics`.
    """
    scoring = means.scoring
    if spec.form is not None and spec.form != scoring.form:
        scoring = Scoring(form=spec.form)
    if scoring.score == "unconditional":
        raise InputError(
            f"measure: {spec.measure} compares options by sum, per_token or per_byte, not "
            "unconditional. Set form: letter for this label, or another scoring.score."
        )
    answers = questions["answer"][:]
    tasks = []
    chosen = _models(spec, means.models)
    for model in chosen:
        if parse_endpoint(model.model) is not None:
            raise InputError(
                f"measure: {spec.measure} fine-tunes its model, so it must run here; "
                f"{model.model} does not."
            )
        own = changed_recipe(means.recipe, model.recipe)
        content = fingerprint(resolve(model.model))
        identity = {
            "dynamics": NUMERICS,
            "model": content,
            "questions": questions["question"][:],
            "options": questions["options"][:],
            "answers": answers[:],
            "recipe": own.model_dump(),
            "scoring": scoring.model_dump(),
        }
        file = means.folder / f"dynamics-{digest(identity)}.parquet"
        call = partial(_watch_tuning, model, questions, own, scoring)
        tasks.append((file, Task(model.model, content, own, call)))
    tables = _kept(tasks, means)
    found = [np.array(table["right"].to_pylist()).T for table in tables]
    pairs = [cartography(right) for right in found]
    confidence = np.mean([c for c, _ in pairs], axis=0)
    variability = np.mean([v for _, v in pairs], axis=0)
    # A spread of probabilities is at most 1/2.
    difficulty = 1 - confidence if spec.measure == "confidence" else 2 * variability
    guess = np.array([1 / len(options) for options in questions["options"]])
    uninformative = [
        f"At the end of its fine-tuning {model.title} gives the right option "
        f"{right[-1].mean():.1%} on average, no more than guessing does ({guess.mean():.1%})."
        for model, right in zip(chosen, found, strict=True)
        if not _plainly_above_zero(right[-1] - guess)
    ]
    words = {"confidence": "1 minus the mean probability of the right option", "variability":
             "spread of the probability of the right option"}  # fmt: skip
    return Label(
        "difficulty",
        difficulty,
        f"{words[str(spec.measure)]} along a fine-tuning in random order, "
        + " and ".join(model.title for model in chosen),
        list(uninformative),
        uninformative,
        {"confidence": confidence, "variability": variability},
    )


def _plainly_above_zero(values: NDArray[np.float64]) -> bool:
    """Whether a mean lies above 0 by more than 1.96 standard errors."""
    return bool(values.mean() > 1.96 * values.std() / np.sqrt(max(len(values) - 1, 1)))


def _watch_tuning(
    model: ModelSpec, questions: Any, recipe: Recipe, scoring: Scoring, home: Path, watch: Watch
) -> pa.Table:
    text = f"fine-tuning {model.title} once, to see what it finds hard"
    total = len(questions) * recipe.epochs
    right = training_dynamics(
        questions,
        str(home),
        recipe=recipe,
        scoring=scoring,
        trust_remote_code=model.trust_remote_code,
        on_step=lambda seen: watch.progress(text, seen, total),
    )
    return pa.table({"id": questions["id"][:], "right": list(right.T)})
