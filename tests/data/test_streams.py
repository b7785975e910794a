"""Files in another order, against pandas, json and Arrow's take; in bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessonplan.data import count_rows, read_columns, reorder, streams, tables, write_ordered
from lessonplan.data.reorder import reordered
from lessonplan.data.streams import first_rows
from lessonplan.errors import InputError


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut files of a few rows as files of millions are cut."""
    monkeypatch.setattr(streams, "BATCH_BYTES", 64)
    monkeypatch.setattr(streams, "BATCH_ROWS", 3)
    monkeypatch.setattr(streams, "FEW_ROWS", 2)
    monkeypatch.setattr(streams, "ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(reorder, "SLICE_ROWS", 2)


# ---- The order itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("part_bytes", [1, 2000, 2**28], ids=["cut again", "some", "at once"])
@pytest.mark.parametrize("parts", [2, 3, 64])
def test_reordered_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, part_bytes: int
) -> None:
    monkeypatch.setattr(reorder, "PARTS", parts)
    rng = np.random.default_rng(0)
    rows = pa.table(
        {
            "i": np.arange(500),
            "s": ["é" * int(k) for k in rng.integers(40, size=500)],
            "l": [None if k % 7 == 0 else [k, None] for k in range(500)],
        }
    )
    order = rng.integers(500, size=700)  # with repeats, and with rows left out
    batches = rows.to_batches(max_chunksize=33)
    found = reordered(batches, rows.schema, order, tmp_path / "s", part_bytes=part_bytes)
    assert pa.concat_tables(found).equals(rows.take(order))
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]


def test_a_part_of_long_rows_is_cut_again(tmp_path: Path) -> None:
    """The first batches say nothing about the size of the last ones."""
    size = [1] * 900 + [10_000] * 100
    rows = pa.table({"s": ["x" * n for n in size]})
    most = 100_000
    found = reordered(
        rows.to_batches(100), rows.schema, np.arange(1000), tmp_path / "s", part_bytes=most
    )
    assert max(table.nbytes for table in found) <= most


# ---- Text ----------------------------------------------------------------------------------------

texts = st.text(st.sampled_from('a,"\n\r;é😀 {}\u2028'), max_size=8)


@given(
    rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.booleans(),
    packed=st.booleans(),
    whole=st.booleans(),
    data=st.data(),
)
def test_csv_as_pandas_orders_it(
    tmp_path_factory, rows, end: str, mark: bool, packed: bool, whole: bool, data
) -> None:
    text = io.StringIO(newline="")
    # A space in every cell: the csv module writes an empty row as a blank line, which is no row.
    rows = [(f" {a}", b) for a, b in rows]
    # The csv module leaves line ends other than its own unquoted where it need not quote.
    quoting = csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL
    csv.writer(text, quoting=quoting, lineterminator=end).writerows([("one", "two"), *rows])
    written = text.getvalue().encode()
    if not whole:
        written = written.removesuffix(end.encode())
    name = "t.csv.gz" if packed else "t.csv"
    folder = tmp_path_factory.mktemp("csv")
    content = b"\xef\xbb\xbf" * mark + written
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))

    write_ordered(folder / name, folder / f"out-{name}", order)

    assert count_rows(folder / name) == len(rows)
    shown = pd.read_csv(
        folder / f"out-{name}", dtype=str, keep_default_na=False, lineterminator=None
    )
    table = pd.DataFrame(rows, columns=["one", "two"])
    if "\r" not in text.getvalue().replace("\r\n", ""):  # pandas takes a lone return for a line end
        pd.testing.assert_frame_equal(shown, table.iloc[order].reset_index(drop=True))
    opener = gzip.open if packed else open
    with opener(folder / f"out-{name}", "rt", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["one", "two"], *(list(rows[i]) for i in order)]


