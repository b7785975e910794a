"""The study file: one YAML file that says everything, checked key by key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from lessonplan.errors import InputError, first_line, nearest, shown
from lessonplan.orders import STRATEGIES, CategoryOrder, check_settings
from lessonplan.study.sources import ClusterSpec, EndpointSpec, LabelSpec, LabelSpecs
from lessonplan.training.recipe import (
    PAPER_RATES,
    Adapter,
    Count,
    Recipe,
    Scoring,
    Seed,
    Strict,
    against_lockstep,
    paper_recipe,
)

MOST_VALUES = 100_000  # that a study file stands for, aliases written out
MOST_SEEDS = 1000  # of `seeds: n`; a larger number is rather a seed itself


class DataSpec(Strict):
    """Where questions come from: see `lessonplan.data.read_questions`.

    Attributes:
        data: a built-in name, a file, a folder, or a hub id.
        name: what the set is called in tables; by default its data's name, and its split.
        split: which split of a source that has several.
        format: the publisher's format; "columns" goes by names; "auto" recognises it.
        columns: our names (id, question, options, answer, category, difficulty) and the table's.
        answer_base: what the first option's index is, where answers leave it open.
        bad_rows: what to do with rows that cannot be used.
        sample: take this many questions at random, in their order.
        sample_seed: draws them.
    """

    data: Annotated[str, Field(min_length=1)]
    name: str = ""
    split: str | None = None
    format: Literal[
        "auto", "medmcqa", "medqa", "lek", "columns", "messages", "prompt_completion", "alpaca"
    ] = "auto"
    columns: dict[str, str | list[str]] | None = None
    answer_base: Literal[0, 1] | None = None
    bad_rows: Literal["error", "drop"] = "error"
    sample: Count | None = None
    sample_seed: Seed = 0

    @model_validator(mode="after")
    def _seeds_draw_something(self) -> Self:
        for draws, seed in (("sample", "sample_seed"), ("folds", "fold_seed")):
            if getattr(self, seed, 0) and getattr(self, draws) is None:
                raise ValueError(f"{seed} has no effect without {draws}; leave it out")
        return self

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

    folds: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    fold_seed: Seed = 0


class ArmSpec(Strict):
    """A strategy with its settings: see `lessonplan.order`.

    Attributes:
        strategy: its name: see `lessonplan strategies`.
        name: what the arm is called; by default the strategy and what is set of it.
        blocks: rounds of interleaving; "band" makes the difficulty band the round.
        bands: None sorts by the value of the difficulty; a number cuts it into that many bands of
            equal size, a list at those thresholds; inside a band questions are shuffled.
        category_order: drawn from the seed, or by a rule, or all categories in order.
        hardest_first: from hard to easy.
        repeat: times that each group of questions is shown in a row; the same for all arms.
    """

    strategy: str
    name: str = ""
    blocks: Count | Literal["band"] = 3
    bands: Count | list[float] | None = None
    category_order: CategoryOrder | list[str | int] = "drawn"
    hardest_first: bool = False
    repeat: Count = 1

    @field_validator("strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in STRATEGIES:
            raise ValueError(
                f"there is no strategy {value!r}; there are {', '.join(STRATEGIES)}."
                + nearest(value, STRATEGIES)
            )
        return value

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> ArmSpec:
        check_settings(
            self.strategy,
            blocks=self.blocks,
            bands=self.bands,
            category_order=self.category_order,
            hardest_first=self.hardest_first,
        )
        return self

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
    """A model, and what its recipe changes of the study's.

    Attributes:
        model: a preset, a folder, a GGUF file or a hub id.
        name: what the model is called in tables; by default the last part of `model`.
        recipe: settings of the recipe that differ for this model.
        trust_remote_code: run code that lies beside the model's weights.
    """

    model: str
    name: str = ""
    recipe: dict[str, Any] = {}
    trust_remote_code: bool = False

    @property
    def title(self) -> str:
        return self.name or (Path(self.model).name if "/" in self.model else self.model)


class ResourceSpec(Strict):
    """What a Ray cluster reserves for a run (`lessonplan study --ray`). No result depends on it.

    Attributes:
        cpus: CPU cores; by default as many as the recipe's threads.
        gpus: GPUs, or the fraction of one that a run takes; by default one where the recipe's
            device is a GPU.
        memory: bytes, or such as "4 GiB"; by default none is reserved.
    """

    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    memory: Annotated[ByteSize, Field(gt=0)] | None = None

    @field_validator("gpus")
    @classmethod
    def _fraction_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"gpus: a fraction of one, or a whole number, not {value}")
        return value


class CheckpointSpec(Strict):
    """Scoring along a run, for learning curves.

    Attributes:
        at: shares of the run at which a fixed part of each evaluation set is scored.
        questions: the most questions in that part.
    """

    at: list[Annotated[float, Field(gt=0, lt=1)]] = [0.25, 0.5, 0.75]
    questions: Count = 64


def _short(key: str) -> BeforeValidator:
    """Let a bare string stand for the spec's most important key, and one spec for a list."""

    def expand(value: Any) -> Any:
        entries = value if isinstance(value, list) else [value]
        return [{key: entry} if isinstance(entry, str) else entry for entry in entries]

    return BeforeValidator(expand)


