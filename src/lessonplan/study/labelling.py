"""Labels of a training set, made as the study file says.

What costs time (a model's view of the options, a server's answers, embeddings, clusters, a
fine-tuning watched) is kept in a folder under a name that digests all that it follows from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lessonplan.data.features import are_completions
from lessonplan.data.tables import cell_text, missing_column
from lessonplan.errors import InputError
from lessonplan.labels import label_column, read_answers
from lessonplan.labels.answers import difficulty_from_share
from lessonplan.labels.clusters import CLUSTERING, ClusterSettings, cluster
from lessonplan.labels.embedding import cluster_texts, embed
from lessonplan.labels.label import KINDS, Kind, Label, checked
from lessonplan.labels.tables import read_labels
from lessonplan.labels.views import text_length
from lessonplan.models.loading import cache_folder
from lessonplan.study.files import digest, read_table, write_table
from lessonplan.study.model_labels import Means, from_dynamics, from_losses, from_views
from lessonplan.study.sources import TUNED, LabelSpec, read_label_spec
from lessonplan.training.recipe import Recipe, Scoring


def label(
    questions: Any,
    kind: Kind = "difficulty",
    *,
    recipe: Recipe | None = None,
    scoring: Scoring | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> Label:
    """Label questions: how hard they are, or what they are about.

        label(questions, models=["smollm2-135m"])
        label(questions, answers="answers.csv", method="2pl")
        label(questions, measure="length")
        label(questions, "category", cluster={})

    Args:
        questions: a question `Dataset`, with the columns that `settings` name.
        kind: "difficulty" or "category".
        recipe, scoring: how models are loaded, tuned and read.
        folder: where work is kept and looked for; by default in the user's cache.
        settings: the keys of a label source in a study file (`lessonplan.study.sources.LabelSpec`).

    Returns:
        The label; `Label.uninformative` says where a model did no better than guessing.

    Raises:
        InputError: settings that cannot be, or a label that cannot be had.
    """
    if kind not in KINDS:
        raise InputError(f"A label is a {' or a '.join(KINDS)}, not {kind!r}.")
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    spec = read_label_spec(kind, plain | {"allow_uninformative": True})
    means = Means(
        Path(folder) if folder else cache_folder() / "labels",
        recipe or Recipe(),
        scoring or Scoring(),
    )
    return make_label(kind, spec, questions, "the questions", means)


def make_label(kind: Kind, spec: LabelSpec, questions: Any, name: str, means: Means) -> Label:
    """Return a label of a question `Dataset`.

    Args:
        kind: "difficulty" or "category".
        spec: where the label comes from.
        questions: all questions of a training set, with the columns that `spec` names.
        name: what to call them in messages.
        means: what the label is made with.

    Raises:
        InputError: labels that cannot be had or say nothing; a labelling model that does no better
            than guessing, unless `spec` allows it.
    """
    if spec.table is not None:
        made = _from_table(kind, spec, questions)
    elif spec.answers is not None:
        values, notes = read_answers(questions, spec.answers, key=spec.key, method=spec.method)
        how = {"share": "share wrong"}.get(spec.method, f"{spec.method.upper()} model")
        made = Label("difficulty", values, f"{how} in {Path(spec.answers).name}", notes)
    elif spec.share_right is not None:
        values = difficulty_from_share(questions, spec.share_right)
        made = Label("difficulty", values, f"1 minus the share right in {spec.share_right!r}")
    elif spec.cluster is not None:
        made = _from_clusters(spec, questions, means)
    elif spec.measure not in (None, "length", "loss") and are_completions(questions):
        raise InputError(
            f"{name}: measure: {spec.measure} reads the probabilities of options, and prompts with "
            "completions have none. Take measure: loss or length."
        )
    elif spec.measure == "length":
        parts = "prompt and completion" if are_completions(questions) else "question and options"
        made = Label("difficulty", text_length(questions), f"length of {parts}")
    elif spec.measure in TUNED:
        made = from_dynamics(spec, questions, means)
    elif spec.measure is not None and are_completions(questions):
        made = from_losses(spec, questions, means)
    elif spec.measure is not None:
        made = from_views(spec, questions, means)
    else:
        assert spec.column is not None
        made = column_label(kind, spec.column, questions, name)
    made = checked(made, name)
    if made.uninformative and not spec.allow_uninformative:
        raise InputError(
            f"{name}: {' '.join(made.uninformative)} A difficulty from it says nothing of the "
            "questions. Take a better model, or set allow_uninformative: true in this source of "
            "labels."
        )
    return made


def column_label(kind: Kind, column: str, questions: Any, name: str) -> Label:
    """Return a column of the questions as a label.

    Raises:
        InputError: there is no such column, or for a difficulty it holds no numbers.
    """
    names = questions.column_names
    if column not in names:
        raise InputError(missing_column(name, column, names))
    values = questions[column][:]
    origin = f"column {column!r}"
    if kind == "category":
        return Label(kind, [cell_text(value) or None for value in values], origin)
    if all(value is None for value in values):
        return Label(kind, np.full(len(values), np.nan), origin)
    numbers = label_column(questions, column)
    if numbers.dtype == object:
        raise InputError(f"{name}: the column {column!r} holds no numbers, so it is no difficulty.")
    return Label(kind, numbers.astype(np.float64), origin)


def _from_table(kind: Kind, spec: LabelSpec, questions: Any) -> Label:
    assert spec.table is not None
    values, notes, uninformative = read_labels(
        questions["id"][:], spec.table, kind, column=spec.column, key=spec.key
    )
    return Label(kind, values, f"table {Path(spec.table).name}", notes, uninformative)


def _from_clusters(spec: LabelSpec, questions: Any, means: Means) -> Label:
    assert spec.cluster is not None
    wanted = spec.cluster
    texts = cluster_texts(questions, wanted.embed)
    means.watch.progress(f"embedding {len(texts)} questions", 0, wanted.trials)
    vectors = embed(texts, wanted.embedder, cache=means.folder, threads=means.recipe.threads)
    settings = ClusterSettings(trials=wanted.trials, noise=wanted.noise, seed=wanted.seed)
    identity = {
        "clusters": CLUSTERING,
        "vectors": hashlib.sha256(vectors.tobytes()).hexdigest(),
        "texts": texts,
        **vars(settings),
    }
    file = means.folder / f"clusters-{digest(identity)}.parquet"
    if not file.is_file():
        step = means.watch.counter("clustering", wanted.trials)
        found = cluster(vectors, texts, settings, on_trial=lambda _: step(1))
        table = pa.table(
            {
                "id": questions["id"][:],
                "category": found.categories,
                "cluster": found.cluster,
                "membership": found.membership,
                "x": found.place[:, 0].astype(np.float64),
                "y": found.place[:, 1].astype(np.float64),
            }
        )
        told = {"notes": found.notes, "parameters": found.parameters, "cost": found.cost}
        write_table(file, table.replace_schema_metadata({"lessonplan": json.dumps(told)}))
    kept = read_table(file)
    told = json.loads(kept.schema.metadata[b"lessonplan"])
    parameters = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in told["parameters"].items())
    return Label(
        "category",
        kept["category"].to_pylist(),
        f"clusters of {wanted.embedder} embeddings (UMAP and HDBSCAN: {parameters})",
        told["notes"],
        details={name: kept[name] for name in ("cluster", "membership")},
        place=np.stack([kept["x"].to_numpy(), kept["y"].to_numpy()], axis=1),
    )
