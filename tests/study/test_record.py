"""The record: what is read back from a study folder, recomputed from its files."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import f1_score

from lessonplan.errors import InputError
from lessonplan.study import Study, read_record, run_study
from lessonplan.study.files import new_folder
from lessonplan.study.plan import Plan, make_plan
from lessonplan.study.status import status_table
from lessonplan.study.store import Folder, begin
from tests.questions import question_rows, write_rows

Finished = tuple[Path, Plan]


def final_of(folder: Path, run: dict[str, Any], of: str = "test") -> pd.DataFrame:
    return pd.read_parquet(file_of(folder, run, "final", of))


def file_of(folder: Path, run: dict[str, Any], kind: str, of: str = "test") -> Path:
    evaluation = next(e for e in run["evaluations"] if (e["of"], e["kind"]) == (of, kind))
    return folder / "tunings" / run["id"] / "evaluations" / f"{evaluation['id']}.parquet"


def curve_ids(folder: Path, run: dict[str, Any]) -> list[str]:
    """The ids of the questions scored on the way, in the order of the set."""
    ids = pd.read_parquet(file_of(folder, run, "curve")).id.unique()
    return sorted(ids, key=lambda i: int(i[1:]))


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "plan.json").read_text())["runs"])


def test_arms_hold_what_the_files_say(finished: Finished) -> None:
    folder, _ = finished
    record = read_record(folder)
    (outcome,) = record.outcomes
    assert (outcome.model, outcome.evaluation, outcome.seeds) == ("tiny", "test", [0, 1])
    assert list(outcome.arms) == ["random", "blocked", "curriculum"]
    assert outcome.ids == [f"q{i}" for i in range(100, 124)]
    data = pd.read_parquet(folder / "data" / "test.parquet")
    assert outcome.questions == data["question"].to_list()
    assert outcome.options == [list(options) for options in data["options"]]
    checked = 0
    for run in runs_of(folder):
        table = final_of(folder, run).set_index("id")
        best = [int(np.argmax(s / t)) for s, t in zip(table.loglikelihood, table.tokens)]  # noqa: B905
        right = (table["answer"] == best).astype(float)
        values = (
            outcome.untuned
            if run["arm"] == "untuned"
            else outcome.arms[run["arm"]][outcome.seeds.index(run["seed"])]
        )
        np.testing.assert_array_equal(values, right[outcome.ids])
        checked += 1
    assert checked == 7
    assert record.failures == []
    assert (record.runs_done, record.runs_planned) == (6, 6)


def test_f1_is_of_the_questions_that_the_accuracy_counts(
    make: Callable[..., Study], data: Path, tmp_path: Path
) -> None:
    rows = question_rows(24, first=100)
    for row in rows[::3]:
        row["options"][3] = "All of the above"
    test = write_rows(tmp_path / "test.jsonl", rows)
    study = make(evaluation=[str(test)], seeds=1, strategies=["random"])
    run_study(study, tmp_path / "s")
    (outcome,) = read_record(tmp_path / "s").outcomes
    assert outcome.meaningless is not None
    assert outcome.meaningless.sum() == 8
    for run in runs_of(tmp_path / "s"):
        table = final_of(tmp_path / "s", run).set_index("id").loc[outcome.ids]
        table = table[~outcome.meaningless]
        expected = f1_score(table.answer, table.chosen, average="weighted", zero_division=0)
        assert outcome.f1[run["arm"]] == pytest.approx([expected])


def test_a_study_by_letters_is_read(make: Callable[..., Study], tmp_path: Path) -> None:
    run_study(make(scoring={"form": "letter"}, seeds=1, strategies=["random"]), tmp_path / "s")
    (outcome,) = read_record(tmp_path / "s").outcomes
    assert outcome.letters_matter
    assert set(outcome.f1) == {"random", "untuned"}
    assert np.isfinite(outcome.f1["random"]).all()


def test_curves_begin_untuned_and_end_at_the_end(finished: Finished) -> None:
    folder, plan = finished
    (outcome,) = read_record(folder).outcomes
    part = plan.runs[1].evaluations[1].indices
    assert set(outcome.curves) == set(outcome.arms)
    for arm, curve in outcome.curves.items():
        assert curve.seen.tolist() == [0, 24, 48]
        assert curve.values.shape == (2, 3, 10)
        np.testing.assert_array_equal(curve.values[:, 0], np.tile(outcome.untuned[part], (2, 1)))
        np.testing.assert_array_equal(curve.values[:, -1], outcome.arms[arm][:, part])
        assert np.isfinite(curve.values).all()


def test_label_checks_hold_the_loss_that_training_begins_with(finished: Finished) -> None:
    folder, plan = finished
    (check,) = read_record(folder).label_checks
    untuned = final_of(folder, runs_of(folder)[0], of="train")
    expected = [
        -row.loglikelihood[row.answer] / row.tokens[row.answer] for row in untuned.itertuples()
    ]
    np.testing.assert_allclose(check.loss, expected)
    np.testing.assert_array_equal(check.difficulty, plan.training[0].questions["difficulty"][:])
    log = json.loads((folder / "tunings" / plan.runs[1].id / "tuning.json").read_text())
    order = plan.runs[1].order
    assert log["losses"][0] == pytest.approx(np.mean(check.loss[order[:8]]), rel=1e-5)


def test_pictures_show_the_order_of_the_first_seed(finished: Finished) -> None:
    folder, plan = finished
    pictures = {picture.arm: picture for picture in read_record(folder).orders}
    assert list(pictures) == ["random", "blocked", "curriculum"]
    assert all(picture.seed == 0 for picture in pictures.values())
    run = next(r for r in plan.runs if r.arm == "random")
    categories = plan.training[0].questions["category"][:]
    assert pictures["random"].categories == [categories[i] for i in run.order]
    assert (np.diff(pictures["curriculum"].difficulty) >= 0).all()
    blocks = pictures["blocked"].categories
    assert sum(a != b for a, b in itertools.pairwise(blocks)) == 3
    assert pictures["random"].learning_rate[0] == pytest.approx(5e-3)
    assert (np.diff(pictures["random"].learning_rate) <= 0).all()


def test_gaps_where_runs_are_missing(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "gaps"
    shutil.copytree(finished[0], folder)
    runs = {(run["arm"], run["seed"]): run for run in runs_of(folder)}
    shutil.rmtree(folder / "tunings" / runs["blocked", 1]["id"])
    half = runs["curriculum", 0]
    final = next(e for e in half["evaluations"] if e["kind"] == "final")
    (folder / "tunings" / half["id"] / "evaluations" / f"{final['id']}.parquet").unlink()
    record = read_record(folder)
    (outcome,) = record.outcomes
    assert np.isnan(outcome.arms["blocked"][1]).all()
    assert np.isnan(outcome.arms["curriculum"][0]).all()
    assert np.isfinite(outcome.arms["blocked"][0]).all()
    assert np.isfinite(outcome.arms["random"]).all()
    assert np.isnan(outcome.curves["blocked"].values[1, 1:]).all()
    assert record.failures == []
    assert record.unfinished == ["tiny, curriculum, seed 0"]
    assert record.to_do == ["tiny, blocked, seed 1"]
    assert (record.runs_done, record.runs_planned) == (4, 6)
    table, others = status_table(folder)
    assert others == [
        "1 run begun and not finished: under way now, or interrupted. Starting the study again "
        "does what was interrupted.",
        "1 run still to be done; starting the study again goes on.",
    ]
    # A process at work, or one that was killed, has a folder in which its run is to be.
    with new_folder(folder / "tunings" / runs["blocked", 1]["id"]):
        assert "2 runs begun" in status_table(folder)[1][0]
    assert str(table.title) == "tiny study: 4 of 6 runs done"
    assert list(table.columns[1].cells) == ["2 of 2", "1 of 2", "1 of 2"]


def test_folds_models_are_averaged_on_a_separate_set(
    make: Callable[..., Study], data: Path, tmp_path: Path
) -> None:
    study = make(
        training=[{"data": str(data / "train.jsonl"), "folds": 2}],
        strategies=["random", "blocked"],
    )
    run_study(study, tmp_path)
    outcomes = {outcome.evaluation: outcome for outcome in read_record(tmp_path).outcomes}
    apart, held_out = outcomes["test"], outcomes["train (held out)"]
    runs = [run for run in runs_of(tmp_path) if run["arm"] != "untuned"]
    differ = 0
    for arm, seed in itertools.product(("random", "blocked"), (0, 1)):
        own = [run for run in runs if (run["arm"], run["seed"]) == (arm, seed)]
        tables = [final_of(tmp_path, run).set_index("id").loc[apart.ids] for run in own]
        assert len(tables) == 2
        mean = np.mean([table.correct for table in tables], axis=0)
        np.testing.assert_array_equal(apart.arms[arm][seed], mean)
        differ += (mean == 0.5).sum()
        f1 = [f1_score(t.answer, t.chosen, average="weighted", zero_division=0) for t in tables]
        assert apart.f1[arm][seed] == pytest.approx(np.mean(f1))
        # Held out, each question is answered by one fold's model, and the folds make one list.
        tables = [final_of(tmp_path, run, of="train (held out)") for run in own]
        whole = pd.concat(tables).set_index("id").loc[held_out.ids]
        np.testing.assert_array_equal(held_out.arms[arm][seed], whole.correct)
        expected = f1_score(whole.answer, whole.chosen, average="weighted", zero_division=0)
        assert held_out.f1[arm][seed] == pytest.approx(expected)
    assert differ > 0
    part = [apart.ids.index(i) for i in curve_ids(tmp_path, runs[0])]
    along = [
        pd.read_parquet(file_of(tmp_path, run, "curve")).set_index("id").correct
        for run in runs
        if (run["arm"], run["seed"]) == ("random", 0)
    ]
    curve = apart.curves["random"].values[0]
    ids = [apart.ids[i] for i in part]
    np.testing.assert_array_equal(curve[1], np.mean([c.loc[ids] for c in along], axis=0))
    np.testing.assert_array_equal(curve[-1], apart.arms["random"][0, part])


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no study folder"):
        read_record(tmp_path)


def test_status_names_arms_in_full(make: Callable[..., Study], tmp_path: Path) -> None:
    sources = {"easy": {"column": "difficulty"}, "hard": {"column": "llm"}}
    study = make(labels={"difficulty": sources}, strategies=["random", "curriculum"])
    begin(Folder(tmp_path), make_plan(study))
    console = Console(file=io.StringIO(), width=100)
    console.print(status_table(tmp_path)[0])
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "tiny study: 0 of 6 runs done" in said
    for arm in ("random", "curriculum [difficulty=easy]", "curriculum [difficulty=hard]"):
        assert f"{arm} " in said
    assert said.count("0 of 2") == 3
