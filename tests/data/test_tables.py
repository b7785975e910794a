"""Tables in and out, against files written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from lessonplan.data import count_rows, read_columns, write_jsonl, write_ordered, write_table
from lessonplan.data.tables import column_array, read_table
from lessonplan.errors import InputError

JSONL = (
    b'{"a": 1.50,  "t": "caf\\u00e9"}\r\n'
    b"\n"
    b'{"t":"x\xe2\x80\xa8y", "a":2}\n'
    b'{"a": 1e3, "t": "last, without line end"}'
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_jsonl_to_jsonl_keeps_each_lines_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b"\xef\xbb\xbf" + JSONL)
    write_ordered(source, tmp_path / "out.jsonl", [2, 0, 1, 0])
    lines = [line for line in JSONL.split(b"\n") if line.strip()]
    expected = b"".join(lines[i] + b"\n" for i in (2, 0, 1, 0))
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_csv_is_not_retyped_and_keeps_its_quoting(tmp_path: Path) -> None:
    content = b'code,text\r\n007,"two\r\nlines, ""quoted"""\r\n1.50,\r\n\r\n,"x"'
    source = write(tmp_path / "in.csv", content)
    write_ordered(source, tmp_path / "out.csv", np.array([2, 1, 0, 0]))
    first = b'007,"two\r\nlines, ""quoted"""\r\n'
    out = (tmp_path / "out.csv").read_bytes()
    assert out == b'code,text\r\n,"x"\r\n1.50,\r\n' + first + first
    assert read_table(tmp_path / "out.csv").columns["code"] == ["", "1.50", "007", "007"]


def test_parquet_keeps_types_and_metadata(tmp_path: Path) -> None:
    table = pa.table(
        {"i": pa.array([1, None, 3], pa.int16()), "l": [["a"], [], None]}, metadata={"who": "me"}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    write_ordered(tmp_path / "in.parquet", tmp_path / "out.parquet", [2, 0])
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema == table.schema
    assert out.schema.metadata[b"who"] == b"me"
    assert out.to_pylist() == [{"i": 3, "l": None}, {"i": 1, "l": ["a"]}]


@pytest.mark.parametrize("name_in", ["in.jsonl", "in.json", "in.parquet", "in.jsonl.gz"])
@pytest.mark.parametrize("name_out", ["out.jsonl", "out.json", "out.parquet", "out.json.gz"])
def test_conversion_between_typed_formats(tmp_path: Path, name_in: str, name_out: str) -> None:
    rows = [{"n": i, "x": i / 2, "s": f"ä{i}", "l": ["a", str(i)]} for i in range(4)]
    write_table(Dataset.from_list(rows), tmp_path / name_in)
    write_ordered(tmp_path / name_in, tmp_path / name_out, [3, 1, 1, 0])
    columns = read_table(tmp_path / name_out).columns
    assert [dict(zip(columns, r, strict=True)) for r in zip(*columns.values(), strict=True)] == [
        rows[i] for i in (3, 1, 1, 0)
    ]


def test_conversion_to_and_from_csv(tmp_path: Path) -> None:
    rows = [{"n": 7, "s": "a,b", "l": ["x", "é"]}, {"n": None, "s": None, "l": []}]
    write_table(Dataset.from_list(rows), tmp_path / "t.csv")
    expected = 'n,s,l\r\n7,"a,b","[""x"", ""é""]"\r\n,,[]\r\n'
    assert (tmp_path / "t.csv").read_bytes().decode() == expected
    write_ordered(tmp_path / "t.csv", tmp_path / "t.jsonl", [1, 0])
    first = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[1])
    assert first == {"n": "7", "s": "a,b", "l": '["x", "é"]'}