@given(
    rows=st.lists(st.dictionaries(texts, st.one_of(texts, st.integers(), st.none())), max_size=9),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]),
    indent=st.sampled_from(["", " "]),
    data=st.data(),
)
def test_jsonl_lines_are_moved_as_they_are(
    tmp_path_factory, rows, end: str, indent: str, data
) -> None:
    lines = [indent + json.dumps(row, ensure_ascii=False) for row in rows]
    folder = tmp_path_factory.mktemp("jsonl")
    (folder / "t.jsonl").write_bytes(end.join(lines).encode())
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)) if rows else []
    write_ordered(folder / "t.jsonl", folder / "o.jsonl", order)
    assert count_rows(folder / "t.jsonl") == len(rows)
    moved = (folder / "o.jsonl").read_bytes().decode().split("\n")
    assert moved.pop() == ""
    assert [line.removesuffix("\r") for line in moved] == [lines[i] for i in order]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2} x\n', "line 2: not valid JSON"),
        (b'[\n{"a": 1}\n]\n', "line 1: not valid JSON"),
        (b'{\n"a": 1\n}\n', "line 1: not valid JSON"),
        (b'{"a": 1}\n\n"text"\n', "line 3: expected a JSON object"),
    ],
)
def test_a_file_that_is_not_json_lines_is_not_taken_apart(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    for work in (count_rows, lambda path: write_ordered(path, tmp_path / "o.jsonl", [0])):
        with pytest.raises(InputError, match=message):
            work(tmp_path / "t.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    lines = [json.dumps({"a": "x" * n}) + "\n" for n in (500, 1, 200)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    write_ordered(tmp_path / "t.jsonl", tmp_path / "o.jsonl", [2, 0, 1])
    assert (tmp_path / "o.jsonl").read_text() == lines[2] + lines[0] + lines[1]


# ---- Parquet -------------------------------------------------------------------------------------


def test_parquet_of_every_kind_as_arrow_takes_it(tmp_path: Path) -> None:
    n = 100
    table = pa.table(
        {
            "text": pa.array([None if i % 9 == 0 else f"é{i}" for i in range(n)]),
            "large": pa.array([f"l{i}" for i in range(n)], pa.large_string()),
            "small": pa.array(range(n), pa.int16()),
            "nested": [[{"k": str(i), "v": [i]}] for i in range(n)],
            "kind": pa.array([f"c{i % 4}" for i in range(n)]).dictionary_encode(),
            "day": pa.array(range(n), pa.date32()),
            "bytes": [bytes([i]) for i in range(n)],
        },
        metadata={"who": "me"},
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=30)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(n), 2))
    write_ordered(tmp_path / "in.parquet", tmp_path / "out.parquet", order)
    out = pq.read_table(tmp_path / "out.parquet")
    expected = pq.read_table(tmp_path / "in.parquet").take(order)
    assert out.schema.equals(expected.schema, check_metadata=True)
    assert out.to_pylist() == expected.to_pylist()


def test_pandas_categories_that_differ_between_row_groups(tmp_path: Path) -> None:
    parts = [pd.DataFrame({"c": pd.Categorical(list(text))}) for text in ("abab", "zyzy")]
    schema = pa.Table.from_pandas(parts[0]).schema
    with pq.ParquetWriter(tmp_path / "in.parquet", schema) as writer:
        for part in parts:
            writer.write_table(pa.Table.from_pandas(part, schema=schema))
    write_ordered(tmp_path / "in.parquet", tmp_path / "out.parquet", [7, 0, 6, 1, 1])
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert out["c"].tolist() == ["y", "a", "z", "b", "b"]
    assert isinstance(out["c"].dtype, pd.CategoricalDtype)


# ---- Failure -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet", "t.jsonl.gz"])
@pytest.mark.parametrize("at", ["reading", "writing"])
def test_a_failure_in_the_middle_leaves_the_old_file_alone(
    tmp_path: Path, name: str, at: str
) -> None:
    table = pa.table({"a": [f"{i:04}" for i in range(100)]})
    source, out = tmp_path / name, tmp_path / "new" / name
    out.parent.mkdir()
    out.write_bytes(b"old")
    if name == "t.parquet":
        pq.write_table(table, source)
    elif name == "t.csv":
        table.to_pandas().to_csv(source, index=False)
    else:
        table.to_pandas().to_json(source, orient="records", lines=True)

    def stop(done: int) -> None:
        if done >= (50 if at == "reading" else 150):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_ordered(source, out, np.arange(100)[::-1], on_rows=stop)
    assert [path.name for path in out.parent.iterdir()] == [name]
    assert out.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's."""
    source, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    source.write_text('{"a": 1}\n' * 10_000)
    out.write_text("old")
    code = (
        "import resource, signal, sys;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from lessonplan.cli import main;"
        f"sys.argv = ['lessonplan', 'order', {str(source)!r}, '-s', 'random', '--overwrite',"
        f" '-o', {str(out)!r}];"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "t.jsonl"]


