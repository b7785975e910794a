"""Label sources, as a study file and the command line name them: where labels come from.

Here they are only said and checked; `labelling` makes labels of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lessonplan.errors import InputError, nearest, shown
from lessonplan.labels.endpoint import check_key_variable
from lessonplan.training.recipe import Count, Seed, Strict

TUNED = ("confidence", "variability")  # measures along a fine-tuning


class EndpointSpec(Strict):
    """How an OpenAI-compatible server is asked: see `lessonplan.labels.endpoint.Endpoint`.

    Attributes:
        api: which of the server's interfaces is asked.
        key_variable: the environment variable that holds the server's key.
        concurrency: requests at a time.
        per_minute: most requests a minute.
        timeout: seconds until a request is given up.
        attempts: tries of a request before giving up.
        top: log-probabilities asked for a token.
    """

    api: Literal["completions", "chat"] = "completions"
    key_variable: str | None = None
    concurrency: Count = 8
    per_minute: Annotated[float, Field(gt=0)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 120.0
    attempts: Count = 6
    top: Count = 20

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        check_key_variable(value)
        return value


class ClusterSpec(Strict):
    """How categories are found by clustering: see `lessonplan.labels.clusters`.

    Attributes:
        embedder: "minilm" (offline), "pubmedbert" (the paper's), a folder or a hub id.
        embed: the question with its options, or the question alone.
        trials: sets of parameters that are tried.
        noise: where a question in no cluster goes: to the nearest one, or to a category of its own.
        seed: of the search, of UMAP and of the map.
    """

    embedder: str = "minilm"
    embed: Literal["question_and_options", "question"] = "question_and_options"
    trials: Count = 30
    noise: Literal["nearest", "own"] = "nearest"
    seed: Seed = 0


def _listed(value: Any) -> Any:
    entries = value if isinstance(value, list) else [value]
    return [str(entry) if isinstance(entry, Path) else entry for entry in entries]


class LabelSpec(Strict):
    """One source of a label.

    Exactly one of these says where it comes from:

    Attributes:
        column: a column of the training data (or, with `table`, of that table).
        table: a table of labels by question id, such as `lessonplan label` writes.
        share_right: difficulty is 1 minus this column, the share of people who were right.
        answers: difficulty is the share wrong in this table of question by respondent.
        measure: difficulty by a model: the `probability` of a wrong option, the right answer's
            `loss`, the `margin` or the `entropy` of the options' probabilities; by a fine-tuning
            in random order, 1 minus its mean probability of the right option (`confidence`) or the
            spread of it along the run (`variability`); or the `length` of the text.
        cluster: categories are clusters of the questions' embeddings.

    And these say how:

    Attributes:
        models: for a measure: names of models, or "name@http://host/v1" for one behind an
            OpenAI-compatible server; by default the study's models. Several are averaged.
        form: "cloze" or "letter" (over all rotations of the options, but for `confidence` and
            `variability`, which ask as the study does); by default the study's, and "letter" for
            all models where one is behind a server.
        endpoint: how servers are asked.
        key: the column of `table` or `answers` that names the question.
        method: for `answers`: the plain "share", or item response theory, "1pl" or "2pl".
        allow_uninformative: take labels of a model that does no better than guessing.
    """

    column: str | None = None
    table: str | None = None
    share_right: str | None = None
    answers: str | None = None
    measure: (
        Literal["probability", "loss", "margin", "entropy", "confidence", "variability", "length"]
        | None
    ) = None
    cluster: ClusterSpec | None = None
    models: Annotated[list[str], BeforeValidator(_listed)] = []
    form: Literal["cloze", "letter"] | None = None
    endpoint: EndpointSpec = EndpointSpec()
    key: str | None = None
    method: Literal["share", "1pl", "2pl"] = "share"
    allow_uninformative: bool = False

    @model_validator(mode="before")
    @classmethod
    def _models_have_a_measure(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("models") and "measure" not in value:
            return value | {"measure": "probability"}
        return value

    @model_validator(mode="after")
    def _one_source(self) -> LabelSpec:
        sources = ["table", "share_right", "answers", "measure", "cluster"]
        given = [name for name in sources if getattr(self, name) is not None]
        if self.column is not None and self.table is None:
            given.append("column")
        if len(given) != 1:
            raise ValueError(
                "a label source is one of column, table, share_right, answers, measure (or "
                f"models) and cluster; found {' and '.join(given) or 'none of them'}"
            )
        if self.models and self.measure in (None, "length"):
            raise ValueError("models go with a measure that reads them")
        if self.form and self.measure in (None, "length"):
            raise ValueError("form goes with a measure by models")
        asked = self.endpoint.model_dump(exclude_defaults=True)
        if asked and not any("@http" in model.lower() for model in self.models):
            raise ValueError(
                f"{' and '.join(asked)} (of endpoint) have no effect: no model is behind a server, "
                "as NAME@http://host/v1 is"
            )
        if self.method != "share" and self.answers is None:
            raise ValueError(f"method: {self.method} goes with answers")
        if self.key and self.answers is None and self.table is None:
            raise ValueError("key goes with answers or a table")
        return self


# A label source by its name alone.
KNOWN_SOURCES: dict[str, dict[str, dict[str, Any]]] = {
    "difficulty": {
        "given": {"column": "difficulty"},
        "human": {"column": "difficulty"},
        "llm": {"measure": "probability"},
        **{
            measure: {"measure": measure}
            for measure in ("loss", "margin", "entropy", "confidence", "variability", "length")
        },
    },
    "category": {
        "given": {"column": "category"},
        "human": {"column": "category"},
        "cluster": {"cluster": {}},
    },
}


class LabelSpecs(Strict):
    """Label sources by name; with several of a kind, each is an axis of the study.

    A list of names takes what is known by them: `difficulty: [human, llm]`,
    `category: [human, cluster]`.

    Attributes:
        difficulty: sources of the difficulty.
        category: sources of the category.
        missing: what to do with training questions that lack one of these labels: "error", or
            "drop" them (for all arms alike, with a count).
    """

    difficulty: dict[str, LabelSpec] = {"given": LabelSpec(column="difficulty")}
    category: dict[str, LabelSpec] = {"given": LabelSpec(column="category")}
    missing: Literal["error", "drop"] = "error"

    @field_validator("difficulty", "category", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        known = KNOWN_SOURCES[str(info.field_name)]
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list):
            for name in names:
                if not isinstance(name, str) or name not in known:
                    raise ValueError(
                        f"{name!r} is no {info.field_name} source that is known by its name; "
                        f"there are {', '.join(known)}. Others need their settings: "
                        "name: {column: ...}" + nearest(str(name), known)
                    )
                if names.count(name) > 1:
                    raise ValueError(f"{name!r} stands there twice")
            return {name: known[name] for name in names}
        if isinstance(value, dict):
            if any(not str(name).strip() for name in value):
                raise ValueError("a source needs a name")
            return {
                name: known.get(name, {}) if spec is None else spec for name, spec in value.items()
            }
        return value

    @model_validator(mode="after")
    def _fit_their_kind(self) -> LabelSpecs:
        for kind in ("difficulty", "category"):
            if not getattr(self, kind):
                raise ValueError(f"{kind}: at least one source is needed")
        for name, spec in self.difficulty.items():
            if spec.cluster is not None:
                raise ValueError(f"difficulty.{name}: clusters are categories, not difficulties")
        for name, spec in self.category.items():
            if spec.column is None and spec.table is None and spec.cluster is None:
                raise ValueError(f"category.{name}: give a column, a table or cluster")
        return self


def read_label_spec(kind: str, values: dict[str, Any]) -> LabelSpec:
    """Return the specification of one label.

    Raises:
        InputError: says which setting is wrong.
    """
    try:
        read = LabelSpecs.model_validate({kind: {"label": values}})
        specs: dict[str, LabelSpec] = getattr(read, kind)
    except ValidationError as error:
        said = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][2:])
            message = problem["msg"].removeprefix("Value error, ")
            # What stands under an unknown key can be a secret.
            if problem["type"] not in ("value_error", "extra_forbidden"):
                message += f" (found {shown(problem['input'])})"
            said.append(f"{key}: {message}" if key else message)
        raise InputError("; ".join(dict.fromkeys(said))) from None
    return specs["label"]
