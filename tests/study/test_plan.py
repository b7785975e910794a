"""The plan: which runs a study asks for, and what makes two of them the same."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessonplan import orders
from lessonplan.errors import InputError
from lessonplan.study import Study
from lessonplan.study.cost import seed_work
from lessonplan.study.plan import UNTUNED, Plan, Run, make_plan

Make = Callable[..., Study]


def tuned(plan: Plan) -> list[Run]:
    return [run for run in plan.runs if run.arm != UNTUNED]


def ids(plan: Plan) -> list[str]:
    return [run.id for run in plan.runs]


@pytest.fixture(scope="module")
def plan(make: Make) -> Plan:
    return make_plan(make())


def test_one_run_an_arm_and_seed(plan: Plan) -> None:
    assert [(r.arm, r.seed) for r in plan.runs] == [
        (UNTUNED, 0),
        *((arm, seed) for arm in ("random", "blocked", "curriculum") for seed in (0, 1)),
    ]
    assert len(set(ids(plan))) == 7


def test_orders_are_those_of_the_library(plan: Plan) -> None:
    questions = plan.training[0].questions
    labels = {
        "random": {},
        "blocked": {"category": questions["category"][:]},
        "curriculum": {"difficulty": questions["difficulty"][:]},
    }
    for run in tuned(plan):
        expected = orders.order(run.strategy, 48, seed=run.seed, **labels[run.strategy])
        np.testing.assert_array_equal(run.order, expected)


def test_labels_that_no_strategy_uses_are_said(make: Make) -> None:
    settings = {"strategies": ["random", "blocked"], "labels": {"difficulty": ["human", "llm"]}}
    found = [note for note in make_plan(make(**settings)).notes if note.startswith("labels.")]
    assert found == [
        "labels.difficulty: no strategy uses a difficulty, so none is taken from human, llm."
    ]
    settings["labels"] = {"category": ["human"]}
    assert not any(note.startswith("labels.") for note in make_plan(make(**settings)).notes)


def test_a_strategy_runs_only_over_the_labels_it_uses(make: Make) -> None:
    two = {"given": {"column": "difficulty"}, "llm": {"column": "llm"}}
    plan = make_plan(make(labels={"difficulty": two}, seeds=1))
    assert [(r.arm, r.sources) for r in tuned(plan)] == [
        ("random", {}),
        ("blocked", {"category": "given"}),
        ("curriculum [difficulty=given]", {"difficulty": "given"}),
        ("curriculum [difficulty=llm]", {"difficulty": "llm"}),
    ]
    for run in tuned(plan)[2:]:
        column = {"given": "difficulty", "llm": "llm"}[run.sources["difficulty"]]
        values = np.array(plan.training[0].questions[column][:])
        assert (np.diff(values[run.order]) >= 0).all()


@pytest.mark.parametrize(
    "arm",
    [
        {"strategy": "blocked", "category_order": "difficulty"},
        {"strategy": "interleaved", "blocks": "band", "bands": 3},
    ],
)
def test_labels_that_a_setting_uses(make: Make, arm: dict[str, Any]) -> None:
    # No arm's strategy uses difficulty, but a setting of it does.
    study = make(strategies=["random", arm], labels={"difficulty": {"mine": {"column": "llm"}}})
    run = tuned(make_plan(study))[-1]
    assert run.sources == {"difficulty": "mine", "category": "given"}


def test_categories_that_look_like_numbers(make: Make, data: Path, tmp_path: Path) -> None:
    text = (data / "train.jsonl").read_text().replace('"region ', '"')
    (tmp_path / "train.jsonl").write_text(text)
    arm = {"strategy": "blocked", "category_order": [3, 1, 0, 2]}
    study = make(training=str(tmp_path / "train.jsonl"), strategies=["random", arm], seeds=1)
    plan = make_plan(study)
    shown = [plan.training[0].questions["category"][int(i)] for i in tuned(plan)[-1].order]
    assert list(dict.fromkeys(shown)) == ["3", "1", "0", "2"]


def test_a_baseline_of_several_sources_must_be_named(make: Make) -> None:
    two = {"difficulty": {"given": {"column": "difficulty"}, "llm": {"column": "llm"}}}
    with pytest.raises(InputError, match=r"curriculum \[difficulty=given\], curriculum"):
        make_plan(make(labels=two, baseline="curriculum"))
    make_plan(make(labels=two, baseline="curriculum [difficulty=llm]"))


# ---- Identities ----------------------------------------------------------------------------------


def test_names_and_paths_do_not_enter(
    make: Make, plan: Plan, data: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "copy")
    shutil.copy(data / "train.jsonl", tmp_path / "learn.jsonl")
    study = make(
        name="other",
        models=[{"model": str(tmp_path / "copy"), "name": "renamed"}],
        training=[{"data": str(tmp_path / "learn.jsonl"), "name": "renamed too"}],
        evaluation=[{"data": str(data / "test.jsonl"), "name": "exam"}],
        strategies=[
            {"strategy": "random", "name": "shuffled"},
            {"strategy": "blocked", "name": "in blocks"},
            {"strategy": "curriculum", "name": "easy first"},
        ],
        baseline="shuffled",
        keep_adapters="all",
        workers=3,
    )
    other = make_plan(study)
    assert ids(other) == ids(plan)
    for run, same in zip(other.runs, plan.runs, strict=True):
        assert [e.id for e in run.evaluations] == [e.id for e in same.evaluations]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"threads": 1, "learning_rate": 6e-3, "adapter": {"rank": 4, "layers": 2}}},
        {"recipe": {"threads": 2, "learning_rate": 5e-3, "adapter": {"rank": 4, "layers": 2}}},
        {"recipe": {"threads": 1, "learning_rate": 5e-3, "adapter": {"rank": 4, "layers": 3}}},
        {"seeds": [2, 3]},
        {"training_seed": 7},
        {"scoring": {"template": "{question} Reply:"}},
    ],
    ids=str,
)
def test_what_makes_another_tuning(make: Make, plan: Plan, changes: dict[str, Any]) -> None:
    other = make_plan(make(**changes))
    assert not {r.id for r in tuned(other)} & {r.id for r in tuned(plan)}


def test_other_weights_and_other_rows_make_other_tunings(
    make: Make, plan: Plan, data: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    other = make_plan(make(models=str(tiny_models["qwen2"])))
    assert not set(ids(other)) & set(ids(plan))
    text = (data / "train.jsonl").read_text().replace("number 47 ", "number 48 ")
    (tmp_path / "train.jsonl").write_text(text)
    other = make_plan(make(training=str(tmp_path / "train.jsonl")))
    assert not {r.id for r in tuned(other)} & {r.id for r in tuned(plan)}


def test_another_order_of_one_arm_leaves_the_others(make: Make, plan: Plan) -> None:
    arms = ["random", "blocked", {"strategy": "curriculum", "hardest_first": True}]
    other = make_plan(make(strategies=arms))
    assert ids(other)[:5] == ids(plan)[:5]
    assert not set(ids(other)[5:]) & set(ids(plan)[5:])


def test_evaluations_and_scores_keep_the_tunings(make: Make, plan: Plan, data: Path) -> None:
    both = make_plan(make(evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")]))
    assert ids(both) == ids(plan)
    for run, same in zip(both.runs, plan.runs, strict=True):
        assert {e.id for e in same.evaluations} < {e.id for e in run.evaluations}
    scored = make_plan(make(scoring={"score": "sum"}, checkpoints={"at": [], "questions": 3}))
    assert ids(scored) == ids(plan)
    for run, same in zip(scored.runs, plan.runs, strict=True):
        assert not {e.id for e in same.evaluations} & {e.id for e in run.evaluations}


def test_the_score_that_training_uses_is_part_of_it(make: Make) -> None:
    recipe = {"threads": 1, "adapter": {"rank": 4, "layers": 2}, "loss": "choice"}
    one = make_plan(make(recipe=recipe))
    other = make_plan(make(recipe=recipe, scoring={"score": "sum"}))
    assert not {r.id for r in tuned(one)} & {r.id for r in tuned(other)}
    assert ids(one)[0] == ids(other)[0]


def test_streams_can_be_held_fixed(make: Make, plan: Plan) -> None:
    fixed = make_plan(make(order_seed=0))
    random = [r for r in tuned(fixed) if r.arm == "random"]
    np.testing.assert_array_equal(random[0].order, random[1].order)
    assert [r.training_seed for r in random] == [0, 1]
    assert random[0].id != random[1].id
    assert random[0].id == tuned(plan)[0].id
    fixed = make_plan(make(training_seed=0))
    random = [r for r in tuned(fixed) if r.arm == "random"]
    assert (random[0].order != random[1].order).any()
    assert [r.training_seed for r in random] == [0, 0]
    assert [r.seed for r in random] == [0, 1]


# ---- Evaluations ---------------------------------------------------------------------------------


def test_the_untuned_model_is_one_run(plan: Plan) -> None:
    untuned = [r for r in plan.runs if r.arm == UNTUNED]
    assert len(untuned) == 1
    assert untuned[0].order is None
    assert [(e.of, e.kind, len(e.indices)) for e in untuned[0].evaluations] == [
        ("train", "final", 48),
        ("test", "final", 24),
    ]


def test_curves_are_of_a_fixed_part_at_whole_steps(make: Make, plan: Plan) -> None:
    parts = []
    for run in tuned(plan):
        final, curve = run.evaluations
        assert (final.kind, final.checkpoints, len(final.indices)) == ("final", (48,), 24)
        assert (curve.kind, curve.checkpoints) == ("curve", (24,))
        assert len(curve.indices) == 10
        assert len(set(curve.indices.tolist())) == 10
        parts.append(curve.indices)
    assert all((part == parts[0]).all() for part in parts)
    whole = make_plan(make(checkpoints={"at": [0.01, 0.3, 0.34, 0.99], "questions": 500}))
    curve = tuned(whole)[0].evaluations[1]
    assert curve.checkpoints == (16,)
    assert len(curve.indices) == 24


def test_folds_hold_each_question_out_once(make: Make, data: Path) -> None:
    training = [{"data": str(data / "train.jsonl"), "folds": 5}]
    plan = make_plan(make(training=training, evaluation=[]))
    runs = tuned(plan)
    assert len(runs) == 3 * 2 * 5
    for arm in ("random", "blocked", "curriculum"):
        for seed in (0, 1):
            held: Counter[int] = Counter()
            along: Counter[int] = Counter()
            for run in runs:
                if (run.arm, run.seed) == (arm, seed):
                    final, curve = run.evaluations
                    assert final.of == curve.of == "train (held out)"
                    assert not set(final.indices.tolist()) & set(run.order.tolist())
                    assert len(final.indices) + len(run.order) == 48
                    assert set(curve.indices.tolist()) <= set(final.indices.tolist())
                    held.update(final.indices.tolist())
                    along.update(curve.indices.tolist())
            assert held == Counter(range(48))
            assert len(along) <= 10
    assert len([r for r in plan.runs if r.arm == UNTUNED]) == 1


def test_a_model_context_is_a_limit(make: Make) -> None:
    with pytest.raises(InputError, match=r"max_tokens is 4096, but tiny reads at most 512"):
        make_plan(make(recipe={"max_tokens": 4096}))


def test_cut_questions_are_counted(make: Make) -> None:
    short = make_plan(make(recipe={"max_tokens": 40, "threads": 1}))
    assert any(
        "questions longer than 40 tokens of tiny lost the beginning" in note for note in short.notes
    )


# ---- Overlap and labels --------------------------------------------------------------------------


def test_overlap(make: Make, data: Path) -> None:
    again = [{"data": str(data / "train.jsonl"), "name": "again", "sample": 5}]
    with pytest.raises(InputError, match=r"training set train also holds 5 questions of again"):
        make_plan(make(evaluation=again))
    plan = make_plan(make(evaluation=again, allow_overlap=True))
    assert "train also holds 5 questions of again." in plan.notes


@pytest.mark.parametrize("lost", ["difficulty", "category"])
def test_a_missing_label_names_set_strategy_and_source(
    make: Make, data: Path, tmp_path: Path, lost: str
) -> None:
    text = (data / "train.jsonl").read_text().replace(f'"{lost}": ', f'"{lost}": null, "x": ', 1)
    (tmp_path / "train.jsonl").write_text(text)
    strategy = {"difficulty": "curriculum", "category": "blocked"}[lost]
    study = make(training=str(tmp_path / "train.jsonl"), strategies=["random", strategy])
    with pytest.raises(InputError) as caught:
        make_plan(study)
    assert f"train, strategy {strategy} ({lost} 'given'): 1 of 48 questions have no" in str(
        caught.value
    )
    make_plan(make(training=str(tmp_path / "train.jsonl"), strategies=["random"]))


def test_a_misspelled_label_column(make: Make) -> None:
    labels = {"difficulty": {"mine": {"column": "lm"}}}
    with pytest.raises(InputError, match=r"has no column 'lm'.*Did you mean 'llm'"):
        make_plan(make(labels=labels))


def test_difficulty_from_a_table_of_answers(make: Make, tmp_path: Path) -> None:
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "first", "second"])
        for i in range(48):
            right = "ABCD"[i * 7 % 4]
            wrong = "ABCD"[(i * 7 + 1) % 4]
            writer.writerow([f"q{i}", right, wrong if i % 3 == 0 else right])
    labels = {"difficulty": {"models": {"answers": str(tmp_path / "answers.csv")}}}
    plan = make_plan(make(labels=labels))
    difficulty = plan.training[0].labels["difficulty", "models"].values
    np.testing.assert_array_equal(difficulty, [0.5 * (i % 3 == 0) for i in range(48)])
    run = tuned(plan)[-1]
    assert run.sources == {"difficulty": "models"}
    assert (np.diff(difficulty[run.order]) >= 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recipe": {"epochs": 2, "batch_size": 3}, "checkpoints": {"at": [0.01, 0.3, 0.9]}},
        {
            "models": [
                {"model": "MODEL", "name": n, "recipe": {"epochs": e}} for n, e in ("a1", "b3")
            ]
        },
        {
            "strategies": [{"strategy": s, "repeat": 2} for s in ("random", "blocked")],
            "baseline": "random (repeat=2)",
        },
        {"recipe": {"trainer": "trl"}},
    ],
)
@pytest.mark.parametrize("folds", [None, 4])
def test_the_work_of_a_seed_is_that_of_its_runs(
    make: Make, data: Path, settings: dict[str, Any], changes: dict[str, Any], folds: int | None
) -> None:
    model = settings["models"][0]["model"]
    changes |= {"models": [m | {"model": model} for m in changes.get("models", [{"name": "m"}])]}
    study = make(
        seeds=1,
        training=[{"data": str(data / "train.jsonl"), "folds": folds}],
        evaluation=[str(data / "test.jsonl"), str(data / "more.jsonl")],
        **changes,
    )
    runs = tuned(make_plan(study))
    work = seed_work(study, {"train": 48, "test": 24, "more": 12})
    assert work.runs == len(runs)
    assert work.trained == sum(len(run.order) for run in runs if run.order is not None)
    assert work.scored == sum(e.cost for run in runs for e in run.evaluations)
