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
from lessonplan.labels.answers import difficulty_from_share
from lessonplan.labels.irt import fit_irt


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
    assert notes[0].startswith("1 answer in ")


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
        ("name,m\nq0,A\n", None, r"no column 'id' or 'line'.*name it with key"),
        ("ids,m\nq0,A\n", "id", r"no column 'id'\. Did you mean 'ids'\?"),
        ("id\nq0\n", None, "no column of answers beside 'id'"),
        ("id,m\nq0,A\nq0,B\n", None, "line 3: id 'q0' comes twice"),
        ("id,m\n,A\nq0,A\n", None, "line 2: id is empty"),
        (
            "id,m\nq0,yes\n",
            None,
            r"line 2, column 'm': expected a letter from A to C, or 0 or 1 \(wrong or right\), "
            r"found 'yes'\.$",
        ),
        ("id,m\nq0,A\nq1,AB\n", None, r"line 3.*expected a letter from A to C, found 'AB'\.$"),
        ("id,m\nq0,1\nq1,2\n", None, r"line 3.*expected 0 or 1 \(wrong or right\), found '2'\.$"),
        (
            "id,l,m\nq2,A,B\nq1,B,0\nq0,A,C\n",
            None,
            r"line 3, column 'm': expected a letter from A to C, found '0'\. A column holds either "
            r"letters or 0 and 1\.",
        ),
        (
            "id,m\nq0,1\nq1,true\nq2,B\n",
            None,
            r"line 4, column 'm': expected 0 or 1 \(wrong or right\), found 'B'\. A column holds",
        ),
    ],
)
def test_broken_tables(
    tmp_path: Path, questions: Dataset, text: str, key: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_answers(questions, write(tmp_path / "t.csv", text), key=key)


def test_real_medqa_answers_match_by_original_line(tmp_path: Path, shared_data: Path) -> None:
    lines = (shared_data / "medqa_us_test_700.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps(row | {"question": ""})  # dropped, so all others stand one row higher
    path = write(tmp_path / "medqa.jsonl", "\n".join(lines))
    questions = read_questions(path, bad_rows="drop").questions
    difficulty, notes = read_answers(questions, shared_data / "medqa_us_test_700_llm_answers.csv")
    with (shared_data / "medqa_us_test_700_llm_answers.csv").open() as file:
        answers = {r.pop("line"): r for r in csv.DictReader(file)}
    for i, line in enumerate(lines[1:], start=1):
        given = [a for a in answers[str(i)].values() if a]
        right = json.loads(line)["answer_idx"]
        expected = 1 - np.mean([a == right for a in given]) if given else np.nan
        np.testing.assert_allclose(difficulty[i - 1], expected)
    assert any(note.startswith("1 of 700 rows") for note in notes)


def test_real_medmcqa_answers(shared_data: Path) -> None:
    questions = read_questions(shared_data / "medmcqa_dev_2400.jsonl", bad_rows="drop").questions
    difficulty, _ = read_answers(questions, shared_data / "medmcqa_dev_2400_llm_answers.csv")
    assert 0.3 < np.nanmean(difficulty) < 0.45
    assert np.isnan(difficulty).mean() < 0.01
    # The independent way: share wrong, of those present, from the two files as they stand.
    with (shared_data / "medmcqa_dev_2400_llm_answers.csv").open() as file:
        answers = {r.pop("id"): [a for a in r.values() if a] for r in csv.DictReader(file)}
    expected, levels = [], []
    for identifier, answer in zip(questions["id"], questions["answer"], strict=True):
        given = answers[identifier]
        wrong = sum(letter != "ABCD"[answer] for letter in given)
        expected.append(wrong / len(given) if given else np.nan)
        levels += [wrong] if len(given) == 4 else []
    np.testing.assert_allclose(difficulty, expected, rtol=0, atol=1e-12)
    assert set(levels) == {0, 1, 2, 3, 4}
    five = np.isin(difficulty, [0, 0.25, 0.5, 0.75, 1])
    assert 0.92 < five.mean() < 0.94
    assert set(np.unique(difficulty[~five & ~np.isnan(difficulty)])) == {1 / 3, 2 / 3}


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


def planted(r: int, n: int, seed: int) -> np.ndarray:
    """Answers to n questions, the harder the later, as float64[r, n] of 0 and 1."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=(r, 1)) - np.linspace(-1.5, 1.5, n)
    return (rng.random((r, n)) < 1 / (1 + np.exp(-logit))).astype(np.float64)


def numbered(n: int) -> Dataset:
    rows = [
        {"id": f"q{i}", "question": f"Q{i}?", "options": ["w", "x", "y"], "answer": "ABC"[i % 3]}
        for i in range(n)
    ]
    return read_questions(Dataset.from_list(rows)).questions


MARKS = {
    "zero.csv": ("0", "1"),
    "float.csv": ("0.0", "1.0"),
    "word.csv": ("False", "TRUE"),
    "zero.jsonl": (0, 1),
    "float.jsonl": (0.0, 1.0),
    "bool.jsonl": (False, True),
}


@pytest.mark.parametrize("name", MARKS)
def test_wrong_and_right_instead_of_letters(tmp_path: Path, questions: Dataset, name: str) -> None:
    wrong, right = MARKS[name]
    rows = [
        {"id": "q0", "m": right, "letters": "A"},
        {"id": "q1", "m": wrong, "letters": "B"},
        {"id": "q2", "m": None, "letters": "B"},
        {"id": "q3", "m": wrong, "letters": None},
    ]
    path = tmp_path / name
    if name.endswith("csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    difficulty, notes = read_answers(questions, path)
    np.testing.assert_array_equal(difficulty, [0, 0.5, 1, 1])
    assert notes == []


@pytest.mark.parametrize("method", ["1pl", "2pl"])
def test_difficulty_by_item_response_theory(tmp_path: Path, method: str) -> None:
    right = planted(40, 12, 1)
    right[np.random.default_rng(2).random(right.shape) < 0.2] = np.nan
    right[:, 7] = np.nan
    questions = numbered(12)
    letters = np.array(["A", "B", "C"])[(np.arange(12) % 3 + (right == 0)) % 3]
    letters[np.isnan(right)] = ""
    lines = [",".join(["id", *(f"r{j}" for j in range(40))])]
    lines += [",".join([f"q{i}", *letters[:, i]]) for i in reversed(range(12))]
    table = write(tmp_path / "t.csv", "\n".join(lines))
    difficulty, notes = read_answers(questions, table, method=method)
    fit = fit_irt(right, method)
    np.testing.assert_array_equal(difficulty, fit.chance_wrong)
    a, b = fit.discrimination, fit.difficulty
    np.testing.assert_allclose(difficulty, 1 - 1 / (1 + np.exp(a * b)), atol=1e-12)
    assert np.flatnonzero(np.isnan(difficulty)).tolist() == [7]
    assert notes == [f"1 of 12 questions have no answers in {table}."]
    share, _ = read_answers(questions, table)
    assert np.corrcoef(share[~np.isnan(share)], difficulty[~np.isnan(share)])[0, 1] > 0.95


def test_a_wrong_key_is_noted_in_the_2pl(tmp_path: Path) -> None:
    right = planted(400, 20, 3)
    right[:, 4] = 1 - right[:, 15]
    lines = [",".join(["id", *(f"r{j}" for j in range(400))])]
    lines += [",".join([f"q{i}", *(f"{v:.0f}" for v in right[:, i])]) for i in range(20)]
    table = write(tmp_path / "t.csv", "\n".join(lines))
    _, notes = read_answers(numbered(20), table, method="2pl")
    assert len(notes) == 1
    assert notes[0].startswith("1 question of ")
    assert "The key may be wrong" in notes[0]
    assert read_answers(numbered(20), table, method="1pl")[1] == []


def test_a_fit_that_does_not_settle_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = planted(12, 3, 1)
    lines = [",".join(["id", *(f"r{j}" for j in range(12))])]
    lines += [",".join([f"q{i}", *(f"{v:.0f}" for v in right[:, i])]) for i in range(3)]
    table = write(tmp_path / "t.csv", "\n".join(lines))
    monkeypatch.setattr(
        "lessonplan.labels.answers.fit_irt", lambda *a: fit_irt(*a, max_iterations=2)
    )
    _, notes = read_answers(numbered(3), table, method="1pl")
    assert notes[0].startswith("The 1PL fit to ")
    assert "still moved after 2 iterations" in notes[0]


def test_item_response_theory_needs_respondents(tmp_path: Path, questions: Dataset) -> None:
    table = write(tmp_path / "t.csv", "id,one,two\nq0,A,B\n")
    with pytest.raises(InputError, match=r"t\.csv: Item response theory needs 10.*there are 2"):
        read_answers(questions, table, method="1pl")
    with pytest.raises(InputError, match="one of share, 1pl, 2pl, not '3pl'"):
        read_answers(questions, table, method="3pl")


def test_real_answers_of_four_models_are_too_few_for_item_response_theory(
    shared_data: Path,
) -> None:
    questions = read_questions(shared_data / "medqa_us_test_700.jsonl", bad_rows="drop").questions
    with pytest.raises(InputError, match="there are 4 with answers"):
        read_answers(questions, shared_data / "medqa_us_test_700_llm_answers.csv", method="2pl")


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.85, 0.0, None, 1.0], [0.15, 1, np.nan, 0]),
        ([85, 0, 100, 60.5], [0.15, 1, 0, 0.395]),
        ([85, 70, 1, 60], [0.15, 0.3, 0.99, 0.4]),
        (["85%", "0.5 %", "", "100%"], [0.15, 0.995, np.nan, 0]),
        (["0.25", "1", "0", None], [0.75, 0, 1, np.nan]),
    ],
)
def test_share_right_turned_round_as_for_lek(
    questions: Dataset, shares: list, expected: list[float]
) -> None:
    difficulty = difficulty_from_share(questions.add_column("share", shares), "share")
    assert difficulty.dtype == np.float64
    np.testing.assert_allclose(difficulty, expected, atol=1e-12)
    rows = [
        {"prompt": f"Q{i}?", **dict(zip("ABCDE", "vwxyz", strict=True)), "Answer": "A"}
        | {"Category": "c", "Difficulty": share}
        for i, share in enumerate(shares)
    ]
    lek = read_questions(Dataset.from_list(rows)).questions["difficulty"]
    np.testing.assert_allclose(difficulty, [np.nan if v is None else v for v in lek], atol=1e-12)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.7, 1.2, 0.1], r"'share', question 'q2': .*from 0 to 1, found 1\.2"),
        ([50, 70, 120, 10], r"question 'q2': .*from 0 to 100 \(percent\), found 120"),
        ([0.5, -0.1, 0.2, 0.3], r"question 'q1': .*from 0 to 1, found -0\.1"),
        (["0.5", "easy", None, "1"], r"question 'q1': .*found 'easy'"),
        ([True, False, True, True], r"question 'q0': .*found True"),
        ([[1.0], [0.5], [0.2], [0.1]], "holds lists"),
        ([None, None, None, None], "is empty"),
    ],
)
def test_broken_shares(questions: Dataset, shares: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        difficulty_from_share(questions.add_column("share", shares), "share")
    with pytest.raises(InputError, match="no column 'shore'"):
        difficulty_from_share(questions, "shore")
