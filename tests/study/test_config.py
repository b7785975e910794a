"""The study file: what it may say, and what is said about mistakes in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lessonplan.errors import InputError
from lessonplan.study import load_study
from lessonplan.study.config import ArmSpec, model_recipe
from lessonplan.study.study_file import dump_study

SMALL = "training: icd10cm\nevaluation: medqa\n"


def load(folder: Path, text: str, *overrides: str) -> Any:
    file = folder / "study.yaml"
    file.write_text(text)
    return load_study(file, overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


def test_short_forms_and_defaults(tmp_path: Path) -> None:
    study = load(tmp_path, SMALL + "seeds: 4\nmodels: gemma3-270m\nstrategies: random\n")
    assert study.name == "study"
    assert [m.model for m in study.models] == ["gemma3-270m"]
    assert [t.data for t in study.training] == ["icd10cm"]
    assert [e.data for e in study.evaluation] == ["medqa"]
    assert [a.strategy for a in study.strategies] == ["random"]
    assert study.seeds == [0, 1, 2, 3]
    six = load(tmp_path, SMALL)
    assert [a.title for a in six.strategies] == [
        "random",
        "blocked",
        "interleaved",
        "curriculum",
        "blocked_curriculum",
        "interleaved_curriculum",
    ]
    assert six.seeds == [0, 1, 2]


FULL = """
name: everything
models:
  - smollm2-135m
  - {model: gemma3-270m, name: gemma, recipe: {learning_rate: 1e-4, adapter: {layers: 4}}}
training:
  data: questions.jsonl
  columns: {question: stem, options: [a, b, c], answer: key}
  folds: 3
evaluation: [medqa, {data: medmcqa, split: validation, sample: 20, bad_rows: drop}]
strategies:
  - random
  - {strategy: interleaved_curriculum, bands: 3, blocks: band}
  - {strategy: blocked, category_order: [x, y], name: by hand}
  - {strategy: curriculum, bands: [0.2, 0.7], hardest_first: true}
labels:
  difficulty: {human: {column: hard}, llm: {answers: answers.csv, key: q}}
