"""Bad input of every kind, through the command line: the message that each must end in.

A message says what was found and where (file, line or row, column or key), what was expected or
what to do. `cli/test_errors.py` has what is wrong with a command that reads good files; here the
files are bad.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lessonplan import cli


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `lessonplan` in a folder of its own; return the status and what stands in stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lessonplan", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert said.out == ""
        return int(end.value.code or 0), said.err

    return run


# ---- Files ---------------------------------------------------------------------------------------


def question(i: int = 0, **change: Any) -> dict[str, Any]:
    row = {
        "id": f"q{i}",
        "question": f"Question {i}?",
        "options": ["one", "two"],
        "answer": "AB"[i],
    }
    return {key: value for key, value in (row | change).items() if value is not ...}


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def twice_named() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table([[1], [2]], names=["question", "question"]), file)
    return file.getvalue()


QUESTIONS = {name: [question()[name], question(1)[name]] for name in question()}
PARQUET = parquet(**QUESTIONS)
PACKED = gzip.compress(jsonl(question(), question(1)) * 50, mtime=0)
# Two bytes that no UTF-8 text has, under the type of texts.
NOT_UTF8 = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
)
CSV = "question,options,answer\n"

# The command reads the file as questions. Name -> content -> what the message must hold.
READ = "label difficulty {file} --measure length -o out.csv"
FILES: dict[str, tuple[str, bytes | str, str]] = {
    # CSV and TSV
    "separated by semicolons": (
        "q.csv", CSV.replace(",", ";"),
        "q.csv, line 1: one column named 'question;options;answer'. Its names seem to be "
        "separated by ';'; save the file with commas",
    ),
    "separated by tabs": (
        "q.csv", CSV.replace(",", "\t"),
        "line 1: one column named 'question\\toptions\\tanswer'. Its names seem to be "
        "separated by '\\t'",
    ),
    "named .tsv": (
        "q.tsv", CSV.replace(",", "\t"),
        "q.tsv: the format is told by the extension, which has to be one of .jsonl, .json, "
        ".csv, .parquet",
    ),
    "a value too few": (
        "q.csv", CSV + 'Q?,"[""a"", ""b""]",A\nR?,A\n',
        "q.csv, line 3: 2 values, but the header names 3 columns",
    ),
    "commas without quotes": (
        "q.csv", CSV + "Q?,a,b,c,A\n",
        "q.csv, line 2: 5 values, but the header names 3 columns. Values with a comma have "
        "to stand in quotes",
    ),
    "an open quote": (
        "q.csv", CSV + 'Q?,"a\nR?,b,A\n',
        "q.csv, line 2: the CSV record that begins here is broken (unexpected end of data). "
        "A value with a quote has to stand in quotes, with its own quotes doubled",
    ),
    "text behind a quote": (
        "q.csv", CSV + '"Q"?,a,A\n',
        "q.csv, line 2: the CSV record that begins here is broken",
    ),
    "two columns of one name": (
        "q.csv", "question, question\nQ,R\n",
        "q.csv, line 1: two columns are named 'question'. Rename one",
    ),
    "a header alone": ("q.csv", CSV, "q.csv holds no rows; at least one question is needed"),
    "an empty file": ("q.csv", "", "q.csv holds no rows; at least one question is needed"),
    "another header": (
        "q.csv", "Question,Options,Key\nQ?,a,A\n",
        "q.csv has no column 'question'. Did you mean 'Question'? Its columns are: "
        "Question, Options, Key. If it has another name, say which: --column question=NAME "
        "--column options=NAME,NAME,... --column answer=NAME, or columns in a study file",
    ),
    "options that are no list": (
        "q.csv", CSV + "Q?,a|b|c,A\n",
        "q.csv: column 'options' holds no lists of options (the first is 'a|b|c'). Give "
        "lists, in a CSV as JSON, or name a column for each option",
    ),
    "Latin-1": (
        "q.csv", (CSV + "Q?,a,A\n" + "Ménière,b,A\n").encode("latin-1"),
        "q.csv, line 3: byte 0xe9 is not UTF-8. Save the file as UTF-8 (for instance: iconv "
        "-f WINDOWS-1252 -t UTF-8)",
    ),
    "UTF-16": (
        "q.csv", CSV.encode("utf-16"),
        "q.csv is UTF-16; save it as UTF-8 (for instance: iconv -f UTF-16 -t UTF-8)",
    ),
    "a spreadsheet": (
        "q.csv", b"PK\x03\x04\x14\x00",
        "q.csv is a zip archive or a spreadsheet; unpack it, or save it as CSV",
    ),
    "a name that no format has": (
        "q.xlsx", b"PK\x03\x04",
        "q.xlsx: the format is told by the extension, which has to be one of",
    ),
    # JSON
    "a cut line": (
        "q.jsonl", jsonl(question())[:-20],
        "q.jsonl, line 1: not valid JSON (Unterminated string starting at, column 60). "
        "Expected one object a line",
    ),
    "single quotes": (
        "q.jsonl", jsonl(question()) + b"{'question': 1}\n",
        "q.jsonl, line 2: not valid JSON (Expecting property name enclosed in double "
        "quotes, column 2)",
    ),
    "a line of another kind": (
        "q.jsonl", jsonl(question(), ["Q?", "a"]),
        "q.jsonl, line 2: expected a JSON object, found a list",
    ),
    "one object over many lines": (
        "q.json", json.dumps(question(), indent=1),
        "q.json, line 1: not valid JSON (Expecting property name enclosed in double quotes, "
        "column 2). Expected one object a line, or in a .json file a list of objects",
    ),
    "a list with a comma too many": (
        "q.json", '[\n{"question": "Q?"},\n]',
        "q.json, line 3: not valid JSON",
    ),
    "a list of texts": (
        "q.json", '["Q?"]',
        "q.json, entry 1: expected a JSON object, found a string",
    ),
    "rows under a key": (
        "q.json", json.dumps({"data": [question()]}),
        "q.json has no column 'question'. Its columns are: data",
    ),
    "nested without end": (
        "q.jsonl", "[" * 100_000,
        "q.jsonl, line 1: JSON that is nested too deeply",
    ),
    "a number without end": (
        "q.jsonl", '{"id": ' + "9" * 5000 + "}",
        "q.jsonl, line 1: JSON that cannot be read: Exceeds the limit (4300 digits)",
    ),
    "a key twice": (
        "q.jsonl", '{"question": "Q?", "question": "R?"}',
        "q.jsonl, line 1: JSON that cannot be read: the key 'question' comes twice",
    ),
    "half an emoji": (
        "q.jsonl", jsonl(question()) + rb'{"question": "bad \ud83d"}',
        "q.jsonl, line 2: '\\ud83d' is half a character. The text was probably cut in the "
        "middle of one; mend or remove it",
    ),
    # Questions
    "a chat for a question": (
        "q.jsonl", jsonl(question(), question(1, question=[{"role": "user", "content": "Q?"}])),
        "q.jsonl: 1 of 2 rows cannot be used. question that is a list: 1 (line 2). Mend "
        "them, or set bad_rows: drop (--bad-rows drop) to leave them out",
    ),
    "an option that is a list": (
        "q.jsonl", jsonl(question(options=["a", ["b"]])),
        "option that is no text: 1 (line 1)",
    ),
    "27 options": (
        "q.jsonl", jsonl(question(options=[f"o{i}" for i in range(27)])),
        "more than 26 options: 1 (line 1)",
    ),
    "one letter for two": (
        "q.jsonl", jsonl(question(options={"A": "x", "a": "y"})),
        "two options of one letter: 1 (line 1)",
    ),
    "a category that is a list": (
        "q.jsonl", jsonl(question(category=["x"]), question(1, category="x")),
        "category that is a list: 1 (line 1)",
    ),
    "a row without an id": (
        "q.jsonl", jsonl(question(), question(1, id=...)),
        "q.jsonl: 1 of 2 rows cannot be used. empty id: 1 (line 2)",
    ),
    "an answer that is an object": (
        "q.jsonl", jsonl(question(), question(1, answer={})),
        "answer outside the options: 1 (line 2)",
    ),
    "a difficulty beyond all numbers": (
        "q.jsonl", jsonl(question(difficulty=10**400)),
        "difficulty that is no number: 1 (line 1)",
    ),
    # Parquet
    "text under the name .parquet": (
        "q.parquet", "question\n",
        "q.parquet is not a Parquet file, or a damaged one: Parquet magic bytes not found",
    ),
    "a cut Parquet file": (
        "q.parquet", PARQUET[:-9],
        "q.parquet is not a Parquet file, or a damaged one",
    ),
    "Parquet under the name .csv": (
        "q.csv", PARQUET,
        "q.csv is a Parquet file; give it a name that ends in .parquet",
    ),
    "two Parquet columns of one name": (
        "q.parquet", twice_named(),
        "q.parquet: two columns are named 'question'. Rename one",
    ),
    "bytes for texts": (
        "q.parquet", parquet(**QUESTIONS | {"question": [b"Q?", b"R?"]}),
        "q.parquet: 2 of 2 rows cannot be used. question that is bytes: 2 (row 1, row 2)",
    ),
    "text that is no UTF-8": (
        "q.parquet", parquet(**QUESTIONS | {"question": NOT_UTF8}),
        "q.parquet: column 'question' (string) holds a value that cannot be read: 'utf-8' "
        "codec can't decode byte 0xff in position 0: invalid start byte. Mend the column",
    ),
    "a year that no calendar has": (
        "q.parquet", parquet(**QUESTIONS, seen=pa.array([0, 2**62], pa.timestamp("us"))),
        "q.parquet: column 'seen' (timestamp[us]) holds a value that cannot be read: date "
        "value out of range. Mend the column, or leave it out of the file",
    ),
    "a time zone that is nowhere": (
        "q.parquet", parquet(**QUESTIONS, seen=pa.array([0, 1], pa.timestamp("us", "Mars/Base"))),
        "q.parquet: column 'seen' (timestamp[us, tz=Mars/Base]) holds a value that cannot "
        "be read",
    ),
    # gzip
    "a cut gzip file": (
        "q.jsonl.gz", PACKED[:-12],
        "q.jsonl.gz cannot be read, since gzip cannot unpack it (Compressed file ended "
        "before",
    ),
    "a damaged gzip file": (
        "q.jsonl.gz", PACKED[:10] + b"\xff" + PACKED[11:],
        "q.jsonl.gz cannot be read, since gzip cannot unpack it (Error -3",
    ),
    "no gzip file": (
        "q.csv.gz", CSV,
        "q.csv.gz cannot be read, since gzip cannot unpack it (Not a gzipped file (b'qu')). "
        "It is damaged or cut off, or no gzip file; pack or fetch it again",
    ),
    "gzip without its name": (
        "q.jsonl", PACKED,
        "q.jsonl is packed by gzip; give it a name that ends in .gz",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "found"), FILES.values(), ids=FILES)
def test_data_files(
    run: Callable[..., tuple[int, str]], name: str, content: bytes | str, found: str
) -> None:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    refuses(run, READ.format(file=name), found)


# Questions q0 and q1 stand in q.jsonl, and the table is joined to them.
LABELS = "order q.jsonl -s {strategy} --labels {file} -o out.jsonl"
ANSWERS = "label difficulty q.jsonl --answers {file} -o out.csv"
EASY, BY_KIND = LABELS.replace("{strategy}", "curriculum"), LABELS.replace("{strategy}", "blocked")
TABLES: dict[str, tuple[str, str, bytes | str, str]] = {
    "a difficulty that is text": (
        EASY, "t.csv", "id,difficulty\nq0,easy\nq1,2\n",
        "t.csv, line 2, column 'difficulty': expected a difficulty as a finite number, or "
        "an empty cell where there is none; found 'easy'",
    ),
    "a difficulty that is no number": (
        EASY, "t.jsonl", '{"id": "q0", "difficulty": NaN}',
        "t.jsonl: the column 'difficulty' has no difficulty for any question",
    ),
    "a difficulty of 401 digits": (
        EASY, "t.jsonl", jsonl({"id": "q0", "difficulty": 10**400}),
        "t.jsonl, line 1, column 'difficulty': expected a difficulty as a finite number, or "
        "an empty cell where there is none; found 1000",
    ),
    "one difficulty for all": (
        EASY, "t.csv", "id,difficulty\nq0,1\nq1,1\n",
        "q.jsonl: the difficulty (table t.csv) is 1 for all 2 questions, so it says nothing "
        "about their order. Take another source",
    ),
    "a difficulty for some": (
        EASY, "t.csv", "id,difficulty\nq0,1\n",
        "q.jsonl: 1 of 2 questions have no finite difficulty (the first is line 2), and curriculum "
        "needs one for each. Label them or leave them out",
    ),
    "ids of others": (
        EASY, "t.csv", "id,difficulty\na,1\nb,2\n",
        "No id of t.csv is the id of a question. There they are like 'a', 'b'; the "
        "questions have 'q0', 'q1'",
    ),
    "an id twice": (
        EASY, "t.csv", "id,difficulty\nq0,1\nq1,2\nq0,3\n",
        "t.csv, line 4: id 'q0' comes twice",
    ),
    "an empty id": (EASY, "t.csv", "id,difficulty\nq0,1\n,2\n", "t.csv, line 3: id is empty"),
    "no ids": (
        EASY, "t.csv", "name,difficulty\nq0,1\n",
        "t.csv has no column 'id' or 'line' that says which question a row is about. Rename "
        "that column to id, or name "
        "it with key where there is such a setting; the columns are: name, difficulty",
    ),
    "no such label": (
        EASY, "t.csv", "id,hardness\nq0,1\nq1,2\n",
        "t.csv has no column 'difficulty', of which curriculum makes its order; its columns are: "
        "id, hardness. Rename the column that is meant, or give another table",
    ),
    "a category that is an object": (
        BY_KIND, "t.jsonl", jsonl({"id": "q0", "category": {}}),
        "t.jsonl, line 1, column 'category': expected a category as text; found {}",
    ),
    "a category of bytes": (
        BY_KIND, "t.parquet", parquet(id=["q0"], category=[b"x"]),
        "t.parquet, row 1, column 'category': expected a category as text; found b'x'",
    ),
    "a broken table": (
        BY_KIND, "t.csv", 'id,category\nq0,"x\n',
        "t.csv, line 2: the CSV record that begins here is broken",
    ),
    "an empty table": (
        BY_KIND, "t.csv", "",
        "t.csv has no column 'category', of which blocked makes its order; its columns are: none",
    ),
    "answers that are words": (
        ANSWERS, "t.csv", "id,gpt\nq0,yes\n",
        "t.csv, line 2, column 'gpt': expected a letter from A to B, or 0 or 1 (wrong or "
        "right), found 'yes'",
    ),
    "a letter among marks": (
        ANSWERS, "t.csv", "id,gpt\nq0,1\nq1,A\n",
        "t.csv, line 2, column 'gpt': expected a letter from A to B, found '1'. A column "
        "holds either letters or 0 and 1",
    ),
    "an answer of 401 digits": (
        ANSWERS, "t.jsonl", jsonl({"id": "q0", "gpt": 10**400}),
        "t.jsonl, line 1, column 'gpt': expected a letter from A to B, or 0 or 1 (wrong or "
        "right), found 1000",
    ),
    "an answer that is a list": (
        ANSWERS, "t.jsonl", jsonl({"id": "q0", "gpt": ["A"]}),
        "(wrong or right), found ['A']",
    ),
    "answers without a respondent": (
        ANSWERS, "t.csv", "id\nq0\n",
        "t.csv has no column of answers beside 'id'; one for each respondent is expected",
    ),
    "too few respondents": (
        ANSWERS + " --method 1pl", "t.csv", "id,gpt\nq0,A\n",
        "t.csv: Item response theory needs 10 respondents or more to tell hard questions "
        "from weak respondents; there are 1 with answers. Use the share of wrong answers",
    ),
    "results of half a seed": (
        "compare {file}", "r.csv", "id,arm,seed,correct\nq0,a,0.5,1\n",
        "r.csv, line 2: seed '0.5' is not a whole number",
    ),
    "results of 2": (
        "compare {file} --baseline a", "r.jsonl", '{"id":1,"arm":"a","seed":1,"correct":2}\n',
        "r.jsonl, line 1: correct is 2, expected true or false, 0 or 1",
    ),
    "results of a list": (
        "compare {file}", "r.jsonl", '{"id":1,"arm":"a","seed":1,"correct":[2]}\n',
        "r.jsonl, line 1: correct is [2], expected true or false, 0 or 1",
    ),
    "results cut": (
        "compare {file}", "r.csv", "id,arm,seed,correct\nq0,a\n",
        "r.csv, line 2: 2 values, but the header names 4 columns",
    ),
    "results under two names": (
        "compare {file}", "r.csv", "id,arm,seed,seed,correct\nq0,a,1,1,1\n",
        "r.csv, line 1: two columns are named 'seed'. Rename one",
    ),
    "results without a format": (
        "compare {file}", "r.tsv", "",
        "r.tsv: the format is told by the extension, which has to be one of .jsonl, .json, .csv",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "name", "content", "found"), TABLES.values(), ids=TABLES)
def test_tables(
    run: Callable[..., tuple[int, str]], line: str, name: str, content: bytes | str, found: str
) -> None:
    Path("q.jsonl").write_bytes(jsonl(question(), question(1)))
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    refuses(run, line.format(file=name), found)


STUDY = "training: icd10cm\nevaluation: medqa\n"  # the keys that a study must have
STUDIES: dict[str, tuple[str, str]] = {
    "a tab": (
        STUDY + "\tseeds: 1\n",
        "study.yaml, line 3, column 1: this is not valid YAML: found character '\\t'",
    ),
    "a colon too many": (
        STUDY + "name: a: b\n",
        "study.yaml, line 3, column 8: this is not valid YAML: mapping values are not "
        "allowed here",
    ),
    "a day that is none": (
        STUDY + "name: 2001-99-99\n",
        "study.yaml: this is not valid YAML: month must be in 1..12",
    ),
    "a day for a name": (
        STUDY + "name: 2001-01-09\n",
        "study.yaml, line 3: name: Input should be a valid string (found "
        "datetime.date(2001, 1, 9))",
    ),
    "a NUL": (
        STUDY + "name: a\0b\n",
        "study.yaml, line 3: this is not YAML: special characters are not allowed",
    ),
    "half an emoji": (
        STUDY + 'name: "bad \\ud83d"\n',
        "study.yaml: '\\ud83d' is half a character; mend or remove it",
    ),
    "two documents": (
        STUDY + "---\nseeds: 1\n",
        "study.yaml, line 3, column 1: this is not valid YAML: but found another document",
    ),
    "an anchor that is not there": (
        STUDY + "recipe: *fast\n",
        "study.yaml, line 3, column 9: this is not valid YAML: found undefined alias 'fast'",
    ),
    "an anchor in itself": (
        STUDY + "recipe: &fast {<<: *fast}\n",
        "study.yaml: this is not valid YAML; look at its & and !",
    ),
    "nested without end": (
        STUDY + "name: " + "[" * 500,
        "study.yaml: the file is nested too deeply",
    ),
    "an object of Python": (
        STUDY + "name: !!python/name:os.system\n",
        "study.yaml, line 3: name: Input should be a valid string (found TaggedScalar(",
    ),
    "a list for keys": (
        STUDY + "recipe: [epochs, 2]\n",
        "study.yaml, line 3: recipe: keys with their values are needed here (found "
        "['epochs', 2])",
    ),
    "a number for a group": (
        STUDY + "labels: 5\n",
        "study.yaml, line 3: labels: keys with their values are needed here (found 5)",
    ),
    "nothing behind a key": (
        STUDY + "recipe:\n",
        "study.yaml, line 3: recipe: keys with their values are needed here (found None)",
    ),
    "a key that is a number": (STUDY + "1: 2\n", "study.yaml: 1: this key is unknown"),
    "data without a name": (
        "training: ''\nevaluation: medqa\n",
        "study.yaml, line 1: training.0.data: String should have at least 1 character "
        "(found '')",
    ),
    "a list in a list": (
        "training: [[icd10cm]]\nevaluation: medqa\n",
        "study.yaml, line 1: training.0: keys with their values are needed here (found "
        "['icd10cm'])",
    ),
    "a date of birth for seeds": (
        STUDY + "seeds: 19840101\n",
        "study.yaml, line 3: seeds: 19840101 seeds are too many; for one seed, write "
        "[19840101]",
    ),
    "a seed beyond 64 bits": (
        STUDY + f"seeds: [{2**64}]\n",
        "study.yaml, line 3: seeds.0: Input should be less than 9223372036854775808 (found "
        "18446744073709551616)",
    ),
    "a seed below 0": (
        STUDY + "seeds: [-1]\n",
        "study.yaml, line 3: seeds.0: Input should be greater than or equal to 0 (found -1)",
    ),
    "not a number": (
        STUDY + "recipe: {learning_rate: .nan}\n",
        "study.yaml, line 3: recipe.learning_rate: Input should be a finite number (found "
        "nan)",
    ),
    "a rate beyond all numbers": (
        STUDY + "recipe: {learning_rate: 1e999}\n",
        "study.yaml, line 3: recipe.learning_rate: Input should be a finite number (found "
        "inf)",
    ),
    "threads beyond all machines": (
        STUDY + "recipe: {threads: 1000000}\n",
        "study.yaml, line 3: recipe.threads: Input should be less than or equal to 1024 "
        "(found 1000000)",
    ),
    "yes for a number": (
        STUDY + "workers: yes\n",
        "study.yaml, line 3: workers: Input should be a valid integer, unable to parse "
        "string as an integer (found 'yes')",
    ),
    "a label source twice": (
        STUDY + "labels: {difficulty: [length, length]}\n",
        "study.yaml, line 3: labels.difficulty: 'length' stands there twice",
    ),
    "a label source in a list": (
        STUDY + "labels: {difficulty: [[length]]}\n",
        "study.yaml, line 3: labels.difficulty: ['length'] is no difficulty source that is "
        "known by its name; there are given, human, llm,",
    ),
    "a label source misspelled": (
        STUDY + "labels: {difficulty: lenght}\n",
        "labels.difficulty: 'lenght' is no difficulty source that is known by its name; "
        "there are given, human, llm, loss, margin, entropy, confidence, variability, "
        "length. Others need their settings: name: {column: ...} Did you mean 'length'?",
    ),
    "a recipe in a word": (
        STUDY + "recipe: paper\nmodels: {model: llama2-7b, recipe: fast}\n",
        "study.yaml, line 4: models.0.recipe: Input should be a valid dictionary (found "
        "'fast')",
    ),
    "an adapter in a number": (
        STUDY + "recipe: {preset: paper, learning_rate: 1, adapter: 5}\n",
        "study.yaml, line 3: recipe.adapter: keys with their values are needed here (found "
        "5)",
    ),
    "a template without a question": (
        STUDY + "scoring: {template: Answer}\n",
        "study.yaml, line 3: scoring: the template must hold {question} exactly once",
    ),
    "blocks in a word": (
        STUDY + "strategies: [random, {strategy: blocked, blocks: all}]\n",
        "study.yaml, line 3: strategies.1.blocks: Input should be a valid integer, unable "
        "to parse string as an integer; or: Input should be 'band' (found 'all')",
    ),
    "a seed that draws nothing": (
        "training: {data: icd10cm, fold_seed: 1}\nevaluation: medqa\n",
        "study.yaml, line 1: training.0: fold_seed has no effect without folds; leave it out",
    ),
    "bands without a difficulty": (
        STUDY + "strategies: [random, {strategy: blocked, bands: 3}]\n",
        "study.yaml, line 3: strategies.1: bands has no effect on blocked, which does not sort "
        "questions by difficulty. Leave it out, or take one of curriculum, blocked_curriculum, "
        "interleaved_curriculum",
    ),
    "an order drawn anew, once": (
        STUDY + "recipe: {each: anew}\n",
        "study.yaml, line 3: recipe: each: anew has no effect on a single pass; give epochs of 2 "
        "or more",
    ),
    "blocks beyond counting": (
        STUDY + f"strategies: [random, {{strategy: blocked, blocks: {10**30}}}]\n",
        "study.yaml, line 3: strategies.1.blocks: Input should be less than 2147483648; or: "
        "Input should be 'band' (found 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "found"), STUDIES.values(), ids=STUDIES)
def test_study_files(run: Callable[..., tuple[int, str]], text: str, found: str) -> None:
    Path("study.yaml").write_text(text)
    refuses(run, "study study.yaml -o out", found)


ORDER = "order q.jsonl -s {} -o out.jsonl "
TRAIN = "train q.jsonl -s random -o out "
COMMANDS: dict[str, tuple[str, str]] = {
    "blocks beyond all numbers": (
        ORDER.format("interleaved") + "--blocks " + "9" * 60,
        "blocks must be an integer of at least 1 (and below 2**63 / n) or 'band', not 999",
    ),
    "bands beyond counting": (
        ORDER.format("curriculum") + f"--bands {10**12}",
        "bands must be from 1 to 1,000,000, not 1000000000000",
    ),
    "no bands": (
        ORDER.format("curriculum") + "--bands 0",
        "bands must be from 1 to 1,000,000, not 0",
    ),
    "bands that are no number": (
        ORDER.format("curriculum") + "--bands nan",
        "bands must be a number or ascending thresholds, not [nan]",
    ),
    "epochs beyond memory": (
        ORDER.format("random") + f"--epochs {10**12}",
        "2 questions times epochs=1000000000000 times repeat=1 make an order of more than "
        "8,589,934,592 entries; lower epochs or repeat",
    ),
    "repeats beyond memory": (
        ORDER.format("random") + f"--repeat {10**30}",
        "make an order of more than 8,589,934,592 entries; lower epochs or repeat",
    ),
    "an order of other categories": (
        ORDER.format("blocked") + "--category-order x,z",
        "category_order must list every category once; missing from it are ['y'], unknown "
        "in it are ['z']",
    ),
    "an order that is none": (
        ORDER.format("blocked") + "--category-order length",
        "category_order must be 'drawn', 'alphabetical', 'size', 'difficulty' or all "
        "categories in order, not 'length'",
    ),
    "a file without a name": (
        "order q -s random -o out.jsonl",
        "There is no file q, nor a data set of that name. Known by name are icd10cm, "
        "hpo, medmcqa, medqa, medqa-5, lek; a data set on the Hugging Face hub is given as "
        "owner/name",
    ),
    "a name that no file can have": (
        f"order {'q' * 300}.jsonl -s random -o out.jsonl",
        "q.jsonl: File name too long",
    ),
    "a split of a file": (
        "order q.jsonl -s random -o out.jsonl --split test",
        "q.jsonl is one file and has no splits; leave out --split",
    ),
    "a setting without a name": (
        TRAIN + "--set =5",
        "--set takes key=value, such as learning_rate=1e-3, not '=5'",
    ),
    "a setting of a setting": (
        TRAIN + "--set epochs=1 --set epochs.x=1",
        "epochs.x=1: epochs is given a value of its own, too",
    ),
    "a group for a setting": (
        TRAIN + "--set adapter=5",
        "adapter: this is a group; set what is in it, such as adapter.rank=8 (found '5')",
    ),
    "a setting beyond all numbers": (
        TRAIN + "--set learning_rate=1e999",
        "learning_rate: Input should be a finite number (found '1e999')",
    ),
    "a setting that is a word": (
        TRAIN + "--set epochs=two",
        "epochs: Input should be a valid integer, unable to parse string as an integer "
        "(found 'two')",
    ),
    "settings that do not go together": (
        TRAIN + "--set loss=choice --set weight=token",
        "weight: token goes with loss: answer; a choice has one term a question",
    ),
    "a column of nothing": (
        TRAIN + "--column question=",
        "--column takes ours=theirs, such as answer=label, not 'question='",
    ),
    "an unknown measure": (
        "label difficulty q.jsonl --measure lenght -o out.csv",
        "measure: Input should be 'probability', 'loss', 'margin', 'entropy', 'confidence', "
        "'variability' or 'length' (found 'lenght')",
    ),
    "no measure": (
        "label difficulty q.jsonl -o out.csv",
        "a difficulty is made from one of --model, --measure length, --answers and "
        "--share-right; found none of them",
    ),
    "an unknown method": (
        "label difficulty q.jsonl --answers q.jsonl --method 3pl -o out.csv",
        "method: Input should be 'share', '1pl' or '2pl' (found '3pl')",
    ),
    "a study's setting beside its groups": (
        "study s.yaml -o out --set seeds.first=1",
        "--set seeds.first=1: seeds is not a group of keys",
    ),
    "a study's setting that is no YAML": (
        "study s.yaml -o out --set seeds=[1",
        "--set seeds=[1: '[1' is not valid YAML",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "found"), COMMANDS.values(), ids=COMMANDS)
def test_command_lines(run: Callable[..., tuple[int, str]], line: str, found: str) -> None:
    rows = [question(i, category="xy"[i], difficulty=i) for i in range(2)]
    Path("q.jsonl").write_bytes(jsonl(*rows))
    Path("s.yaml").write_text(STUDY + "seeds: 1\n")
    refuses(run, line, found)


def refuses(run: Callable[..., tuple[int, str]], line: str, found: str) -> None:
    """Check that a command ends in status 2 and one short message, and writes nothing."""
    before = sorted(Path().iterdir())
    status, said = run(*line.split(" "))
    *notes, message = said.splitlines()
    assert status == 2
    assert message.startswith("error: ")
    assert found in message
    assert len(message) < 500
    assert all(note.startswith("note: ") for note in notes)
    assert sorted(Path().iterdir()) == before


def test_a_terminal_without_the_characters_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(jsonl(question()))
    done = subprocess.run(
        [sys.executable, "-m", "lessonplan", "order", "q.jsonl", "-s", "random", "-o", "é👩.jsonl"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\\xe9\\U0001f469.jsonl\n")
    assert (tmp_path / "é👩.jsonl").is_file()
