"""Encodings, line ends, packing and shapes of files: the same questions come out of all."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lessonplan.data import count_rows, read_columns, read_questions, write_ordered
from lessonplan.errors import InputError

# As people write: combining marks beside composed letters, right to left, emoji of several code
# points, quotes, commas, and lines inside of a value.
ROWS: list[dict[str, Any]] = [
    {
        "question": "Who, in 1861, described\nthe \"Ménière\" disease?",
        "options": ["Me\u0301nie\u0300re", "Ménière", "Prosper M."],
        "answer": 1,
    },
    {
        "question": "מהי המחלה?",
        "options": ["סוכרת", "שפעת", "\u200fאסתמה\u200f"],
        "answer": 2,
    },
    {
        "question": "Which one is the doctor? " + "Look at all of them. " * 5000,
        "options": ["👩‍⚕️", "👩", "🇵🇱"],
        "answer": 0,
    },
]  # fmt: skip


def jsonl(end: str = "\n", ascii_only: bool = False) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in ROWS).encode()


def comma_separated(end: str, *, one_column: bool) -> bytes:
    """Write the rows by the standard library, the options as JSON or in columns of their own."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end)
    writer.writerow(["question", *(["options"] if one_column else "abc"), "answer"])
    for row in ROWS:
        options = [json.dumps(row["options"])] if one_column else row["options"]
        writer.writerow([row["question"], *options, row["answer"]])
    return file.getvalue().encode()


def parquet(options: Any) -> bytes:
    columns = {name: [row[name] for row in ROWS] for name in ("question", "answer")}
    file = io.BytesIO()
    pq.write_table(pa.table(columns | {"options": options}), file)
    return file.getvalue()


OPTIONS = [row["options"] for row in ROWS]
MARK = b"\xef\xbb\xbf"
FILES: dict[str, tuple[str, bytes]] = {
    "JSON lines": ("q.jsonl", jsonl()),
    "JSON lines with a mark": ("q.jsonl", MARK + jsonl()),
    "JSON lines of Windows": ("q.jsonl", jsonl("\r\n")),
    "JSON lines in ASCII": ("q.jsonl", jsonl(ascii_only=True)),
    "JSON lines without a last line end": ("q.jsonl", jsonl()[:-1]),
    "JSON lines with blank ones": ("q.jsonl", b"\n" + jsonl("\n \n")),
    "JSON lines, packed": ("q.jsonl.gz", gzip.compress(jsonl())),
    "JSON lines, packed in two pieces": (
        "q.jsonl.gz",
        gzip.compress(jsonl()[:999]) + gzip.compress(jsonl()[999:]),
    ),
    "JSON": ("q.json", json.dumps(ROWS).encode()),
    "JSON with a mark, packed": ("q.json.gz", gzip.compress(MARK + json.dumps(ROWS).encode())),
    "CSV": ("q.csv", comma_separated("\n", one_column=True)),
    "CSV with a mark": ("q.csv", MARK + comma_separated("\r\n", one_column=True)),
    "CSV of Windows": ("q.csv", comma_separated("\r\n", one_column=True)),
    "CSV, packed": ("q.csv.gz", gzip.compress(comma_separated("\n", one_column=True))),
    "CSV, options in columns": ("q.csv", comma_separated("\r\n", one_column=False)),
    "Parquet with lists": ("q.parquet", parquet(OPTIONS)),
    "Parquet with lists of three": (
        "q.parquet",
        parquet(pa.array(OPTIONS, pa.list_(pa.string(), 3))),
    ),
    "Parquet with large lists": (
        "q.parquet",
        parquet(pa.array(OPTIONS, pa.large_list(pa.large_string()))),
    ),
    "Parquet with keys": (
        "q.parquet",
        parquet([dict(zip("ABC", options, strict=True)) for options in OPTIONS]),
    ),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_the_same_questions_from_every_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    in_columns = b",a,b,c," in content[:30]
    columns = {"options": ["a", "b", "c"]} if in_columns else None
    questions = read_questions(path, columns=columns, answer_base=0).questions
    assert [len(text) for text in questions["question"]] == [46, 10, 105_024]
    found = [{key: row[key] for key in ROWS[0]} for row in questions]
    assert found == [row | {"question": row["question"].strip()} for row in ROWS]
    assert questions["id"][:] == ["0", "1", "2"]
    assert count_rows(path) == 3
    assert read_columns(path, ["answer"])["answer"].tolist() == [1, 2, 0]

    # And after they were put in another order.
    turned = tmp_path / f"turned-{name}"
    write_ordered(path, turned, [2, 0, 1])
    again = read_questions(turned, columns=columns, answer_base=0).questions
    assert [{key: row[key] for key in ROWS[0]} for row in again] == [found[i] for i in (2, 0, 1)]


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.jsonl.gz", "q.csv.gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1250", "shift-jis"])
def test_other_encodings_are_refused_with_the_line(
    tmp_path: Path, name: str, encoding: str
) -> None:
    """Never guessed: Latin-1, say, reads every file, and most of them wrongly."""
    word = {"latin-1": "Ménière", "cp1250": "Łódź", "shift-jis": "病気"}[encoding]
    lines = ["id", "a", word]
    if "jsonl" in name:
        lines = [json.dumps({"id": line}, ensure_ascii=False) for line in lines]
    content = "\n".join(lines).encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for read in (read_questions, lambda p: read_columns(p, ["id"])):
        with pytest.raises(InputError, match=r"line 3: byte 0x.. is not UTF-8.*iconv -f"):
            read(path)
