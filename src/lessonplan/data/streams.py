"""Files of any size: their rows counted, some columns read, their rows put in another order.

Only the columns asked for are held in memory, and a bounded part of the rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from lessonplan.data.reorder import reordered
from lessonplan.data.tables import (
    CsvRecord,
    check_names,
    checked_format,
    column_array,
    csv_records,
    json_object,
    missing_column,
    opened,
    parse_json_lines,
    python_values,
    read_table,
    reading_parquet,
    replacing,
    row_count,
    writable_format,
    write_columns,
)
from lessonplan.errors import InputError

BATCH_BYTES, BATCH_ROWS = 2**24, 2**16  # whichever comes first
FEW_ROWS = 2**10  # read at a time, while it is not known how large they are
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 2**17, 2**26
TEXT_ROWS = pa.schema([("row", pa.large_binary())])  # a row of a text file, with its line end

OnRows = Callable[[int], object] | None


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return the number of rows of a file (the header of a CSV is none).

    Lines of a JSONL file that begin with ``{`` and end with ``}`` count without being parsed.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`.
    """
    path = Path(path)
    kind = checked_format(path)
    if kind == "parquet":
        with _parquet(path) as file:
            return int(file.metadata.num_rows)
    if kind == "json":
        return row_count(read_table(path).columns)
    return sum(batch.num_rows for batch in _batches(path, kind))


def read_columns(
    path: str | os.PathLike[str],
    names: Sequence[str],
    *,
    texts: Collection[str] = (),
    on_rows: OnRows = None,
) -> dict[str, NDArray[Any]]:
    """Read some columns of a file as arrays.

    Args:
        path: a JSONL, JSON, CSV (each also with .gz) or Parquet file.
        names: the columns.
        texts: those of them that are text, whatever it looks like: "1.10" is not "1.1".
        on_rows: called with the number of rows read so far.

    Returns:
        Arrays of one entry a row: int64 or float64 where all values are numbers (missing ones are
        NaN), otherwise strings as objects (missing ones are None). CSV values count as numbers
        unless one has leading zeros, since "007" is a code.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`; an unknown column; a column of lists or
            objects.
    """
    path = Path(path)
    found = _read_parts(path, names, on_rows, texts)
    # Text in any part makes text of the whole column, and numbers do not say how they were written.
    mixed = [name for name in names if len({part.dtype == object for part in found[name]}) > 1]
    if mixed:
        found |= _read_parts(path, mixed, on_rows, mixed)
    return {name: np.concatenate(found[name] or [column_array([], "")]) for name in names}


def write_ordered(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    permutation: ArrayLike,
    *,
    on_rows: OnRows = None,
) -> None:
    """Write the rows of a file in another order, with all their columns.

    JSONL to JSONL and CSV to CSV move the lines byte for byte, Parquet to Parquet keeps types and
    metadata; of these, a bounded part is in memory, and scratch files lie beside `path_out`, as
    large as the rows are uncompressed. From one format to another, a file is held in memory as a
    whole, and values go as JSON or Arrow sees them; lists and objects stand in a CSV as JSON. The
    file appears under its name when it is whole, so it may be the input itself.

    Args:
        path_in: the file to read.
        path_out: the file to write; its extension says the format.
        permutation: 0-based row numbers in the new order, int64[m]; they may repeat or leave
            rows out.
        on_rows: called with the number of rows handled so far: first each row of the file, then
            each of the m that are written.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`; a row number that the file does not
            have.
    """
    path_in, path_out = Path(path_in), Path(path_out)
    kind, kind_out = checked_format(path_in), writable_format(path_out)
    order = np.asarray(permutation)
    if order.ndim != 1 or (order.size and not np.issubdtype(order.dtype, np.integer)):
        raise InputError("The order has to be one row of whole numbers.")
    order = order.astype(np.int64, copy=False)

    if kind != kind_out or kind == "json":
        columns = read_table(path_in).columns
        _check_order(order, row_count(columns), path_in)
        write_columns({n: [c[i] for i in order] for n, c in columns.items()}, path_out, kind_out)
        return

    handled = 0

    def watched(tables: Iterable[Any]) -> Iterator[Any]:
        nonlocal handled
        for table in tables:
            yield table
            handled += table.num_rows
            if on_rows is not None:
                on_rows(handled)

    def rows_in() -> Iterator[Any]:
        yield from watched(_batches(path_in, kind))
        _check_order(order, handled, path_in)

    with (
        replacing(path_out) as file,
        tempfile.TemporaryDirectory(prefix=".ordering-", dir=path_out.parent) as scratch,
    ):
        schema = _schema(path_in, kind)
        rows_out = watched(reordered(rows_in(), schema, order, Path(scratch)))
        if kind == "parquet":
            _write_parquet(file, schema, rows_out)
            return
        file.write(_header(path_in, kind))
        for table in rows_out:
            for rows in table.column(0).chunks:
                _, ends, content = rows.buffers()
                offsets = np.frombuffer(ends, np.int64, len(rows) + 1, offset=8 * rows.offset)
                file.write(memoryview(content)[offsets[0] : offsets[-1]])


