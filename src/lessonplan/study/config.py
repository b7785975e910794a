"""The study file: one YAML file that says everything, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from lessonplan.errors import InputError, nearest
from lessonplan.orders import STRATEGIES, CategoryOrder
from lessonplan.training.recipe import Adapter, Recipe, Scoring, Strict


class DataSpec(Strict):
    """Where questions come from: see `lessonplan.data.read_questions`.

    Attributes:
        name: what the set is called in tables; by default its data's name, split and sample.
        sample: take this many questions at random (drawn from `sample_seed`), in their order.
    """

    data: str
    name: str = ""
    split: str | None = None
    format: Literal["auto", "medmcqa", "medqa", "lek", "columns"] = "auto"
    columns: dict[str, str | list[str]] | None = None
    answer_base: Literal[0, 1] | None = None
    bad_rows: Literal["error", "drop"] = "error"
    sample: Annotated[int, Field(ge=1)] | None = None
    sample_seed: Annotated[int, Field(ge=0)] = 0

    @property
    def title(self) -> str:
        stem = Path(self.data).stem if Path(self.data).suffix else self.data
        return self.name or (f"{stem} {self.split}" if self.split else stem)


class TrainingSpec(DataSpec):
    """Questions to fine-tune on.

    Attributes:
        folds: cut the set into K parts, hold each out in turn and evaluate on it; for a set
            without a test part.
        fold_seed: draws the parts.
    """

    folds: Annotated[int, Field(ge=2)] | None = None
    fold_seed: Annotated[int, Field(ge=0)] = 0


class LabelSpec(Strict):
    """One source of a label: a column of the data, or (difficulty) a table of answers.

    Attributes:
        column: a column of the training data.
        answers: a table of question by respondent letters; difficulty is the share wrong.
        key: the table's column that names the question, where it is not found by itself.
    """

    column: str | None = None
    answers: str | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> LabelSpec:
        if (self.column is None) == (self.answers is None):
            raise ValueError("a label source needs either column or answers")
        return self


class LabelSpecs(Strict):
    """Label sources by name; with several of a kind, each is an axis of the study."""

    difficulty: dict[str, LabelSpec] = {"given": LabelSpec(column="difficulty")}
    category: dict[str, LabelSpec] = {"given": LabelSpec(column="category")}

    @field_validator("category")
    @classmethod
    def _categories_are_columns(cls, value: dict[str, LabelSpec]) -> dict[str, LabelSpec]:
        for name, spec in value.items():
            if spec.column is None:
                raise ValueError(f"the category source {name!r} needs a column")
        return value


class ArmSpec(Strict):
    """A strategy with its settings: see `lessonplan.order`."""

    strategy: str
    name: str = ""
    blocks: Annotated[int, Field(ge=1)] | Literal["band"] = 3
    bands: Annotated[int, Field(ge=1)] | list[float] | None = None
    category_order: CategoryOrder | list[str | int] = "drawn"
    hardest_first: bool = False
    repeat: Annotated[int, Field(ge=1)] = 1

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in STRATEGIES:
            raise ValueError(
                f"there is no strategy {value!r}; there are {', '.join(STRATEGIES)}."
                + nearest(value, STRATEGIES)
            )
        return value

    @property
    def title(self) -> str:
        if self.name:
            return self.name
        changed = {
            key: value
            for key, value in self.model_dump(exclude={"strategy", "name"}).items()
            if value != type(self).model_fields[key].default
        }
        settings = ", ".join(f"{key}={value}" for key, value in changed.items())
        return f"{self.strategy} ({settings})" if settings else self.strategy


class ModelSpec(Strict):
    """A model, and what its recipe changes of the study's."""

    model: str
    name: str = ""
    recipe: dict[str, Any] = {}
    trust_remote_code: bool = False

    @property
    def title(self) -> str:
        return self.name or (Path(self.model).name if "/" in self.model else self.model)


class CheckpointSpec(Strict):
    """Scoring along a run, for learning curves.

    Attributes:
        at: shares of the run at which a fixed part of each evaluation set is scored.
        questions: the most questions in that part.
    """

    at: list[Annotated[float, Field(gt=0, lt=1)]] = [0.25, 0.5, 0.75]
    questions: Annotated[int, Field(ge=1)] = 64


