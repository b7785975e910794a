"""Any table in and out: JSONL, JSON, CSV and Parquet, of questions or of anything else.

Text formats are read by the standard library, so that an error names the line, nothing is retyped
("007" stays "007"), and a reordered file consists of the very lines of the first one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lessonplan.errors import InputError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("jsonl", "json", "csv", "parquet")
EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")


class Table(NamedTuple):
    """Columns as lists of equal length, and for text formats the line that each row begins on."""

    columns: dict[str, list[Any]]
    lines: list[int] | None

    def place(self, row: int) -> str:
        """Return what to call a 0-based row in a message."""
        return f"line {self.lines[row]}" if self.lines else f"row {row + 1}"


def table_format(path: str | os.PathLike[str]) -> str | None:
    """Return ``"jsonl"``, ``"json"``, ``"csv"`` or ``"parquet"``, or None for other names."""
    name = Path(path).name.lower()
    return next((e.split(".")[1] for e in EXTENSIONS if name.endswith(e)), None)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a whole file.

    CSV values are strings as they stand; JSON and Parquet values have their own types. A key that
    a JSON object lacks is None.

    Raises:
        InputError: no such file, an unknown extension, text that is not UTF-8, or a line that
            cannot be parsed (the message has its number).
    """
    path = Path(path)
    kind = _checked_format(path)
    if kind == "parquet":
        table = _read_parquet(path)
        return Table({n: table.column(n).to_pylist() for n in table.column_names}, None)
    text = _read_text(path)
    if kind == "csv":
        return _parse_csv(text, path)
    if kind == "json" and text.lstrip().startswith("["):
        return _parse_json_array(text, path)
    # MedMCQA's own files are JSON lines under the name .json.
    return parse_json_lines(text, path)


