"""Difficulty from tables of answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from lessonplan.data import read_questions
from lessonplan.errors import InputError
from lessonplan.labels import difficulty_from_answers, label_column, read_answers

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not there")


@pytest.fixture
def questions() -> Dataset:
    rows = [
        {"id": f"q{i}", "question": f"Q{i}?", "options": ["w", "x", "y"], "answer": "ABCA"[i]}
        for i in range(4)
    ]
    return read_questions(Dataset.from_list(rows)).questions


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_share_of_those_present(tmp_path: Path, questions: Dataset) -> None:
    table = write(tmp_path / "t.csv", "id,one,two,three\nq1,B,b,A\nq0,,A,\nq3,,,\n")
    with pytest.warns(UserWarning, match=r"2 of 4 questions have no answers"):
        difficulty = difficulty_from_answers(questions, table)
    assert difficulty.dtype == np.float64
    np.testing.assert_allclose(difficulty, [0, 1 / 3, np.nan, np.nan])


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_other_formats_and_keys(tmp_path: Path, questions: Dataset, name: str) -> None:
    rows = [{"q": f"q{i}", "m": "A"} for i in range(4)]
    if name.endswith("jsonl"):
        write(tmp_path / name, "".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    difficulty = difficulty_from_answers(questions, tmp_path / name, key="q")
    np.testing.assert_array_equal(difficulty, [0, 1, 1, 0])


def test_letters_that_a_question_lacks_count_as_wrong(tmp_path: Path, questions: Dataset) -> None:
    table = write(tmp_path / "t.csv", "id,m,n\nq0,E,A\nq1,B,B\nq2,C,C\nq3,A,A\n")
    difficulty, notes = read_answers(questions, table)
    np.testing.assert_array_equal(difficulty, [0.5, 0, 0, 0])
    assert len(notes) == 1
    assert notes[0].startswith("1 answers in ")


def test_unknown_ids(tmp_path: Path, questions: Dataset) -> None:
    table = write(tmp_path / "t.csv", "id,m\nq0,A\nz1,A\nz2,B\n")
    _, notes = read_answers(questions, table)
    assert "2 of 3 rows of" in notes[0]
    assert "'z1'" in notes[0]
    with pytest.raises(InputError, match=r"No id of .* is the id of a question.*'z1'.*'q0'"):
        read_answers(questions, write(tmp_path / "u.csv", "id,m\nz1,A\n"))
    with pytest.raises(InputError, match="the table is empty"):
        read_answers(questions, write(tmp_path / "v.csv", "id,m\n"))


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("name,m\nq0,A\n", None, r"no column 'id' or 'line'.*Name it with key"),
        ("ids,m\nq0,A\n", "id", r"no column 'id'\. Did you mean 'ids'\?"),
        ("id\nq0\n", None, "no column of answers beside 'id'"),
        ("id,m\nq0,A\nq0,B\n", None, "line 3: id 'q0' comes twice"),
        ("id,m\nq0,yes\n", None, r"line 2, column 'm': expected a letter from A to C, found 'yes'"),
    ],
)
def test_broken_tables(
    tmp_path: Path, questions: Dataset, text: str, key: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_answers(questions, write(tmp_path / "t.csv", text), key=key)


@needs_real
def test_real_medqa_answers_match_by_original_line(tmp_path: Path) -> None:
    lines = (REAL / "medqa_us_test_700.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps(row | {"question": ""})  # dropped, so all others stand one row higher
    path = write(tmp_path / "medqa.jsonl", "\n".join(lines))
    questions = read_questions(path, bad_rows="drop").questions
    difficulty, notes = read_answers(questions, REAL / "medqa_us_test_700_llm_answers.csv")
    with (REAL / "medqa_us_test_700_llm_answers.csv").open() as file:
        answers = {r.pop("line"): r for r in csv.DictReader(file)}
    for i, line in enumerate(lines[1:], start=1):
        given = [a for a in answers[str(i)].values() if a]
        right = json.loads(line)["answer_idx"]
        expected = 1 - np.mean([a == right for a in given]) if given else np.nan
        np.testing.assert_allclose(difficulty[i - 1], expected)
    assert any(note.startswith("1 of 700 rows") for note in notes)


@needs_real
def test_real_medmcqa_answers() -> None:
    questions = read_questions(REAL / "medmcqa_dev_2400.jsonl", bad_rows="drop").questions
    difficulty, _ = read_answers(questions, REAL / "medmcqa_dev_2400_llm_answers.csv")
    assert 0.3 < np.nanmean(difficulty) < 0.45
    assert np.isnan(difficulty).mean() < 0.01
    assert {0, 0.25, 0.5, 0.75, 1} <= set(np.unique(difficulty[~np.isnan(difficulty)]))


def test_label_column(questions: Dataset) -> None:
    table = questions.add_column("wrong", [0.5, None, 1.0, 0.0]).add_column("area", list("abca"))
    np.testing.assert_array_equal(label_column(table, "wrong"), [0.5, np.nan, 1, 0])
    assert label_column(table, "area").tolist() == ["a", "b", "c", "a"]
    with pytest.raises(InputError, match=r"no column 'aera'\. Did you mean 'area'\?"):
        label_column(table, "aera")
    with pytest.raises(InputError, match="'difficulty' of the question set is empty"):
        label_column(table, "difficulty")
    with pytest.raises(InputError, match="holds lists"):
        label_column(table, "options")