def _short(key: str) -> BeforeValidator:
    """Let a bare string stand for the spec's most important key, and one spec for a list."""

    def expand(value: Any) -> Any:
        entries = value if isinstance(value, list) else [value]
        return [{key: entry} if isinstance(entry, str) else entry for entry in entries]

    return BeforeValidator(expand)


def _seed_list(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class Study(Strict):
    """A grid of runs and how they are compared.

    Attributes:
        name: what the study is called; by default its file's name.
        seeds: a list, or a number n for 0 to n - 1. Every arm runs under every seed.
        order_seed, training_seed: hold one of the two streams fixed over all seeds, to measure how
            much the order and the training (initial adapter, dropout) each contribute.
        baseline: the arm that gains are measured against.
        keep_adapters: "final" adapters, "all" checkpoints too, or "none".
        allow_overlap: train on questions that also stand in an evaluation set.
        workers: processes that do runs side by side. Two of one thread each do more than one of
            two threads; each holds its own copy of the model. No result depends on it.
    """

    name: str = ""
    models: Annotated[list[ModelSpec], _short("model")] = [ModelSpec(model="smollm2-135m")]
    training: Annotated[list[TrainingSpec], _short("data")]
    evaluation: Annotated[list[DataSpec], _short("data")] = []
    strategies: Annotated[list[ArmSpec], _short("strategy")] = [
        ArmSpec(strategy=strategy) for strategy in STRATEGIES if strategy != "original"
    ]
    baseline: str = "random"
    labels: LabelSpecs = LabelSpecs()
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seed_list)] = [0, 1, 2]
    order_seed: Annotated[int, Field(ge=0)] | None = None
    training_seed: Annotated[int, Field(ge=0)] | None = None
    recipe: Recipe = Recipe()
    scoring: Scoring = Scoring()
    checkpoints: CheckpointSpec = CheckpointSpec()
    keep_adapters: Literal["all", "final", "none"] = "final"
    allow_overlap: bool = False
    workers: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        named: list[tuple[str, list[str]]] = [
            ("models", [m.title for m in self.models]),
            ("training", [t.title for t in self.training]),
            # One name for two sets would mix them up.
            ("training and evaluation", [s.title for s in [*self.training, *self.evaluation]]),
            ("strategies", [a.title for a in self.strategies]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ]
        for key, titles in named:
            twice = sorted({str(t) for t in titles if titles.count(t) > 1})
            if twice:
                raise ValueError(f"{key}: {', '.join(twice)} stands there twice; give each a name")
            if not titles:
                raise ValueError(f"{key}: at least one is needed")
        arms = [arm.title for arm in self.strategies]
        if "untuned" in arms:
            raise ValueError("strategies: untuned is the name of the model before fine-tuning")
        # With several label sources, an arm is called "curriculum [difficulty=llm]".
        if self.baseline not in arms and self.baseline.split(" [")[0] not in arms:
            raise ValueError(f"baseline: {self.baseline!r} is none of the strategies {arms}")
        if not self.evaluation and not any(t.folds for t in self.training):
            raise ValueError("evaluation: give a set to evaluate on, or training.folds")
        if len({arm.repeat for arm in self.strategies}) > 1:
            raise ValueError(
                "strategies: all arms must show every question equally often, so repeat must be "
                "the same for all"
            )
        for i, model in enumerate(self.models):
            try:
                recipe = model_recipe(self, model)
            except ValidationError as error:
                raise _inside(("models", i, "recipe"), error) from None
            if recipe.loss == "choice" and self.scoring.score == "unconditional":
                raise ValueError("recipe.loss: choice cannot use scoring.score: unconditional")
        return self


def _inside(place: tuple[int | str, ...], error: ValidationError) -> ValidationError:
    """Return the same errors with their place in the study file."""
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=PydanticCustomError(problem["type"], problem["msg"]),
                loc=(*place, *problem["loc"]),
                input=problem["input"],
            )
            for problem in error.errors()
        ],
    )


