"""Any table in and out: JSONL, JSON, CSV and Parquet, of questions or of anything else.

Text formats are read by the standard library, so that an error names the line, nothing is retyped
("007" stays "007"), and a reordered file consists of the very lines of the first one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lessonplan.errors import InputError, first_line, nearest

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("jsonl", "json", "csv", "parquet")
EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
NESTED = (list, dict, bytes)  # kinds of values that are neither a number nor a text
# How files begin that are no text, whatever they are called.
SIGNATURES = {
    b"\x1f\x8b": "is packed by gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"PAR1": "is a Parquet file; give it a name that ends in .parquet",
    codecs.BOM_UTF16_LE: "is UTF-16; save it as UTF-8 (for instance: iconv -f UTF-16 -t UTF-8)",
    codecs.BOM_UTF16_BE: "is UTF-16; save it as UTF-8 (for instance: iconv -f UTF-16 -t UTF-8)",
}


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


def read_table(path: str | os.PathLike[str], keep: Collection[str] | None = None) -> Table:
    """Read a whole file.

    CSV values are strings as they stand; JSON and Parquet values have their own types. A key that
    a JSON object lacks is None.

    Args:
        path: a JSONL, JSON, CSV (each also with .gz) or Parquet file.
        keep: the columns to hold in memory, those of them that there are; by default all.

    Raises:
        InputError: no such file, an unknown extension, text that is not UTF-8, or a line that
            cannot be parsed (the message has its number).
    """
    path = Path(path)
    kind = checked_format(path)
    if kind == "parquet":
        table = _read_parquet(path, keep)
        return Table({n: python_values(table, n, path) for n in table.column_names}, None)
    with opened(path) as file:
        if kind == "csv":
            return _parse_csv(file, path, keep)
        # MedMCQA's own files are JSON lines under the name .json.
        if kind == "jsonl" or not file.peek(1).lstrip().startswith(b"["):
            return parse_json_lines(file, path, keep)
        text = "".join(_decoded(line, path, number) for number, line in enumerate(file, start=1))
    return _parse_json_array(text, path, keep)


def row_count(columns: dict[str, list[Any]]) -> int:
    """Return the length of the columns."""
    return len(next(iter(columns.values()), []))


def write_table(table: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a `datasets.Dataset`, such as questions, in the format of the file's extension."""
    path = Path(path)
    kind = writable_format(path)
    table = table.with_format(None)
    if kind == "parquet":
        with replacing(path) as file:
            table.to_parquet(file)
        return
    write_columns({name: list(table[name]) for name in table.column_names}, path, kind)