def read_columns(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read some columns of a file as arrays.

    Args:
        path: a JSONL, JSON, CSV (each also with .gz) or Parquet file.
        names: the columns.

    Returns:
        Arrays of one entry a row: int64 or float64 where all values are numbers (missing ones are
        NaN), otherwise strings as objects (missing ones are None). CSV values count as numbers
        unless one has leading zeros, since "007" is a code.

    Raises:
        InputError: as `read_table`; an unknown column; a column of lists or objects.
    """
    columns = read_table(path).columns
    for name in names:
        if name not in columns:
            raise InputError(missing_column(path, name, columns))
    return {name: column_array(columns[name], f"{path}: column {name!r}") for name in names}


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return the number of rows of a file (the header of a CSV is none)."""
    path = Path(path)
    if _checked_format(path) == "parquet":
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise InputError(f"{path} is not a Parquet file: {error}") from error
    return row_count(read_table(path).columns)


def row_count(columns: dict[str, list[Any]]) -> int:
    """Return the length of the columns."""
    return len(next(iter(columns.values()), []))


def write_ordered(
    path_in: str | os.PathLike[str], path_out: str | os.PathLike[str], permutation: ArrayLike
) -> None:
    """Write the rows of a file in another order, with all their columns.

    JSONL to JSONL and CSV to CSV move the lines byte for byte, Parquet to Parquet keeps types and
    metadata. From one format to another, values go as JSON or Arrow sees them; lists and objects
    stand in a CSV as JSON. The file appears under its name when it is whole, so it may be the
    input itself.

    Args:
        path_in: the file to read.
        path_out: the file to write; its extension says the format.
        permutation: 0-based row numbers in the new order, int64[m]; they may repeat or leave
            rows out.

    Raises:
        InputError: as `read_table`; a row number that the file does not have.
    """
    path_in, path_out = Path(path_in), Path(path_out)
    kind_in, kind_out = _checked_format(path_in), _writable_format(path_out)
    order = np.asarray(permutation)
    if order.ndim != 1 or (order.size and not np.issubdtype(order.dtype, np.integer)):
        raise InputError("The order has to be one row of whole numbers.")

    if kind_in == kind_out == "parquet":
        import pyarrow.parquet as pq

        table = _read_parquet(path_in)
        _check_order(order, table.num_rows, path_in)
        with _replacing(path_out) as file:
            pq.write_table(table.take(order.astype(np.int64)), file)
        return

    if kind_in == kind_out and kind_in in ("jsonl", "csv"):
        header, records = _raw_records(path_in, kind_in)
        _check_order(order, len(records), path_in)
        with _replacing(path_out) as file:
            file.write(header)
            for i in order:
                file.write(records[i])
        return

    columns = read_table(path_in).columns
    _check_order(order, row_count(columns), path_in)
    _write_columns({n: [c[i] for i in order] for n, c in columns.items()}, path_out, kind_out)


def write_table(table: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a `datasets.Dataset`, such as questions, in the format of the file's extension."""
    path = Path(path)
    kind = _writable_format(path)
    table = table.with_format(None)
    if kind == "parquet":
        with _replacing(path) as file:
            table.to_parquet(file)
        return
    _write_columns({name: list(table[name]) for name in table.column_names}, path, kind)


def write_jsonl(table: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a `datasets.Dataset` as JSON lines, whatever the file's name is."""
    table = table.with_format(None)
    _write_columns({name: list(table[name]) for name in table.column_names}, Path(path), "jsonl")


def missing_column(source: object, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Return the message for a column that is not there."""
    return (
        f"{source} has no column {name!r}.{nearest(name, known)} "
        f"Its columns are: {', '.join(map(str, known)) or 'none'}."
    )


def column_array(values: Sequence[Any], where: str) -> NDArray[Any]:
    """Turn a column of Python values into an array, as `read_columns` describes."""
    present = [v for v in values if not is_missing(v)]
    for value in present:
        if isinstance(value, (list, dict)):
            raise InputError(f"{where} holds lists or objects; numbers or text are needed.")
    numbers = _as_numbers(present)
    if numbers is None:
        texts = np.empty(len(values), dtype=object)
        texts[:] = [None if is_missing(v) else str(v) for v in values]
        return texts
    if len(numbers) == len(values) and all(isinstance(n, int) for n in numbers):
        return np.array(numbers, dtype=np.int64)
    array = np.full(len(values), np.nan)
    array[[not is_missing(v) for v in values]] = numbers
    return array


def is_missing(value: Any) -> bool:
    """Tell whether a value is None, blank text or NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def _as_numbers(values: Sequence[Any]) -> list[int | float] | None:
    """Return the values as numbers, or None when one of them is none."""
    numbers: list[int | float] = []
    for value in values:
        if isinstance(value, bool):
            return None
        if isinstance(value, str):
            value = value.strip()
            digits = value.lstrip("+-")
            if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
                return None
            try:
                value = float(value) if not digits.isdigit() else int(value)
            except ValueError:
                return None
        elif not isinstance(value, (int, float)):
            return None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return None
        numbers.append(value)
    return numbers


def _checked_format(path: Path) -> str:
    kind = table_format(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"There is no file {path}.{nearest(path.name, siblings)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file ({', '.join(EXTENSIONS)}) is needed.")
    if kind is None:
        raise InputError(
            f"{path}: the format is told by the extension, which has to be one of "
            f"{', '.join(EXTENSIONS)}."
        )
    return kind


def _writable_format(path: Path) -> str:
    kind = table_format(path)
    if kind is None:
        raise InputError(
            f"{path}: cannot tell which format to write; the name has to end in one of "
            f"{', '.join(EXTENSIONS)}."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; the name of a file is needed.")
    return kind


def _check_order(order: NDArray[Any], rows: int, path: Path) -> None:
    if order.size and (order.min() < 0 or order.max() >= rows):
        raise InputError(
            f"The order names rows from {order.min()} to {order.max()}, but {path} has the "
            f"{rows} rows from 0 on."
        )


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8. Save the file as "
            f"UTF-8 (for instance: iconv -f WINDOWS-1252 -t UTF-8)."
        ) from error


def _read_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{path} is not a Parquet file: {error}") from error


def parse_json_lines(text: str, path: Path) -> Table:
    rows, lines = [], []
    # Not splitlines(): U+2028 and its like are allowed inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}).") from error
        _refuse_half_characters(line, row, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: expected a JSON object, found {_kind_of(row)}."
            )
        rows.append(row)
        lines.append(number)
    return Table(_columns_of(rows), lines)


def _parse_json_array(text: str, path: Path) -> Table:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error}).") from error
    for number, row in enumerate(rows, start=1):
        _refuse_half_characters(text, row, f"{path}, entry {number}")
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, entry {number}: expected a JSON object, found {_kind_of(row)}."
            )
    return Table(_columns_of(rows), None)


def _refuse_half_characters(text: str, row: Any, where: str) -> None:
    r"""Refuse text such as "\ud83d" alone, half of an emoji: JSON can hold it, UTF-8 cannot."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {error.object[error.start : error.end]!r} is half a character. The text was "
            "probably cut in the middle of one; mend or remove it."
        ) from None


def _kind_of(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")


def _columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parse_csv(text: str, path: Path) -> Table:
    header: list[str] = []
    rows, lines = [], []
    for line, values, _ in _csv_records(text, path):
        if not header:
            header = [name.strip() for name in values]
            for name in header:
                if header.count(name) > 1:
                    raise InputError(f"{path}, line {line}: two columns are named {name!r}.")
            continue
        if len(values) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(values)} values, but the header names "
                f"{len(header)} columns. Values with a comma have to stand in quotes."
            )
        rows.append(values)
        lines.append(line)
    return Table({name: [row[i] for row in rows] for i, name in enumerate(header)}, lines)


def _csv_records(text: str, path: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield the first line number, the values and the raw text of each record, header included."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than some explanations have
    raw: list[str] = []

    def watched() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            raw.append(line)
            yield line

    reader = csv.reader(watched(), strict=True)
    start = 1
    try:
        for values in reader:
            if values:  # the reader gives [] for a blank line
                yield start, values, "".join(raw)
            raw.clear()
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: the CSV record that begins here is broken ({error})."
        ) from error


def _raw_records(path: Path, kind: str) -> tuple[bytes, list[bytes]]:
    """Return the header (empty for JSONL) and each record as bytes, all with a line end."""
    if kind == "jsonl":
        raw = _read_bytes(path).removeprefix(b"\xef\xbb\xbf")
        return b"", [line + b"\n" for line in raw.split(b"\n") if line.strip()]
    text = _read_text(path)
    _parse_csv(text, path)  # for its messages on broken records
    records = [raw.encode() for _, _, raw in _csv_records(text, path)]
    if not records:
        return b"", []
    end = b"\r\n" if records[0].endswith(b"\r\n") else b"\n"
    records = [r if r.endswith((b"\n", b"\r")) else r + end for r in records]
    return records[0], records[1:]


def _write_columns(columns: dict[str, list[Any]], path: Path, kind: str) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pa.table(columns)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{path}: a column mixes kinds of values, which Parquet does not allow ({error})."
            ) from error
        with _replacing(path) as file:
            pq.write_table(table, file)
        return
    with _replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        if kind == "jsonl":
            text.writelines(_json(row) + "\n" for row in rows)
        elif kind == "json":
            text.write("[\n" + ",\n".join(_json(row) for row in rows) + "\n]\n")
        else:
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows([_csv_value(v) for v in row.values()] for row in rows)
        text.detach()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # str: dates, from Parquet


def _csv_value(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and give it that name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if path.suffix.lower() == ".gz":
                # No time and no name inside, so the same rows give the same bytes.
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    yield packed  # type: ignore[misc]
            else:
                yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