def model_recipe(study: Study, model: ModelSpec) -> Recipe:
    """Return the study's recipe with a model's changes."""
    merged = study.recipe.model_dump()
    for key, value in model.recipe.items():
        merged[key] = merged[key] | value if key == "adapter" and isinstance(value, dict) else value
    return Recipe.model_validate(merged)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file.

    Data and label files are looked up beside the study file first.

    Args:
        path: a YAML file.
        overrides: "key.sub=value" strings that replace single values, as YAML.

    Raises:
        InputError: names the file, line and key, what was found, and what was expected.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"The study file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The study file {path} is not UTF-8 text.") from None
    yaml = YAML()  # round-trip: knows lines, refuses duplicate keys, builds no objects
    try:
        document = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or "").replace("\n", " ")
        raise InputError(f"{path}{where}: this is not valid YAML: {problem}.") from None
    except YAMLError as error:
        raise InputError(f"{path}: this is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: a study file must hold keys such as training and evaluation.")
    for override in overrides:
        _override(document, override, yaml)
    try:
        study = Study.model_validate(_plain(document))
    except ValidationError as error:
        raise InputError(_explain(path, document, error)) from None
    return _located(study, path)


def _located(study: Study, path: Path) -> Study:
    """Name the study, and resolve files that lie beside the study file."""

    def beside(name: str) -> str:
        candidate = path.parent / name
        return (
            str(candidate.resolve())
            if candidate.exists() and not Path(name).is_absolute()
            else name
        )

    changes: dict[str, Any] = {
        "name": study.name or path.stem,
        "training": [
            t.model_copy(update={"data": beside(t.data), "name": t.title}) for t in study.training
        ],
        "evaluation": [
            e.model_copy(update={"data": beside(e.data), "name": e.title}) for e in study.evaluation
        ],
        "labels": LabelSpecs(
            **{
                kind: {
                    name: spec.model_copy(update={"answers": spec.answers and beside(spec.answers)})
                    for name, spec in getattr(study.labels, kind).items()
                }
                for kind in ("difficulty", "category")
            }
        ),
    }
    return study.model_copy(update=changes)


def dump_study(study: Study) -> str:
    """Return the study as YAML text, with all defaults filled in."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    out = StringIO()
    yaml.dump(study.model_dump(mode="json"), out)
    return out.getvalue()


def _override(document: Any, override: str, yaml: Any) -> None:
    from ruamel.yaml.error import YAMLError

    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key):
        raise InputError(
            f"--set takes key=value, such as recipe.learning_rate=1e-3, not {override!r}."
        )
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"--set {override}: {parent} is not a group of keys.")
    try:
        place[last] = yaml.load(value)
    except YAMLError:
        raise InputError(f"--set {override}: {value!r} is not valid YAML.") from None


def _plain(value: Any) -> Any:
    """Turn ruamel's round-trip types into plain ones."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _explain(path: Path, document: Any, error: ValidationError) -> str:
    """Say every problem with its key and line, and suggest the nearest known key."""
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if not _is_type_name(part)]
        key = ".".join(str(part) for part in location)
        line = _line(document, location)
        where = f"{path}, line {line}" if line else str(path)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key is unknown." + nearest(str(location[-1]), _known_keys(location))
        elif problem["type"] == "missing":
            message = "this key is needed."
        elif problem["type"] != "value_error":
            message += f" (found {problem['input']!r})"
        lines.append(f"{where}: {key}: {message}" if key else f"{where}: {message}")
    return "\n".join(dict.fromkeys(lines))


def _is_type_name(part: int | str) -> bool:
    # Pydantic names the members of a union in the location: 'constrained-int', "literal['all']".
    return (isinstance(part, str) and not re.fullmatch(r"[A-Za-z_]\w*", part)) or part in (
        "int",
        "float",
        "str",
        "list",
    )


def _line(document: Any, location: Sequence[int | str]) -> int | None:
    """Return the 1-based line of a key, or of its nearest parent that the file has."""
    line = None
    for part in location:
        try:
            marks = document.lc
            position = marks.item(part) if isinstance(part, int) else marks.key(part)
            line = int(position[0]) + 1
            document = document[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _known_keys(location: Sequence[int | str]) -> list[str]:
    specs: dict[str, type[Strict]] = {
        "models": ModelSpec,
        "training": TrainingSpec,
        "evaluation": DataSpec,
        "strategies": ArmSpec,
        "recipe": Recipe,
        "adapter": Adapter,
        "scoring": Scoring,
        "checkpoints": CheckpointSpec,
        "labels": LabelSpecs,
    }
    names = [part for part in location[:-1] if isinstance(part, str)]
    spec = specs.get(names[-1], LabelSpec) if names else Study
    return list(spec.model_fields)