def write_jsonl(table: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a `datasets.Dataset` as JSON lines, whatever the file's name is."""
    table = table.with_format(None)
    write_columns({name: list(table[name]) for name in table.column_names}, Path(path), "jsonl")


def missing_column(source: object, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Return the message for a column that is not there."""
    return (
        f"{source} has no column {name!r}.{nearest(name, known)} "
        f"Its columns are: {', '.join(map(str, known)) or 'none'}."
    )


def column_array(values: Sequence[Any], where: str, *, as_text: bool = False) -> NDArray[Any]:
    """Turn a column of Python values into an array, as `lessonplan.data.read_columns` describes.

    Args:
        values: the column.
        where: what to call it in messages.
        as_text: makes text of numbers, too. Texts are as `cell_text` makes them.
    """
    present = [v for v in values if not is_missing(v)]
    for value in present:
        if isinstance(value, NESTED):
            raise InputError(f"{where} holds lists, objects or bytes; numbers or text are needed.")
    numbers = None if as_text else _as_numbers(present)
    if numbers is None:
        texts = np.empty(len(values), dtype=object)
        known: dict[str, str] = {}  # equal texts share one object
        for i, value in enumerate(values):
            if not is_missing(value):
                text = cell_text(value)
                texts[i] = known.setdefault(text, text)
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


def cell_text(cell: Any) -> str:
    """Return a cell as text: without outer white space, empty where it is missing."""
    if is_missing(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        # Parquet and JSON give whole numbers as floats in a column with gaps.
        return str(int(cell))
    return str(cell).strip()


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


def checked_format(path: Path) -> str:
    kind = table_format(path)
    if not os.path.exists(path):  # Path.exists raises for a name that no file can have
        siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        raise InputError(f"There is no file {path}.{nearest(path.name, siblings)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file ({', '.join(EXTENSIONS)}) is needed.")
    if kind is None:
        raise InputError(
            f"{path}: the format is told by the extension, which has to be one of "
            f"{', '.join(EXTENSIONS)}. Convert or rename the file."
        )
    return kind


def writable_format(path: Path) -> str:
    kind = table_format(path)
    if kind is None:
        raise InputError(
            f"{path}: cannot tell which format to write; the name has to end in one of "
            f"{', '.join(EXTENSIONS)}."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; the name of a file is needed.")
    return kind


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file as bytes, unpacked, behind the mark that some programs begin UTF-8 with."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.peek(4)
            for signature, advice in SIGNATURES.items():
                if start.startswith(signature):
                    raise InputError(f"{path} {advice}.")
            if start.startswith(codecs.BOM_UTF8):
                file.read(3)
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read, since gzip cannot unpack it ({error}). It is damaged or cut "
            "off, or no gzip file; pack or fetch it again."
        ) from error


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8. Save the file as "
            f"UTF-8 (for instance: iconv -f WINDOWS-1252 -t UTF-8)."
        ) from error


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Let what goes wrong in reading a Parquet file be an InputError that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is not a Parquet file, or a damaged one: {first_line(error)}"
        ) from error


def _read_parquet(path: Path, keep: Collection[str] | None) -> Any:
    import pyarrow.parquet as pq

    with reading_parquet(path):
        names = pq.read_schema(path).names
        check_names(names, str(path))
        return pq.read_table(path, columns=[n for n in names if keep is None or n in keep])


def python_values(table: Any, name: str, path: Path) -> list[Any]:
    """Return a column of an Arrow table as Python values."""
    import pyarrow as pa

    try:
        values: list[Any] = table.column(name).to_pylist()
    # Arrow knows more than Python: years beyond 9999, time zones of any name, text not in UTF-8.
    except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
        raise InputError(
            f"{path}: column {name!r} ({table.schema.field(name).type}) holds a value that cannot "
            f"be read: {first_line(error)}. Mend the column, or leave it out of the file."
        ) from error
    return values


def parse_json_lines(
    lines: Iterable[bytes], path: Path, keep: Collection[str] | None = None
) -> Table:
    """Read JSON objects, one a line; blank lines are skipped."""
    numbers = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                numbers.append(number)
                yield json_object(line, path, number)

    return Table(_columns_of(rows(), keep), numbers)


def json_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Return what one line of a file of JSON lines holds.

    Raises:
        InputError: it is no JSON object in UTF-8, or holds half a character.
    """
    text = _decoded(line, path, number).rstrip("\r\n")
    row = _load_json(text, path, number)
    _refuse_half_characters(text, row, f"{path}, line {number}")
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: expected a JSON object, found {kind_of(row)}.")
    return row


def _load_json(text: str, path: Path, line: int) -> Any:
    """Return the value of a JSON text that begins on a line of a file."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {line + error.lineno - 1}: not valid JSON ({error.msg}, column "
            f"{error.colno}). Expected one object a line, or in a .json file a list of objects."
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}, line {line}: JSON that is nested too deeply.") from error
    except ValueError as error:
        reason = str(error).partition(";")[0]  # behind it stands what to do in Python
        raise InputError(f"{path}, line {line}: JSON that cannot be read: {reason}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} comes twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _parse_json_array(text: str, path: Path, keep: Collection[str] | None) -> Table:
    rows = _load_json(text, path, 1)
    for number, row in enumerate(rows, start=1):
        _refuse_half_characters(text, row, f"{path}, entry {number}")
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, entry {number}: expected a JSON object, found {kind_of(row)}."
            )
    return Table(_columns_of(rows, keep), None)


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


def kind_of(value: Any) -> str:
    """Return what a value is, for a message."""
    kinds: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes", str: "a string"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _columns_of(
    rows: Iterable[dict[str, Any]], keep: Collection[str] | None
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    n = 0
    for row in rows:
        for name, value in row.items():
            if keep is None or name in keep:
                column = columns.setdefault(name, [])
                column.extend([None] * (n - len(column)))  # the rows before that lack the key
                column.append(value)
        n += 1
    for column in columns.values():
        column.extend([None] * (n - len(column)))
    return columns


def _parse_csv(lines: Iterable[bytes], path: Path, keep: Collection[str] | None) -> Table:
    records = csv_records(lines, path)
    header = next((record.values for record in records), [])
    places = [i for i, name in enumerate(header) if keep is None or name in keep]
    columns: dict[str, list[Any]] = {header[i]: [] for i in places}
    numbers = []
    for record in records:
        for i, column in zip(places, columns.values(), strict=True):
            column.append(record.values[i])
        numbers.append(record.line)
    return Table(columns, numbers)


class CsvRecord(NamedTuple):
    """The 1-based line that a record begins on, its values, and its bytes with their line end."""

    line: int
    values: list[str]
    raw: bytes


def csv_records(lines: Iterable[bytes], path: Path) -> Iterator[CsvRecord]:
    """Yield the header, its names without outer white space, then each record that is not blank.

    Args:
        lines: the file's lines with their ends.
        path: to be named in messages.

    Raises:
        InputError: a broken record, text that is not UTF-8, two columns of one name, or a record
            with more or fewer values than the header.
    """
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than some explanations have
    raw: list[bytes] = []

    def watched() -> Iterator[str]:
        for line in lines:
            # Old files end their lines with a carriage return alone.
            for piece in line.splitlines(keepends=True) if b"\r" in line else (line,):
                raw.append(piece)
                yield _decoded(piece, path, reader.line_num + 1)

    reader = csv.reader(watched(), strict=True)
    width = 0
    start = 1
    try:
        for values in reader:
            if values:  # the reader gives [] for a blank line
                if not width:
                    values, width = [name.strip() for name in values], len(values)
                    check_names(values, f"{path}, line {start}")
                    if width == 1 and (sign := next((c for c in "\t;" if c in values[0]), None)):
                        raise InputError(
                            f"{path}, line {start}: one column named {values[0]!r}. Its names seem "
                            f"to be separated by {sign!r}; save the file with commas."
                        )
                if len(values) != width:
                    raise InputError(
                        f"{path}, line {start}: {len(values)} values, but the header names "
                        f"{width} columns. Values with a comma have to stand in quotes."
                    )
                yield CsvRecord(start, values, b"".join(raw))
            raw.clear()
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: the CSV record that begins here is broken ({error}). A value "
            "with a quote has to stand in quotes, with its own quotes doubled."
        ) from error


def check_names(names: list[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: two columns are named {twice!r}. Rename one.")


def write_columns(columns: dict[str, list[Any]], path: Path, kind: str) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pa.table(columns)
            with replacing(path) as file:
                pq.write_table(table, file)
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{path}: a column mixes kinds of values, or has numbers of more than 64 bits, "
                f"which Parquet does not allow ({first_line(error)}). Write to .jsonl."
            ) from error
        return
    with replacing(path) as file:
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
    return json.dumps(value, ensure_ascii=False, default=_text)


def _text(value: Any) -> str:
    """Return what JSON has no form for as text: dates and decimals, from Parquet."""
    if isinstance(value, bytes):
        raise InputError(
            "A column holds bytes, such as pictures, which CSV and JSON cannot. Write to .parquet."
        )
    return str(value)


def _csv_value(value: Any) -> Any:
    return _json(value) if isinstance(value, NESTED) else value


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
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
