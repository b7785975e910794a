"""What each run saw when, read back from a study's folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lessonplan.statistics import analyse
from lessonplan.statistics.labels import UNLABELLED
from lessonplan.study import Study, read_record, run_study
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.store import Folder


def test_categories_in_the_order_of_every_run(finished: tuple[Path, Plan]) -> None:
    folder, plan = finished
    (outcome,) = read_record(folder).outcomes
    categories = plan.training[0].questions["category"][:]
    assert outcome.taught == sorted(set(categories))
    tuned = [run for run in plan.runs if run.order is not None]
    assert set(outcome.shown) == {run.arm for run in tuned}
    for run in tuned:
        row = outcome.shown[run.arm][outcome.seeds.index(run.seed)]
        assert [outcome.taught[i] for i in row] == [categories[i] for i in run.order]
    assert (outcome.shown["random"][0] != outcome.shown["random"][1]).any()


def test_questions_without_a_category_leave_the_others_theirs(
    finished: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "study")
    file = Folder(folder).data("test")
    table = pq.read_table(file)
    column = table.column_names.index("category")
    names = table["category"].to_pylist()
    table = table.set_column(column, "category", pa.array([None, *names[1:]], pa.string()))
    pq.write_table(table, file)
    (outcome,) = read_record(folder).outcomes
    assert outcome.categories == ["", *names[1:]]
    analysis = analyse(read_record(folder))
    assert sum(r.answers for r in analysis.forgetting[0].recalls) < 2 * 34
    groups = {g.group for g in analysis.results[0].groups if g.kind == "category"}
    assert groups == {UNLABELLED, *names[1:]}


def test_the_questions_of_a_curve(finished: tuple[Path, Plan]) -> None:
    folder, plan = finished
    (outcome,) = read_record(folder).outcomes
    for arm, curve in outcome.curves.items():
        np.testing.assert_array_equal(curve.questions, plan.runs[1].evaluations[1].indices)
        np.testing.assert_array_equal(curve.values[:, -1], outcome.arms[arm][:, curve.questions])


def test_a_study_has_efficiency_and_forgetting(finished: tuple[Path, Plan]) -> None:
    analysis = analyse(read_record(finished[0]))
    assert [e.arm for e in analysis.efficiency] == ["random", "blocked", "curriculum"]
    assert [f.arm for f in analysis.forgetting] == ["random", "blocked", "curriculum"]
    # 10 questions in the middle and 24 at the end, under two seeds.
    assert {sum(r.answers for r in f.recalls) for f in analysis.forgetting} == {2 * 34}


def test_folds_have_no_one_order(make: Callable[..., Study], data: Path, tmp_path: Path) -> None:
    training = [{"data": str(data / "train.jsonl"), "folds": 2}]
    study = make(training=training, evaluation=[], strategies=["random", "blocked"], seeds=1)
    run_study(study, tmp_path)
    (outcome,) = read_record(tmp_path).outcomes
    assert (outcome.shown, outcome.taught) == ({}, [])


def test_two_schedules_of_one_model_are_two_models(make: Callable[..., Study]) -> None:
    """What examples/efficiency.yaml does."""
    model = make().models[0].model
    study = make(
        models=[
            {"model": model, "name": "linear", "recipe": {"schedule": "linear"}},
            {"model": model, "name": "constant", "recipe": {"schedule": "constant"}},
        ]
    )
    plan = make_plan(study)
    tuned = [run for run in plan.runs if run.order is not None]
    ids = {name: {r.id for r in tuned if r.model == name} for name in ("linear", "constant")}
    assert len(ids["linear"]) == len(ids["constant"]) == 6
    assert not ids["linear"] & ids["constant"]
    orders = {(r.arm, r.seed): r.order for r in tuned if r.model == "linear"}
    for run in tuned:
        np.testing.assert_array_equal(run.order, orders[run.arm, run.seed])