# ---- Columns -------------------------------------------------------------------------------------

COLUMNS = {
    "whole": [1, 2, 3, 4, 5, 6, 7],
    "gap": [1, 2, 3, None, 5, 6, 7],
    "late fraction": [1, 2, 3, 4, 5, 6, 7.5],
    "late text": [1.5, 2, 3, 4, 5, "six", None],
    "late gap": ["a", "b", "c", None, None, None, "g"],
    "nothing": [None] * 7,
}


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_columns_by_parts_are_those_of_the_whole_file(tmp_path: Path, name: str) -> None:
    """What one part holds does not decide what the whole column is."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    path = tmp_path / name
    if name == "t.csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(COLUMNS))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_columns(path, list(COLUMNS))
    whole = tables.read_table(path).columns
    for column in COLUMNS:
        expected = tables.column_array(whole[column], column)
        assert found[column].dtype == expected.dtype, column
        np.testing.assert_array_equal(found[column], expected)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, None, 4, 5], pa.int8()),
        pa.array([1, 2, 3, 4, 2**63 - 1], pa.int64()),
        pa.array([1, 2, 3, 4, 2**64 - 1], pa.uint64()),
        pa.array([1.5, None, float("nan"), 4, 5], pa.float32()),
        pa.array([True, None, False, True, True]),
        pa.array(["a", "b", None, " ", "a"]),
        pa.array(["1", "2", None, "4", "5"], pa.large_string()),
        pa.array(["1", "2", "3", "4", "007"]),
        pa.array(["x", "y", None, "x", "x"]).dictionary_encode(),
        pa.array([1, 2, 3, 4, 5], pa.date32()),
        pa.nulls(5),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_columns_are_read_as_their_python_values(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"c": column}), tmp_path / "t.parquet")
    found = read_columns(tmp_path / "t.parquet", ["c"])["c"]
    expected = tables.column_array(column.to_pylist(), "c")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_equal_texts_are_one_object(tmp_path: Path) -> None:
    """Ten million names of categories take the memory of ten million pointers."""
    (tmp_path / "t.csv").write_text("c,x\n" + "surgery,1\n" * 3)
    found = read_columns(tmp_path / "t.csv", ["c"])["c"]
    assert found[0] is found[1] is found[2]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet"])
def test_first_rows(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"a": ["x", "y", "z"], "b": ["1", "2", "3"]})
    {
        "t.jsonl": lambda p: table.to_json(p, orient="records", lines=True),
        "t.json": lambda p: table.to_json(p, orient="records"),
        "t.csv": lambda p: table.to_csv(p, index=False),
        "t.parquet": lambda p: table.to_parquet(p),
    }[name](tmp_path / name)
    assert first_rows(tmp_path / name, 2) == {"a": ["x", "y"], "b": ["1", "2"]}
    assert count_rows(tmp_path / name) == 3
    with pytest.raises(InputError, match=r"no column 'B'.*'b'"):
        read_columns(tmp_path / name, ["a", "B"])


# ---- Memory --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """A file of 800 MB, unpacked, is put in order in half of that, all copies together."""
    limit = 400 * 2**20
    row = {"i": 0, "s": "x" * 40_000}
    if name == "t.jsonl":
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 20_000)
    else:
        pq.write_table(pa.Table.from_pylist([row] * 20_000), tmp_path / name)
    code = r"""
import re, sys
import numpy as np
from lessonplan.data import write_ordered

def status(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\s+(\d+)", file.read())[1]) * 1024

before = status("VmRSS")
write_ordered(sys.argv[1], sys.argv[2], np.arange(20_000)[::-1])
print(status("VmHWM") - before)
"""
    out = tmp_path / f"o-{name}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < limit