def first_rows(path: str | os.PathLike[str], rows: int = 1000) -> dict[str, list[Any]]:
    """Return the first rows of a file, as `lessonplan.data.tables.read_table` does all.

    Raises:
        InputError: as `lessonplan.data.tables.read_table`.
    """
    path = Path(path)
    kind = checked_format(path)
    if kind == "parquet":
        with _parquet(path) as file:
            head = next(file.iter_batches(rows), file.schema_arrow.empty_table())
            return {name: python_values(head, name, path) for name in head.schema.names}
    if kind == "json":
        return {name: cells[:rows] for name, cells in read_table(path).columns.items()}
    with opened(path) as text:
        if kind == "csv":
            header, *records = [r.values for r in islice(csv_records(text, path), rows + 1)] or [[]]
            return {name: [cells[i] for cells in records] for i, name in enumerate(header)}
        return parse_json_lines(islice(text, rows), path).columns


def _read_parts(
    path: Path, names: Sequence[str], on_rows: OnRows, texts: Collection[str]
) -> dict[str, list[NDArray[Any]]]:
    """Return the columns as `read_columns` does, in parts of which each has a type of its own."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    done = 0
    for some in _arrays(path, names, texts):
        for name, array in zip(names, some, strict=True):
            parts[name].append(array)
        done += len(some[0])
        if on_rows is not None:
            on_rows(done)
    return parts


def _arrays(
    path: Path, names: Sequence[str], texts: Collection[str]
) -> Iterator[list[NDArray[Any]]]:
    """Yield the columns' arrays for some rows, then for the next."""
    kind = checked_format(path)
    if kind == "parquet":
        with _parquet(path) as file:
            _check_known(path, names, file.schema_arrow.names)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
                yield [_arrow_array(batch, name, path, name in texts) for name in names]
        return
    rows = {"csv": _csv_cells, "jsonl": _jsonl_cells, "json": _json_cells}[kind](path, names)
    while some := list(islice(rows, BATCH_ROWS)):
        yield [
            column_array(cells, f"{path}: column {name!r}", as_text=name in texts)
            for name, cells in zip(names, zip(*some, strict=True), strict=True)
        ]


def _arrow_array(batch: Any, name: str, path: Path, as_text: bool) -> NDArray[Any]:
    """Return a column of a record batch as `column_array` does, with few Python objects."""
    column, where = batch.column(name), f"{path}: column {name!r}"
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numeric = pa.types.is_floating(column.type) or pa.types.is_signed_integer(column.type)
    if numeric and not as_text:
        numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)  # missing ones are NaN
        return numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.float64)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (text or numeric):
        return column_array(python_values(batch, name, path), where, as_text=as_text)
    # Each text once: a category has few.
    encoded = column.dictionary_encode()
    texts = python_values(pa.table({name: encoded.dictionary}), name, path)
    place = encoded.indices
    if place.null_count:
        place = place.fill_null(len(texts))
        texts.append(None)
    array: NDArray[Any] = column_array(texts, where, as_text=as_text)[place.to_numpy()]
    return array


