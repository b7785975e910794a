"""`lessonplan plan`: on a folder, on a file, with another study's components; its figures."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lessonplan.study
from bench.validation import Cell, draw
from lessonplan import cli
from lessonplan.evaluation.outcomes import Outcome, Record
from lessonplan.statistics.power import DEMO, components, seeds_needed, smallest_gain
from lessonplan.study.store import TUNING

STUDY = """
name: planned
models: [{model: nowhere, name: m}]
training: DATA
evaluation: [{data: DATA, name: exam, sample: 20}]
strategies: [random, blocked, interleaved]
seeds: 3
checkpoints: {at: []}
labels: {category: {human: {column: category}}}
workers: 2
"""


def plan(*arguments: object) -> tuple[int, str]:
    out, argv = io.StringIO(), sys.argv
    sys.argv = ["lessonplan", "plan", *map(str, arguments)]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
    return status, re.sub(r"\s+", " ", out.getvalue())


@pytest.fixture
def outcome() -> Outcome:
    cell = Cell("logistic", 4, questions=120, arms=3, arm_seed=0.3, arm_question=0.6)
    (values,) = draw(cell, 1, np.random.default_rng(3))
    names = ["random", "blocked", "interleaved"]
    return Outcome(
        model="m",
        evaluation="exam",
        seeds=[0, 1, 2, 3],
        ids=[str(i) for i in range(120)],
        arms=dict(zip(names, values, strict=True)),
        strategies={n: n for n in names},
        sources={n: {} for n in names},
        n_options=np.full(120, 5),
    )


@pytest.fixture
def folder(tmp_path: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `plan` reads of a study folder; the scores themselves are made up."""
    path = tmp_path / "done"
    runs = [{"id": f"{arm}{seed}", "arm": arm} for arm in outcome.arms for seed in range(4)]
    path.mkdir()
    (path / "plan.json").write_text(json.dumps({"runs": runs}))
    (path / "study.yaml").write_text(STUDY.replace("DATA", "train", 1).replace("DATA", "exam"))
    (path / "data").mkdir()
    for name, n in (("train", 100), ("exam", 120)):
        pq.write_table(
            pa.table({"id": [f"{name}{i}" for i in range(n)]}), path / f"data/{name}.parquet"
        )
    # 100 questions trained on in 2,400 s, 120 scored in 1,200 s.
    log = {"seconds": 3600.0, "scoring_seconds": 1200.0, "questions": 100, "scored": 120}
    for run in runs[:6]:
        (path / "tunings" / run["id"]).mkdir(parents=True)
        (path / "tunings" / run["id"] / TUNING).write_text(json.dumps({"id": run["id"], **log}))
    record = Record(title="planned", outcomes=[outcome], runs_planned=12)
    monkeypatch.setattr(lessonplan.study, "read_record", lambda _: record)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"id": f"q{i}", "question": f"Of which kind is number {i}?", "options": ["a", f"b{i}"],
         "answer": "AB"[i % 2], "category": "xyz"[i % 3]}
        for i in range(30)
    ]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.replace("DATA", str(tmp_path / "data.jsonl")))
    return study


def points(gain: float) -> str:
    return f"{gain * 100:.1f}"


def test_a_folder_says_what_it_can_see_and_what_it_costs(folder: Path, outcome: Outcome) -> None:
    status, said = plan(folder, "--seeds", 6, "--questions", 240)
    assert status == 0
    found = components(outcome)
    assert found is not None
    low, high = (
        points(smallest_gain(c, 6, 240, arms=3, level=0.025)) for c in (found, found.cautious)
    )
    # 18 runs of 2,400 s tuning and twice 1,200 s of scoring, two at a time: 12 hours.
    assert f"│ 6 │ 18 │ {low} to {high} (12 h) │" in said
    assert "m on exam: the smallest gain in points that is seen with a power of 80%" in said
    assert f"({found.df} degrees of freedom between seeds)" in said
    assert "a run 2400 s of tuning and 1200 s of scoring, with 2 workers" in said


def test_a_gain_says_how_many_seeds(folder: Path, outcome: Outcome) -> None:
    status, said = plan(folder, "--gain", 8, "--questions", 480, "--power", 0.9)
    assert status == 0
    found = components(outcome)
    assert found is not None
    least, most = (
        seeds_needed(c, 0.08, 480, arms=3, level=0.025, power=0.9) for c in (found, found.cautious)
    )
    assert least is not None
    assert most is not None
    assert f"│ 480 │ {least} to {most} │ {3 * least} to {3 * most} │" in said
    status, said = plan(folder, "--gain", 0.1)
    assert "over 200" in said


def test_a_model_at_the_floor_has_no_plan(folder: Path, outcome: Outcome) -> None:
    for values in outcome.arms.values():
        values[:] = 0.0
        values[:, ::5] = 1.0
    status, said = plan(folder)
    assert status == 0
    assert "m on exam: nothing can be planned, since the model is at the floor" in said
    assert "┃" not in said