def _seed_list(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > MOST_SEEDS:
        raise ValueError(f"{shown(value)} seeds are too many; for one seed, write [{shown(value)}]")
    return list(range(value))


class Study(Strict):
    """A grid of runs and how they are compared.

    Attributes:
        name: what the study is called; by default its file's name.
        models: models to fine-tune.
        training: sets to fine-tune on, each by itself.
        evaluation: sets to evaluate on; not needed where `training` has folds.
        strategies: the orders to compare.
        seeds: a list, or a number n for 0 to n - 1. Every arm runs under every seed.
        order_seed: holds the order's draws fixed over all seeds, to measure what the training's
            (initial adapter, dropout) contribute.
        training_seed: holds the training's draws fixed, to measure what the order's contribute.
        baseline: the arm that gains are measured against.
        labels: where difficulty and category come from.
        recipe: how models are fine-tuned.
        scoring: how options are compared.
        checkpoints: scoring along a run.
        keep_adapters: "final" adapters, "all" checkpoints too, or "none".
        allow_overlap: train on questions that also stand in an evaluation set.
        workers: processes that do runs side by side. Two of one thread each do more than one of
            two threads; each holds its own copy of the model. No result depends on it.
        lockstep: runs that a worker tunes step by step together. Each sees its own batches alone;
            the products with the model's weights, which they share, are faster for more tokens.
            Last digits may depend on it.
        resources: what each run takes of a Ray cluster, which does as many runs side by side as
            it has room for.
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
    seeds: Annotated[list[Seed], BeforeValidator(_seed_list)] = [0, 1, 2]
    order_seed: Seed | None = None
    training_seed: Seed | None = None
    recipe: Recipe = Recipe()
    scoring: Scoring = Scoring()
    checkpoints: CheckpointSpec = CheckpointSpec()
    keep_adapters: Literal["all", "final", "none"] = "final"
    allow_overlap: bool = False
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    lockstep: Annotated[int, Field(ge=1, le=64)] = 1
    resources: ResourceSpec = ResourceSpec()

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, value: Any) -> Any:
        """Spell out `recipe: paper`, or a recipe with `preset: paper`, for all models."""
        if not isinstance(value, dict):
            return value
        recipe = value.get("recipe")
        recipe = {"preset": recipe} if isinstance(recipe, str) else recipe
        if not isinstance(recipe, dict) or "preset" not in recipe:
            return value
        preset, rest = recipe["preset"], {k: v for k, v in recipe.items() if k != "preset"}
        if preset != "paper":
            raise ValueError(f"recipe: there is no preset {preset!r}; there is paper")
        given = value.get("models", "smollm2-135m")
        models, without_rate = [], []
        for model in given if isinstance(given, list) else [given]:
            spec = model if isinstance(model, dict) else {"model": model}
            own = spec.get("recipe") or {}
            if not isinstance(own, dict):
                models.append(spec)  # to be refused with its place
                continue
            rates = PAPER_RATES.get(str(spec.get("model")), {})
            # What the file says itself counts for more than the preset.
            own = {k: v for k, v in rates.items() if k not in rest} | own
            models.append(spec | {"recipe": own})
            if "learning_rate" not in own:
                without_rate.append(str(spec.get("model")))
        return value | {"recipe": paper_recipe(without_rate, rest), "models": models}

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
            raise ValueError(
                f"baseline: {self.baseline!r} is none of the strategies {arms}; give one of them"
            )
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
            if self.lockstep > 1 and (problem := against_lockstep(recipe)):
                raise ValueError(f"lockstep: {problem}; leave it out")
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
    return changed_recipe(study.recipe, model.recipe)


def changed_recipe(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """Return a recipe with some settings changed; those of the adapter one by one."""
    merged = recipe.model_dump()
    for key, value in changes.items():
        merged[key] = merged[key] | value if key == "adapter" and isinstance(value, dict) else value
    return Recipe.model_validate(merged)


def load_study(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """Read and check a study file.

    Data and label files are looked up beside the study file first.

    Args:
        path: a YAML file.
        overrides: "key.sub=value" strings that replace single values, as YAML.

    Raises:
        InputError: names the file, line and key, what was found, and what was expected.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = os.listdir(path.parent) if path.parent.is_dir() else []
        raise InputError(f"There is no study file {path}.{nearest(path.name, there)}") from None
    except OSError as error:
        raise InputError(f"The study file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The study file {path} is not UTF-8 text. Save it as UTF-8.") from None
    yaml = YAML()  # round-trip: knows lines, refuses duplicate keys, builds no objects
    try:
        document = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or "").replace("\n", " ")
        raise InputError(f"{path}{where}: this is not valid YAML: {problem}.") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}, line {line}: this is not YAML: {error.reason}.") from None
    except RecursionError:
        raise InputError(f"{path}: the file is nested too deeply.") from None
    except ValueError as error:  # such as 2001-99-99
        raise InputError(f"{path}: this is not valid YAML: {first_line(error)}.") from None
    except Exception:  # ruamel stumbles over its own errors
        raise InputError(f"{path}: this is not valid YAML; look at its & and !.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: a study file must hold keys such as training and evaluation.")
    for override in overrides:
        _override(document, override, yaml)
    try:
        study = Study.model_validate(_plain(document, iter(range(MOST_VALUES))))
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise InputError(f"{path}: {half!r} is half a character; mend or remove it.") from None
    except RecursionError:
        raise InputError(f"{path}: an anchor (&) stands inside of itself; spell it out.") from None
    except ValidationError as error:
        raise InputError(_explain(path, document, error)) from None
    return _located(study, path)