def _csv_cells(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    with opened(path) as file:
        records = csv_records(file, path)
        header = next((record.values for record in records), [])
        _check_known(path, names, header)
        places = [header.index(name) for name in names]
        for record in records:
            yield [record.values[place] for place in places]


def _jsonl_cells(path: Path, names: Sequence[str]) -> Iterator[list[Any]]:
    known: dict[str, Any] = {}
    for numbers, lines in _json_lines(path):
        for number, line in zip(numbers, lines.to_pylist(), strict=True):
            row = json_object(line, path, number)
            known.update(row)
            yield [row.get(name) for name in names]
    _check_known(path, names, list(known))


def _json_cells(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    columns = read_table(path).columns
    _check_known(path, names, list(columns))
    yield from zip(*(columns[name] for name in names), strict=True)


def _check_known(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(missing_column(path, name, known))


def _check_order(order: NDArray[np.int64], rows: int, path: Path) -> None:
    if order.size and (order.min() < 0 or order.max() >= rows):
        raise InputError(
            f"The order names rows from {order.min()} to {order.max()}, but {path} has the "
            f"{rows} rows from 0 on."
        )


def _schema(path: Path, kind: str) -> Any:
    if kind != "parquet":
        return TEXT_ROWS
    with _parquet(path) as file:
        return file.schema_arrow


def _header(path: Path, kind: str) -> bytes:
    if kind != "csv":
        return b""
    with opened(path) as file:
        return next((record.raw for record in _whole(csv_records(file, path))), b"")


def _batches(path: Path, kind: str) -> Iterator[Any]:
    """Yield the rows of a JSONL, CSV or Parquet file as Arrow record batches."""
    if kind == "jsonl":
        for _, lines in _json_lines(path):
            yield pa.record_batch([lines], schema=TEXT_ROWS)
    elif kind == "csv":
        with opened(path) as text:
            records = _whole(csv_records(text, path))
            next(records, None)  # the header
            yield from _joined(_csv_batches(records))
    else:
        with _parquet(path) as file:
            yield from _joined(file.iter_batches(FEW_ROWS))


def _csv_batches(records: Iterator[CsvRecord]) -> Iterator[Any]:
    while some := [record.raw for record in islice(records, FEW_ROWS)]:
        yield pa.record_batch([pa.array(some, pa.large_binary())], schema=TEXT_ROWS)


def _joined(batches: Iterable[Any]) -> Iterator[Any]:
    """Join small batches: how large rows are is known only once they are read."""
    for held in _gathered(batches, BATCH_ROWS, BATCH_BYTES):
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _gathered(tables: Iterable[Any], most_rows: int, most_bytes: int) -> Iterator[list[Any]]:
    """Yield tables or batches in lists that reach one of the two sizes; the last may be smaller."""
    held: list[Any] = []
    rows = size = 0
    for table in tables:
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= most_rows or size >= most_bytes:
            yield held
            held, rows, size = [], 0, 0
    if held:
        yield held


def _whole(records: Iterator[CsvRecord]) -> Iterator[CsvRecord]:
    """Give the last record the line end of the first one, if it has none."""
    end = b""
    for record in records:
        end = end or (b"\r\n" if record.raw.endswith(b"\r\n") else b"\n")
        has_end = record.raw.endswith((b"\n", b"\r"))
        yield record if has_end else record._replace(raw=record.raw + end)


def _json_lines(path: Path) -> Iterator[tuple[list[int], Any]]:
    """Yield the 1-based numbers of some lines that are not blank, and the lines: large binary.

    Raises:
        InputError: a line that does not look like ``{...}`` and is no JSON object.
    """
    first = 1
    with opened(path) as file:
        for block in _blocks(file):
            content = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(content == ord("\n")) + 1
            starts = np.concatenate([[0], ends[:-1]])
            lengths = ends - starts
            last = content[ends - np.minimum(lengths, 2)]
            fits = (content[starts] == ord("{")) & ((last == ord("}")) | (last == ord("\r")))
            for i in np.flatnonzero(~fits):
                line = block[starts[i] : ends[i]]
                if line.strip():
                    json_object(line, path, first + int(i))
                    fits[i] = True
            offsets = pa.py_buffer(np.concatenate([[0], ends]))
            buffers = [None, offsets, pa.py_buffer(block)]
            lines = pa.Array.from_buffers(pa.large_binary(), len(ends), buffers)
            numbers = (first + np.flatnonzero(fits)).tolist()
            yield numbers, lines if fits.all() else lines.filter(pa.array(fits))
            first += len(ends)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the file in blocks of whole lines."""
    rest = b""
    while block := file.read(BATCH_BYTES):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield lines + newline
    if rest:
        yield rest + b"\n"


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file to be read a little at a time."""
    with (
        reading_parquet(path),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file,
    ):
        check_names(file.schema_arrow.names, str(path))
        yield file


def _write_parquet(file: BinaryIO, schema: Any, tables: Iterable[Any]) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for held in _gathered(tables, ROW_GROUP_ROWS, ROW_GROUP_BYTES):
            writer.write_table(pa.concat_tables(held))
