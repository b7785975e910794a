"""Studies whose runs are tuned in lock-step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lessonplan.study import Study, run_study
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.store import Folder
from lessonplan.study.work import lockstep_groups
from tests.study.ears import Ears, leftovers

Make = Callable[..., Study]
Finished = tuple[Path, Plan]


def check_same(folder: Path, finished: Path) -> None:
    """Check that all runs are there, with the same log-likelihoods and orders."""
    files = {
        str(file.relative_to(finished)): file for file in (finished / "tunings").rglob("*.parquet")
    }
    assert {str(f.relative_to(folder)) for f in (folder / "tunings").rglob("*.parquet")} == set(
        files
    )
    for name, file in files.items():
        theirs, mine = pq.read_table(file), pq.read_table(folder / name)
        assert mine.schema == theirs.schema
        for column in theirs.column_names:
            found, expected = mine[column].to_pylist(), theirs[column].to_pylist()
            if column == "loglikelihood":
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-3)
            elif column in ("id", "learning_rate", "checkpoint"):
                assert found == expected
    assert not leftovers(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_results(make: Make, finished: Finished, tmp_path: Path, workers: int) -> None:
    ears = Ears()
    run_study(make(lockstep=4, workers=workers), tmp_path / "s", ears)
    check_same(tmp_path / "s", finished[0])
    assert ears.began == (7, 0)
    assert (ears.done, ears.trained) == (7, 6 * 48)
    assert abs(ears.work) < 1e-6
    assert sum("in lock-step with 2 more" in said for said in ears.said) == 2


def test_what_fails_together_is_done_one_by_one(
    make: Make, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lessonplan.training import tune as tune_module

    sound = tune_module.question_losses
    calls = 0

    def out_of_memory(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 and len(given[-1]) > 1:
            raise RuntimeError("out of memory")
        return sound(*given)

    monkeypatch.setattr(tune_module, "question_losses", out_of_memory)
    ears = Ears()
    run_study(make(lockstep=6), tmp_path / "s", ears)
    check_same(tmp_path / "s", finished[0])
    assert [note.partition(" and ")[2] for note in ears.notes] == [
        "the runs beside it go one by one: out of memory"
    ]
    assert (ears.done, ears.trained, ears.failures) == (7, 6 * 48, [])
    assert abs(ears.work) < 1e-6


def test_a_run_that_fails_does_not_take_others_along(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lessonplan.training import tune as tune_module

    study = make(lockstep=6, seeds=1)
    plan = make_plan(study)
    fails = next(run for run in plan.runs if run.arm == "blocked")
    inner = tune_module.tune_in_lockstep

    def tunes(engine: Any, adapters: Any, rows: Any, orders: Any, *rest: Any, **given: Any) -> Any:
        if any(np.array_equal(order, fails.order) for order in orders):
            raise tune_module.TuningError("the loss became nan")
        return inner(engine, adapters, rows, orders, *rest, **given)

    monkeypatch.setattr(tune_module, "tune_in_lockstep", tunes)
    ears = Ears()
    run_study(study, tmp_path / "s", ears)
    assert ears.failures == ["tiny, blocked, seed 0: TuningError: the loss became nan"]
    assert ears.done == 3


@pytest.mark.parametrize(
    ("lockstep", "sizes"),
    [(1, [1] * 6), (2, [2, 2, 2]), (3, [3, 3]), (4, [3, 3]), (5, [3, 3]), (64, [6])],
)
def test_groups_are_even(make: Make, tmp_path: Path, lockstep: int, sizes: list[int]) -> None:
    plan = make_plan(make(lockstep=lockstep))
    groups = lockstep_groups(Folder(tmp_path), plan, plan.runs)
    assert sorted(run.id for group in groups for run in group) == sorted(r.id for r in plan.runs)
    tuned = [group for group in groups if group[0].order is not None]
    assert sorted(map(len, tuned)) == sorted(sizes)
    assert len(groups) == len(tuned) + 1  # the untuned model is by itself


def test_groups_have_questions_and_steps_in_common(
    make: Make, finished: Finished, data: Path, tmp_path: Path
) -> None:
    training = [{"data": str(data / "train.jsonl"), "name": n, "folds": 3} for n in ("a", "b")]
    plan = make_plan(make(training=training, evaluation=[], lockstep=64))
    groups = lockstep_groups(Folder(tmp_path), plan, plan.runs)
    for group in groups:
        assert len({(run.model, run.training, run.order is None) for run in group}) == 1
        assert len({len(run.order) for run in group if run.order is not None}) <= 1
    # What is tuned already is only scored, each by itself.
    folder, plan = finished
    groups = lockstep_groups(Folder(folder), plan, plan.runs)
    assert list(map(len, groups)) == [1] * 7


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"adapter": {"dropout": 0.1}}, "lockstep: runs go in lock-step without dropout alone"),
        ({"trainer": "trl"}, "lockstep: runs go in lock-step with trainer: lessonplan"),
    ],
)
def test_recipes_that_cannot(make: Make, recipe: dict[str, Any], said: str) -> None:
    assert make(recipe=recipe).lockstep == 1
    with pytest.raises(ValidationError, match=said):
        make(recipe=recipe, lockstep=2)