def _located(study: Study, path: Path) -> Study:
    """Name the study, and resolve files that lie beside the study file."""

    def beside(name: str) -> str:
        candidate = path.parent / name
        # Path.exists raises for a name that no file can have.
        if Path(name).is_absolute() or not os.path.exists(candidate):
            return name
        return str(candidate.resolve())

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
                    name: spec.model_copy(
                        update={
                            "answers": spec.answers and beside(spec.answers),
                            "table": spec.table and beside(spec.table),
                        }
                    )
                    for name, spec in getattr(study.labels, kind).items()
                }
                for kind in ("difficulty", "category")
            },
            missing=study.labels.missing,
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
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise InputError(
            f"--set takes key=value, such as recipe.learning_rate=1e-3, not {override!r}."
        )
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}
        place = place[_key(place, parent, override)]
        if not isinstance(place, (dict, list)):
            raise InputError(f"--set {override}: {parent} is not a group of keys.")
    try:
        loaded = yaml.load(value)
    except Exception:  # of any kind, as in `load_study`
        raise InputError(f"--set {override}: {value!r} is not valid YAML.") from None
    place[_key(place, last, override)] = loaded


def _key(place: Any, name: str, override: str) -> str | int:
    """Return what names an entry in a group of keys, or in a list."""
    if isinstance(place, dict):
        return name
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    raise InputError(
        f"--set {override}: {name} is no entry of that list; there are 0 to {len(place) - 1}."
    )


def _plain(value: Any, left: Iterator[int]) -> Any:
    """Turn ruamel's round-trip types into plain ones; refuse more values than are left."""
    if next(left, None) is None:
        raise InputError(
            f"The study file stands for more than {MOST_VALUES:,} values, since its aliases (*) "
            "repeat each other. Spell them out."
        )
    if isinstance(value, dict):
        return {str(key): _plain(entry, left) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry, left) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        value.encode()  # half a character cannot be written down again
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _explain(path: Path, document: Any, error: ValidationError) -> str:
    """Say every problem with its key and line, and suggest the nearest known key."""
    expected: dict[str, dict[str, None]] = {}  # by place: a value of several kinds has several
    found = {}
    for problem in error.errors():
        *outer, last = problem["loc"] or ("",)
        location = [part for part in outer if not _is_type_name(part)]
        if problem["type"] == "extra_forbidden" or not _is_type_name(last):
            location.append(last)
        key = ".".join(str(part) for part in location)
        line = _line(document, location)
        where = f"{path}, line {line}" if line else str(path)
        where += f": {key}" if key else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "this key is unknown." + nearest(str(location[-1]), _known_keys(location))
        elif problem["type"] == "missing":
            message = "this key is needed."
        elif problem["type"] != "value_error":
            if problem["type"] == "model_type":
                message = "keys with their values are needed here"
            found[where] = f" (found {shown(problem['input'])})"
        expected.setdefault(where, {})[message] = None
    return "\n".join(
        f"{where}: {'; or: '.join(messages)}{found.get(where, '')}"
        for where, messages in expected.items()
    )


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
        "resources": ResourceSpec,
        "labels": LabelSpecs,
        "endpoint": EndpointSpec,
        "cluster": ClusterSpec,
    }
    names = [part for part in location[:-1] if isinstance(part, str)]
    spec = specs.get(names[-1], LabelSpec) if names else Study
    return list(spec.model_fields)