seeds: [3, 5]
order_seed: 1
recipe: {adapter: {rank: 8, layers: 2}, schedule: wsd, loss: choice, epochs: 2, each: anew}
scoring: {score: per_byte}
checkpoints: {at: [], questions: 5}
keep_adapters: none
workers: 2
"""


def test_a_dumped_study_loads_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("")
    (tmp_path / "answers.csv").write_text("")
    study = load(tmp_path, FULL)
    elsewhere = tmp_path / "elsewhere" / "study.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(dump_study(study))
    again = load_study(elsewhere)
    assert again == study
    assert dump_study(again) == dump_study(study)


def test_files_are_looked_up_beside_the_study_file(tmp_path: Path) -> None:
    for name in ("questions.jsonl", "answers.csv"):
        (tmp_path / name).write_text("")
    study = load(tmp_path, FULL)
    assert study.training[0].data == str((tmp_path / "questions.jsonl").resolve())
    assert study.training[0].title == "questions"
    assert study.labels.difficulty["llm"].answers == str((tmp_path / "answers.csv").resolve())
    assert study.evaluation[0].data == "medqa"


def test_a_model_changes_the_recipe_key_by_key(tmp_path: Path) -> None:
    study = load(tmp_path, FULL)
    plain, changed = (model_recipe(study, model) for model in study.models)
    assert plain == study.recipe
    assert changed.learning_rate == 1e-4
    assert changed.adapter.layers == 4
    assert changed.adapter.rank == 8
    assert changed.schedule == "wsd"


def test_titles_of_arms() -> None:
    assert ArmSpec(strategy="blocked").title == "blocked"
    assert ArmSpec(strategy="blocked", name="mine", repeat=2).title == "mine"
    assert ArmSpec(strategy="interleaved", blocks=5).title == "interleaved (blocks=5)"


def test_overrides(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        SMALL,
        "recipe.learning_rate=1e-3",
        "recipe.adapter.layers=all",
        "seeds=2",
        "strategies=[random, blocked]",
    )
    assert study.recipe.learning_rate == 1e-3
    assert study.recipe.adapter.layers == "all"
    assert study.seeds == [0, 1]
    assert [a.title for a in study.strategies] == ["random", "blocked"]


def test_overrides_within_lists(tmp_path: Path) -> None:
    lists = "training: [{data: a.jsonl}]\nevaluation: [{data: b.jsonl}, {data: c.jsonl}]\n"
    study = load(tmp_path, lists, "evaluation.1.data=d.jsonl", "training.0.sample=5")
    assert [Path(spec.data).name for spec in study.evaluation] == ["b.jsonl", "d.jsonl"]
    assert study.training[0].sample == 5
    for override in ("evaluation.2.data=d.jsonl", "evaluation.2=d.jsonl", "evaluation.x=1"):
        assert "is no entry of that list; there are 0 to 1" in message(tmp_path, lists, override)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seeds", "key=value"),
        ("seeds.x=1", "seeds is not a group of keys"),
        ("training.data=x", "training is not a group of keys"),
        ("seeds=[1", "--set seeds=[1: '[1' is not valid YAML"),
        ("recipe.learning_rat=1", "Did you mean 'learning_rate'"),
        ("a b=1", "key=value"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, found: str) -> None:
    assert found in message(tmp_path, SMALL + "seeds: 1\n", override)


def test_an_override_of_an_empty_file(tmp_path: Path) -> None:
    assert "must hold keys" in message(tmp_path, "", "seeds=1")


# text, what the message must hold
BAD = {
    "unknown key": (
        "trainning: x\n" + SMALL,
        "study.yaml, line 1: trainning: this key is unknown. Did you mean 'training'?",
    ),
    "unknown nested key": (
        SMALL + "recipe:\n  batch_size: 4\n  learning_rte: 1\n",
        "study.yaml, line 5: recipe.learning_rte: this key is unknown. "
        "Did you mean 'learning_rate'?",
    ),
    "unknown key of an entry": (
        "evaluation: medqa\ntraining:\n  - data: icd10cm\n    splt: train\n",
        "study.yaml, line 4: training.0.splt: this key is unknown. Did you mean 'split'?",
    ),
    "unknown key of a label": (
        SMALL + "labels:\n  difficulty:\n    llm: {colum: x}\n",
        "study.yaml, line 5: labels.difficulty.llm.colum: this key is unknown. "
        "Did you mean 'column'?",
    ),
    "unknown key of a model's recipe": (
        SMALL + "models:\n  - model: gemma3-270m\n    recipe:\n      learnig_rate: 1\n",
        "study.yaml, line 6: models.0.recipe.learnig_rate: this key is unknown. "
        "Did you mean 'learning_rate'?",
    ),
    "limit of a model's recipe": (
        SMALL + "models:\n  - {model: gemma3-270m, recipe: {adapter: {rank: 0}}}\n",
        "study.yaml, line 4: models.0.recipe.adapter.rank:",
    ),
    "wrong type": (SMALL + "seeds: many\n", "study.yaml, line 3: seeds:"),
    "limit": (SMALL + "recipe: {learning_rate: 0}\n", "line 3: recipe.learning_rate:"),
    "limit in a list": (SMALL + "checkpoints: {at: [0.5, 1]}\n", "line 3: checkpoints.at.1:"),
    "no such choice": (
        SMALL + "keep_adapters: some\n",
        "line 3: keep_adapters: Input should be 'all', 'final' or 'none' (found 'some')",
    ),
    "missing key": ("evaluation: medqa\n", "study.yaml: training: this key is needed."),
    "missing nested key": (
        "evaluation: medqa\ntraining:\n  - split: x\n",
        "line 3: training.0.data: this key is needed.",
    ),
    "unknown strategy": (
        SMALL + "strategies: [random, interleved]\n",
        "line 3: strategies.1.strategy: there is no strategy 'interleved'",
    ),
    "duplicate key": (SMALL + "seeds: 1\nseeds: 2\n", "study.yaml, line 4, column 1"),
    "broken YAML": (SMALL + "seeds: [1, 2\nname: x\n", "study.yaml, line 4, column 5"),
    "not a mapping": ("- a\n- b\n", "must hold keys"),
    "nothing": ("", "must hold keys"),
    "no seeds": (SMALL + "seeds: []\n", "seeds: at least one is needed"),
    "a seed twice": (SMALL + "seeds: [1, 1]\n", "seeds: 1 stands there twice"),
    "an arm twice": (SMALL + "strategies: [random, random]\n", "random stands there twice"),
    "one name for two sets": (
        "training: icd10cm\nevaluation: {data: medqa, name: icd10cm}\n",
        "training and evaluation: icd10cm stands there twice",
    ),
    "baseline": (SMALL + "baseline: nothing\n", "baseline: 'nothing' is none of the strategies"),
    "arm called untuned": (
        SMALL + "strategies: [random, {strategy: blocked, name: untuned}]\n",
        "untuned is the name of the model before fine-tuning",
    ),
    "nothing to evaluate on": ("training: icd10cm\n", "or training.folds"),
    "unequal exposures": (
        SMALL + "strategies: [random, {strategy: blocked, repeat: 2}]\n",
        "repeat must be the same for all",
    ),
    "choice by a score without training": (
        SMALL + "recipe: {loss: choice}\nscoring: {score: unconditional}\n",
        "choice cannot use scoring.score: unconditional",
    ),
    "the same by a model's recipe": (
        SMALL + "models: {model: m, recipe: {loss: choice}}\nscoring: {score: unconditional}\n",
        "choice cannot use scoring.score: unconditional",
    ),
    "label without source": (
        SMALL + "labels: {difficulty: {a: {}}}\n",
        "line 3: labels.difficulty.a: a label source is one of column, table, share_right",
    ),
    "category from answers": (
        SMALL + "labels: {category: {a: {answers: x.csv}}}\n",
        "category.a: give a column, a table or cluster",
    ),
}


@pytest.mark.parametrize(("text", "found"), BAD.values(), ids=BAD)
def test_bad_files(tmp_path: Path, text: str, found: str) -> None:
    said = message(tmp_path, text)
    assert found in said
    assert "pydantic" not in said
    assert "Traceback" not in said


def test_every_problem_is_said_at_once(tmp_path: Path) -> None:
    said = message(tmp_path, SMALL + "seeds: many\nworkers: 0\nnonsense: 1\n")
    assert [re.search(r"line \d+", line)[0] for line in said.splitlines()] == [  # type: ignore[index]
        "line 3",
        "line 4",
        "line 5",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no study file .*missing\.yaml"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_yaml_tags_make_no_objects(tmp_path: Path, tag: str) -> None:
    target = tmp_path / "made"
    message(tmp_path, SMALL + f"name: {tag} [{str(target)!r}]\n")
    assert not target.exists()


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_valid(file: Path) -> None:
    assert load_study(file).name == file.stem


def test_the_papers_recipes(tmp_path: Path) -> None:
    """Learning rate, batch and accumulation of section "Set-up", and what a file says beside it."""
    models = "models: [tinyllama-1.1b, llama2-7b, llama2-13b, mistral-7b]\n"
    study = load(tmp_path, SMALL + models + "recipe: paper\n")
    found = [model_recipe(study, model) for model in study.models]
    assert [r.learning_rate for r in found] == [5e-4, 5e-5, 1e-4, 1e-4]
    assert [r.step_size for r in found] == [16, 8, 8, 8]
    for recipe in found:
        assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (16, 64, 0.1)
        assert recipe.adapter.layers == "all"
        assert recipe.quantization == "nf4"
        assert (recipe.schedule, recipe.warmup, recipe.epochs) == ("linear", 0, 1)
        assert recipe.max_tokens == 512
        assert recipe.optimizer == "adamw"
    gpu = load(tmp_path, SMALL + models + "recipe: {preset: paper, device: cuda, batch_size: 2}\n")
    recipe = model_recipe(gpu, gpu.models[0])
    assert recipe.optimizer == "paged_adamw_8bit"
    assert (recipe.batch_size, recipe.learning_rate) == (2, 5e-4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("recipe: paper\n", "the paper has no learning rate for smollm2-135m"),
        ("recipe: papper\n", "there is no preset 'papper'"),
        ("recipe: {preset: paper, optimizer: paged_adamw_8bit, learning_rate: 1e-4}\n", "CUDA"),
    ],
)
def test_presets_that_do_not_fit(tmp_path: Path, text: str, found: str) -> None:
    assert found in message(tmp_path, SMALL + text)