def test_output_may_be_the_input_and_its_folder_is_made(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"a":1}\n{"a":2}\n')
    write_ordered(path, path, [1, 0])
    assert path.read_bytes() == b'{"a":2}\n{"a":1}\n'
    write_ordered(path, tmp_path / "new" / "t.jsonl", [0])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b'{"a": 1}\n{"a": "text"}\n')
    out = write(tmp_path / "out.parquet", b"old")
    with pytest.raises(InputError, match="mixes kinds of values"):
        write_ordered(source, out, [0, 1])
    assert out.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_gz_output_is_reproducible(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl.gz", gzip.compress(JSONL))
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_ordered(source, tmp_path / name, [0, 1, 2])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert count_rows(tmp_path / "a.jsonl.gz") == 3


@pytest.mark.parametrize("order", [[0, 3], [-1, 0]])
def test_an_order_of_other_rows_is_refused(tmp_path: Path, order: list[int]) -> None:
    source = write(tmp_path / "in.jsonl", JSONL)
    with pytest.raises(InputError, match=r"has the 3 rows from 0 on"):
        write_ordered(source, tmp_path / "out.jsonl", order)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_order_of_fractions_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", JSONL)
    with pytest.raises(InputError, match="whole numbers"):
        write_ordered(source, tmp_path / "out.jsonl", [0.5])


def test_an_empty_order_gives_an_empty_table(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", b"a,b\n1,2\n")
    write_ordered(source, tmp_path / "out.csv", [])
    assert (tmp_path / "out.csv").read_bytes() == b"a,b\n"


@given(st.lists(st.text(), min_size=1, max_size=6), st.randoms())
def test_any_text_survives_csv_and_jsonl(tmp_path_factory, texts: list[str], random) -> None:
    # No file in UTF-8 holds half a surrogate pair.
    texts = [t.encode("utf-8", "ignore").decode() for t in texts]
    folder = tmp_path_factory.mktemp("any")
    order = list(range(len(texts)))
    random.shuffle(order)
    for name in ("t.csv", "t.jsonl"):
        write_table(Dataset.from_dict({"k": ["k"] * len(texts), "t": texts}), folder / name)
        write_ordered(folder / name, folder / f"out-{name}", order)
        assert read_table(folder / f"out-{name}").columns["t"] == [texts[i] for i in order]


def test_read_columns_types(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        b"int,float,gap,code,text,mixed\n1,1.5,3,007,a,1\n-2,2,,1,,x\n",
    )
    columns = read_columns(path, ["int", "float", "gap", "code", "text", "mixed"])
    assert columns["int"].dtype == np.int64
    assert columns["int"].tolist() == [1, -2]
    assert columns["float"].dtype == np.float64
    np.testing.assert_array_equal(columns["gap"], [3.0, np.nan])
    assert columns["code"].tolist() == ["007", "1"]
    assert columns["text"].tolist() == ["a", None]
    assert columns["mixed"].tolist() == ["1", "x"]


def test_column_array_of_json_values() -> None:
    assert column_array([1, 2], "c").dtype == np.int64
    np.testing.assert_array_equal(column_array([1, None, 2.5], "c"), [1, np.nan, 2.5])
    assert column_array([True, False], "c").tolist() == ["True", "False"]
    assert column_array([1, "a", None], "c").tolist() == ["1", "a", None]
    assert np.isnan(column_array([None, None], "c")).all()
    assert column_array([2**70], "c").tolist() == [str(2**70)]
    with pytest.raises(InputError, match=r"c holds lists, objects or bytes"):
        column_array([[1]], "c")


def test_an_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"Category,difficulty\nx,1\n")
    with pytest.raises(InputError, match=r"no column 'categroy'\. Did you mean 'Category'\?"):
        read_columns(path, ["categroy"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', r"t\.jsonl, line 2: not valid JSON"),
        ("t.jsonl", b'{"a": 1}\n\n[1]\n', r"line 3: expected a JSON object, found a list"),
        ("t.json", b'[\n{"a": 1},\n{"a" 2}]', r"t\.json, line 3: not valid JSON"),
        ("t.json", b"[1]", r"entry 1: expected a JSON object, found a number"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"line 3: 3 values, but the header names 2 columns"),
        ("t.csv", b'a,b\n1,"2\n3,4\n', r"line 2: the CSV record that begins here is broken"),
        ("t.csv", b"a,a\n1,2\n", r"line 1: two columns are named 'a'"),
        ("t.csv", b"a,b\n1,caf\xe9\n", r"t\.csv, line 2: byte 0xe9 is not UTF-8.*iconv"),
        ("t.parquet", b"nothing", r"is not a Parquet file"),
        ("t.csv.gz", b"not gzip", r"cannot be read"),
        ("t.xlsx", b"", r"told by the extension, which has to be one of \.jsonl"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    for read in (read_table, count_rows):
        with pytest.raises(InputError, match=message):
            read(path)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", b"")
    with pytest.raises(InputError, match=r"no file .*trian\.jsonl\. Did you mean 'train\.jsonl'"):
        count_rows(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        count_rows(tmp_path)


def test_unknown_output_format(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", JSONL)
    with pytest.raises(InputError, match=r"out\.txt: cannot tell which format to write"):
        write_ordered(source, tmp_path / "out.txt", [0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b'\xef\xbb\xbfa,b\r\n"1\n2",x\r\n\r\n3,y'),
        ("t.jsonl", b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}'),
        ("t.json", b'[{"a": 1}, {"b": 2}]'),
        ("t.json", b'{"a": 1}\n{"a": 2}\n'),  # MedMCQA's own dev.json is JSON lines
    ],
)
def test_count_rows(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    assert count_rows(path) == 2
    assert next(iter(read_table(path).columns)) == "a"


def test_count_rows_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "t.parquet")
    assert count_rows(tmp_path / "t.parquet") == 3


def test_missing_keys_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"a": 1}\n{"b": 2}\n')
    assert read_table(path).columns == {"a": [1, None], "b": [None, 2]}
    assert read_table(path).lines == [1, 2]


def test_write_jsonl_under_any_name(tmp_path: Path) -> None:
    write_jsonl(Dataset.from_dict({"a": [1], "s": ["é"]}), tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == '{"a": 1, "s": "é"}\n'
