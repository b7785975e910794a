"""A study's settings: everything that a study file can say, checked key by key."""

from __future__ import annotations

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

from lessonplan.errors import nearest, shown
from lessonplan.orders import STRATEGIES, CategoryOrder, check_settings
from lessonplan.study.sources import LabelSpecs
from lessonplan.training.recipe import (
    PAPER_RATES,
    Count,
    Recipe,
    Scoring,
    Seed,
    Strict,
    against_lockstep,
    against_tuning,
    paper_recipe,
)

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
    """What a Ray cluster reserves for a worker (`study --ray`). No result depends on it.

    Attributes:
        cpus: CPU cores; by default as many as the recipe's threads.
        gpus: GPUs, or the fraction of one that it takes; by default one where the recipe's
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
        resources: what each worker takes of a Ray cluster, which has as many side by side as
            there is room for.
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
            if problem := against_tuning(recipe):
                raise ValueError(f"recipe: {problem}")
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
