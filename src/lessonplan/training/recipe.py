"""How a model is fine-tuned and scored: every setting, with its default and its limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lessonplan.data.features import are_completions
from lessonplan.errors import InputError, nearest, shown

# The recipes of Yang et al. (2024), arXiv 2408.07888. What is the same for all their models:
PAPER: dict[str, Any] = {
    "adapter": {"rank": 16, "alpha": 64, "dropout": 0.1, "layers": "all"},
    "epochs": 1,
    "schedule": "linear",
    "warmup": 0.0,
    "loss": "answer",
    "max_tokens": 512,
    "quantization": "nf4",
}
# And learning rate, batch and accumulation of each, chosen there on the random shuffle.
PAPER_RATES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {"learning_rate": 5e-4, "batch_size": 16, "accumulation": 1},
    "llama2-7b": {"learning_rate": 5e-5, "batch_size": 4, "accumulation": 2},
    "llama2-13b": {"learning_rate": 1e-4, "batch_size": 4, "accumulation": 2},
    "mistral-7b": {"learning_rate": 1e-4, "batch_size": 4, "accumulation": 2},
}

# What a model is loaded and read by; the rest of a recipe is for tuning.
LOADING = ("max_tokens", "dtype", "quantization", "device", "threads")

Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Score = Literal["sum", "per_token", "per_byte", "unconditional"]


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scoring(Strict):
    """How options are compared.

    Attributes:
        form: "cloze" continues the prompt with each option's own text; "letter" lists the options
            in the prompt and continues it with each letter (the paper's form).
        score: the primary score, the only one that decides what is chosen. Of an option's
            log-likelihood: "sum"; "per_token" and "per_byte", the sum over the option's length;
            "unconditional", the sum minus that of the option without the question. Letters are
            always compared by "sum".
        template: prompt with {question}, and {options} and {letters} for letters.
    """

    form: Literal["cloze", "letter"] = "cloze"
    score: Score = "per_token"
    template: str | None = None

    @model_validator(mode="after")
    def _letters_have_no_score(self) -> Scoring:
        if self.form == "letter" and self.score in ("per_byte", "unconditional"):
            raise ValueError(
                f"score: {self.score} has no effect on form: letter, which is always compared by "
                "sum; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _template_has_question(self) -> Scoring:
        if self.template is not None and self.template.count("{question}") != 1:
            raise ValueError("the template must hold {question} exactly once")
        return self


class Adapter(Strict):
    """LoRA (Hu et al. 2021). Defaults of rank and alpha are the paper's.

    Attributes:
        rank: columns of the two factors.
        alpha: their product is scaled by alpha / rank.
        dropout: share of the inputs that are dropped in training.
        layers: how many of the top layers to tune, or "all".
    """

    rank: Annotated[int, Field(ge=1, le=2**16)] = 16
    alpha: Annotated[float, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: Count | Literal["all"] = "all"


class Recipe(Strict):
    """How a model is fine-tuned.

    Attributes:
        adapter: what LoRA tunes.
        learning_rate: the peak, of AdamW.
        weight_decay: of AdamW.
        batch_size: questions in one forward pass.
        accumulation: batches in one optimiser step.
        epochs: passes over the data.
        each: draw the order of each pass anew, or keep it the same.
        schedule: of the learning rate after warm-up. "linear" and "cosine" decay to 0, "constant"
            stays, "wsd" (warm-up, stable, decay) decays linearly over the last fifth of the steps.
        warmup: share of the steps over which the rate rises linearly from 0.
        loss: "answer" is the negative log-likelihood of the right answer's tokens (their mean);
            "choice" is the cross-entropy over the scores of all options, so that wrong options
            enter the training.
        weight: "question" gives every question the same weight whatever its batch-mates. "token"
            gives every answer token the same weight within its step, as most trainers do: then a
            question's weight depends on the order.
        optimizer: "adamw", or "paged_adamw_8bit" (bitsandbytes; the paper's), which needs CUDA.
        trainer: "lessonplan", this package's own, or "trl" for what outgrows one process (several
            GPUs; the extra `trl`): the same steps in the same order through TRL and Accelerate.
        max_tokens: longer questions lose their beginning.
        max_grad_norm: gradients are scaled down to this norm; 0 does not clip.
        dtype: of the base model. Adapters are float32.
        quantization: of the base model; "nf4" is QLoRA's (bitsandbytes).
        device: where the model is, such as cpu or cuda.
        threads: CPU threads. Part of the recipe because sums depend on it in the last digits.
    """

    adapter: Adapter = Adapter()
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Count = 8
    accumulation: Count = 1
    epochs: Count = 1
    each: Literal["same", "anew"] = "same"
    schedule: Literal["linear", "constant", "cosine", "wsd"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss: Literal["answer", "choice"] = "answer"
    weight: Literal["question", "token"] = "question"
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    trainer: Literal["lessonplan", "trl"] = "lessonplan"
    max_tokens: Annotated[int, Field(ge=16, lt=2**31)] = 512
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4"] = "none"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 2

    @model_validator(mode="after")
    def _weights_that_exist(self) -> Recipe:
        if self.each == "anew" and self.epochs == 1:
            raise ValueError("each: anew has no effect on a single pass; give epochs of 2 or more")
        if self.loss == "choice" and self.weight == "token":
            raise ValueError(
                "weight: token goes with loss: answer; a choice has one term a question"
            )
        if self.trainer == "trl" and self.loss == "choice":
            raise ValueError(
                "trainer: trl knows loss: answer alone; a choice needs trainer: lessonplan"
            )
        if self.optimizer != "adamw" and not self.device.startswith("cuda"):
            raise ValueError(f"optimizer: {self.optimizer} needs a CUDA device, not {self.device}")
        return self

    @property
    def step_size(self) -> int:
        """Questions in one optimiser step."""
        return self.batch_size * self.accumulation


def against_tuning(recipe: Recipe) -> str:
    """Return why nothing can be tuned so, "" where it can."""
    if recipe.dtype == "float16":
        return (
            "dtype: float16 is for evaluating. In tuning it loses small gradients, since losses "
            "are not scaled here; take bfloat16 or float32"
        )
    return ""


def against_lockstep(recipe: Recipe) -> str:
    """Return why a recipe's runs cannot be tuned in lock-step, or ""."""
    if recipe.trainer == "trl":
        return "runs go in lock-step with trainer: lessonplan, not with trl"
    if recipe.adapter.dropout > 0:
        return "runs go in lock-step without dropout alone, of which each draws its own"
    return ""


def paper_recipe(models: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's settings that all of its models share, with some changed.

    With a CUDA device among `settings`, the optimiser is the paper's, too: paged 8-bit AdamW.

    Args:
        models: names of the models to tune. For one that is not among the paper's the learning
            rate is not known, so `settings` must give it.

    Raises:
        ValueError: they do not.
    """
    adapter = settings.get("adapter", {})
    if isinstance(adapter, dict):
        adapter = PAPER["adapter"] | adapter
    foreign = [name for name in models if name not in PAPER_RATES]
    if foreign and "learning_rate" not in settings:
        raise ValueError(
            f"the paper has no learning rate for {', '.join(foreign)} (it has for "
            f"{', '.join(PAPER_RATES)}); give learning_rate"
        )
    cuda = str(settings.get("device", "")).startswith("cuda")
    optimizer = {"optimizer": "paged_adamw_8bit"} if cuda else {}
    return PAPER | optimizer | settings | {"adapter": adapter}


def check_completions(
    questions: Any, scoring: Scoring, name: str, recipe: Recipe | None = None
) -> None:
    """Refuse settings that compare options where questions are prompts with one completion each.

    Args:
        questions: a question `Dataset`.
        name: what to call it.
        recipe: how a model is tuned on it; None where it is scored alone.

    Raises:
        InputError: names the setting.
    """
    if not are_completions(questions):
        return
    reason = ""
    if scoring.form == "letter":
        reason = "scoring form: letter lists options; take cloze"
    elif scoring.template is not None:
        reason = "scoring.template writes multiple choice; leave it out"
    elif scoring.score == "unconditional":
        reason = "scoring score: unconditional compares options; take per_token, per_byte or sum"
    elif recipe is not None and recipe.loss == "choice":
        reason = "loss: choice compares options; take answer"
    if reason:
        raise InputError(f"{name} holds prompts with completions, which have no options: {reason}.")


def read_recipe(settings: Sequence[str], used: Sequence[str] | None = None) -> Recipe:
    """Return a recipe from "key=value" settings such as "adapter.layers=8".

    Args:
        settings: the settings.
        used: the keys of the recipe that have an effect where it is used; None for all.

    Raises:
        InputError: names the setting and what is wrong with it.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (equals and re.fullmatch(r"\w+(\.\w+)*", key)):
            raise InputError(f"--set takes key=value, such as learning_rate=1e-3, not {setting!r}.")
        *groups, last = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise InputError(f"{setting}: {group} is given a value of its own, too.")
        place[last] = value
    recipe: Recipe = _checked(Recipe, values)
    for key in values:
        if used is not None and key not in used:
            raise InputError(
                f"--set {key}=... has no effect here. Leave it out; what can be set is "
                f"{', '.join(used) or 'nothing'}."
            )
    return recipe


def read_scoring(form: str, score: str) -> Scoring:
    """Return the scoring of a form and primary score, or say what is wrong with them."""
    scoring: Scoring = _checked(Scoring, {"form": form, "score": score})
    return scoring


def _checked(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(p) for p in problem["loc"] if p in _all_keys())
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                key = str(problem["loc"][-1])
                message = "there is no such setting." + _hint(kind, key)
            elif problem["type"] == "model_type":
                message = "this is a group; set what is in it, such as adapter.rank=8"
            if problem["type"] != "value_error":
                message += f" (found {shown(problem['input'])})"
            problems.append(f"{key}: {message}" if key else message)
        raise InputError("; ".join(dict.fromkeys(problems))) from None


def _hint(kind: type[Any], key: str) -> str:
    inner = list(Adapter.model_fields) if kind is Recipe else []
    hint = nearest(key, [*kind.model_fields, *inner])
    for name in inner:
        hint = hint.replace(f"'{name}'", f"'adapter.{name}'")
    return hint


def _all_keys() -> list[str]:
    return [name for spec in (Recipe, Adapter, Scoring) for name in spec.model_fields]
