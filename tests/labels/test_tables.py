"""Label tables joined to questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lessonplan.data import read_questions
from lessonplan.errors import InputError
from lessonplan.labels.tables import join, read_labels


@pytest.fixture(scope="module")
def questions() -> Dataset:
    rows = [
        {"question": f"Q{i}?", "options": ["w", "x", "y"], "answer": "ABCA"[i]} for i in range(4)
    ]
    return read_questions(Dataset.from_list(rows)).questions  # their ids are 0 to 3


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_difficulty_in_any_range_with_gaps(tmp_path: Path, questions: Dataset) -> None:
    path = write(tmp_path / "t.csv", "line,difficulty\n3,-12.5\n0, 1e3 \n1,\n9,2\n")
    values, notes, uninformative = read_labels(questions["id"][:], path, "difficulty")
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [1000, np.nan, np.nan, -12.5])
    assert notes == [
        f"1 of 4 rows of {path} are about no question of this set (for instance line '9').",
        f"2 of 4 questions have no difficulty in {path}.",
    ]
    assert uninformative == []


def test_category(tmp_path: Path, questions: Dataset) -> None:
    path = write(tmp_path / "t.csv", "id,category\n3,Heart \n0,007\n1,  \n2,Heart\n")
    values, notes, _ = read_labels(questions["id"][:], path, "category")
    assert values == ["007", None, "Heart", "Heart"]
    assert notes == [f"1 of 4 questions have no category in {path}."]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet"])
def test_formats_columns_and_whole_numbers(tmp_path: Path, questions: Dataset, name: str) -> None:
    rows = [
        {"q": 2.0, "kind": 7.0, "hard": 1},
        {"q": 0.0, "kind": None, "hard": 2},
        {"q": 1.0, "kind": 8.5, "hard": 3},
        {"q": 3.0, "kind": 7.0, "hard": 4},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("csv"):
        write(path, "q,kind,hard\n2,7,1\n0,,2\n1,8.5,3\n3,7,4\n")
    elif name.endswith("jsonl"):
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        write(path, json.dumps(rows))
    category, _, _ = read_labels(questions["id"][:], path, "category", column="kind", key="q")
    assert category == [None, "8.5", "7", "7"]
    difficulty, notes, _ = read_labels(
        questions["id"][:], path, "difficulty", column="hard", key="q"
    )
    np.testing.assert_array_equal(difficulty, [2, 3, 1, 4])
    assert notes == []


def test_sentences_on_an_uninformative_source(tmp_path: Path, questions: Dataset) -> None:
    text = "id,difficulty,uninformative\n0,1,\n1,2,At chance.\n2,3,Too small.\n3,4,At chance.\n"
    path = write(tmp_path / "t.csv", text)
    assert read_labels(questions["id"][:], path, "difficulty")[2] == ["At chance.", "Too small."]


@pytest.mark.parametrize(
    ("text", "kind", "kwargs", "message"),
    [
        (
            "id,difficulty\n0,1\n1,hard\n",
            "difficulty",
            {},
            r"line 3, column 'difficulty': "
            r"expected a difficulty as a finite number, or an empty cell .*; found 'hard'",
        ),
        ("id,difficulty\n0,inf\n", "difficulty", {}, "line 2.*found 'inf'"),
        ("id,difficulty\n0,nan\n", "difficulty", {}, "line 2.*found 'nan'"),
        (
            "id,hardness\n0,1\n",
            "difficulty",
            {},
            "no column 'difficulty'. Its columns are",
        ),
        ("id,hardness\n0,1\n", "difficulty", {"column": "hardnes"}, "Did you mean 'hardness'"),
        ("id,category\n0,\n", "category", {}, "'category' has no category for any question"),
        ("id,difficulty\n0,\n9,1\n", "difficulty", {}, "no difficulty for any question"),
        ("name,difficulty\n0,1\n", "difficulty", {}, "no column 'id' or 'line'"),
        ("name,difficulty\n0,1\n", "difficulty", {"key": "nam"}, "Did you mean 'name'"),
        ("id,difficulty\n0,1\n 0,1\n", "difficulty", {}, "line 3: id '0' comes twice"),
        ("id,difficulty\n0,1\n,1\n", "difficulty", {}, "line 3: id is empty"),
        ("id,difficulty\na,1\n", "difficulty", {}, r"No id of .* like 'a'; the questions have '0'"),
        ("id,difficulty\n", "difficulty", {}, "the table is empty"),
    ],
)
def test_broken_tables(
    tmp_path: Path, questions: Dataset, text: str, kind: str, kwargs: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(questions["id"][:], write(tmp_path / "t.csv", text), kind, **kwargs)


@pytest.mark.parametrize(
    ("cell", "kind"), [(True, "difficulty"), ([1], "difficulty"), (["a"], "category")]
)
def test_broken_json_cells(tmp_path: Path, questions: Dataset, cell: object, kind: str) -> None:
    rows = [{"id": 1, kind: 1}, {"id": 0, kind: cell}]
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"line 2, column '{kind}': expected a {kind} as "):
        read_labels(questions["id"][:], path, kind)


@settings(max_examples=30)
@given(rows=st.permutations(["0", "1", "2", "3", "x", "y"]), size=st.integers(1, 6))
def test_join_finds_each_questions_row(
    tmp_path_factory: pytest.TempPathFactory, questions: Dataset, rows: list[str], size: int
) -> None:
    rows = rows[:size]
    path = write(tmp_path_factory.mktemp("t") / "t.csv", "\n".join(["id", *rows]))
    expected = [rows.index(i) if i in rows else -1 for i in questions["id"]]
    if max(expected) < 0:
        with pytest.raises(InputError, match="is the id of a question"):
            join(questions["id"][:], path)
        return
    joined = join(questions["id"][:], path)
    assert joined.row.tolist() == expected
    assert joined.key == "id"
    assert len(joined.notes) == any(row in "xy" for row in rows)


def test_real_ids(tmp_path: Path, shared_data: Path) -> None:
    questions = read_questions(shared_data / "medmcqa_dev_2400.jsonl", bad_rows="drop").questions
    lines = [
        f"{i},{len(text)}" for i, text in zip(questions["id"], questions["question"], strict=True)
    ]
    path = write(tmp_path / "t.csv", "\n".join(["id,difficulty", *reversed(lines)]))
    values, notes, _ = read_labels(questions["id"][:], path, "difficulty")
    np.testing.assert_array_equal(values, [len(text) for text in questions["question"]])
    assert notes == []