def test_a_file_that_was_not_run(file: Path, folder: Path, outcome: Outcome) -> None:
    status, said = plan(file, "--seeds", 5)
    assert status == 0
    for questions in (20, 40, 80):
        assert f"{questions} questions" in said
        assert points(smallest_gain(DEMO, 5, questions, arms=3, level=0.025)) in said
    assert "│ 5 │ 15 │" in said
    assert "from its demo" in said
    assert "unknown until some are done" in said
    assert "upper 90% bound" in said
    status, said = plan(file, "--seeds", 5, "--like", folder)
    found = components(outcome)
    assert found is not None
    assert points(smallest_gain(found, 5, 20, arms=3, level=0.025)) in said
    # A run here is 30 questions at 24 s and 20 at 10 s.
    assert "a run 720 s of tuning and 200 s of scoring, with 2 workers" in said


# What is planned, on 30 questions, and the hours of 5 seeds with the study's questions and 2 and 4
# times as many. A question trained on takes 24 s, one scored 10 s, and two runs go side by side.
HOURS = {
    # 15 runs of 30 * 24 s, and 10 s for each of 20, 40 and 80.
    "one set": ({}, [1.9, 2.3, 3.2]),
    # 15 runs of 60 * 24 s, and 8 questions of each set halfway (after 32), 20 and 10 at the end:
    # 1,440 s + 460 s. With more in one set, those at its end alone grow: by 20, 60; by 10, 30.
    "checkpoints": (
        {
            "checkpoints: {at: []}": "checkpoints: {at: [0.5], questions: 8}\nrecipe: {epochs: 2}",
            "sample: 20}": "sample: 20}, {data: DATA, name: more, sample: 10}",
        },
        [4.0, 4.4, 5.2, 4.0, 4.2, 4.6],
    ),
    # 45 runs of 20 * 24 s, and 10 s for each of 10 held out and 20 of the exam. More held-out
    # questions are more to train on: 40 and 80, with 20 and 40 held out.
    "folds": (
        {"training: DATA": "training: {data: DATA, folds: 3}"},
        [4.9, 8.5, 16, 4.9, 6.1, 8.6],
    ),
}


@pytest.mark.parametrize(("changes", "hours"), HOURS.values(), ids=HOURS)
def test_hours_are_those_of_the_studys_own_questions(
    tmp_path: Path, file: Path, folder: Path, changes: dict[str, str], hours: list[float]
) -> None:
    text = STUDY
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text.replace("DATA", str(tmp_path / "data.jsonl")))
    status, said = plan(file, "--like", folder, "--seeds", 5)
    assert status == 0, said
    assert [float(h) for h in re.findall(r"\(([\d.]+) h\)", said)] == hours


def test_completions_are_not_planned_with_the_accuracy_of_the_demo(
    tmp_path: Path, folder: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(30)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = tmp_path / "chat.yaml"
    text = STUDY.replace("DATA", str(tmp_path / "chat.jsonl"))
    study.write_text(re.sub("strategies: .*", "strategies: [random, original]", text))
    status, said = plan(study)
    assert status == 0
    assert "it is not known how gains in log-likelihood per token vary" in said
    assert "points" not in said
    metric = "log-likelihood per token"
    nats = replace(outcome, metric=metric, arms={a: 2 * v for a, v in outcome.arms.items()})
    record = Record(title="planned", outcomes=[nats], runs_planned=12)
    monkeypatch.setattr(lessonplan.study, "read_record", lambda _: record)
    status, said = plan(study, "--seeds", 5, "--like", folder)
    assert status == 0
    found = components(nats)
    assert found is not None
    least = smallest_gain(found, 5, 20, arms=2, level=0.05)
    assert f"{least:.4f} to" in said
    assert "the smallest gain in nats per token that is seen" in said


def test_a_single_question_or_order_has_no_plan(
    folder: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(
        outcome,
        ids=["0"],
        arms={a: v[:, :1] for a, v in outcome.arms.items()},
        n_options=np.array([5]),
    )
    alone = replace(outcome, arms={"random": outcome.arms["random"]})
    for made, what in ((one, "question"), (alone, "order")):
        record = Record(title="planned", outcomes=[made], runs_planned=12)
        monkeypatch.setattr(lessonplan.study, "read_record", lambda _, record=record: record)
        status, said = plan(folder)
        assert status == 0
        assert f"nothing can be planned, since there is a single {what}" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--power 1.5", "--power is a probability"),
        ("--gain -2", "--gain is a number above 0"),
        ("--seeds 2", "--seeds takes 3 or more"),
        ("--questions 1", "--questions takes 2 or more"),
    ],
)
def test_bad_options(folder: Path, option: str, message: str) -> None:
    status, said = plan(folder, *option.split())
    assert status == 2
    assert message in said


def test_no_study_there(tmp_path: Path) -> None:
    assert plan(tmp_path / "none.yaml")[0] == 2
    status, said = plan(tmp_path)
    assert status == 2
    assert "is no study folder" in said
